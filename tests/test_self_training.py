"""Self-training with pseudo labels, averages of weights, and checkpoints whose outputs are averaged."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.outputs import open_outputs
from main import main as train
from scripts.pseudo_labels import main as write_labels
from scripts.self_training import main as self_train
from test import main as evaluate
from tests.test_dataset import MemoryStore, assert_equal, batches, dataset
from tests.test_method_interface import FEATURES, LABELS, PAIRS, built
from tests.test_train import checkpoint, records, same
from utils.annotations import parse_annotations
from utils.engine import BatchLoss
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features
from utils.formats.checksums import sha256_of
from utils.formats.files import read_yaml
from utils.losses import CLAMP
from utils.methods import METHODS
from utils.pseudo_labels import (
    class_activation,
    fuse_segments,
    pseudo_label_loss,
    pseudo_labels,
    ramp_up,
    read_pseudo_labels,
    score_segments,
    snippet_labels,
    write_pseudo_labels,
)
from utils.trained import Pool


@pytest.fixture(scope="module", autouse=True)
def quick_runs():
    """One thread, because runs are compared bit for bit, and no pictures, which take half of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.results.plot_videos", lambda *_: None)
        yield
    torch.set_num_threads(before)


# Labels


def test_labels_of_a_case_by_hand():
    """Ten thresholds up to 0.48 give [2, 6), ten from 0.52 give [3, 5).

    [2, 6): inner mean 3/4, outer mean 0. [3, 5): inner mean 1; the margin of half a snippet reaches snippet 2 alone.
    """
    activation = np.array([0, 0, 0.5, 1, 1, 0.5, 0, 0])
    segments, scores, weights = score_segments(activation)
    assert segments.tolist() == [[2, 6]] * 10 + [[3, 5]] * 10
    np.testing.assert_allclose(scores, [0.75] * 10 + [0.5] * 10)
    np.testing.assert_allclose(weights, [0.75] * 10 + [1.0] * 10)
    share = np.exp(-2.5) / (1 + np.exp(-2.5))  # of [2, 6)
    fused = fuse_segments(segments, scores, weights)
    np.testing.assert_allclose(fused, [[3 - share, 5 + share, 0.5 + 0.25 * share]])
    expected = np.array([0, 0, 0, 1, 1, 0, 0, 0]) * (0.5 + 0.25 * share)  # the middle of snippet 2 is outside
    # The second class has the same curve on another scale; the third does not change; the fourth is too short.
    flat, peak = np.full(8, 0.3), np.eye(8)[4]
    labels = pseudo_labels(np.stack([activation, 0.1 + 0.2 * activation, flat, peak], axis=1))
    np.testing.assert_allclose(labels.T, [expected, expected, 0 * flat, 0 * peak])
    relative = pseudo_labels(np.stack([activation, flat], axis=1), relative=True)
    np.testing.assert_allclose(relative.T, [expected > 0, 0 * flat])


def test_fusion_of_a_case_by_hand():
    """[5, 9) lies in the best segment; of [8, 20) a sixth does, and no part of [30, 40)."""
    segments = np.array([[8, 20], [0, 10], [30, 40], [5, 9]])
    fused = fuse_segments(segments, np.array([0.8, 1.0, -0.2, 0.4]), np.array([0.5, 0.3, 0.1, 0.3]))
    np.testing.assert_allclose(fused, [[2.5, 9.5, 0.7], [8, 20, 0.8], [30, 40, -0.2]])
    labels = snippet_labels(fused, 40)
    expected = [0] * 2 + [0.7] * 6 + [0.8] * 12 + [0] * 20  # a middle on a border is inside at the start alone
    np.testing.assert_allclose(labels, expected)
    assert snippet_labels(fuse_segments(*score_segments(np.zeros(5))), 5).tolist() == [0] * 5


@pytest.mark.parametrize(
    "other, is_fused",
    [((8, 12), True), ((7, 14), True), ((-9, 4), True), ((8, 16), False), ((5, 25), False), ((-9, 3), False)],
)
def test_a_segment_joins_by_the_share_of_its_own_length(other, is_fused):
    """More than a quarter of it must lie in the best segment [0, 10)."""
    fused = fuse_segments(np.array([[0, 10], other]), np.array([1.0, 0.5]), np.ones(2))
    assert len(fused) == 2 - is_fused


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 20)), min_size=1, max_size=6))
def test_clear_actions_become_their_own_labels(parts):
    """An activation of 1 inside known segments and 0 elsewhere; the margins may reach other segments."""
    truth = np.concatenate([np.repeat([0.0, 1.0], part) for part in parts] + [np.zeros(1)])
    labels = pseudo_labels(truth[:, None])[:, 0]
    assert (labels[truth == 0] == 0).all() and (labels[truth == 1] > 0).all()
    if len(parts) == 1:
        np.testing.assert_array_equal(labels, truth)


def test_activation_of_logits_log_probabilities_and_no_background():
    generator = np.random.default_rng(0)
    logits, attention = generator.normal(size=(9, 4)), generator.random(9)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = attention[:, None] * probabilities
    np.testing.assert_allclose(class_activation(logits, attention), expected)
    np.testing.assert_allclose(class_activation(np.log(probabilities), attention), expected)
    assert class_activation(logits[:, :3], attention).shape == (9, 3)


# Loss


def test_loss_and_gradient_are_those_of_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    cas = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    attention = torch.rand(2, 5, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.rand(2, 5, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0, 1])
    expected = 0.0
    for video in range(2):
        total, weights = 0.0, 0.0
        for snippet in range(5):
            x, a = labels[video, snippet], attention[video, snippet]
            f = x.max()
            q = torch.cat([x, 1 - f[None]])
            q = q / q.sum()
            w = abs(2 * f - 1)
            entropy = -(q * torch.log(torch.softmax(cas[video, snippet], dim=0))).sum()
            total = total + w * (entropy - f * torch.log(a) - (1 - f) * torch.log(1 - a))
            weights = weights + w
        expected = expected + total / weights / 2
    got = pseudo_label_loss(cas, attention, labels)
    torch.testing.assert_close(got, expected)
    for one, other in zip(*(torch.autograd.grad(x, (cas, attention)) for x in (got, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_loss_is_finite_at_its_limits():
    attention = torch.tensor([[0.0, 1.0]], requires_grad=True)
    cas = torch.zeros(1, 2, 3, requires_grad=True)
    wrong, undecided = torch.tensor([[[1.0, 0], [0, 0]]]), torch.full((1, 2, 2), 0.5)
    loss = pseudo_label_loss(cas, attention, wrong)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(3) - np.log(CLAMP), rel=1e-3)
    assert attention.grad.isfinite().all() and cas.grad.isfinite().all()
    assert pseudo_label_loss(cas, attention, undecided).item() == 0  # no snippet is certain


def test_ramp():
    for progress, expected in ((0.0, np.exp(-5)), (0.1, np.exp(-1.25)), (0.2, 1.0), (0.9, 1.0)):
        assert ramp_up(progress).item() == pytest.approx(expected)
        assert ramp_up(torch.tensor(progress)).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].has_background])
def test_loss_is_added_to_that_of_any_method(name):
    method, labels = built(name), torch.rand(len(LABELS), FEATURES.shape[1], LABELS.shape[1])
    method.network.eval()
    module = BatchLoss(method.network, method.objective, pseudo_weight=2.0)
    plain = method.objective(method.network(FEATURES), LABELS, PAIRS, progress=0.1)
    without = module(FEATURES, LABELS, PAIRS, 0.1)
    assert plain.keys() == without.keys() and all(torch.equal(plain[key], without[key]) for key in plain)
    terms = module(FEATURES, LABELS, PAIRS, torch.tensor(0.1), labels)
    assert terms["pseudo"] > 0
    torch.testing.assert_close(terms["total"], plain["total"] + 2 * np.exp(-1.25) * terms["pseudo"])


def test_one_graph_for_all_steps():
    graphs, method = [], built("co2net")
    module = torch.compile(
        BatchLoss(method.network, method.objective),
        backend=lambda graph, inputs: graphs.append(graph) or graph.forward,
        fullgraph=True,
    )
    for step in range(3):
        labels = torch.rand(len(LABELS), FEATURES.shape[1], LABELS.shape[1])
        module(FEATURES, LABELS, PAIRS, torch.tensor(step / 3), labels)["total"].backward()
    assert len(graphs) == 1


# Batches


@pytest.mark.parametrize("options", [{}, {"sampling": "release", "num_snippets": 50}, {"prefetch": True}])
@pytest.mark.parametrize("device", ["cpu", None])
def test_labels_follow_the_sampled_snippets(device, options, monkeypatch):
    """Features and labels both encode video and snippet. Videos may be shorter than T."""
    monkeypatch.setattr(MemoryStore, "rows", lambda self, video, snippets: self[video][snippets], raising=False)
    data = dataset(device=device)
    table = [
        np.zeros((length, int(row.sum())), np.float32) for length, row in zip(data.lengths, data.labels, strict=True)
    ]
    for index, values in enumerate(table):
        values[:] = (np.arange(len(values))[:, None] + 100 * index) / 1024
    labeled, plain = batches(data, **options, pseudo_labels=table), batches(data, **options)
    assert_equal([batch[:3] for batch in labeled], plain)
    assert all(len(batch) == 3 for batch in plain)
    halves = [batches(data, **options, pseudo_labels=table, rank=rank, num_ranks=2) for rank in range(2)]
    for features, labels, _, targets in [*labeled, *halves[0], *halves[1]]:
        numbers, snippets = np.divmod(features[:, :, 0].numpy().astype(int), 1000)
        indices = np.array([[data.video_ids.index(f"v{n}") for n in row] for row in numbers])
        expected = torch.from_numpy((snippets + 100 * indices) / 1024)[..., None] * labels[:, None]
        assert torch.equal(targets, expected.float())


# File


@pytest.fixture
def videos():
    return {"a/b": (np.array([0, 2]), np.linspace(0, 1, 10).reshape(5, 2)), "c": (np.zeros(0, int), np.zeros((3, 0)))}


class Videos(SimpleNamespace):
    """Videos of a dataset."""

    def __len__(self):
        return len(self.video_ids)


def made_dataset(**changes) -> Videos:
    labels = np.array([[0, 0, 0], [1, 0, 1]], dtype=bool)
    values = {"video_ids": ["c", "a/b"], "labels": labels, "lengths": np.array([3, 5]), "classes": ("x", "y", "z")}
    return Videos(**{**values, **changes})


def test_file_keeps_labels_of_any_name_and_number(videos, tmp_path):
    write_pseudo_labels(tmp_path / "labels.h5", videos, ("x", "y", "z"), {"a.pt": "00"})
    first, second = read_pseudo_labels(tmp_path / "labels.h5", made_dataset())
    assert first.shape == (3, 0)
    np.testing.assert_array_equal(second, videos["a/b"][1].astype(np.float32))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": ("x", "y")}, "has labels of 3 classes (x, y, z), the annotations have 2 (x, y); write it again"),
        ({"video_ids": ["c", "d"]}, "has no labels of 1 training video (d); write it again for this dataset"),
        ({"lengths": np.array([3, 6])}, "video 'a/b' has 5 snippets, its features have 6; write it again from these"),
        ({"labels": np.eye(2, 3, -1, dtype=bool)}, "video 'a/b' has labels of x, z, the annotations have x; write"),
    ],
)
def test_a_file_of_other_data_is_refused(videos, tmp_path, changes, message):
    write_pseudo_labels(tmp_path / "labels.h5", videos, ("x", "y", "z"), {})
    with pytest.raises(InputError) as error:
        read_pseudo_labels(tmp_path / "labels.h5", made_dataset(**changes))
    assert message in str(error.value)


def test_another_file_is_refused(videos, tmp_path):
    path = tmp_path / "labels.h5"
    with pytest.raises(InputError, match="pseudo labels not found"):
        read_pseudo_labels(path, made_dataset())
    path.write_text("text")
    with pytest.raises(InputError, match="not a file of pseudo labels"):
        read_pseudo_labels(path, made_dataset())
    with h5py.File(path, "w") as file:
        file["rgb/a"] = np.zeros((3, 2))
    with pytest.raises(InputError, match="not a file of pseudo labels"):
        read_pseudo_labels(path, made_dataset())
    videos["a/b"][1][0] = np.nan
    write_pseudo_labels(path, videos, ("x", "y", "z"), {})
    with pytest.raises(InputError, match=r"'a/b' has values outside \[0, 1\]"):
        read_pseudo_labels(path, made_dataset())


# Commands


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    simulate_features(parse_annotations(invent_timeline(12, 3), "invented"), folder, (6, 5))
    return folder


def words_of(data, run, *more) -> list[str]:
    words = f"--config configs/demo.yaml --path-dataset {data} --run-dir {run} --num-snippets 12 --device cpu"
    return [*words.split(), "--no-evaluate-untrained", *map(str, more)]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Folder with finished runs of two seeds, and of a method without background class."""
    folder = tmp_path_factory.mktemp("runs")
    for name, method, seed in (("a", "co2net", 0), ("b", "co2net", 1), ("c", "um", 0)):
        train(words_of(data, folder / name, "--max-iter", 2, "--method", method, "--seed", seed))
    return folder


def last(runs, name):
    return runs / name / "checkpoints/last.pt"


def test_self_training(data, runs, tmp_path, run_main):
    """Labels of two methods, a run with them, and its resume, which refuses other labels."""
    file, other = tmp_path / "new" / "labels.h5", tmp_path / "other.h5"
    common = "--path-dataset", data, "--device", "cpu"
    status, text, error = run_main(write_labels, *(last(runs, name) for name in "ac"), *common, "--out", file)
    assert (status, error) == (0, "") and text.startswith("SIMULATED pseudo labels of 7 videos")
    assert run_main(write_labels, last(runs, "a"), *common, "--out", other, "--relative")[0] == 0
    with h5py.File(file) as content:
        assert [name.decode() for name in content.attrs["checkpoints"]] == [str(last(runs, name)) for name in "ac"]
    run = tmp_path / "run"
    options = ["--pseudo-labels", file, "--eval-every", 2, "--pseudo-weight", 2]
    train(words_of(data, run, *options, "--max-iter", 2))
    assert records(run)[0]["losses"]["pseudo"] > 0
    wrong = ["--pseudo-labels", other, *options[2:], "--max-iter", 4, "--resume"]
    status, _, error = run_main(lambda: train(words_of(data, run, *wrong)))
    assert status == 2 and "expected the pseudo labels of the run (of SHA-256 " in error
    status, _, error = run_main(lambda: train(words_of(data, run, *options[2:], "--max-iter", 4, "--resume")))
    assert status == 2 and "got none" in error
    file.rename(tmp_path / "moved.h5")
    train(words_of(data, run, "--pseudo-labels", tmp_path / "moved.h5", *options[2:], "--max-iter", 4, "--resume"))
    status, _, error = run_main(lambda: train(words_of(data, tmp_path / "um", *options, "--method", "um")))
    assert status == 2 and "--pseudo-labels needs a background class, which --method um does not have" in error


def test_one_command_labels_and_trains(data, runs, tmp_path, run_main):
    """The options are those of the first run, but for those of the command."""
    first = tmp_path / "first"
    shutil.copytree(runs / "a", first)
    status, text, _ = run_main(self_train, "--run", first, "--relative", "--seed", 5)
    assert status == 0 and "SIMULATED pseudo labels of 7 videos" in text
    before, after = (read_yaml(folder / "options.yaml") for folder in (first, tmp_path / "first_self_training"))
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == {"run_dir", "seed", "pseudo_labels"} and after["seed"] == 5
    labels = Path(after["pseudo_labels"])
    assert labels == tmp_path / "first_self_training/pseudo_labels.h5"
    with h5py.File(labels) as content:
        assert max(values[:].max() for values in content.values()) == 1
    digest = sha256_of(labels)
    status, _, error = run_main(self_train, "--run", first)
    assert status == 2 and "already has a run; continue it with --resume, or choose another --run-dir" in error
    os.utime(first / "checkpoints/last.pt", (labels.stat().st_mtime + 10,) * 2)
    status, _, error = run_main(self_train, "--run", first, "--relative", "--seed", 5, "--resume")
    assert status == 2 and "expected its labels; choose another --run-dir" in error
    assert sha256_of(labels) == digest
    status, _, error = run_main(self_train, "--run", tmp_path)
    assert status == 2 and error == (
        f"error: --run {tmp_path}: expected the folder of a finished run, with options.yaml and last.pt\n"
    )


def test_labels_need_features_with_the_same_snippets(data, runs, tmp_path, run_main):
    content = torch.load(last(runs, "b"), weights_only=True)
    content["options"]["min_snippets"] = 150
    torch.save(content, tmp_path / "b.pt")
    words = last(runs, "a"), tmp_path / "b.pt", "--path-dataset", data, "--out", tmp_path / "labels.h5"
    status, _, error = run_main(write_labels, *words)
    assert status == 2 and "its features have other videos" in error
    torch.save({"weight": torch.zeros(1)}, tmp_path / "released.pkl")
    assert "use a checkpoint of main.py" in run_main(write_labels, tmp_path / "released.pkl", *words[2:])[2]


def test_average_of_weights(data, tmp_path):
    """Checkpoints have the average as `model`, and a resumed run equals an uninterrupted one."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--ema", 0.9, "--eval-every", 1, "--holdout", 0.3]
    train(words_of(data, whole, *options, "--max-iter", 3))
    raw = []
    for steps in (1, 2, 3):  # from the second step on, average and weights differ
        train(words_of(data, parts, *options, "--max-iter", steps, "--resume"))
        raw.append(checkpoint(parts)["training"]["weights"])
    assert same(checkpoint(whole), checkpoint(parts)) and records(whole) == records(parts)
    expected = raw[0]
    for weights in raw[1:]:
        expected = {name: 0.9 * expected[name] + 0.1 * weights[name] for name in expected}
    torch.testing.assert_close(checkpoint(whole)["model"], expected)
    train(words_of(data, tmp_path / "plain", *options[2:], "--max-iter", 3))
    plain = checkpoint(tmp_path / "plain")
    assert same(plain["model"], raw[-1])  # the average changes the evaluation alone
    assert "weights" not in plain["training"]
    assert records(tmp_path / "plain")[-1]["losses"] == records(whole)[-1]["losses"]
    assert records(tmp_path / "plain")[-1]["scores"] != records(whole)[-1]["scores"]


# Several checkpoints at once


def test_pool_averages_all_outputs():
    methods = [built("um") for _ in range(3)]
    for seed, method in enumerate(methods):
        torch.manual_seed(seed)
        torch.nn.init.normal_(method.network.classifier.weight)
    with torch.no_grad():
        each = [method.network.eval()(FEATURES) for method in methods]
        pooled = Pool([method.network for method in methods]).eval()(FEATURES)
    assert pooled.keys() == each[0].keys()
    for name, value in pooled.items():
        torch.testing.assert_close(value, sum(outputs[name] for outputs in each) / 3)


def test_several_checkpoints(data, runs, tmp_path, run_main):
    words = "--path-dataset", data, "--device", "cpu", "--output-dir"
    paths = last(runs, "a"), last(runs, "b")
    status, text, error = run_main(evaluate, "--checkpoint", *paths, *words, tmp_path / "pooled")
    assert (status, error) == (0, "") and "mean of 2          –   snippet" in text
    assert list(json.loads((tmp_path / "pooled/metrics.json").read_text())) == ["mean of 2"]
    curves = []
    for folder in (tmp_path / "pooled", runs / "a", runs / "b"):
        with open_outputs(folder / "outputs.h5") as outputs:
            curves.append({video: outputs[video] for video in outputs.video_ids})
    for video, (pooled, *each) in {video: [part[video] for part in curves] for video in curves[0]}.items():
        for name, values in pooled.items():
            np.testing.assert_allclose(values, sum(one[name] for one in each) / 2, rtol=2e-3, atol=2e-3, err_msg=video)
    other = "--checkpoint", last(runs, "a"), last(runs, "c")
    assert (
        "its architecture has the unknown argument 'topk_ratio'"
        in run_main(evaluate, *other, *words, tmp_path / "no")[2]
    )
    for name, value, expected in (("feature_scale", 2.0, "1.0"), ("modalities", ["flow", "rgb"], "['rgb', 'flow']")):
        content = torch.load(last(runs, "b"), weights_only=True)
        content["options"][name] = value
        torch.save(content, tmp_path / "b.pt")
        error = run_main(evaluate, "--checkpoint", paths[0], tmp_path / "b.pt", *words, tmp_path / "no")[2]
        assert f"b.pt: expected {name} {expected} as in" in error and f"got {value}" in error
