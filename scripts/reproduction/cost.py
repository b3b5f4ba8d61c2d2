"""Estimated training time, from runs of the ledger on the same kind of device, or from a few steps."""

import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from scripts.reproduction.plan import PlannedRun
from utils.errors import InputError
from utils.formats.files import read_json_lines
from utils.run.devices import choose_device

PROBE_STEPS = 10
UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Cost:
    """Seconds per iteration, evaluations included, and how they were measured."""

    seconds: float
    source: str

    def of(self, runs: Sequence[PlannedRun]) -> float:
        """Return the seconds that these runs take one after another."""
        return self.seconds * sum(run.options.max_iter for run in runs)


def known_cost(ledger: pd.DataFrame, run: PlannedRun) -> Cost | None:
    """Return the cost of a run from the ledger's runs with the same base, features and device; None without any."""
    device = choose_device(run.options.device)
    device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    similar = ledger[(ledger["device"] == device) & ledger["seconds"].notna()]
    for name in ("base", "features_hash"):
        similar = similar[similar[name] == run.identity[name]]
    # In a shorter run, startup and the first evaluation weigh more.
    similar = similar[similar["iterations"] >= run.options.max_iter / 2]
    if similar.empty:
        return None
    count = f"{len(similar)} finished run{'s' * (len(similar) > 1)}"
    return Cost(float((similar["seconds"] / similar["iterations"]).median()), f"measured on {count}")


def probe_cost(run: PlannedRun, environment: Mapping[str, str]) -> Cost:
    """Estimate the cost of a run from a few steps and one evaluation."""
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
    seconds = options.max_iter * step + evaluations * max(0.0, seconds - PROBE_STEPS * step)
    return Cost(seconds / options.max_iter, f"measured on {PROBE_STEPS} steps and an evaluation")


def last_line(text: str) -> str:
    """Return the error line of a program's output, or its last line that is not empty."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]  # \r: progress bars
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")


def format_duration(seconds: float) -> str:
    """Return a duration as `12 s`, `3 min`, or `4.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `90m`, `1.5h` or `45s`; ValueError for another text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise ValueError(f"{text!r} is not a duration such as 90m")
    return float(match[1]) * UNITS[match[2]]
