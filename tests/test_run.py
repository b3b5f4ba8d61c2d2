"""Log, stop signal and resumed state of a run, without a whole training."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from utils.run.log import RunLog
from utils.run.stop import StopSignal
from utils.training import StepOutcome, Training

TIOUS = [0.1, 0.3, 0.5, 0.7, 0.9]
METRICS = {
    "classification_map": 0.5,
    "snippet": {"tiou_thresholds": TIOUS, "map": [0.4, 0.3, 0.2, 0.1, 0.0], "average_map": 0.2},
}
LOSSES = {"total": torch.tensor(2.0)}


class Loader:
    """Loader whose state is the number of batches drawn."""

    def __init__(self):
        self.drawn, self.video_ids = 0, ["a"]

    def __next__(self):
        self.drawn += 1
        return [torch.tensor(self.drawn)]

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


class Net(torch.nn.Module):
    """Smallest network that a checkpoint can be loaded into."""

    CLASS_LAYER, num_classes = "layer.weight", 1

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 2)


def build_training(folder, **options):
    net = Net()
    net.layer(torch.ones(1, 1)).sum().backward()
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.step()
    options = {"max_iter": 6, "eval_every": 2, **options}
    return Training(net, optimizer, Loader(), {"classes": ["a"]}, folder, **options)


def finite_step():
    return StepOutcome(LOSSES, torch.tensor(True))


def test_batches_end_with_the_run_and_evaluations_follow_the_schedule(tmp_path):
    training, due = build_training(tmp_path, max_iter=5), []
    for batch in training.batches():
        training.advance(finite_step(), batch)
        due += [training.iteration] * training.evaluation_is_due
    assert training.iteration == training.loader.drawn == 5
    assert due == [2, 4, 5]


@pytest.mark.parametrize("key", ["optimizer", "optimiser"])
def test_resume_reads_the_older_name_of_the_optimizer_state(tmp_path, key):
    training = build_training(tmp_path)
    training.advance(finite_step(), next(training.loader))
    training.save_last()
    path = tmp_path / "checkpoints/last.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["training"][key] = checkpoint["training"].pop("optimizer")
    torch.save(checkpoint, path)
    resumed = build_training(tmp_path)
    resumed.resume(seed=0)
    assert resumed.iteration == resumed.loader.drawn == 1
    assert resumed.losses() == {"total": 2.0}
    (first, *_), (second, *_) = (t.optimizer.state_dict()["state"].values() for t in (training, resumed))
    assert torch.equal(first["exp_avg"], second["exp_avg"])


def test_log_without_a_terminal_prints_a_line_per_evaluation(tmp_path, capsys):
    with RunLog(tmp_path, 0, 4, 2, 10, (0.1, 0.7)) as log:
        for iteration in (1, 2):
            log.step(iteration, LOSSES, 0.1)
        log.evaluation(2, {"total": 2.5}, METRICS)
    started, evaluated = capsys.readouterr().err.splitlines()
    assert started == "training: iterations 1 to 4, an evaluation every 2"
    assert evaluated.startswith("training: iteration 2/4, loss 2.500, mAP@0.1:0.7 (snippet) 25.0, ETA 00:0")
    assert json.loads((tmp_path / "log.jsonl").read_text())["scores"]["snippet/mAP@0.5"] == 0.2


def test_bar_on_a_terminal_names_its_mean(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with RunLog(tmp_path, 0, 20, 10, 10, (0.1, 0.7)) as log:
        log.evaluation(0, {}, METRICS)
        for iteration in range(1, 11):
            log.step(iteration, LOSSES, 0.1)
    printed = capsys.readouterr().err
    assert "loss=2.000, mAP@0.1:0.7 (snippet)=25.0" in printed
    assert "iteration 0/20" not in printed


def test_speed_counts_the_steps_alone(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 100.0, 101.0, 200.0])  # start, two steps, end of the evaluation, a step
    monkeypatch.setattr("utils.run.log.time.perf_counter", lambda: next(clock))
    with RunLog(tmp_path, 0, 3, 2, 30, (0.1, 0.7)) as log:
        log.step(1, LOSSES, 0.1)
        log.step(2, LOSSES, 0.1)
        monkeypatch.setattr(log, "_print_evaluation", lambda *arguments: None)
        log.evaluation(2, {}, METRICS)
        log.step(3, LOSSES, 0.1)
        log.evaluation(3, {}, METRICS)
    assert [record["snippets_per_second"] for record in log.records] == [20.0, 30.0]


def test_log_of_other_ranks_is_silent(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunLog(None, 0, 4, 2, 10, (0.1, 0.7)) as log:
        log.step(10, LOSSES, 0.1)
        log.evaluation(10, {}, METRICS)
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_waits_for_the_step_and_a_second_one_does_not(number, capfd):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested() and stop.requested()
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), number)
            stop.requested()
    assert end.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert "a second signal stops at once" in capfd.readouterr().err


CONVOLUTIONS = """
import torch
from utils.run import devices
devices.PRIMITIVES = 1
devices.choose_device("cpu")
network = torch.nn.Conv1d(64, 64, 3)
for length in (200, 300) * 3:
    network(torch.ones(10, 64, length))
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_compiled_operations_are_bounded():
    """Six convolutions of two lengths: with one place in memory, each is compiled again."""
    environment = {**os.environ, "ONEDNN_VERBOSE": "profile_create"}
    environment.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    command = [sys.executable, "-c", CONVOLUTIONS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert sum("cache_miss" in line and "convolution" in line for line in done.stdout.splitlines()) == 6
