"""A run's folder: one process at a time, what was asked for, what it ran on, and checksums of what it ended with.

options.yaml, environment.json, log.jsonl, TensorBoard events, checkpoints/, and at the end metrics.json,
detections.json, outputs.h5, videos.png and SHA256SUMS.
"""

import fcntl
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import yaml

from utils.checkpoint import holds_training
from utils.errors import InputError
from utils.formats.checksums import SUMS, format_checksums, read_checksums, verify_checksum
from utils.formats.files import read_json, read_yaml, sweep_partial, write_json, write_text

LOCK = ".lock"
# What a finished run is read by; checkpoints carry checksums of their own.
SUMMED = ("options.yaml", "environment.json", "log.jsonl", "metrics.json", "detections.json", "outputs.h5")


class RunFolder:
    """The folder of one run, held by this process alone; a context manager.

    A folder that is left without anything in it, because a mistake was found before the run began, goes again.

    Args:
        folder: where; one without checkpoints has nothing to lose.
        options: the resolved options that a resumed run must share.
        resume: whether the folder may hold the run already.
        defaults: what an option was in a run that was begun before there was the option.

    Raises:
        InputError: if another process has it, it holds a run and `resume` is off, or one with other options, or it
            cannot be made.
    """

    def __init__(self, folder: str | Path, options: dict, resume: bool, defaults: dict):
        self.path, self._options, self._resume, self._defaults = Path(folder), options, resume, defaults

    def __enter__(self) -> "RunFolder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made ({error.strerror})") from None
        try:
            if holds_training(self.path / "checkpoints"):
                if not self._resume:
                    raise InputError(
                        f"{self.path} already holds a run; continue it with --resume or choose another --run-dir"
                    )
                require_same_options(self.path / "options.yaml", self._options, self._defaults)
                for name in read_checksums(self.path):
                    if (self.path / name).exists():
                        verify_checksum(self.path / name)
            for folder in (self.path, self.path / "checkpoints"):
                sweep_partial(folder)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        if os.listdir(self.path) == [LOCK]:
            with suppress(OSError):
                (self.path / LOCK).unlink()
                self.path.rmdir()
        self._lock.close()

    def begin(self, options: dict, features: dict, device: torch.device, ranks: int = 1, nodes: int = 1) -> None:
        """Write options.yaml, which alone repeats the run, and environment.json.

        Args:
            options: the resolved options.
            features: which ones are trained on.
            ranks, nodes: processes that train together, and their machines.
        """
        (self.path / SUMS).unlink(missing_ok=True)  # of what the run will change
        write_text(self.path / "options.yaml", yaml.safe_dump(options, sort_keys=False))
        path, environment = self.path / "environment.json", {**_environment(device), "ranks": ranks, "nodes": nodes}
        environment["features"] = features
        if holds_training(self.path / "checkpoints") and path.exists():  # what it was begun with stays on record
            first = read_json(path)
            environment = {**first, "resumed": [*first.get("resumed", []), environment]}
        write_json(path, environment, indent=1)

    def end(self) -> None:
        """Write SHA256SUMS over what the run ended with, so that a flipped bit in it is noticed."""
        names = [name for name in SUMMED if (self.path / name).is_file()]
        write_text(self.path / SUMS, format_checksums(self.path, names))


def require_same_options(path: Path, options: dict, defaults: dict) -> None:
    """InputError if the options.yaml of a run, over the defaults, says otherwise."""
    before = read_yaml(path)
    if not isinstance(before, dict):
        raise InputError(f"{path}: not the options of a run; move the folder away")
    before = {**defaults, **before}
    for name, value in options.items():
        if before.get(name) != value:
            raise InputError(
                f"{path.parent} was run with {name} = {before.get(name)!r}, not {value!r}; "
                "resume it with its own options or choose another --run-dir"
            )


def _locked(run: Path) -> TextIO:
    """A file of the run folder, locked while it is open and this process lives; InputError if another one has it."""
    file = (run / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"{run} is being trained by another process") from None
    except OSError:
        return file  # a file system without locks
    with suppress(FileNotFoundError):
        if os.fstat(file.fileno()).st_ino == (run / LOCK).stat().st_ino:
            return file
    file.close()  # its holder has just removed it, with the folder
    run.mkdir(parents=True, exist_ok=True)
    return _locked(run)


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
    root = Path(__file__).resolve().parent.parent.parent
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
