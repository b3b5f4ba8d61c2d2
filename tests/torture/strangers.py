"""Files of strangers: each would leave a sentinel if any code of it ran, or a trace if it reached beyond its folder.

Every case is put among good files and opened as a command opens it, in a process whose time and memory are watched.
Failures: the sentinel is there; something else appeared outside the input's folder; a traceback, a hang, a crash, more
memory than it may take; or something was made of what holds nothing that could be used (see Case.must_refuse).
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np

from tests.torture import formats
from tests.torture.case import Case
from tests.torture.isolation import opened, run_trials
from tests.torture.pickles import PICKLES, control
from tests.torture.progress import Progress
from tests.torture.setting import Budget, Setting
from tests.torture.strange_hdf5 import hdf5_cases
from tests.torture.strange_npy import checkpoint_cases, make_small_checkpoint, npy_cases, pickle_cases
from tests.torture.strange_text import confused_cases, csv_cases, json_cases, sums_cases, yaml_cases
from utils.formats.checksums import SUMS

PART = "strangers"
CONFUSED = 500  # files with a value of another kind
FAILED = {
    "run": "code run",
    "outside": "file outside",
    "accepted though hostile": "hostile file accepted",
    "traceback": "traceback",
    "hang": "hang",
    "crash": "crash",
    "memory": "memory",
    "other": "other",
}


def all_cases(seed: int) -> list[Case]:
    return list(
        chain(
            pickle_cases(),
            npy_cases(),
            checkpoint_cases(),
            hdf5_cases(),
            yaml_cases(),
            json_cases(),
            csv_cases(),
            sums_cases(),
            confused_cases(CONFUSED, seed),
        )
    )


class Strangers:
    """The good files that a case is put among, and the trials."""

    def __init__(self, setting: Setting, cases: list[Case]):
        self.cases, self._setting = cases, setting
        self._good = setting.root / "good files"
        self._stage = setting.root / "stage"  # holds the input, and must hold nothing else
        self.folder, self._here, self._sentinel = (self._stage / name for name in ("input", "here", "sentinel"))
        for name, make in PLACES.items():
            (self._good / name).mkdir(parents=True)
            make(setting, self._good / name)
        self._here.mkdir(parents=True)

    def run(self, number: int) -> dict:
        """The case of this number: {"outcome", "message"}."""
        case = self.cases[number]
        self._set(case.place)
        case.make(self.folder, self._sentinel)
        os.chdir(self._here)
        outcome, value = opened(lambda: case.read(self.folder))
        appeared = [name for name in os.listdir(self._stage) if name not in ("input", "here")] + os.listdir(self._here)
        message = value if isinstance(value, str) else ""
        if self._sentinel.exists():
            return {"outcome": "run", "message": message}
        if appeared:
            return {"outcome": "outside", "message": f"{appeared}; {message}"}
        if outcome == "value":
            outcome = "accepted though hostile" if case.must_refuse else "accepted"
        return {"outcome": outcome, "message": message}

    def read_good(self, place: str, read: Callable[[Path], object]) -> dict:
        """The same without a case: {"outcome", "message"}."""
        self._set(place)
        outcome, value = opened(lambda: read(self.folder))
        return {"outcome": outcome, "message": value if isinstance(value, str) else ""}

    def _set(self, place: str) -> None:
        """The stage as it is before a case: good files, and beside them nothing."""
        os.chdir(self._setting.root)
        shutil.rmtree(self._stage)
        self._here.mkdir(parents=True)
        shutil.copytree(self._good / place, self.folder)


def run_strangers(setting: Setting, budget: Budget) -> dict[str, Counter]:
    """By group of cases, how many were refused, accepted or failed; in an order of the seed."""
    cases = all_cases(setting.seed)
    order = np.random.default_rng([setting.seed, 4]).permutation(len(cases))
    strangers = Strangers(setting, [cases[place] for place in order])
    _require_good_places(setting, strangers, budget)
    tally = {case.group: Counter() for case in cases}
    left, done = len(cases) - budget.first, 0
    total = max(0, left if budget.limit is None else min(left, budget.limit))
    with Progress(setting, PART, budget, total) as bar:
        for number, result in run_trials(strangers.run, len(cases), budget, setting.root / "strangers.log"):
            case, outcome = strangers.cases[number], result["outcome"]
            if outcome in FAILED:
                what = f"{case.group}: {case.name}"
                setting.fail(FAILED[outcome], PART, number, what, result["message"], strangers.folder)
            tally[case.group]["failures" if outcome in FAILED else outcome] += 1
            done += 1
            bar.update(done)
    return tally


def _require_good_places(setting: Setting, strangers: Strangers, budget: Budget) -> None:
    """A failure for good files that a reader refuses: of bad ones among them, its refusal would say nothing."""
    end = None if budget.limit is None else budget.first + budget.limit
    pairs = list({(case.place, case.read): None for case in strangers.cases[budget.first : end]})
    log, always = setting.root / "good.log", Budget(math.inf)
    for number, result in run_trials(lambda number: strangers.read_good(*pairs[number]), len(pairs), always, log):
        if result["outcome"] != "value":
            place, read = pairs[number]
            setting.fail(
                "other", PART, -1, f"good files, {place}, {read.__name__}", result["message"], strangers.folder
            )


def run_controls(setting: Setting) -> tuple[int, int]:
    """How many of the hostile pickles run code when Python's own reader opens them, and how many there are."""
    stage = setting.root / "controls"
    stage.mkdir()
    pickles = [build(str(stage / "sentinel")) for build in PICKLES.values()]

    def trial(number: int) -> dict:
        ran = control(stage / "sentinel", pickles[number])
        shutil.rmtree(stage)
        stage.mkdir()
        return {"outcome": "ran" if ran else "did not run"}

    budget = Budget(math.inf)
    outcomes = [
        result["outcome"] for _, result in run_trials(trial, len(pickles), budget, setting.root / "controls.log")
    ]
    return outcomes.count("ran"), len(pickles)


def _run_place(setting: Setting, folder: Path) -> None:
    shutil.copytree(setting.dataset, folder / "dataset")
    (folder / "dataset" / SUMS).unlink()
    (folder / "run").mkdir()
    for name in formats.RUN_FILES:
        shutil.copy(setting.reference / name, folder / "run")


def _evaluation_place(setting: Setting, folder: Path) -> None:
    shutil.copy(setting.dataset / "annotations.json", folder)
    formats.make_detections_json(setting, folder)
    formats.make_detections_csv(setting, folder)


def _checkpoint_place(setting: Setting, folder: Path) -> None:
    shutil.copytree(setting.dataset, folder / "dataset")
    shutil.copy(setting.reference / "checkpoints/best.pt", folder)


def _resume_place(setting: Setting, folder: Path) -> None:
    """A run that may be continued, with nothing to fall back on."""
    shutil.copytree(setting.dataset, folder / "dataset")
    shutil.copy(setting.root / "config.yaml", folder)
    (folder / "run/checkpoints").mkdir(parents=True)
    for name in ("options.yaml", "log.jsonl", *(f"checkpoints/{name}.pt" for name in ("last", "best", "selected"))):
        shutil.copy(setting.reference / name, folder / "run" / name)


PLACES: dict[str, Callable[[Setting, Path], None]] = {
    "release": formats.make_release,
    "npy folders": formats.make_npy_folders,
    "hdf5 features": formats.make_hdf5,
    "annotations": lambda setting, folder: shutil.copy(setting.dataset / "annotations.json", folder),
    "evaluation": _evaluation_place,
    "run": _run_place,
    "checkpoint": _checkpoint_place,
    "run to resume": _resume_place,
    "small checkpoint": lambda setting, folder: make_small_checkpoint(folder),
    "config": lambda setting, folder: shutil.copy(setting.root / "config.yaml", folder),
}
