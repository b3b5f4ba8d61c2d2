"""Estimated training time, measured on finished runs of the same setting or on a few steps."""

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

PROBE_STEPS = 10
COST_FILE = "cost.json"  # {"iterations", "seconds"}, in a run folder that was trained without interruption


@dataclass(frozen=True)
class Cost:
    """Seconds per iteration, evaluations included, and how they were measured."""

    seconds: float
    source: str

    def of(self, runs: Sequence[PlannedRun]) -> float:
        """Return the seconds that these runs take one after another."""
        return self.seconds * sum(run.options.max_iter for run in runs)


def measure_cost(folder: Path, run: PlannedRun, environment: Mapping[str, str]) -> Cost:
    """Return the cost of runs like `run`, from finished runs in `folder` if there are any of similar length."""
    costs = [read_json(path) for path in sorted(folder.glob(f"*/{COST_FILE}"))]
    # In a shorter run, startup and the first evaluation weigh more.
    if costs := [cost for cost in costs if cost["iterations"] >= run.options.max_iter / 2]:
        median = statistics.median(cost["seconds"] / cost["iterations"] for cost in costs)
        return Cost(median, f"measured on {len(costs)} finished run{'s' * (len(costs) > 1)}")
    seconds = _probe(run, environment) / run.options.max_iter
    return Cost(seconds, f"measured on {PROBE_STEPS} steps and an evaluation")


def _probe(run: PlannedRun, environment: Mapping[str, str]) -> float:
    """Estimate the seconds of a whole run from a very short one: its step, and everything else per evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        steps = ["--max-iter", str(PROBE_STEPS), "--eval-every", str(PROBE_STEPS)]
        command = [*run.command, "--run-dir", folder, *steps]
        start = time.perf_counter()
        process = subprocess.run(command, env={**environment}, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise InputError(f"{run.name} cannot start: {last_line(process.stderr).removeprefix('error: ')}")
        record = read_json_lines(Path(folder) / "log.jsonl")[-1]
    options = run.options
    step = options.batch_size * options.num_snippets / record["snippets_per_second"]
    evaluations = -(-options.max_iter // options.eval_every)
    return options.max_iter * step + evaluations * max(0.0, seconds - PROBE_STEPS * step)


def last_line(text: str) -> str:
    """Return the error line of a program's output, or its last line that is not empty."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]  # \r: progress bars
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")


def format_duration(seconds: float) -> str:
    """Return a duration as `12 s`, `3 min`, or `4.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
