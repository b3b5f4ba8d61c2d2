"""Page of tables (docs/performance.md): a section per kind of device, and one per choice of subjects."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from scripts.benchmarks.machine import machine_line
from scripts.benchmarks.table import ResultTable, format_value, markdown_table
from scripts.benchmarks.train import PARTS
from utils.errors import InputError
from utils.formats.files import read_text, save_figure, write_text
from utils.run.folder import REVISION

KINDS = ("CPU", "GPU")
COLORS = ("#8c8c8c", "#0072b2", "#e69f00", "#56b4e9", "#009e73")  # for the color-blind too (Okabe, Ito)
HEAD = """\
# Performance

Written by `python scripts/benchmark.py all --out FILE`. The command replaces the section of its own kind of device.
Some subjects alone, such as `extract`, have a section of their own. Nobody edits the tables by hand. All data are
**simulated** (scripts/benchmarks/synthetic.py): the figures show speed and memory, not accuracy.

* Seconds vary between machines and between hours. Ratios and shares vary less: both sides are measured in turns in one
  run.
* *Fast* is the code of main.py. *Plain* is the same computation in simple code, with equal results.
* bf16 is left out on a CPU without bfloat16 instructions, because PyTorch emulates it there. On one thread of such a
  CPU (AVX2), a step of 10 x 320 snippets and 1024 channels took 43 s in bf16 and 2.7 s in float32.
"""
STEP, FULL = "1024+1024, T 500", "THUMOS14's size"


class Goal(NamedTuple):
    """Goal for one figure of a table.

    Attributes:
        kinds: Kinds of device that it applies to.
        table: Name of the table.
        row: Values that identify the row.
        figure: Heading of the figure.
        bound: Largest value, or smallest value of a share or ratio.
        reason: Known reason why some machines miss it.
    """

    kinds: tuple[str, ...]
    table: str
    row: Mapping[str, object]
    figure: str
    bound: float
    reason: str = ""

    @property
    def is_minimum(self) -> bool:
        """True if the bound is the smallest value."""
        return self.figure.startswith(("share", "ratio"))

    def is_missed(self, value: float | None) -> bool:
        """Return True if a figure was measured and misses the bound."""
        return value is not None and (value < self.bound if self.is_minimum else value > self.bound)


CPU_STEP = (
    "Convolutions take two thirds of a bf16 step and four fifths of a float32 step. On one thread of a Xeon with AMX, "
    "the gradients of 3-tap weights reach 50 to 66% of the rate of a large matrix product, the two other passes 74 to "
    "94%. The rest is memory traffic (LeakyReLU, dropout, copies of weights, losses, Adam) and random numbers."
)
COPY = "A batch from memory is a copy: the column `copy ms` has the time for as many bytes."
READ = (
    "A batch from HDF5 passes three times: out of the system's page cache, row by row into place, and to float32. The "
    "column `copy ms` has the time of one pass."
)
FILES = "The time of a command on detection files includes its imports: the column `import seconds`."
START = "The start of a training includes `import torch`: the column `torch seconds`."
GROWTH = "Arrays of 200 videos fit into the processor's cache; the column `without the smallest` leaves them out."
GOALS = (
    Goal(KINDS[:1], "train", {"size": STEP, "precision": "float32"}, "share of best", 0.9, CPU_STEP),
    Goal(KINDS[:1], "train", {"size": STEP, "precision": "bf16"}, "share of best", 0.6, CPU_STEP),
    Goal(KINDS[1:], "train", {"size": STEP, "precision": "bf16", "mode": "compiled"}, "seconds", 0.002),
    Goal(KINDS[1:], "train", {"size": STEP, "precision": "bf16", "mode": "eager"}, "seconds", 0.005),
    Goal(KINDS[1:], "train", {"size": STEP, "precision": "bf16"}, "peak MB", 4000),
    Goal(KINDS[1:], "memory", {"data": FULL, "cache": "device"}, "seconds", 30),
    Goal(KINDS, "infer", {}, "other seconds", 2),
    Goal(KINDS, "data", {"features in": "memory"}, "ms", 2, COPY),
    Goal(KINDS, "data", {"features in": "own HDF5", "stored as": "float16"}, "ms", 10, READ),
    Goal(KINDS, "data", {"features in": "own HDF5", "stored as": "float16"}, "ratio", 2),
    Goal(KINDS, "evaluation_files", {"file": "JSON"}, "seconds", 1, FILES),
    Goal(KINDS, "evaluation_files", {"file": "large Parquet"}, "seconds", 15, FILES),
    Goal(KINDS, "memory", {"data": "narrow", "training videos": 40_000, "index": "there"}, "start seconds", 1, START),
    Goal(KINDS, "memory", {"data": "narrow", "training videos": 40_000, "index": "there"}, "own start seconds", 1),
    Goal(KINDS, "memory", {"data": "linked"}, "start seconds", 15, START),
    Goal(KINDS, "memory", {"data": FULL, "cache": "none", "precision": "float32"}, "peak MB", 1500),
    Goal(KINDS, "memory", {"data": FULL, "cache": "none", "precision": "bf16"}, "peak MB", 1500),
    Goal(KINDS, "scaling", {"cost of": "evaluation", "in": "videos"}, "exponent", 1, GROWTH),
)
NEVER_MEASURED = (
    "trainings on real features: docs/results.md has the time of each finished run",
    "several machines, and more than two processes",
)


def check_page(path: Path) -> None:
    """Raise InputError if a file exists that is not such a page."""
    if path.exists() and not _read(path).startswith(HEAD.splitlines()[0]):
        raise InputError(f"{path}: not a page of this command, which would replace it; name another file")


def write_page(
    path: Path,
    tables: Sequence[ResultTable],
    not_run: Sequence[str],
    machine: dict,
    words: Sequence[str],
    minutes: float,
    subjects: Sequence[str] = (),
) -> None:
    """Replace the section of one kind of device or of some subjects on it, and its picture.

    Args:
        path: The page; the other sections stay.
        tables: Results of the subjects.
        not_run: Subjects that the command has not measured yet.
        machine: Result of `describe_machine`, with the name of the GPU or None as `gpu`.
        words: Arguments of the command.
        minutes: Duration of the command.
        subjects: Chosen subjects; empty for all, whose section replaces all of this kind of device.
    """
    kind = "GPU" if machine["gpu"] else "CPU"
    section = ", ".join([kind, *subjects])
    sections = {name: f"## {name}: not measured\n\nThe whole command has not run on a {name} yet.\n" for name in KINDS}
    sections |= _sections(_read(path)) if path.exists() else {}
    if not subjects:
        sections = {name: text for name, text in sections.items() if not name.startswith(f"{kind}, ")}
    rows = {table.name: table.rows for table in tables}
    command = shlex.join(["python", "scripts/benchmark.py", *words])
    parts = [
        f"## {section}: {machine['gpu'] or machine['cpu'] + ', ' + str(machine['cores']) + ' cores'}\n",
        f"`{command}`, {date.today()}, {minutes:.1f} minutes, revision {git_revision()}.\n",
        f"Machine: {machine_line(machine)}.\n",
    ]
    if split := rows.get("train_split"):
        picture = path.with_name(f"{path.stem}_{section.lower().replace(', ', '_')}.png")
        draw_split(picture, split)
        parts.append(f"![Milliseconds of each part of a training step, fast and plain]({picture.name})\n")
    goals = [line for line in goal_rows(kind, rows) if not subjects or line[0] in ("table", *rows)]
    if len(goals) > 1:
        missed = [goal for goal, value in measured_goals(kind, rows) if goal.is_missed(value)]
        reasons = "".join(f"* {reason}\n" for reason in dict.fromkeys(goal.reason for goal in missed if goal.reason))
        parts.append(f"### Goals\n\n{markdown_table(goals)}" + (f"\n{reasons}" if reasons else ""))
    parts += [table.as_markdown() for table in tables]
    missing = [f"{subject}: not measured yet" for subject in not_run]
    missing += [f"{table.name}: {line}" for table in tables for line in table.not_measured]
    failures = [(table.name, row.get("ended", "ok")) for table in tables for row in table.rows]
    missing += [f"{name}: a training failed: {ending}" for name, ending in failures if ending != "ok"]
    missing += () if subjects else NEVER_MEASURED
    if missing:
        parts.append("### Not measured here\n\n" + "".join(f"* {line}\n" for line in missing))
    sections[section] = "\n".join(parts).rstrip("\n") + "\n"
    write_text(path, "\n".join([HEAD, *(sections[name] for name in sorted(sections))]))


def goal_rows(kind: str, tables: Mapping[str, Sequence[dict]]) -> list[list[str]]:
    """Return the goals for a `CPU` or a `GPU` beside the measured figures, headings first.

    Args:
        kind: Kind of device.
        tables: Rows by the name of their table.
    """
    lines = [["table", "row", "figure", "goal", "measured"]]
    for goal, value in measured_goals(kind, tables):
        bound = f"at {'least' if goal.is_minimum else 'most'} {format_value(goal.figure, goal.bound)}"
        value_text = format_value(goal.figure, value) + (" (missed)" if goal.is_missed(value) else "")
        lines.append([goal.table, ", ".join(map(str, goal.row.values())), goal.figure, bound, value_text])
    return lines


def measured_goals(kind: str, tables: Mapping[str, Sequence[dict]]) -> Iterator[tuple[Goal, float | None]]:
    """Yield each goal for a kind of device, with its figure or None."""
    for goal in GOALS:
        if kind in goal.kinds:
            rows = (row for row in tables.get(goal.table, ()) if goal.row.items() <= row.items())
            yield goal, next((row.get(goal.figure) for row in rows), None)


def draw_split(path: Path, rows: Sequence[dict]) -> None:
    """Draw the table `train_split` as a PNG file, one bar per step."""
    figure = Figure(figsize=(8, 0.8 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row['size']}, {row['precision']}, {row['step']}" for row in rows]
    left = np.zeros(len(rows))
    for part, color in zip(PARTS, COLORS, strict=True):
        values = np.array([row[f"{part} ms"] for row in rows])
        axes.barh(names, values, left=left, color=color, label=part)
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("ms per training step, each part timed by itself")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path, dpi=100)


@cache
def git_revision() -> str:
    """Return the revision of the code from git, with `-dirty` after a change, else from REVISION, else "unknown".

    Only the first call asks git: the page that the command writes may be in git too.
    """
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(REVISION, "unknown")


def _sections(text: str) -> dict[str, str]:
    """Return the sections of a page by kind of device and subjects."""
    parts = re.split(r"^## (.+?): ", text, flags=re.MULTILINE)[1:]
    return {name: f"## {name}: {part.rstrip()}\n" for name, part in zip(parts[::2], parts[1::2], strict=True)}


def _read(path: Path) -> str:
    return read_text(path, "a page of Markdown")
