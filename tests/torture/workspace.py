"""The small simulated dataset, the reference training on it, and the failures of a run."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from utils.annotations import parse_annotations
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features
from utils.formats.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent.parent
VIDEOS, CLASSES, WIDTHS = 20, 3, (6, 5)  # 12 videos to train on, 8 to test on
# Few and small steps: after larger ones no detection is left, and only empty lists would be compared.
ITERATIONS = 12
CONFIG = f"""\
dataset: demo
num_snippets: 12
lr: 1e-4
max_iter: {ITERATIONS}
eval_every: 2
evaluate_untrained: true
holdout: 0.2
device: cpu
"""
MAX_COPIES = 40  # failing inputs per part whose files are copied; all are counted
FAILURES = [
    *("lost run", "differing resume", "traceback", "code run", "silent wrong number", "malformed file accepted"),
    *("hostile file accepted", "file outside", "hang", "crash", "memory", "other"),
]


@dataclass(frozen=True)
class Failure:
    """One event that must not happen; the seed and the number repeat it."""

    kind: str
    part: str
    number: int
    what: str
    message: str
    copy: str | None = None  # folder with its files


@dataclass
class Workspace:
    """A temporary folder with the dataset and a finished training, and the failures so far."""

    root: Path
    seed: int
    failures: list[Failure] = field(default_factory=list)

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def reference(self) -> Path:
        """Run folder of the undisturbed training."""
        return self.root / "reference"

    @property
    def copies(self) -> Path:
        """Folder for the files of failures."""
        return self.root / "failures"

    def argv(self, run_dir: Path, *more: str) -> list[str]:
        """Return the words after main.py that start or continue a training in this folder."""
        words = ["--config", self.root / "config.yaml", "--path-dataset", self.dataset, "--run-dir", run_dir]
        return [*map(str, words), "--resume", *more]

    def fail(self, kind: str, part: str, number: int, what: str, message: str, files: Path | None = None) -> None:
        """Count a failure and copy its files."""
        copy = None
        if files is not None and files.exists() and sum(failure.part == part for failure in self.failures) < MAX_COPIES:
            copy = self.copies / f"{part}-{len(self.failures)}"
            shutil.copytree(files, copy, symlinks=True, dirs_exist_ok=True, ignore_dangling_symlinks=True)
            record = {"seed": self.seed, "part": part, "number": number, "kind": kind, "what": what}
            write_json(copy / "failure.json", {**record, "message": message}, indent=1)
        self.failures.append(Failure(kind, part, number, what, message, copy and str(copy)))


@dataclass(frozen=True)
class Budget:
    """The amount of work of one part.

    Attributes:
        deadline: time.monotonic() at which nothing more starts.
        first: number of the first run, batch or example.
        limit: number of kills or inputs; None for as many as the time allows.
    """

    deadline: float
    first: int = 0
    limit: int | None = None

    def allows(self, done: int) -> bool:
        return time.monotonic() < self.deadline and (self.limit is None or done < self.limit)


def make_workspace(root: Path, seed: int) -> Workspace:
    """Simulate the dataset and train on it with a plain `python main.py`, the reference for all other trainings."""
    workspace = Workspace(root, seed)
    simulate_features(parse_annotations(invent_timeline(VIDEOS, CLASSES), "invented"), workspace.dataset, WIDTHS)
    write_text(root / "config.yaml", CONFIG)
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", *workspace.argv(workspace.reference)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise InputError(f"the reference training failed: {done.stderr[-2000:]}")
    if not any(json.loads((workspace.reference / "detections.json").read_text())["results"].values()):
        raise InputError("the reference training detects nothing")
    return workspace
