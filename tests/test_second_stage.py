"""Tests of the second stage: equality with P-MIL's release, guards, and the whole command on simulated data."""

import json
import math

import numpy as np
import pytest
import torch

from eval.detection_formats import read_detections
from main import main as train
from scripts.report import main as report
from scripts.second_stage import main as second_stage
from tests.golden_cases import GOLDEN, assert_golden, rng
from utils.annotations import parse_annotations
from utils.checkpoint import load_weights
from utils.features.simulate import invent_timeline, simulate_features
from utils.formats.files import read_json, read_yaml
from utils.methods import build_method
from utils.second_stage.pmil import (
    NUM_BINS,
    PMILLoss,
    ProposalNet,
    fuse_modalities,
    localize_proposals,
    pairwise_tiou,
    pool_parts,
    proposal_scores,
    roi_features,
)
from utils.second_stage.proposals import ProposalVideos, proposals_by_video
from utils.segments import seconds_to_snippets

TERMS = {"mil_org": "mil_orig", "mil_supp": "mil_supp", "irc": "irc", "comp": "comp"}  # ours to the release's


def released_shapes(classes: int, dim: int) -> dict[str, tuple]:
    """Shapes of the released parameters by name."""
    shapes = {}
    for modality in "vf":
        prefix = f"prop_{modality}_backbone.prop"
        shapes[f"{prefix}_fusion.0"] = (dim, 3 * dim)
        for name, outputs in (("classifier", classes + 1), ("attention", 1), ("completeness", 1)):
            shapes[f"{prefix}_{name}.0"], shapes[f"{prefix}_{name}.2"] = (dim // 2, dim, 1), (outputs, dim // 2, 1)
    parameters = {f"{name}.weight": shape for name, shape in shapes.items()}
    return parameters | {f"{name}.bias": shape[:1] for name, shape in shapes.items()}


class Case:
    """A golden case of the network, and our network with the recipe's weights in float64."""

    def __init__(self, name: str, tmp_path):
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        self.meta = meta = json.loads(str(self.arrays["meta"]))
        dim = meta["feature_size"] // 2
        self.shapes, state = released_shapes(meta["classes"], dim), {}
        for key, shape in self.shapes.items():
            g = rng(meta["seed"], key).standard_normal(shape)
            g = 0.1 * g if len(shape) == 1 else g * np.sqrt(1.0 / np.prod(shape[1:]))
            state[key] = torch.from_numpy(g * meta["gains"].get(key, 1.0))
        torch.save(state, tmp_path / "released.pkl")
        self.network = ProposalNet(meta["classes"], (dim, dim)).double().eval()
        load_weights(self.network, tmp_path / "released.pkl")
        self.proposals = [torch.from_numpy(self.arrays[f"proposals_{b}"]) for b in range(len(meta["lengths"]))]
        self.labels = torch.from_numpy(self.arrays["labels"]).double()

    def roi(self, seed: int) -> list[torch.Tensor]:
        pooled = []
        for video, (snippets, proposals) in enumerate(zip(self.meta["lengths"], self.proposals, strict=True)):
            scenes = -(-snippets // self.meta["scene"])
            x = rng(seed, "features", video).standard_normal((snippets, self.meta["feature_size"]))
            w = rng(seed, "scenes", video).standard_normal((scenes, self.meta["feature_size"]))
            features = np.maximum(x + w[np.arange(snippets) // self.meta["scene"]], 0)
            pooled.append(roi_features(torch.from_numpy(features), proposals))
        return pooled

    def run(self, seed: int) -> dict[str, torch.Tensor]:
        return self.network(torch.cat([pool_parts(roi) for roi in self.roi(seed)]))

    def terms(self, outputs: dict, epoch: int) -> dict[str, torch.Tensor]:
        return PMILLoss()(outputs, self.proposals, self.labels, epoch)


@pytest.fixture(scope="module", params=["pmil_head_a", "pmil_head_b"])
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("golden"))


def test_roi_features_and_outputs(case):
    for video, roi in enumerate(case.roi(case.meta["seed"])):
        assert_golden(roi, case.arrays[f"roi_{video}"])
    with torch.no_grad():
        outputs = case.run(case.meta["seed"])
    for row, modality in enumerate("vf"):
        cas, attention, completeness = (
            np.concatenate([case.arrays[f"prop_{modality}_{name}_{video}"] for video in range(len(case.proposals))])
            for name in ("cas", "attn", "iou")
        )
        assert_golden(outputs["cas"][row], cas)
        assert_golden(outputs["attention"][row], 1 / (1 + np.exp(-attention[:, 0])))
        assert_golden(outputs["completeness"][row], 1 / (1 + np.exp(-completeness[:, 0])))


def test_losses_and_gradients(case):
    epoch = case.meta["epoch"]
    case.network.zero_grad()
    terms = case.terms(case.run(case.meta["seed"]), epoch)
    for ours, theirs in TERMS.items():
        assert_golden(terms[ours].item(), (case.arrays[f"loss_{theirs}_v"] + case.arrays[f"loss_{theirs}_f"]) / 2)
    assert_golden(PMILLoss().ramp(epoch), case.arrays["ramp"])
    assert_golden(terms["total"].item(), case.arrays["total"])
    terms["total"].backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in case.network.named_parameters()}
    for released, shape in case.shapes.items():
        module, _, kind = released.rpartition(".")
        gradient = gradients.pop(f"{case.network.RELEASED_MODULES[module]}.{kind}")
        direction = rng("direction", released).standard_normal(shape)
        assert_golden(np.linalg.norm(gradient), case.arrays[f"grad_norm/{released}"])
        tolerance = 1e-9 * np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs((gradient * direction).sum() - case.arrays[f"grad_dot/{released}"]) <= tolerance
    assert not gradients


def test_adam_trajectory(case):
    meta, start = case.meta, {name: value.clone() for name, value in case.network.state_dict().items()}
    optimizer = torch.optim.Adam(case.network.parameters(), meta["lr"], weight_decay=meta["weight_decay"], fused=True)
    totals = []
    for step in range(meta["steps"] + 1):
        terms = case.terms(case.run(meta["seed"] * 1000 + step + 1), meta["epoch"] + step)
        totals.append(terms["total"].item())
        if step < meta["steps"]:
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
    case.network.load_state_dict(start)  # the fixture is shared
    assert_golden(totals, case.arrays["trajectory"])


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_localization(name):
    arrays = np.load(GOLDEN / f"pmil_detect_{name}.npz")
    meta = json.loads(str(arrays["meta"]))
    cas = torch.from_numpy(np.stack([arrays["prop_v_cas"], arrays["prop_f_cas"]]))
    attention, completeness = (
        torch.from_numpy(np.stack([arrays[f"prop_v_{kind}"], arrays[f"prop_f_{kind}"]])[..., 0]).sigmoid()
        for kind in ("attn", "iou")
    )
    outputs = fuse_modalities({"cas": cas, "attention": attention, "completeness": completeness})
    outputs = {key: value.numpy() for key, value in outputs.items()}
    scores = proposal_scores(outputs["probabilities"], outputs["attention"])
    np.testing.assert_allclose(scores, arrays["video_score"], rtol=1e-9)
    ambiguous = seconds_to_snippets(np.reshape(meta["ambiguous"], (-1, 2)), 25 / 16)
    detections = localize_proposals(**outputs, segments=arrays["proposals"], ambiguous=ambiguous)
    for field in ("label", "start", "end"):
        np.testing.assert_array_equal(detections[field], arrays[field])
    np.testing.assert_allclose(detections["score"], arrays["score"], rtol=1e-9)
    assert np.unique(detections["label"]).tolist() == sorted(arrays["predicted"].tolist())


def test_roi_of_a_case_worked_by_hand():
    ramp = torch.arange(40, dtype=torch.float64)[:, None]  # feature of snippet t is t
    # [10, 18) extends to [8, 20): one snippet and one sample per bin, at 7.5 + 0.5 = the center of snippet 8.
    bins = roi_features(ramp, torch.tensor([[10.0, 18.0]]))[0, :, 0]
    assert bins.tolist() == pytest.approx(list(range(8, 20)))
    # [20, 36) extends to [16, 40): two samples per bin, whose mean is the middle of two snippets.
    bins = roi_features(ramp, torch.tensor([[20.0, 36.0]]))[0, :, 0]
    assert bins.tolist() == pytest.approx([16.5 + 2 * i for i in range(12)])
    # Beyond the end of the video the features are 0.
    bins = roi_features(ramp, torch.tensor([[36.0, 44.0]]))[0, :, 0]
    assert bins.tolist() == pytest.approx([34, 35, 36, 37, 38, 39] + [0] * 6)
    # A proposal of no length is one snippet long, in 12 samples from 9.5 to 10.5.
    bins = roi_features(ramp, torch.tensor([[10.0, 10.0]]))[0, :, 0]
    assert bins.tolist() == pytest.approx([9.5 + (i + 0.5) / 12 for i in range(12)])
    parts = pool_parts(torch.arange(NUM_BINS).view(1, -1, 1))
    assert parts.flatten().tolist() == [1, 9, 11]


def random_outputs(counts: list[int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    outputs = {"cas": torch.randn(2, sum(counts), 4), "attention": torch.rand(2, sum(counts))}
    outputs["completeness"] = torch.rand(2, sum(counts))
    return {name: value.requires_grad_() for name, value in outputs.items()}


@pytest.mark.parametrize(
    "proposals", [[[3, 9]], [[0, 0]], [[4, 4], [4, 4], [4, 4]], [[0, 5], [0, 5]], [[2, 2], [0, 9], [20, 30]]]
)
@pytest.mark.parametrize("is_equal", [False, True])
@pytest.mark.parametrize("labels", [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
def test_losses_are_finite_where_the_release_fails(proposals, is_equal, labels):
    segments = torch.tensor(proposals, dtype=torch.float32)
    outputs = random_outputs([len(segments)])
    if is_equal:
        outputs["attention"] = torch.full_like(outputs["attention"], 0.3).requires_grad_()
    terms = PMILLoss()(outputs, [segments], torch.tensor([labels]), epoch=1)
    assert all(value.isfinite() for value in terms.values())
    terms["total"].backward()
    assert all(value.grad.isfinite().all() for value in outputs.values() if value.grad is not None)
    if is_equal or len(segments) == 1 or not any(labels):
        assert terms["irc"] == 0


def test_consistency_of_a_case_worked_by_hand():
    """Two overlapping proposals and a third one apart; only the first is above the mean attention."""
    outputs = random_outputs([3])
    with torch.no_grad():
        outputs["attention"][:] = torch.tensor([0.9, 0.1, 0.1])
        outputs["cas"][0, :, 1] = torch.tensor([math.log(3), 0.0, 50.0])  # probabilities 3/4, 1/4 of the first two
        outputs["cas"][1, :, 1] = torch.tensor([0.0, 0.0, -50.0])  # 1/2, 1/2
        outputs["completeness"][:] = 0.5
    segments = torch.tensor([[0.0, 4.0], [2.0, 6.0], [6.0, 8.0]])
    terms = PMILLoss()(outputs, [segments], torch.tensor([[0.0, 1.0, 0.0]]), epoch=30)
    forward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    backward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert terms["irc"].item() == pytest.approx((forward + backward) / 2, abs=1e-6)
    # The first proposal is the pseudo instance: targets 1, 1/3 and 0.
    assert terms["comp"].item() == pytest.approx((0.25 + (0.5 - 1 / 3) ** 2 + 0.25) / 3, abs=1e-6)
    weights = PMILLoss.WEIGHTS
    assert terms["total"].item() == pytest.approx(sum(w * terms[name].item() for name, w in weights.items()), rel=1e-6)


def test_touching_proposals_do_not_overlap():
    tiou = pairwise_tiou(torch.tensor([[0.0, 2.0], [2.0, 4.0], [1.0, 3.0]]))
    assert tiou[0, 1] == 0
    assert tiou[0, 2].item() == pytest.approx(1 / 3)


class Videos:
    """Stand-in for a dataset: videos of five snippets and two channels."""

    def __init__(self, count: int):
        self.video_ids, self.labels = [f"v{i}" for i in range(count)], np.eye(count, 3, dtype=bool)

    def __len__(self):
        return len(self.video_ids)

    def __getitem__(self, index):
        return np.arange(10, dtype=np.float32).reshape(5, 2)


def test_batches_subsample_features_and_segments_alike():
    segments = np.stack([np.zeros(30), np.arange(1, 31) / 6], axis=1)
    videos = ProposalVideos(Videos(4), {f"v{i}": segments for i in range(3)}, torch.device("cpu"), "host", "here")
    batches = videos.batches(2, max_proposals=7, seed=0)
    seen = [next(batches) for _ in range(3)]
    assert [epoch for epoch, *_ in seen] == [1, 2, 3]  # one batch of two; the third video is dropped
    for _, pooled, chosen, labels in seen:
        assert [len(rows) for rows in chosen] == [7, 7] and labels.shape == (2, 3)
        expected = pool_parts(roi_features(torch.from_numpy(videos.dataset[0]), torch.cat(chosen)))
        torch.testing.assert_close(pooled, expected)


def test_proposals_without_nms_and_with_known_labels():
    method = build_method("co2net", 3, (4, 4))
    outputs = {"cas": np.zeros((20, 4)), "attention": np.zeros(20)}
    outputs["attention"][4:9], outputs["attention"][12:15] = 0.95, 0.5
    outputs["cas"][:, 0] = 9
    rows = method.propose(outputs, labels=np.array([2]))
    assert set(rows["label"]) == {2}
    segments, counts = np.unique(np.stack([rows["start"], rows["end"]], axis=1), axis=0, return_counts=True)
    assert segments.tolist() == [[4, 9], [12, 15]]
    assert counts.tolist() == [10, 5]  # thresholds below 0.95 and below 0.5
    assert set(method.propose(outputs)["label"]) == {0}
    assert len(method.propose(outputs, labels=np.array([], dtype=int))) == 0


@pytest.mark.parametrize(("name", "localization"), [("audio_visual", "two_stage"), ("um", "um")])
def test_other_localizations_take_labels_and_drop_nothing(name, localization):
    method = build_method(name, 3, (4, 4), localization=localization)
    generator = np.random.default_rng(0)
    columns = {"um": 3, "audio_visual": 4}[name]
    outputs = {"cas": generator.random((30, columns)), "attention": generator.random(30)}
    outputs["magnitude"] = generator.random(30)
    rows = method.propose(outputs, labels=np.array([1, 2]))
    assert set(rows["label"]) == {1, 2}
    assert len(rows) >= len(method.localize(outputs, labels=np.array([1, 2])))
    if name == "um":
        segments = np.stack([rows[field] for field in ("label", "start", "end")], axis=1)
        assert len(np.unique(segments, axis=0)) < len(rows)


def test_proposals_in_snippets():
    table = read_detections(
        {"results": {"v": [entry(0.64, 1.28), entry(0.64, 1.28), entry(1, 2)], "empty": [], "w": [entry(0, 0)]}}
    )
    found = proposals_by_video(table, 25 / 16)
    assert {video: rows.tolist() for video, rows in found.items()} == {
        "v": [[1, 2], [1, 2], [1.56, 3.12]],
        "w": [[0, 0]],
    }
    assert proposals_by_video(table, 25 / 16, drop_duplicates=True)["v"].tolist() == [[1, 2], [1.56, 3.12]]


def interrupt(*arguments):
    raise KeyboardInterrupt


def entry(start: float, end: float) -> dict:
    return {"label": "x", "score": 1.0, "segment": [start, end]}


def test_whole_command(tmp_path, run_main, monkeypatch):
    """First stage, second stage on its proposals, the same from the written files, and a report."""
    monkeypatch.chdir(tmp_path)
    simulate_features(parse_annotations(invent_timeline(12, 3), "invented"), "data", (6, 5))
    config = str(GOLDEN.parents[1] / "configs/demo.yaml")
    words = f"--config {config} --path-dataset data --run-dir first --num-snippets 12 --max-iter 3 --eval-every 3"
    train([*words.split(), "--device", "cpu", "--no-evaluate-untrained"])
    options = "--device cpu --epochs 2 --batch-size 3 --eval-every 1 --max-proposals 20"
    small = options.split()
    epochs, forward = [], PMILLoss.forward
    with monkeypatch.context() as patch:
        patch.setattr(PMILLoss, "forward", lambda *arguments: epochs.append(arguments[-1]) or forward(*arguments))
        status, output, error = run_main(second_stage, "--run", "first", *small)
    assert status == 0, error
    assert epochs == sorted(epochs) and set(epochs) == {1, 2}
    assert "first stage" in output and "SIMULATED" in output and "proposals: training" in output
    folder = tmp_path / "first_pmil_s0"
    metrics = read_json(folder / "metrics.json")
    assert set(metrics) == {"first stage", "last"} and set(metrics["last"]) >= {"snippet", "seconds"}
    options = read_yaml(folder / "options.yaml")
    assert options["second_stage"]["run"] == "first" and options["max_iter"] == metrics["last"]["iteration"]
    assert len(read_detections(folder / "detections.json"))
    network = ProposalNet(3, (6, 5))
    load_weights(network, folder / "checkpoints/last.pt")
    assert run_main(report, "first_pmil_s0")[0] == 0

    files = f"--proposals-train {folder}/proposals_train.json --proposals-test {folder}/proposals_test.json"
    files = [*files.split(), "--config", config, "--path-dataset", "data", "--run-dir", "again"]
    assert run_main(second_stage, *files, *small)[0] == 0
    assert read_json("again/metrics.json")["last"] == metrics["last"]
    assert (tmp_path / "again/detections.json").read_bytes() == (folder / "detections.json").read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(PMILLoss, "forward", interrupt)
        interrupted = run_main(second_stage, *files[:-1], "interrupted", *small)
    assert interrupted[0] == 130 and interrupted[2].endswith("\ninterrupted\n")
    assert not (tmp_path / "interrupted/checkpoints").exists()

    status, _, error = run_main(second_stage, *files, *small)
    assert status == 2 and error == "error: again: already has a run; choose another --run-dir\n"
    other = {"results": {"another": [entry(0, 1)]}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    files[1], files[-1] = "other.json", "third"
    status, _, error = run_main(second_stage, *files, *small)
    assert status == 2 and "other.json: no proposal in any of the" in error and not (tmp_path / "third").exists()
    assert run_main(second_stage, "--run", "nowhere")[0] == 2
    assert run_main(second_stage, "--proposals-train", "other.json")[0] == 2
