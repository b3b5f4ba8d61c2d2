"""scripts/benchmark.py: every subject runs, prints its table, and counts what it says it counts. Nothing is timed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import ROOT
from utils.annotations import load_annotations
from utils.errors import InputError
from utils.features.store import open_features

sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import infer, plain_step, train  # noqa: E402
from benchmarks.command import run_main  # noqa: E402
from benchmarks.made import SCALES, made_detections, made_ground_truth, made_test_set, write_made_set  # noqa: E402
from benchmarks.page import KINDS, require_own, write_page  # noqa: E402
from benchmarks.scaling import growth  # noqa: E402
from benchmarks.split import PARTS, split_step  # noqa: E402
from benchmarks.table import Column, Measured, format_table  # noqa: E402
from benchmarks.targets import target_rows  # noqa: E402

CPU = torch.device("cpu")
MACHINE = {"cpu": "Some CPU", "cores": 2, "threads": 2, "load": 0.0, "gpu": None}
MACHINE |= dict.fromkeys(("python", "numpy", "torch"), "1.0")


def benchmark(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts/benchmark.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict:
    """Everything at once on small sizes: what was printed, the figures, the page."""
    folder = tmp_path_factory.mktemp("quick")
    words = ["all", "--quick", "--threads", 1, "--device", "cpu"]
    done = benchmark(*words, "--json", folder / "figures.json", "--out", folder / "page.md")
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "figures.json").read_text())
    return {"stdout": done.stdout, "figures": figures, "page": (folder / "page.md").read_text(), "folder": folder}


def test_every_subject_prints_its_tables_and_agrees_with_the_plain_code(quick):
    figures = quick["figures"]
    for name in ("train", "train_split", "infer", "evaluation", "localization", "data", "memory", "scaling"):
        assert f"\n{name}: " in quick["stdout"]
        assert figures[name]
    compared = ("infer", "evaluation", "localization", "data")
    assert {row["results"] for name in compared for row in figures[name]} == {"equal"}
    assert all(row["gap"] < 1e-5 for row in figures["train"])
    assert [row["detections"] for row in figures["evaluation"]] == [2000, 2000]
    assert figures["machine"]["threads"] == 1


def test_the_parts_of_a_step_are_those_of_both_steps(quick):
    rows = quick["figures"]["train_split"]
    assert [row["step"] for row in rows] == ["ours", "plain"] * len(quick["figures"]["train"])
    for row in rows:
        assert row["sum"] == pytest.approx(sum(row[part] for part in PARTS))


def test_trainings_of_their_own_end_well(quick):
    rows = [row for name in ("memory", "scaling_torchrun") for row in quick["figures"][name]]
    assert [row["ended"] for row in rows] == ["ok"] * 3
    for row in quick["figures"]["memory"]:
        assert 0 < row["start_seconds"] < row["seconds"]
        assert row["peak_mb"] > 100  # PyTorch alone has more
    assert rows[-1]["steps_s"] > 0


def test_the_page_has_every_table_and_says_what_is_missing(quick):
    page = quick["page"]
    assert page.startswith("# Performance\n")
    assert page.index("\n## CPU: ") < page.index("\n### train: ") < page.index("\n### scaling: ")
    assert "\n## GPU: not measured\n" in page
    assert "page_cpu.png" in page
    assert (quick["folder"] / "page_cpu.png").stat().st_size > 1000
    assert "| bf16 step, share of mm | at least 45% | - | not measured here |" in page  # the size is another
    assert "SIMULATED" in page


def test_one_subject_alone():
    done = benchmark("localization", "--quick")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") < 15
    assert "evaluation" not in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["everything"], ["--threads", "0"], ["data", "--quick", "--json", "/"], ["data", "--quick", "--out", "/no/x.md"]],
)
def test_a_bad_argument_is_one_clear_line_before_anything_is_measured(arguments):
    done = benchmark(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_counted_operations_are_those_that_pytorch_counts():
    net = plain_step.PlainCO2Net(4, (8, 12))
    convolutions = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
    with FlopCounterMode(display=False) as counter:
        outputs = net(torch.randn(3, 7, 20))
        counted = counter.flop_counts["Global"][convolutions[0]]
        assert plain_step.forward_flops(net, batch_size=3, num_snippets=7) == counted
        sum(value.sum() for value in outputs.values()).backward()
    counted = sum(counter.flop_counts["Global"][operation] for operation in convolutions)
    assert plain_step.step_flops(net, batch_size=3, num_snippets=7) == counted


def test_the_plain_step_does_what_ours_does():
    """The same terms with the same weights; and its own are noticed where they differ."""
    batch = next(train.made_loader(8, 9, CPU, num_classes=3))
    two_labels = batch._replace(labels=(batch.labels + batch.labels.roll(1, dims=1)).clamp(max=1))
    ours, plain = (side(8, 3, "float32", CPU) for side in (train.ours, train.plain))
    for some in (batch, two_labels, batch._replace(pairs=torch.empty(0, 2, dtype=torch.int64))):
        assert train.largest_gap(ours, plain, some, CPU) < 1e-5
    plain.criterion.register_forward_hook(lambda module, inputs, terms: {**terms, "cas": terms["cas"] + 1e-3})
    assert train.largest_gap(ours, plain, batch, CPU) > 1e-4


def test_the_plain_step_learns_and_reads_every_loss():
    plain = train.plain(8, 3, "float32", CPU)
    before = [parameter.clone() for parameter in plain.net.parameters()]
    terms = plain.step(next(train.made_loader(8, 9, CPU, num_classes=3)))
    assert set(terms) == {*plain_step.WEIGHTS, "total"}
    assert all(isinstance(value, float) for value in terms.values())
    assert not any(torch.equal(old, new) for old, new in zip(before, plain.net.parameters(), strict=True))


class Slow(nn.Linear):
    """A network that rests in its forward pass."""

    def forward(self, x):
        time.sleep(0.05)
        return super().forward(x)


def test_the_time_of_a_part_is_given_to_that_part():
    net, criterion = Slow(2, 1), nn.MSELoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def draw():
        time.sleep(0.03)
        return torch.ones(1, 2)

    def step(x):
        loss = criterion(net(x), torch.zeros(1, 1))
        time.sleep(0.02)
        loss.backward()
        optimizer.step()
        time.sleep(0.01)

    parts = split_step(draw, step, net, criterion, optimizer, CPU, rounds=2)
    assert list(parts) == list(PARTS)
    least = {"data": 0.03, "forward": 0.05, "loss": 0.0, "backward": 0.02, "optimizer": 0.01}
    assert all(parts[part] >= seconds for part, seconds in least.items())
    assert not net._forward_hooks
    assert not criterion._forward_hooks


def test_a_test_pass_that_differs_is_said():
    annotations, source = made_test_set(infer.QUICK_SCALE, dim=8)
    spec = infer.DATASETS["thumos14"]
    dataset = infer.WeakVideoDataset(annotations, infer.FeatureStore(source, source.modalities), spec.test_subset)
    net = infer.CO2Net(20, (8, 8)).eval()
    infer.spread_attention(net, dataset)
    attention = infer.forward_pass(net, dataset, int(dataset.lengths.argmax()))["modality_attention"]
    assert attention.logit().mean().item() == pytest.approx(-0.6, abs=0.01)
    evaluation = infer.Evaluator(dataset, annotations, spec)(net)
    assert infer.compared(evaluation, net, dataset) == "equal"
    evaluation.results[3].detections["score"][0] += 0.01
    evaluation.results[5].detections["end"][0] += 1
    assert infer.compared(evaluation, net, dataset) == "2 videos differ"


@pytest.mark.parametrize("name", SCALES)
def test_made_lists_have_the_size_of_their_data_set(name):
    scale = SCALES[name]
    truth = made_ground_truth(scale)
    assert (len(truth), len(truth.videos), len(truth.classes)) == (scale.instances, scale.videos, scale.classes)
    found = made_detections(truth, 1000)
    assert len(found) == len(set(found.score.tolist())) == 1000
    for table in (truth, found):
        assert (table.end > table.start).all()


def test_a_made_test_set_holds_its_instances():
    scale = replace(SCALES["thumos14"], videos=5, instances=30)
    annotations, source = made_test_set(scale, dim=3)
    videos = annotations.subset("test")
    assert sum(len(video.segments) for video in videos) == 30
    for video in videos:
        snippets, channels = source.read("flow", video.video_id).shape
        assert channels == 3
        assert snippets <= max(10, video.duration * 25 / 16)
        assert (video.segments[:, 1] <= video.duration).all()


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_made_set(folder, "demo", np.array([9, 8, 7, 9]), np.array([5, 6]), dim=4, num_classes=2)
    return folder


def test_a_written_set_is_a_dataset_of_ours(small_set):
    store = open_features(small_set)
    assert store.describe()["simulated"]
    annotations = load_annotations(small_set)
    assert [store[video.video_id].shape for video in annotations.subset("train")] == [(n, 8) for n in (9, 8, 7, 9)]
    assert [store.num_snippets(video.video_id) for video in annotations.subset("test")] == [5, 6]


def test_a_training_that_fails_says_why(tmp_path):
    done = run_main(["--path-dataset", str(tmp_path / "nowhere")], tmp_path / "run", threads=1)
    assert done["ended"].startswith("status 2: error: ")
    assert "nowhere" in done["ended"]
    assert "seconds" not in done


def test_ctrl_c_leaves_no_files(tmp_path):
    """Neither here nor in the training that was running."""
    words = [sys.executable, ROOT / "scripts/benchmark.py", "memory", "--quick", "--threads", "1", "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("benchmark-*/data/features.h5")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)  # main.py begins
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_the_exponent_of_growth():
    assert growth((1, 2, 4), [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert growth((10, 1000), [5.0, 5.0]) == pytest.approx(0)


def test_targets_are_held_against_what_was_measured():
    step = {"size": "1024+1024, T 500", "share_of_mm": 0.8, "plain_seconds": 6.0}
    rows = {
        "train": [
            {**step, "precision": "float32", "seconds": 2.0},
            {**step, "precision": "bf16", "mode": "eager", "seconds": 2.0, "share_of_mm": 0.2, "peak_mb": 900.0},
            {**step, "precision": "bf16", "mode": "compiled", "seconds": 0.004},
        ]
    }
    verdicts = {what: (measured, verdict) for what, _, measured, verdict in target_rows("CPU", rows)}
    assert verdicts["float32 step, share of mm"] == ("80%", "met")
    assert verdicts["bf16 step, share of mm"] == ("20%", "NOT met")
    assert verdicts["bf16 step, times as fast as the plain float32 step"] == ("3.0", "NOT met")
    assert verdicts["a batch from memory, ms"] == ("-", "not measured here")
    rows["memory"] = [{"iterations": n, "ended": "ok", "start_seconds": 9.0, "seconds": 59.0} for n in (3, 5000)]
    verdicts = {what: (measured, verdict) for what, _, measured, verdict in target_rows("GPU", rows)}
    assert verdicts["bf16 step, seconds"] == ("0.0040", "met")
    assert verdicts["peak memory of a bf16 step, MB"] == ("900", "met")
    assert verdicts["5,000 iterations with 25 evaluations, seconds"] == ("50", "met")
    assert "float32 step, share of mm" not in verdicts


def page_of(path, gpu: str | None, value: str) -> str:
    table = Measured("data", "a table", [Column("a", "first")], [{"a": value}], ["a note"], ["something"])
    write_page(path, [table], ["train"], {**MACHINE, "gpu": gpu}, ["data", "--out", str(path)], 1.0)
    return path.read_text()


def test_a_page_keeps_the_section_of_the_other_kind(tmp_path):
    path = tmp_path / "performance.md"
    first = page_of(path, None, "on the CPU")
    assert "## CPU: Some CPU, 2 cores" in first
    assert "## GPU: not measured" in first
    both = page_of(path, "Some GPU", "on the GPU")
    assert both.split("\n## GPU: ")[0] == first.split("\n## GPU: ")[0]
    assert "## GPU: Some GPU\n" in both
    again = page_of(path, None, "once more")
    assert again.split("\n## GPU: ")[1] == both.split("\n## GPU: ")[1]
    assert "on the CPU" not in again
    assert again.count("\n## ") == len(KINDS)
    for line in ("* train: not asked for", "* something", "* a note", "1.0 minutes"):
        assert line in again


def test_a_page_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(InputError, match="not a page of this command"):
        require_own(tmp_path / "README.md")
    require_own(tmp_path / "new.md")


def test_a_missing_value_is_a_dash():
    table = format_table([Column("a", "first", ".1f"), Column("b", "second")], [{"a": 12.34, "b": "x"}, {"a": None}])
    assert table.splitlines() == ["first  second", " 12.3       x", "    -       -"]


def test_a_table_on_a_page_has_no_empty_column_and_no_stray_bar():
    columns = [Column("a", "first"), Column("b", "never there")]
    lines = Measured("name", "title", columns, [{"a": "x|y"}]).as_markdown().splitlines()
    assert lines == ["### name: title", "", "| first |", "| ---: |", "| x\\|y |", ""]
