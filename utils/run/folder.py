"""Run folder: lock against a second process, options, environment, and checksums of the results.

A run folder has options.yaml, environment.json, log.jsonl, TensorBoard events and checkpoints/. At the end of the run
come metrics.json, detections.json, outputs.h5, videos.png and SHA256SUMS.
"""

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout

from utils.checkpoint import has_training_state
from utils.errors import InputError
from utils.formats.checksums import SUMS, format_checksums, read_checksums, verify_checksum
from utils.formats.files import read_json, read_yaml, sweep_partial, write_json, write_text

NUMERICS = 1  # version of the arithmetic and of the random streams; raise it when results of a seed change
REVISION = "CO2NET_REVISION"  # variable with the revision of the code, for a copy of it without git
LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # the file system does not support locks
# Files that describe a finished run. Checkpoints contain checksums of their own.
SUMMED = ("options.yaml", "environment.json", "log.jsonl", "metrics.json", "detections.json", "outputs.h5")


class RunFolder:
    """Folder of one run, locked for this process; a context manager.

    If an error stops the run before it writes anything, the empty folder is removed.

    Args:
        run_dir: The folder. Created if it does not exist.
        options: Options that must be unchanged when the run is resumed.
        resume: Whether to continue a run that the folder already has.
        complete: Function that completes the saved options of an older run.

    Raises:
        InputError: If another process uses the folder, it has a run and `resume` is off, its run has other options, or
            it cannot be created.
    """

    def __init__(self, run_dir: str | Path, options: dict, resume: bool, complete: Callable[[dict], dict]):
        self.path, self._options, self._resume, self._complete = Path(run_dir), options, resume, complete
        self._lock = FileLock(self.path / LOCK, timeout=0, fallback_to_soft=False)

    def __enter__(self) -> "RunFolder":
        checkpoints = self.path / "checkpoints"
        self._acquire_lock()
        try:
            if has_training_state(checkpoints):
                if not self._resume:
                    raise InputError(
                        f"{self.path}: already has a run; continue it with --resume or choose another --run-dir"
                    )
                require_same_options(self.path / "options.yaml", self._options, self._complete)
                for name in read_checksums(self.path):
                    if (self.path / name).exists():
                        verify_checksum(self.path / name)
            for folder in (self.path, checkpoints):
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
        self._lock.release()

    def begin(self, options: dict, features: dict, device: torch.device, ranks: int = 1, nodes: int = 1) -> None:
        """Write options.yaml, which is enough to repeat the run, and environment.json.

        Args:
            options: All resolved options.
            features: Description of the features trained on.
            device: Device trained on.
            ranks: Number of processes that train together.
            nodes: Number of their machines.
        """
        (self.path / SUMS).unlink(missing_ok=True)  # the run is about to change the listed files
        write_text(self.path / "options.yaml", yaml.safe_dump(options, sort_keys=False))
        path, environment = self.path / "environment.json", {**_environment(device), "ranks": ranks, "nodes": nodes}
        environment["features"] = features
        if has_training_state(self.path / "checkpoints") and path.exists():  # keep the first environment on record
            first = read_json(path)
            environment = {**first, "resumed": [*first.get("resumed", []), environment]}
        write_json(path, environment, indent=1)

    def end(self) -> None:
        """Write SHA256SUMS of the results, so that a flipped bit is detected."""
        names = [name for name in SUMMED if (self.path / name).is_file()]
        write_text(self.path / SUMS, format_checksums(self.path, names))

    def _acquire_lock(self) -> None:
        if self.path.is_file():
            raise InputError(f"{self.path}: is a file; --run-dir expects a folder")
        try:
            while True:
                self.path.mkdir(parents=True, exist_ok=True)
                # A process that ends without results removes the folder, perhaps just now.
                with suppress(FileNotFoundError):
                    self._lock.acquire()
                    return
        except Timeout:
            raise InputError(f"{self.path}: is being trained by another process") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise InputError(f"{self.path}: cannot be created ({error.strerror})") from None


def require_same_options(path: Path, options: dict, complete: Callable[[dict], dict]) -> None:
    """Raise InputError if the options.yaml of a run has other options.

    Args:
        path: The options.yaml.
        options: Expected values.
        complete: Function that completes the saved options of an older run.
    """
    before = read_yaml(path, verify=True)
    if not isinstance(before, dict):
        raise InputError(f"{path}: not the options of a run; move the folder away")
    before = complete(before)
    for name, value in options.items():
        if before.get(name) != value:
            raise InputError(
                f"{path.parent}: was run with {name} = {before.get(name)!r}, not {value!r}; "
                "resume it with its own options or choose another --run-dir"
            )


def _environment(device: torch.device) -> dict:
    """Return versions, machine, code revision and command of the run."""
    return {
        "command": [Path(sys.executable).name, *sys.argv],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "numerics": NUMERICS,
        "revision": _git("rev-parse", "HEAD") or os.environ.get(REVISION),
        # Of code and configs: a ledger that grows changes no result.
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml")),
    }


def _git(*words: str) -> str | None:
    root = Path(__file__).resolve().parent.parent.parent
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
