"""Runs that are killed, stopped, damaged or given bad values lose nothing and report one line."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import main
from eval.outputs import open_outputs, write_outputs
from tests.test_train import (
    ENVIRONMENT,
    ROOT,
    arguments,
    assert_one_line,
    checkpoint,
    dataset,  # noqa: F401 - a fixture
    one_thread,  # noqa: F401 - a fixture
    records,
    run_program,
    same,
)
from utils.engine import BatchLoss, train_step
from utils.run.folder import SUMMED

MORE = ("--max-iter", "24", "--eval-every", "4")


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):  # noqa: F811
    """Folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    main.main(arguments(dataset, folder, *MORE))
    return folder


def start(dataset, run, *more, **options):  # noqa: F811
    command = [sys.executable, "main.py", *arguments(dataset, run, *MORE, *more)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for(run, lines, process):
    """Wait until the log has this number of lines."""
    deadline = time.monotonic() + 600
    log = run / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_run(run, other):
    assert records(run) == records(other)
    for name in ("last", "best"):
        assert same(checkpoint(run, name), checkpoint(other, name))
    for name in ("metrics.json", "detections.json"):
        assert (run / name).read_text() == (other / name).read_text()


def test_killed_run_resumes_bit_for_bit(dataset, whole, tmp_path):  # noqa: F811
    moments = random.Random(0)
    for lines in (1, 4):
        process = start(dataset, tmp_path / "run", "--resume")
        wait_for(tmp_path / "run", lines, process)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    main.main(arguments(dataset, tmp_path / "run", *MORE, "--resume"))
    assert_same_run(tmp_path / "run", whole)
    left = [path.name for path in (tmp_path / "run").rglob("*.partial-*")]
    assert left == []


def test_ctrl_c_before_training_leaves_no_folder(dataset, monkeypatch, tmp_path, run_main):  # noqa: F811
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "open_dataset", interrupted)
    status, _, err = run_main(main.main, *arguments(dataset, tmp_path / "run"))
    assert status == 130 and err.strip() == "interrupted"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_last_checkpoint_loses_one_evaluation(dataset, whole, tmp_path, capsys, damage):  # noqa: F811
    run = tmp_path / "run"
    main.main(arguments(dataset, run, *MORE[2:], "--max-iter", "12"))
    last = run / "checkpoints/last.pt"
    content = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    else:
        content[len(content) // 2] ^= 1
        last.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    capsys.readouterr()
    main.main(arguments(dataset, run, *MORE, "--resume"))
    assert "previous.pt, iteration 8" in capsys.readouterr().err
    assert (run / "checkpoints/damaged.pt").exists() == (damage != "gone")
    assert_same_run(run, whole)


def test_two_damaged_checkpoints_are_an_error(dataset, tmp_path):  # noqa: F811
    main.main(arguments(dataset, tmp_path / "run", "--max-iter", "4"))
    for name in ("last", "previous"):
        (tmp_path / f"run/checkpoints/{name}.pt").write_bytes(b"PK\3\4 cut off")
    done = run_program("main.py", *arguments(dataset, tmp_path / "run", "--max-iter", "4", "--resume"))
    assert_one_line(done, "previous.pt: damaged")


def test_full_disk_keeps_the_last_checkpoint(dataset, whole, tmp_path):  # noqa: F811
    """A limit on file size makes the system refuse the write, as a full disk does."""
    run = tmp_path / "run"
    main.main(arguments(dataset, run, *MORE[2:], "--max-iter", "12"))
    before = (run / "checkpoints/last.pt").read_bytes()
    limit = len(before) // 2
    process = start(
        dataset, run, "--resume", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, printed = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "Traceback" not in printed
    assert "cannot be written (File too large)" in printed
    assert (run / "checkpoints/last.pt").read_bytes() == before
    main.main(arguments(dataset, run, *MORE, "--resume"))
    assert_same_run(run, whole)


def test_second_process_is_refused_and_sigterm_saves(dataset, whole, tmp_path):  # noqa: F811
    process = start(dataset, tmp_path / "run")
    wait_for(tmp_path / "run", 1, process)
    process.send_signal(signal.SIGSTOP)
    done = run_program("main.py", *arguments(dataset, tmp_path / "run", *MORE, "--resume"))
    assert_one_line(done, "is being trained by another process")
    process.terminate()
    process.send_signal(signal.SIGCONT)
    _, printed = process.communicate(timeout=600)
    assert process.returncode == 143 and "Traceback" not in printed
    (stopped,) = re.findall(r"stopped after iteration (\d+); --resume continues the run", printed)
    assert checkpoint(tmp_path / "run")["iteration"] == int(stopped)
    main.main(arguments(dataset, tmp_path / "run", *MORE, "--resume"))
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("name", [name for name in SUMMED if name != "environment.json"])
def test_flipped_bit_in_a_finished_run_is_detected(dataset, tmp_path, name):  # noqa: F811
    run = tmp_path / "run"
    main.main(arguments(dataset, run, "--max-iter", "2"))
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run / name).write_bytes(content)
    done = run_program("main.py", *arguments(dataset, run, "--max-iter", "4", "--resume"))
    assert_one_line(done, f"{name}: differs from the checksum in SHA256SUMS")
    done = run_program("scripts/report.py", run)
    assert_one_line(done, f"{name}: differs from the checksum in SHA256SUMS")


def poison(monkeypatch, *steps):
    """Put a NaN into the features of these batches, counted from 1."""
    draw, count = main.BatchLoader.__next__, iter(range(1, 1000))

    def poisoned(self):
        batch = draw(self)
        if next(count) in steps:
            batch.features[0, 0, 0] = float("nan")
        return batch

    monkeypatch.setattr(main.BatchLoader, "__next__", poisoned)


def test_nonfinite_step_stops_the_run_and_saves_its_batch(dataset, tmp_path, monkeypatch, run_main):  # noqa: F811
    poison(monkeypatch, 3)
    status, _, err = run_main(main.main, *arguments(dataset, tmp_path / "run"))
    line = next(line for line in err.splitlines() if line.startswith("error: "))
    assert status == 2
    assert "not finite at iteration 3 (mil_org nan" in line and "fault.pt" in line
    fault = checkpoint(tmp_path / "run", "fault")
    assert len(fault["fault"]["video_ids"]) == len(fault["fault"]["features"]) == 10
    assert all(video in line and video.startswith("train_") for video in fault["fault"]["video_ids"])
    assert fault["fault"]["features"].isnan().sum() == 1
    assert all(value.isfinite().all() for value in fault["model"].values())
    assert same(fault["model"], checkpoint(tmp_path / "run")["model"])  # weights of iteration 2


def test_nonfinite_steps_can_be_tolerated(dataset, tmp_path, monkeypatch):  # noqa: F811
    poison(monkeypatch, 2, 3)
    main.main(arguments(dataset, tmp_path / "run", "--skip-nonfinite", "2"))
    assert [record["skipped"] for record in records(tmp_path / "run")] == [0, 1, 2, 2]
    assert checkpoint(tmp_path / "run")["training"]["skipped"] == 2
    assert all(value.isfinite().all() for value in checkpoint(tmp_path / "run")["model"].values())
    poison(monkeypatch, 1)
    with pytest.raises(SystemExit):
        main.exit_on_input_error(
            lambda: main.main(
                arguments(dataset, tmp_path / "run", "--skip-nonfinite", "2", "--resume", "--max-iter", "8")
            )
        )
    assert checkpoint(tmp_path / "run")["iteration"] == 6


def test_losses_are_empty_if_all_steps_were_skipped(dataset, tmp_path, monkeypatch):  # noqa: F811
    poison(monkeypatch, 1, 2)
    main.main(arguments(dataset, tmp_path / "run", "--skip-nonfinite", "2"))
    assert records(tmp_path / "run")[1]["losses"] == {}


def test_finite_loss_with_infinite_gradient_changes_nothing():
    net = nn.Linear(1, 1)
    before = [parameter.clone() for parameter in net.parameters()]
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    class Criterion:
        def __call__(self, outputs, labels, pairs, progress):
            return {"total": (outputs["y"] * 0).sum().sqrt()}  # 0, with an infinite gradient

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, features):
            return {"y": self.inner(features)}

    batch = (torch.ones(2, 1), torch.ones(2, 1), torch.zeros(0, 2))
    outcome = train_step(BatchLoss(Net(), Criterion()), optimizer, batch)
    assert outcome.terms["total"] == 0 and not outcome.finite
    assert same(before, [parameter.detach() for parameter in net.parameters()])
    assert not any(value.any() for values in optimizer.state.values() for value in values.values())


def test_out_of_memory_names_options_to_lower(dataset, tmp_path, monkeypatch, run_main):  # noqa: F811
    def greedy(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore of it.")

    monkeypatch.setattr(main, "train_step", greedy)
    status, _, err = run_main(main.main, *arguments(dataset, tmp_path / "run"))
    assert status == 2
    assert "error: out of memory (CUDA out of memory. Tried to allocate 20.00 GiB.); lower --batch-size" in err


@pytest.mark.parametrize("video_id", ["../out", "/etc/passwd", ".", "..", "a/b", "a", "x" * 300, "é\n'\"<b>", "a%2Fb"])
def test_outputs_accept_any_video_id(dataset, tmp_path, video_id):  # noqa: F811
    """Outputs are read back under the same id, and no other file appears."""
    made = {name: np.zeros((3, 2), np.float16) for name in ("cas", "attention", "modality_attention")}
    results = [SimpleNamespace(video_id=name, **made) for name in dict.fromkeys([video_id, "a/b/c", "a"])]
    write_outputs(tmp_path / "outputs.h5", results, ["Jump"], 1.5)
    with open_outputs(tmp_path / "outputs.h5") as outputs:
        assert set(outputs.video_ids) == {result.video_id for result in results}
        assert outputs[video_id]["cas"].shape == (3, 2)
        assert "other" not in outputs
    assert os.listdir(tmp_path) == ["outputs.h5"]


def test_checksums_are_accepted_by_sha256sum(whole):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((whole / "metrics.json").read_text())["last"]["iteration"] == 24
