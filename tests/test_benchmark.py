"""scripts/benchmark.py: every subject runs, prints its table and counts what it says. No test depends on speed."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from scripts import benchmark
from scripts.benchmarks import command, infer, plain_step, train, yardstick
from scripts.benchmarks.measure import in_new_process, time_in_turns
from scripts.benchmarks.page import CPU_STEP, KINDS, check_page, goal_rows, write_page
from scripts.benchmarks.scaling import growth_exponent
from scripts.benchmarks.synthetic import (
    ACTIVITYNET12,
    THUMOS14,
    make_dataset,
    make_detections,
    make_ground_truth,
    write_dataset_files,
)
from scripts.benchmarks.table import ResultTable, format_value
from tests.conftest import ROOT
from utils.annotations import load_annotations
from utils.datasets import DATASETS
from utils.engine import Evaluator
from utils.errors import InputError
from utils.features.store import FeatureStore, open_features
from utils.methods import build_method
from wsad_dataset import WeakVideoDataset

CPU = torch.device("cpu")
MACHINE = {"cpu": "Some CPU", "cores": 2, "threads": 2, "load": 0.0, "gpu": None}
MACHINE |= dict.fromkeys(("python", "numpy", "torch"), "1.0")
HAS_VIDEO = importlib.util.find_spec("av") is not None
MINUTES = 600  # seconds after which a test gives up; a busy machine is slow, not wrong


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict:
    """Run all subjects on small sizes: the output, the figures and the page."""
    folder = tmp_path_factory.mktemp("quick")
    words = ["all", "--quick", "--threads", "1", "--device", "cpu"]
    words += ["--json", folder / "figures.json", "--out", folder / "page.md"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/benchmark.py", *words], capture_output=True, text=True, timeout=MINUTES
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "figures.json").read_text())
    return {"stdout": done.stdout, "figures": figures, "page": (folder / "page.md").read_text(), "folder": folder}


def test_every_subject_prints_its_tables_and_agrees_with_the_plain_code(quick):
    figures = quick["figures"]
    for name in ("train", "train_split", "infer", "evaluation", "localization", "data", "memory", "scaling"):
        assert f"\n{name}: " in quick["stdout"]
        assert figures[name]
    compared = ["infer", "evaluation", "evaluation_files", "localization", "data"]
    if HAS_VIDEO:
        compared.append("extract")
        assert "SIMULATED video" in quick["stdout"]
        assert 0 < figures["extract"][0]["share of time waiting"] < 1
    assert {row["results"] for name in compared for row in figures[name]} == {"equal"}
    assert all(row["difference"] < 1e-5 for row in figures["train"])
    assert [row["detections"] for row in figures["evaluation"]] == [2000, 2000]
    assert figures["machine"]["threads"] == 1


def test_split_covers_the_fast_and_the_plain_step(quick):
    rows = quick["figures"]["train_split"]
    assert [row["step"] for row in rows] == ["fast", "plain"] * len(quick["figures"]["train"])
    for row in rows:
        assert row["sum ms"] == pytest.approx(sum(row[f"{part} ms"] for part in train.PARTS))


def test_trainings_end_well(quick):
    rows = [row for name in ("memory", "scaling_torchrun") for row in quick["figures"][name]]
    assert [row["ended"] for row in rows] == ["ok"] * 2
    assert 0 < rows[0]["start seconds"] < rows[0]["seconds"]
    assert rows[0]["peak MB"] > 100  # PyTorch alone has more
    assert rows[1]["steps/s"] > 0


def test_page_has_every_table_and_names_what_is_missing(quick):
    page = quick["page"]
    assert page.startswith("# Performance\n")
    assert page.index("\n## CPU: ") < page.index("\n### train: ") < page.index("\n### scaling: ")
    assert "\n## GPU: not measured\n" in page
    assert "page_cpu.png" in page
    assert (quick["folder"] / "page_cpu.png").stat().st_size > 1000
    assert "| train | 1024+1024, T 500, bf16 | share of best | at least 60% | - |" in page  # the size is another
    assert "SIMULATED" in page


def test_one_subject_alone(run_main):
    status, output, _ = run_main(benchmark.main, "localization", "--quick", "--threads", 1, "--device", "cpu")
    assert status == 0
    assert output.count("\n") < 15
    assert "evaluation" not in output


def test_extraction_is_left_out_without_pyav(run_main, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    status, output, _ = run_main(benchmark.main, "extract", "--quick", "--threads", 1, "--device", "cpu")
    assert status == 0
    assert "not measured: reading videos needs PyAV" in output.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [["everything"], ["--threads", "0"], ["data", "--quick", "--json", "/"], ["data", "--quick", "--out", "/no/x.md"]],
)
def test_a_bad_argument_is_one_clear_line_before_anything_is_measured(arguments, run_main):
    status, output, errors = run_main(benchmark.main, *arguments)
    assert status == 2
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_flop_counts(quick):
    """Count by hand: a product and a sum per position, output channel, input channel and tap."""
    (dim, snippets), hidden = train.QUICK_SIZES[0], 512
    context, local = dim * dim * train.BATCH_SIZE, 3 * dim * dim  # F^G sees one position per video
    attention = 3 * dim * hidden + 3 * hidden * hidden + hidden
    classifier = 4 * (2 * dim) ** 2 + 2 * dim * (train.NUM_CLASSES + 1)
    positions = train.BATCH_SIZE * snippets
    consensus, others = 2 * 2 * (context + local * positions), 2 * (2 * attention + classifier) * positions
    # The consensus modules see the features, which need no gradient.
    assert quick["figures"]["train"][0]["GFLOP"] == pytest.approx((2 * consensus + 3 * others) / 1e9)


@pytest.mark.parametrize(
    ("flags", "capability", "expected"),
    [
        ("avx512f avx512_bf16", "AVX512", ["float32", "bf16"]),
        ("avx512f avx512_bf16", "AVX2", ["float32"]),
        ("avx avx2", "AVX2", ["float32"]),
        ("asimd bf16", "DEFAULT", ["float32", "bf16"]),
    ],
)
def test_bf16_is_left_out_where_it_is_emulated(flags, capability, expected, monkeypatch):
    monkeypatch.setattr(yardstick, "read_cpuinfo", lambda *keys: flags)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    names, missing = yardstick.precisions(CPU)
    assert names == expected
    assert ["bf16: this CPU has no bfloat16 instructions" in line for line in missing] == [True] * (2 - len(names))


def test_turns():
    calls = []
    times = time_in_turns(lambda: calls.append("a"), lambda: calls.append("b"), budget=MINUTES, rounds=2, calls=2)
    assert calls == ["a", "a", "b", "b"] * 3
    assert len(times) == 2
    calls.clear()
    time_in_turns(lambda: calls.append("a"), budget=0)
    assert calls == ["a"]


def test_a_new_process_returns_the_result():
    assert in_new_process(os.path.basename, "a/b") == "b"


def test_the_plain_step_equals_the_fast_step():
    """Equal weights give equal terms, and a different term is noticed."""
    batch = next(train.make_loader(8, 9, CPU, num_classes=3))
    two_labels = batch._replace(labels=(batch.labels + batch.labels.roll(1, dims=1)).clamp(max=1))
    fast, plain = (build(8, 3, "float32", CPU) for build in (train.fast_trainee, train.plain_trainee))
    for variant in (batch, two_labels, batch._replace(pairs=torch.empty(0, 2, dtype=torch.int64))):
        assert train.largest_difference(fast, plain, variant, CPU) < 1e-5
    plain.objective.register_forward_hook(lambda module, inputs, terms: {**terms, "cas": terms["cas"] + 1e-3})
    assert train.largest_difference(fast, plain, batch, CPU) > 1e-4


def test_the_plain_step_learns_and_reads_every_loss():
    plain = train.plain_trainee(8, 3, "float32", CPU)
    before = [parameter.clone() for parameter in plain.net.parameters()]
    terms = plain.step(next(train.make_loader(8, 9, CPU, num_classes=3)))
    assert set(terms) == {*plain_step.WEIGHTS, "total"}
    assert all(isinstance(value, float) for value in terms.values())
    assert not any(torch.equal(old, new) for old, new in zip(before, plain.net.parameters(), strict=True))


class SlowNetwork(nn.Linear):
    """Network that sleeps in its forward pass."""

    def forward(self, x):
        time.sleep(0.05)
        return super().forward(x)


def test_each_part_of_a_step_has_its_own_time():
    net, objective = SlowNetwork(2, 1), nn.MSELoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def draw():
        time.sleep(0.03)
        return torch.ones(1, 2)

    def step(x):
        loss = objective(net(x), torch.zeros(1, 1))
        time.sleep(0.02)
        loss.backward()
        optimizer.step()
        time.sleep(0.01)

    parts = train.split_step(draw, train.Trainee(net, objective, optimizer, step), rounds=2)
    assert list(parts) == list(train.PARTS)
    at_least = {"data": 0.03, "forward": 0.05, "loss": 0.0, "backward": 0.02, "optimizer": 0.01}
    assert all(parts[part] >= seconds for part, seconds in at_least.items())
    assert not net._forward_hooks
    assert not objective._forward_hooks


def test_a_pass_with_other_detections_is_reported():
    annotations, source = make_dataset(infer.QUICK_SCALE, dim=8)
    spec = DATASETS["thumos14"]
    dataset = WeakVideoDataset(annotations, FeatureStore(source, source.modalities), spec.test_subset)
    method = build_method("co2net", 20, (8, 8))
    net = method.network.eval()
    infer.spread_attention(net, dataset)
    attention = infer.forward_pass(net, dataset, int(dataset.lengths.argmax()))["modality_attention"]
    assert attention.logit().mean().item() == pytest.approx(-0.6, abs=0.01)
    evaluation = Evaluator(dataset, annotations, spec)(method)
    assert infer.compare_detections(evaluation, net, dataset) == "equal"
    evaluation.results[3].detections["score"][0] += 0.01
    evaluation.results[5].detections["end"][0] += 1
    assert infer.compare_detections(evaluation, net, dataset) == "2 videos differ"


@pytest.mark.parametrize("scale", [THUMOS14, ACTIVITYNET12])
def test_synthetic_lists_have_the_size_of_their_dataset(scale):
    truth = make_ground_truth(scale)
    assert (len(truth), len(truth.videos), len(truth.classes)) == (scale.segments, scale.videos, scale.classes)
    detections = make_detections(truth, 1000)
    assert len(detections) == len(set(detections.score.tolist())) == 1000
    for table in (truth, detections):
        assert (table.end > table.start).all()


def test_a_synthetic_dataset_contains_its_segments():
    scale = THUMOS14.resize(5)
    annotations, source = make_dataset(scale, dim=3)
    videos = annotations.subset("test")
    assert sum(len(video.segments) for video in videos) == scale.segments
    for video in videos:
        snippets, channels = source.read("flow", video.video_id).shape
        assert channels == 3
        assert snippets <= max(10, video.duration * 25 / 16)
        assert (video.segments[:, 1] <= video.duration).all()


def test_a_written_dataset_can_be_read(tmp_path):
    write_dataset_files(tmp_path, THUMOS14.resize(4, "train"), THUMOS14.resize(2, "test"), dim=4)
    store = open_features(tmp_path)
    assert store.describe()["simulated"]
    annotations = load_annotations(tmp_path)
    for subset, count in (("train", 4), ("test", 2)):
        videos = annotations.subset(subset)
        assert len(videos) == count
        for video in videos:
            assert store[video.video_id].shape == (max(10, int(video.duration * 25 / 16)), 8)


@pytest.fixture
def fake_main(tmp_path, monkeypatch):
    """Replace main.py by a few lines of Python."""

    def write(lines: str) -> None:
        (tmp_path / "main.py").write_text(lines)
        monkeypatch.setattr(command, "ROOT", tmp_path)

    return write


def test_a_training_that_fails_gives_the_reason(tmp_path, fake_main):
    fake_main("import sys; sys.exit(f'Traceback\\nerror: nowhere{sys.argv[2:3]}\\nmore')")
    assert command.run_main(["x"], tmp_path / "run", threads=1) == {"ended": "status 1: error: nowhere['--run-dir']"}


def test_ctrl_c_leaves_no_files(tmp_path, fake_main):
    """The training runs when Ctrl-C arrives. Like main.py, it ends after a second signal."""
    fake_main(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from pathlib import Path\n"
        "Path(sys.argv[-1]).mkdir()\n"
        "time.sleep(1000)\n"
    )
    program = (
        "import signal, sys; from pathlib import Path\n"
        "from scripts import benchmark; from scripts.benchmarks import command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"command.ROOT = Path({str(tmp_path)!r})\n"
        "benchmark.exit_on_input_error(benchmark.main)"
    )
    words = [sys.executable, "-c", program, "memory", "--quick", "--threads", "1", "--device", "cpu"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not list(temporary.glob("benchmark-*/run")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=MINUTES)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not list(temporary.iterdir())


def test_growth_exponent():
    assert growth_exponent((1, 2, 4), [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert growth_exponent((10, 1000), [5.0, 5.0]) == pytest.approx(0)


def test_goals_stand_beside_what_was_measured():
    step = {"size": "1024+1024, T 500", "share of best": 0.95}
    tables = {
        "train": [
            {**step, "precision": "float32", "seconds": 2.0},
            {**step, "precision": "bf16", "mode": "eager", "seconds": 2.0, "peak MB": 900.0, "share of best": 0.5},
            {**step, "precision": "bf16", "mode": "compiled", "seconds": 0.0015},
        ]
    }
    cpu, gpu = goal_rows("CPU", tables), goal_rows("GPU", tables)
    assert ["train", "1024+1024, T 500, float32", "share of best", "at least 90%", "95%"] in cpu
    assert ["train", "1024+1024, T 500, bf16", "share of best", "at least 60%", "50% (missed)"] in cpu
    assert ["data", "memory", "ms", "at most 2", "-"] in cpu
    assert ["train", "1024+1024, T 500, bf16, compiled", "seconds", "at most 0.00200", "0.00150"] in gpu
    assert ["train", "1024+1024, T 500, bf16", "peak MB", "at most 4,000", "900"] in gpu
    assert not any("float32" in row[1] and row[0] == "train" for row in gpu)


def test_a_missed_goal_has_its_reason_on_the_page(tmp_path):
    pages = []
    for share in (0.95, 0.5):
        row = {"size": "1024+1024, T 500", "precision": "float32", "share of best": share}
        write_page(tmp_path / "page.md", [ResultTable("train", "a step", [row])], [], MACHINE, [], 1.0)
        pages.append((tmp_path / "page.md").read_text())
    assert CPU_STEP not in pages[0]
    assert CPU_STEP in pages[1]


def test_a_row_slower_than_plain_code_is_an_error(monkeypatch, capsys):
    rows = [{"size": "small", "ratio": 1.5}, {"size": "large", "mode": "eager", "ratio": 0.9}, {"size": "other"}]
    monkeypatch.setitem(benchmark.SUBJECTS, "data", lambda settings: [ResultTable("data", "a table", rows)])
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "data", "--device", "cpu"])
    with pytest.raises(InputError, match=r"^slower than plain code: data, large, eager \(ratio 0\.90\)$"):
        benchmark.main()
    assert "small" in capsys.readouterr().out  # the tables come first
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "data", "--device", "cpu", "--quick"])
    benchmark.main()  # figures of small sizes mean nothing


def write_small_page(path, gpu: str | None, value: str, *subjects: str) -> str:
    table = ResultTable("data", "a table", [{"first": value}], ["a note"], ["something"])
    write_page(path, [table], ["train"], {**MACHINE, "gpu": gpu}, ["data", "--out", str(path)], 1.0, subjects)
    return path.read_text()


def test_a_page_keeps_the_section_of_the_other_kind(tmp_path):
    path = tmp_path / "performance.md"
    first = write_small_page(path, None, "on the CPU")
    assert "## CPU: Some CPU, 2 cores" in first
    assert "## GPU: not measured" in first
    both = write_small_page(path, "Some GPU", "on the GPU")
    assert both.split("\n## GPU: ")[0] == first.split("\n## GPU: ")[0]
    assert "## GPU: Some GPU\n" in both
    again = write_small_page(path, None, "once more")
    assert again.split("\n## GPU: ")[1] == both.split("\n## GPU: ")[1]
    assert "on the CPU" not in again
    assert again.count("\n## ") == len(KINDS)
    for line in ("* train: not measured yet", "* data: something", "* a note", "1.0 minutes"):
        assert line in again


def test_some_subjects_have_a_section_of_their_own(tmp_path):
    path = tmp_path / "performance.md"
    whole, gpu = write_small_page(path, None, "all of them").split("\n## GPU: ")
    some = write_small_page(path, None, "first time", "data", "infer")
    again = write_small_page(path, None, "second time", "data", "infer")
    for page, value in ((some, "first time"), (again, "second time")):
        assert page.startswith(whole) and page.endswith("\n## GPU: " + gpu) and page.count("\n## ") == 3
        section = page.removeprefix(whole).removesuffix("\n## GPU: " + gpu)
        assert section.startswith("\n## CPU, data, infer: Some CPU, 2 cores\n") and f"| {value} |" in section
        assert "several machines" not in section and "| train |" not in section
        assert "| data | memory | ms | at most 2 | - |" in section
    assert write_small_page(path, None, "all of them") == f"{whole}\n## GPU: {gpu}"


def test_another_page_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(InputError, match="not a page of this command"):
        check_page(tmp_path / "README.md")
    check_page(tmp_path / "new.md")


@pytest.mark.parametrize(
    ("heading", "value", "text"),
    [
        ("ms", None, "-"),
        ("videos", 40_000, "40,000"),
        ("share of mm", 0.754, "75%"),
        ("seconds", 0.02, "0.0200"),
        ("seconds", 12.34, "12.3"),
        ("peak MB", 12345.6, "12,346"),
        ("difference", 2e-7, "2e-07"),
        ("seconds", 0.0, "0"),
        ("results", "equal", "equal"),
    ],
)
def test_figures_are_written_to_three_digits(heading, value, text):
    assert format_value(heading, value) == text


def test_a_table_has_no_empty_column_and_no_stray_bar():
    table = ResultTable("name", "title", [{"first": "x|y", "never": None}, {"second": 2}])
    assert table.as_text().splitlines() == ["name: title", "first  second", "x|y         -", "-           2"]
    lines = table.as_markdown().strip().splitlines()
    assert lines[2:] == ["| first | second |", "| ---: | ---: |", "| x\\|y | - |", "| - | 2 |"]
