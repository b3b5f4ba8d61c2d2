"""Whole commands, as a user runs them, on a tiny simulated dataset."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from main import main as train
from scripts.report import main as write_report
from test import main as evaluate
from tests.test_report import page_data
from utils.annotations import parse_annotations
from utils.errors import exit_on_input_error
from utils.features.simulate import invent_timeline, simulate_features
from utils.training import StepOutcome, Training

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PROGRAMS = {"main.py": train, "test.py": evaluate, "scripts/report.py": write_report}
CONFIG = """
dataset: demo
num_snippets: 12
lr: 1e-3
max_iter: 6
eval_every: 2
evaluate_untrained: true
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    simulate_features(parse_annotations(invent_timeline(20, 3), "invented"), folder, (6, 5))
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums come in another order with another number of threads; here all runs are compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(dataset, run, *more):
    config = ["--config", str(dataset / "config.yaml")]
    return [*config, "--path-dataset", str(dataset), "--run-dir", str(run), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(arguments(dataset, folder, "--holdout", "0.2"))
    return folder


def run_program(program, *argv):
    """Run a command in this process, as the shell would. A process of its own takes seconds to import PyTorch."""
    stdout, stderr, status = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", [program, *map(str, argv)])
        try:
            exit_on_input_error(PROGRAMS[program])
        except SystemExit as end:
            status = end.code
    return subprocess.CompletedProcess(argv, status, stdout.getvalue(), stderr.getvalue())


def records(run):
    """The log, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "snippets_per_second"} for line in lines]


def same(first, second):
    """Equal, bit for bit, through dicts, lists and tensors."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def checkpoint(run, name="last"):
    content = torch.load(run / f"checkpoints/{name}.pt", weights_only=True)
    del content["options"]  # run_dir and max_iter differ
    return content


def test_a_run_folder_holds_everything(run):
    expected = "options.yaml environment.json log.jsonl metrics.json detections.json outputs.h5 videos.png"
    for name in [*expected.split(), "checkpoints/last.pt", "checkpoints/best.pt", "checkpoints/selected.pt"]:
        assert (run / name).stat().st_size > 0
    assert [record["iteration"] for record in records(run)] == [0, 2, 4, 6]
    assert yaml.safe_load((run / "options.yaml").read_text())["lr"] == 1e-3
    environment = json.loads((run / "environment.json").read_text())
    assert environment["features"]["simulated"] is True
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["untrained", "last", "best", "selected"]
    for checkpoint in metrics.values():
        for protocol in ("snippet", "seconds"):
            assert np.mean(checkpoint[protocol]["map"]) == pytest.approx(checkpoint[protocol]["average_map"])
            assert len(checkpoint[protocol]["ap"]) == 9
    best = max(records(run)[1:], key=lambda r: sum(r["scores"][f"snippet/mAP@0.{t}"] for t in range(1, 8)))
    assert metrics["best"]["iteration"] == best["iteration"]
    with h5py.File(run / "outputs.h5") as outputs:
        assert len(outputs) == 8
        video = outputs["test_0012"]
        assert video["cas"].shape == (video["attention"].shape[0], 4)


def test_outputs_are_optional(dataset, run, tmp_path):
    """A finished run is resumed without them: the old file goes, nothing else changes, and the report has no curves."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    train(arguments(dataset, folder, "--holdout", "0.2", "--resume", "--save-outputs", "none"))
    assert not (folder / "outputs.h5").exists()
    assert "outputs.h5" not in (folder / "SHA256SUMS").read_text()
    for name in ("detections.json", "metrics.json"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    pages = []
    for path in (run, folder):
        done = run_program("scripts/report.py", path, "--out", tmp_path / "report.html")
        assert (done.returncode, done.stderr) == (0, "")
        pages.append([video["runs"][0] for video in page_data((tmp_path / "report.html").read_text("utf-8"))["videos"]])
    assert [answer["detections"] for answer in pages[0]] == [answer["detections"] for answer in pages[1]]
    assert [sum("attention" in answer for answer in page) for page in pages] == [8, 0]
    argv = ["--checkpoint", str(run / "checkpoints/last.pt"), "--path-dataset", str(dataset), "--device", "cpu"]
    evaluate([*argv, "--output-dir", str(tmp_path / "test"), "--save-outputs", "none"])
    files = sorted(path.name for path in (tmp_path / "test").iterdir())
    assert files == ["detections.json", "metrics.json", "videos.png"]


def test_tensorboard_finds_the_scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"classification_mAP", "snippet/mAP@0.5", "seconds/mean_mAP", "snippets_per_second"} <= tags
    assert [event.step for event in events.Scalars("snippet/mean_mAP")] == [0, 2, 4, 6]


def test_test_program_gives_the_runs_numbers(dataset, run, tmp_path):
    argv = ["--path-dataset", str(dataset), "--output-dir", str(tmp_path), "--device", "cpu"]
    evaluate(["--checkpoint", str(run / "checkpoints/last.pt"), *argv])
    of_run = json.loads((run / "metrics.json").read_text())["last"]
    assert json.loads((tmp_path / "metrics.json").read_text())["last"] == of_run
    assert (tmp_path / "detections.json").read_text() == (run / "detections.json").read_text()
    # and the evaluator alone, on the written file, the same again
    done = subprocess.run(
        [sys.executable, "-m", "eval.detection", "--ground-truth", dataset / "annotations.json", "--predictions"]
        + [tmp_path / "detections.json", "--subset", "test", "--protocol", "seconds", "--json", tmp_path / "out.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["map"] == of_run["seconds"]["map"]


@pytest.mark.parametrize("stop", [2, 4, 3])
def test_resumed_equals_uninterrupted(dataset, run, tmp_path, stop):
    """Weights, optimizer, batches, random states and log; also when it ended off the evaluation schedule."""
    train(arguments(dataset, tmp_path, "--holdout", "0.2", "--max-iter", str(stop)))
    torch.manual_seed(99)
    train(arguments(dataset, tmp_path, "--holdout", "0.2", "--resume"))
    assert records(tmp_path) == records(run)
    for name in ("last", "best", "selected"):
        assert same(checkpoint(tmp_path, name), checkpoint(run, name))
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads((run / "metrics.json").read_text())


def test_a_finished_run_resumed_only_reports(dataset, tmp_path, capsys):
    for _ in range(2):
        train(arguments(dataset, tmp_path, "--max-iter", "3", "--resume"))
        table = capsys.readouterr().out
    assert [record["iteration"] for record in records(tmp_path)] == [0, 2, 3]
    assert "already at iteration 3 of 3" in table and "best" in table


def test_training_does_not_import_the_compiler(dataset, tmp_path):
    code = """
import sys, main
main.main([*sys.argv[1:], "--max-iter", "2"])
main.main([*sys.argv[1:], "--max-iter", "4", "--resume"])
sys.exit("torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", code, *arguments(dataset, tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_saves_and_resume_continues(dataset, tmp_path):
    argv = arguments(dataset, tmp_path / "stopped", "--max-iter", "60", "--eval-every", "30")
    command = [sys.executable, "main.py", *argv]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    log = tmp_path / "stopped/log.jsonl"
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "stopped after iteration" in printed
    assert "Traceback" not in printed
    assert 0 < checkpoint(tmp_path / "stopped")["iteration"] < 60

    train([*argv, "--resume"])
    train(arguments(dataset, tmp_path / "whole", "--max-iter", "60", "--eval-every", "30"))
    assert same(checkpoint(tmp_path / "stopped"), checkpoint(tmp_path / "whole"))
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")


def test_training_sees_video_level_labels_only(dataset, run, tmp_path):
    """Without a single segment of the training subset, the weights come out the same."""
    weak = tmp_path / "weak"
    weak.mkdir()
    annotations = json.loads((dataset / "annotations.json").read_text())
    for video in annotations["database"].values():
        if video["subset"] == "train":
            video["annotations"] = []
    (weak / "annotations.json").write_text(json.dumps(annotations))
    (weak / "features.h5").symlink_to(dataset / "features.h5")
    (weak / "config.yaml").write_text(CONFIG)
    train(arguments(weak, tmp_path / "run", "--holdout", "0.2"))
    assert same(checkpoint(tmp_path / "run"), checkpoint(run))


def test_last_is_scored_as_it_is_now(dataset, tmp_path):
    """A run that was stopped after its last evaluation, and then is to end there, is evaluated again."""
    train(arguments(dataset, tmp_path / "run", "--max-iter", "3"))
    whole = json.loads((tmp_path / "run/metrics.json").read_text())["last"]
    path = tmp_path / "run/checkpoints/last.pt"
    stopped = torch.load(path, weights_only=True)
    torch.save({**stopped, "metrics": None}, path)  # as Ctrl-C at iteration 3 leaves it
    (tmp_path / "run/metrics.json").unlink()
    train(arguments(dataset, tmp_path / "run", "--max-iter", "3", "--resume"))
    assert json.loads((tmp_path / "run/metrics.json").read_text())["last"] == whole


def test_a_stopped_checkpoint_carries_no_metrics_of_other_weights():
    net = torch.nn.Linear(1, 1)
    loader = type("Loader", (), {"video_ids": []})()
    training = Training(net, torch.optim.Adam(net.parameters()), loader, {}, Path("run"), max_iter=9, eval_every=3)
    training.metrics = {"of": "before"}
    training.advance(StepOutcome({"total": torch.tensor(1.0)}, torch.tensor(True)), [])
    assert training.metrics is None


def test_classes_in_another_order_are_refused(dataset, run, tmp_path):
    annotations = copy_dataset(dataset, tmp_path / "data")
    annotations["classes"].reverse()
    (tmp_path / "data/annotations.json").write_text(json.dumps(annotations))
    argv = ["--checkpoint", run / "checkpoints/best.pt", "--path-dataset", tmp_path / "data"]
    done = run_program("test.py", *argv, "--output-dir", tmp_path / "out")
    assert_one_line(done, "was trained with 'Clap' as class 0, the annotations have 'Jump' there")


@pytest.mark.pictures
def test_names_that_matplotlib_would_read_as_mathematics(dataset, tmp_path):
    text = (dataset / "annotations.json").read_text().replace("Clap", "C$_$").replace("Dive", "$\\\\frac$")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/annotations.json").write_text(text)
    (tmp_path / "data/features.h5").symlink_to(dataset / "features.h5")
    (tmp_path / "data/config.yaml").write_text(CONFIG)
    train(arguments(tmp_path / "data", tmp_path / "$\\frac$", "--max-iter", "2"))
    assert (tmp_path / "$\\frac$/videos.png").stat().st_size > 1000


def test_undefined_scores_are_null(dataset, tmp_path):
    annotations = copy_dataset(dataset, tmp_path / "data")
    for video in annotations["database"].values():
        if video["subset"] == "test":
            video["labels"] = []
    (tmp_path / "data/annotations.json").write_text(json.dumps(annotations))
    train(arguments(tmp_path / "data", tmp_path / "run", "--max-iter", "2"))
    text = (tmp_path / "run/metrics.json").read_text()
    assert json.loads(text)["last"]["classification_map"] is None
    assert "NaN" not in text + (tmp_path / "run/log.jsonl").read_text()


def test_a_mistake_found_late_leaves_the_folder_free(dataset, tmp_path):
    done = run_program("main.py", *arguments(dataset, tmp_path / "run", "--lr", "1e20", "--precision", "bf16"))
    assert_one_line(done, "the loss or its gradient is not finite at iteration 2")
    train(arguments(dataset, tmp_path / "run", "--max-iter", "2"))
    assert [record["iteration"] for record in records(tmp_path / "run")] == [0, 2]


def test_holding_out_nothing_is_refused(dataset, tmp_path):
    for fraction in ("0.01", "0.99"):
        done = run_program("main.py", *arguments(dataset, tmp_path / "run", "--holdout", fraction))
        assert_one_line(done, f"--holdout {fraction} of 12 videos")


def test_seeds_differ_and_repeat(dataset, run, tmp_path):
    train(arguments(dataset, tmp_path / "again", "--holdout", "0.2"))
    train(arguments(dataset, tmp_path / "other", "--holdout", "0.2", "--seed", "1"))
    assert same(checkpoint(tmp_path / "again"), checkpoint(run))
    assert not same(checkpoint(tmp_path / "other")["model"], checkpoint(run)["model"])


def test_bf16_trains(dataset, tmp_path):
    train(arguments(dataset, tmp_path, "--precision", "bf16", "--max-iter", "2"))
    assert all(torch.isfinite(value).all() for value in checkpoint(tmp_path)["model"].values())


def test_a_run_is_never_overwritten(dataset, run):
    done = run_program("main.py", *arguments(dataset, run, "--holdout", "0.2"))
    assert_one_line(done, "already has a run")
    done = run_program("main.py", *arguments(dataset, run, "--holdout", "0.2", "--resume", "--lr", "1"))
    assert_one_line(done, "was run with lr = 0.001, not 1.0")


def assert_one_line(done, message):
    """Bad input: no traceback, exit status 2, and one line on stderr beside the progress bars."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr


def copy_dataset(source, target):
    """A copy of a dataset to damage: its annotations, and a function to rewrite them; features are copied too."""
    target.mkdir(exist_ok=True)
    for name in ("annotations.json", "features.h5", "config.yaml"):
        (target / name).write_bytes((source / name).read_bytes())
    return json.loads((target / "annotations.json").read_text())


def lose_features(folder, annotations):
    with h5py.File(folder / "features.h5", "r+") as file:
        del file["flow/train_0003"]


def narrow_features(folder, annotations):
    with h5py.File(folder / "features.h5", "r+") as file:
        values = file["rgb/train_0003"][:, :4]
        del file["rgb/train_0003"]
        file["rgb/train_0003"] = values


def spoil_features(folder, annotations):
    with h5py.File(folder / "features.h5", "r+") as file:
        file["rgb/test_0012"][5, 2] = np.nan


def invent_class(folder, annotations):
    annotations["database"]["train_0003"]["labels"] = ["Juggle"]
    (folder / "annotations.json").write_text(json.dumps(annotations))


def cut_annotations(folder, annotations):
    (folder / "annotations.json").write_text((folder / "annotations.json").read_text()[:200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_features, "train_0003"),
        (narrow_features, "expected (snippets, 6)"),
        (spoil_features, "NaN or infinite values, first in row 5"),
        (invent_class, "Juggle"),
        (cut_annotations, "not valid JSON"),
    ],
)
def test_bad_data_is_one_line_and_leaves_no_run(dataset, tmp_path, damage, message):
    annotations = copy_dataset(dataset, tmp_path / "data")
    damage(tmp_path / "data", annotations)
    done = run_program("main.py", *arguments(tmp_path / "data", tmp_path / "run"))
    assert_one_line(done, message)
    assert not (tmp_path / "run").exists()


def test_missing_features_can_be_left_out(dataset, tmp_path, capsys):
    annotations = copy_dataset(dataset, tmp_path / "data")
    lose_features(tmp_path / "data", annotations)
    train(arguments(tmp_path / "data", tmp_path / "run", "--missing-features", "skip", "--max-iter", "2"))
    assert "train 11 videos" in capsys.readouterr().out.replace("(1 without", "\n(1 without")


def test_other_bad_input_is_one_line(dataset, run, tmp_path):
    annotations = copy_dataset(dataset, tmp_path / "data")
    annotations["classes"].append("Juggle")
    (tmp_path / "data/annotations.json").write_text(json.dumps(annotations))
    testing = ["--checkpoint", run / "checkpoints/best.pt", "--output-dir", tmp_path / "out"]
    for program, argv, message in [
        ("main.py", arguments(tmp_path / "absent", tmp_path / "run")[2:], "no such file or folder"),
        ("main.py", arguments(dataset, tmp_path / "run", "--modalities", "rgb", "audio"), "audio"),
        ("main.py", arguments(dataset, tmp_path / "run", "--consensus", "add"), "needs modalities of one width"),
        ("test.py", [*testing, "--path-dataset", tmp_path / "data"], "has 3 classes, the dataset has 4"),
        ("main.py", arguments(dataset, dataset / "config.yaml/run"), "config.yaml"),
        (
            "test.py",
            [*testing[2:], "--path-dataset", dataset, "--checkpoint", tmp_path / "no.pt"],
            "checkpoint not found",
        ),
    ]:
        assert_one_line(run_program(program, *argv), message)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()
