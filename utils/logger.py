"""The record of a run: its folder, what it ran on, progress bar, one JSON line an evaluation, TensorBoard."""

import fcntl
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.errors import InputError

SCALARS_EVERY = 10  # iterations between TensorBoard points of the losses


def check_run(folder: str, options: dict, resume: bool) -> Path:
    """The run folder, which holds no other run: one without checkpoints/last.pt has nothing to lose.

    Args:
        options: the resolved options that a resumed run must share.
        resume: whether the folder may hold the run already.

    Raises:
        InputError: if the folder holds a run and ``resume`` is off, or one with other options.
    """
    run = Path(folder)
    if (run / "checkpoints/last.pt").exists():
        if not resume:
            raise InputError(f"{run} already holds a run; continue it with --resume or choose another --run-dir")
        require_same_options(run / "options.yaml", options)
    return run


def open_run(run: Path, options: dict, features: dict, device: torch.device) -> None:
    """Make the folder, with options.yaml, which alone repeats the run, and environment.json.

    Args:
        options: the resolved options.
        features: which ones are trained on.

    Raises:
        InputError: if the folder cannot be made, or another process is at it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run}: cannot be made ({error.strerror})") from None
    _locked(run).close()  # nothing is written beside another process
    _write_whole(run / "options.yaml", yaml.safe_dump(options, sort_keys=False))
    path, environment = run / "environment.json", {**_environment(device), "features": features}
    if (run / "checkpoints/last.pt").exists() and path.exists():  # what the run was begun with stays on record
        first = json.loads(path.read_text())
        environment = {**first, "resumed": [*first.get("resumed", []), environment]}
    write_json(path, environment)


def write_json(path: Path, content: dict) -> None:
    """Strict JSON: what is undefined must come as None."""
    _write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """Beside its place first, so that a stop or a full disk leaves the file as it was."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


class RunLog:
    """Progress bar, log.jsonl and TensorBoard of a run; a context manager.

    Args:
        run: the run folder.
        first: iterations done before. Records of an interrupted attempt after it are dropped, and if the run goes on,
            so are those off the evaluation schedule: a resumed log is that of a run that was not stopped.
        total: iterations of the whole run.
        eval_every: iterations between evaluations.
        snippets: snippets of one batch.

    Raises:
        InputError: if another process is at this run.
    """

    def __init__(self, run: Path, first: int, total: int, eval_every: int, snippets: int):
        self._path, self._snippets = run / "log.jsonl", snippets
        self._lock = _locked(run)
        done = [record for record in _read_records(self._path) if 0 < first >= record["iteration"]]
        self.records = [record for record in done if first == total or record["iteration"] % eval_every == 0]
        _write_whole(self._path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._writer = SummaryWriter(run, purge_step=first + 1 if first else None)
        self._bar = tqdm(total=total, initial=first, desc="training", unit="it", dynamic_ncols=True)
        self._steps, self._seconds = 0, 0.0
        self._clock = time.perf_counter()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()
        self._writer.close()
        self._lock.close()

    def step(self, iteration: int, terms: dict[str, Tensor], lr: float) -> None:
        """After each training step; looks at the values, and so waits for them, only every SCALARS_EVERY."""
        self._bar.update()
        self._steps += 1
        if iteration % SCALARS_EVERY == 0:
            for name, value in terms.items():
                self._writer.add_scalar(f"loss/{name}", value.item(), iteration)
            self._writer.add_scalar("lr", lr, iteration)
            self._bar.set_postfix(loss=f"{terms['total'].item():.3f}", **self._scores())

    def pause(self) -> None:
        """Before an evaluation, whose time does not count towards the training speed."""
        self._seconds += time.perf_counter() - self._clock

    def evaluation(
        self, iteration: int, losses: dict[str, float], metrics: dict, holdout: dict[str, float] | None = None
    ) -> None:
        """One line in log.jsonl, and its scalars: mean losses since the last one, mAPs, scores on held-out videos,
        snippets a second."""
        speed = self._steps * self._snippets / self._seconds if self._steps else None
        record = {
            "iteration": iteration,
            "losses": losses,
            "scores": _summary(metrics) | {f"holdout/{name}": value for name, value in (holdout or {}).items()},
            "snippets_per_second": speed,
        }
        self.records.append(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        for name, value in record["scores"].items():
            if value is not None:
                self._writer.add_scalar(name, value, iteration)
        if speed:
            self._writer.add_scalar("snippets_per_second", speed, iteration)
        self._writer.flush()
        self._steps, self._seconds, self._clock = 0, 0.0, time.perf_counter()

    def _scores(self) -> dict[str, str]:
        last = self.records[-1]["scores"] if self.records else {}
        return {"mAP": f"{100 * last['snippet/mean_mAP']:.1f}"} if last else {}


def _summary(metrics: dict) -> dict[str, float]:
    """metrics.json's form, flat: the scalars that are worth a curve."""
    scores = {"classification_mAP": metrics["classification_map"]}
    for protocol, values in metrics.items():
        if protocol == "classification_map":
            continue
        for threshold, value in zip(values["tiou_thresholds"], values["map"], strict=True):
            scores[f"{protocol}/mAP@{threshold:g}"] = value
        scores[f"{protocol}/mean_mAP"] = values["average_map"]
    return scores


def _read_records(path: Path) -> list[dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        # A last line that was cut off belongs to a later evaluation than the checkpoint's.
        return [json.loads(line) for line in lines if line.endswith("}")]
    except ValueError:
        raise InputError(f"{path}: not one JSON object a line; repair it or move it away") from None


def require_same_options(path: Path, options: dict) -> None:
    """InputError if the options.yaml of a run says otherwise."""
    try:
        before = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        before = None
    if not isinstance(before, dict):
        raise InputError(f"{path}: not the options of a run; move the folder away")
    for name, value in options.items():
        if before.get(name) != value:
            raise InputError(
                f"{path.parent} was run with {name} = {before.get(name)!r}, not {value!r}; "
                "resume it with its own options or choose another --run-dir"
            )


def _locked(run: Path) -> TextIO:
    """A file of the run folder, locked while it is open and this process lives; InputError if another one has it."""
    file = (run / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"{run} is being trained by another process") from None
    except OSError:
        pass  # a file system without locks
    return file


def _environment(device: torch.device) -> dict:
    """Versions, machine, code revision and command of the run."""
    return {
        "command": [Path(sys.executable).name, *sys.argv],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "revision": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*words: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
