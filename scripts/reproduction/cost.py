"""How long runs take: measured, on finished runs of the same setting or by a few steps in a folder thrown away."""

import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.reproduction.plan import PlannedRun
from utils.errors import InputError
from utils.formats.files import read_json, read_json_lines

STEPS = 10  # of the measurement
COST = "cost.json"  # in a run folder that was trained in one go: {"iterations", "seconds"}


@dataclass(frozen=True)
class Cost:
    """Seconds an iteration, evaluations included, and where they were measured."""

    seconds: float
    source: str

    def of(self, runs: Sequence[PlannedRun]) -> float:
        """Seconds that these runs take, one after another."""
        return self.seconds * sum(run.options.max_iter for run in runs)


def measure_cost(folder: Path, run: PlannedRun, environment: Mapping[str, str]) -> Cost:
    """The cost of runs like `run`, from those in the setting's `folder` that are finished and about as long."""
    costs = [read_json(path) for path in sorted(folder.glob(f"*/{COST}"))]
    # The start and the first evaluation weigh more in a shorter run.
    if costs := [cost for cost in costs if cost["iterations"] >= run.options.max_iter / 2]:
        median = statistics.median(cost["seconds"] / cost["iterations"] for cost in costs)
        return Cost(median, f"measured on {len(costs)} finished run{'s' * (len(costs) > 1)}")
    return Cost(_probe(run, environment) / run.options.max_iter, f"measured on {STEPS} steps and an evaluation")


def _probe(run: PlannedRun, environment: Mapping[str, str]) -> float:
    """Seconds of a whole run, from a very short one: its steps and, times the evaluations, all the rest."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*run.command, "--run-dir", folder, "--max-iter", str(STEPS), "--eval-every", str(STEPS)]
        start = time.perf_counter()
        done = subprocess.run(command, env={**environment}, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise InputError(f"{run.name} cannot start: {last_line(done.stderr).removeprefix('error: ')}")
        record = read_json_lines(Path(folder) / "log.jsonl")[-1]
    options = run.options
    step = options.batch_size * options.num_snippets / record["snippets_per_second"]
    evaluations = -(-options.max_iter // options.eval_every)
    return options.max_iter * step + evaluations * max(0.0, seconds - STEPS * step)


def last_line(text: str) -> str:
    """The last line of a program's output that says something; progress bars redraw theirs."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")


def as_time(seconds: float) -> str:
    """12 s, 3 min, 4.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
