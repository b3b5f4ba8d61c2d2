"""Inputs among good files, opened as the commands open them, and a judgment of each."""

import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.configuration import set_hypothesis_home_dir
from tqdm import tqdm

from tests.torture import pickles
from tests.torture.compare import compare
from tests.torture.corpus import FORMS, is_malformed
from tests.torture.examples import examples
from tests.torture.inputs import Input, inputs
from tests.torture.isolation import TryOne, run_command, run_forked
from tests.torture.workspace import FAILURES, Budget, Workspace

BATCH = 100  # drawn inputs per process; the seed and the batch's number repeat them
SETTINGS = hypothesis.settings(
    database=None,
    deadline=None,
    max_examples=BATCH,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
Tally = dict[str, Counter]


class Stage:
    """A folder for one input at a time, in which nothing else may appear."""

    def __init__(self, workspace: Workspace):
        self._workspace, self._root = workspace, workspace.root / "stage"
        self.folder, self._here, self._sentinel = (self._root / name for name in ("input", "here", "sentinel"))
        self.good = {name: workspace.root / "good" / name for name in FORMS}
        set_hypothesis_home_dir(workspace.root / "hypothesis")
        for name, form in FORMS.items():
            self.good[name].mkdir(parents=True)
            form.write(workspace, self.good[name])
        before, self._values = Path.cwd(), {}
        for name in [name for name, form in FORMS.items() if form.damaged]:
            self._reset(name)  # read where the inputs will be, because some values hold paths
            self._values[name] = FORMS[name].read(self.folder)
        os.chdir(before)

    def _reset(self, form: str) -> None:
        os.chdir(self._workspace.root)
        shutil.rmtree(self._root, ignore_errors=True)
        self._here.mkdir(parents=True)
        shutil.copytree(self.good[form], self.folder)
        os.chdir(self._here)

    def try_input(self, entry: Input) -> dict:
        """Write an input, read it, and return {"outcome", "message"}."""
        self._reset(entry.form)
        entry.write(self.folder, self._sentinel)
        outcome, value = run_command(lambda: FORMS[entry.form].read(self.folder))
        appeared = [name for name in os.listdir(self._root) if name not in ("input", "here")] + os.listdir(self._here)
        message = value if outcome != "value" else ""
        if self._sentinel.exists():
            outcome = "code run"
        elif appeared:
            outcome, message = "file outside", f"{appeared}; {message}"
        elif outcome == "value":
            outcome, message = self._judge(entry, value)
        elif outcome == "refused" and entry.group == "undamaged":
            outcome = "other"
        return {"outcome": outcome, "message": message}

    def _judge(self, entry: Input, value: object) -> tuple[str, str]:
        """Judge an input that was read."""
        if entry.damaged is None:
            return ("hostile file accepted" if entry.must_refuse else "accepted"), ""
        form, difference = FORMS[entry.form], compare(self._values[entry.form], value)
        if not difference:
            return "unchanged", ""
        spread = entry.one_flip and not form.shortcut and not difference.structure and difference.leaves > 1
        if form.checked or spread:
            return "silent wrong number", str(difference)
        return ("malformed file accepted" if is_malformed(self.folder / entry.damaged) else "accepted"), str(difference)


def run_inputs(workspace: Workspace, stage: Stage, budget: Budget) -> Tally:
    """Draw inputs, batch by batch, until the budget is spent."""
    strategy, numbers = inputs(stage.good), count(budget.first)
    strategy.validate()  # once, before processes fork

    def next_batch(done: int) -> Callable[[TryOne], None]:
        number = next(numbers)

        @hypothesis.seed(f"{workspace.seed}/{number}")
        @SETTINGS
        @hypothesis.given(strategy)
        def batch(try_one: TryOne, entry: Input) -> None:
            _try(stage, number, entry, try_one)

        return lambda try_one: batch(try_one)

    return _tally(workspace, stage, budget, "inputs", next_batch)


def run_examples(workspace: Workspace, stage: Stage, budget: Budget) -> Tally:
    """Try the explicit inputs; a process that ends early leaves the rest to the next one."""
    entries = examples()
    order = list(range(budget.first, len(entries)))
    if budget.first == 0:  # not to repeat one
        random.Random(workspace.seed).shuffle(order)

    def next_batch(done: int) -> Callable[[TryOne], None] | None:
        def batch(try_one: TryOne) -> None:
            for number in order[done : done + BATCH]:
                _try(stage, number, entries[number], try_one)

        return batch if done < len(order) else None

    return _tally(workspace, stage, budget, "examples", next_batch)


def _try(stage: Stage, number: int, entry: Input, try_one: TryOne) -> None:
    try_one({"number": number, "group": entry.group, "name": entry.name}, lambda: stage.try_input(entry))


def _tally(workspace: Workspace, stage: Stage, budget: Budget, part: str, next_batch: Callable) -> Tally:
    """Count the outcomes by group, and record the failures."""
    tally, done = defaultdict(Counter), 0
    with tqdm(desc=part, total=budget.limit, disable=None) as bar:
        while budget.allows(done) and (batch := next_batch(done)):
            for entry, result in run_forked(batch, workspace.root / f"{part}.log"):
                outcome = result["outcome"]
                if outcome in FAILURES:
                    what = f"{entry['group']}: {entry['name']}"
                    workspace.fail(outcome, part, entry["number"], what, result["message"], stage.folder)
                tally[entry["group"]]["failures" if outcome in FAILURES else outcome] += 1
                done += 1
                bar.set_postfix(failures=len(workspace.failures), refresh=False)
                bar.update()
                if not budget.allows(done):
                    break
    return dict(tally)


def run_controls(workspace: Workspace) -> tuple[int, int]:
    """Return the number of hostile pickles that run in Python's own reader, and the number of all."""
    folder = workspace.root / "controls"
    path = folder / "sentinel"

    def control(try_one: TryOne) -> None:
        for name, build in pickles.PICKLES.items():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            ran = pickles.runs(build(str(path)), path)
            try_one({"name": name}, lambda ran=ran: {"outcome": str(ran)})

    outcomes = [result["outcome"] for _, result in run_forked(control, workspace.root / "controls.log")]
    return outcomes.count("True"), len(outcomes)
