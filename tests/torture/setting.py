"""The small simulated dataset, the training on it that everything is compared with, and what a failure leaves."""

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
# Few steps, and small ones: after larger ones no detection is left, and nothing but empty lists would be compared.
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
MAX_KEPT = 40  # failing inputs of one part that are kept; all are counted


@dataclass(frozen=True)
class Failure:
    """Something that must not happen."""

    kind: str
    part: str
    number: int  # of the run or the input; with the seed it repeats
    what: str
    message: str
    kept: str | None = None  # where its files are


@dataclass
class Setting:
    """A temporary folder with the dataset and a finished training, and the failures found so far."""

    root: Path
    seed: int
    failures: list[Failure] = field(default_factory=list)

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def reference(self) -> Path:
        """The training that nothing disturbed."""
        return self.root / "reference"

    @property
    def kept(self) -> Path:
        return self.root / "failures"

    def argv(self, run: Path, *more: str) -> list[str]:
        """The words after main.py for a training in this folder, begun or continued."""
        words = ["--config", self.root / "config.yaml", "--path-dataset", self.dataset, "--run-dir", run, "--resume"]
        return [*map(str, words), *more]

    def fail(self, kind: str, part: str, number: int, what: str, message: str, files: Path | None = None) -> None:
        """Count a failure and keep its files."""
        kept = None
        if files is not None and files.exists() and sum(old.part == part for old in self.failures) < MAX_KEPT:
            target = self.kept / f"{part}-{number}"
            shutil.copytree(files, target, symlinks=True, dirs_exist_ok=True, ignore_dangling_symlinks=True)
            record = {"seed": self.seed, "part": part, "number": number, "kind": kind, "what": what}
            write_json(target / "failure.json", {**record, "message": message}, indent=1)
            kept = str(target)
        self.failures.append(Failure(kind, part, number, what, message, kept))


def make_setting(root: Path, seed: int) -> Setting:
    """The dataset, and one training by a plain `python main.py`, whose results are the reference."""
    setting = Setting(root, seed)
    simulate_features(parse_annotations(invent_timeline(VIDEOS, CLASSES), "invented"), setting.dataset, WIDTHS)
    write_text(root / "config.yaml", CONFIG)
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", *setting.argv(setting.reference)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise InputError(f"the training that all others are compared with failed: {done.stderr[-2000:]}")
    if not any(json.loads((setting.reference / "detections.json").read_text())["results"].values()):
        raise InputError("the training that all others are compared with detects nothing")
    return setting


@dataclass(frozen=True)
class Budget:
    """How much of a part is done.

    Attributes:
        deadline: time.monotonic() at which nothing more begins.
        first: number of the first run or input.
        limit: how many kills or inputs at most; None: as many as the time allows.
    """

    deadline: float
    first: int = 0
    limit: int | None = None

    def allows(self, done: int) -> bool:
        return time.monotonic() < self.deadline and (self.limit is None or done < self.limit)
