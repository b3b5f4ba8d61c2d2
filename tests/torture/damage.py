"""Damaged inputs: one file of a format, changed at random, read as the commands read it.

What became of an input:

* refused: one line (InputError, an error of the system, or a wrong option);
* same: what is read is what was written, bit for bit;
* one value, structure, several values: what is read differs. In one leaf (a number, a text, an array's element); in
  names, their order, counts, shapes or types; or in several leaves, all else equal.

Failures: whatever differs in a file of ours (a silent wrong number); of a foreign one, a single flip that changes
several values where nothing in the format can spread it (see formats.py), and a malformed file that is accepted with
another value; a traceback, a hang, a crash, or memory that grows beyond bounds, for any.
"""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.torture.compare import Difference, compare
from tests.torture.formats import FORMATS, Format
from tests.torture.isolation import opened, run_trials
from tests.torture.mutate import KINDS, SHARES, SINGLE, damaged
from tests.torture.progress import Progress
from tests.torture.setting import Budget, Setting

PART = "damage"
OUTCOMES = ("refused", "same", "one value", "structure", "several values")
FAILED = {  # outcomes of a trial that must not be, and their names
    "silent": "silent wrong number",
    "malformed": "malformed file accepted",
    "traceback": "traceback",
    "hang": "hang",
    "crash": "crash",
    "memory": "memory",
    "other": "other",
}


@dataclass(frozen=True)
class Trial:
    """What is done to which file; all of it follows from the seed and the number."""

    format: Format
    file: Path  # in the folder of its format
    kind: str
    random: np.random.Generator

    def __str__(self) -> str:
        return f"{self.format.name}, {self.file}: {self.kind}"


class Damage:
    """The undamaged files, what is read of them, and the trials on them."""

    def __init__(self, setting: Setting):
        self._setting = setting
        self._whole, self._work = setting.root / "whole files", setting.root / "damaged files"
        shares = np.array([form.share for form in FORMATS])
        self._shares = shares / shares.sum()
        self._values, self._files = {}, {}
        for form in FORMATS:
            folder = self._whole / form.name
            folder.mkdir(parents=True)
            form.make(setting, folder)
            shutil.copytree(folder, self._work / form.name)
            self._files[form.name] = _files(folder, form)
            self._values[form.name] = form.read(self._work / form.name)

    def trial(self, number: int) -> Trial:
        """What is done in the trial of this number."""
        random = np.random.default_rng([self._setting.seed, 2, number])
        form = FORMATS[random.choice(len(FORMATS), p=self._shares)]
        files = self._files[form.name]
        return Trial(form, files[random.integers(len(files))], list(KINDS)[random.choice(len(KINDS), p=SHARES)], random)

    def run(self, number: int) -> dict:
        """The trial of this number: {"outcome", "message"}."""
        trial = self.trial(number)
        whole, work = (folder / trial.format.name / trial.file for folder in (self._whole, self._work))
        _replace(work, damaged(whole.read_bytes(), trial.kind, trial.random))
        result = self._read(trial, work)
        if result["outcome"] not in FAILED:
            self.restore(trial)
        return result

    def restore(self, trial: Trial) -> None:
        """The undamaged file in the damaged one's place."""
        whole, work = (folder / trial.format.name / trial.file for folder in (self._whole, self._work))
        _replace(work, whole.read_bytes())

    def folder(self, trial: Trial) -> Path:
        """Where the damaged file is, with those that are read with it."""
        return self._work / trial.format.name

    def _read(self, trial: Trial, path: Path) -> dict:
        outcome, value = opened(lambda: trial.format.read(self.folder(trial)))
        if outcome != "value":
            return {"outcome": outcome, "message": value}
        difference = compare(self._values[trial.format.name], value)
        message = f"{difference.kind} ({difference.leaves} leaves)"
        return {"outcome": _judged(trial, difference, path), "message": message}


def _judged(trial: Trial, difference: Difference, path: Path) -> str:
    """The outcome of a damaged file that was read."""
    if difference and trial.format.ours:
        return "silent"
    if difference and trial.format.ill_formed(path):
        return "malformed"
    spread = difference.kind == "several values" and trial.kind in SINGLE
    return "silent" if spread and not trial.format.shortcut else difference.kind


def run_damage(setting: Setting, budget: Budget) -> dict[str, Counter]:
    """How many inputs had which outcome, by name of the format; single flips of foreign files as "NAME, flip"."""
    damage = Damage(setting)
    tally = {key: Counter() for form in FORMATS for key in _keys(form)}
    log, done = setting.root / "damage.log", 0
    with Progress(setting, "damaged inputs", budget) as bar:
        for number, result in run_trials(damage.run, None, budget, log):
            trial, outcome = damage.trial(number), result["outcome"]
            if outcome in FAILED:
                setting.fail(FAILED[outcome], PART, number, str(trial), result["message"], damage.folder(trial))
                damage.restore(trial)
            tally[_key(trial)][outcome if outcome in OUTCOMES else "failures"] += 1
            done += 1
            bar.update(done)
    return tally


def _keys(form: Format) -> tuple[str, ...]:
    return (form.name,) if form.ours else (form.name, f"{form.name}, flip")


def _key(trial: Trial) -> str:
    flipped = not trial.format.ours and trial.kind in SINGLE
    return f"{trial.format.name}, flip" if flipped else trial.format.name


def _files(folder: Path, form: Format) -> list[Path]:
    found = [path for pattern in form.files for path in sorted(folder.glob(pattern)) if path.is_file()]
    return [path.relative_to(folder) for path in dict.fromkeys(found)]


def _replace(path: Path, content: bytes) -> None:
    """As a new file under the same name: HDF5 knows files by their inode, and may have the old one open."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.replace(path)
