"""Tables -> docs/performance.md: a section a kind of device, so that a CPU's and a GPU's figures share the page."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from benchmarks.measure import machine_line
from benchmarks.picture import draw_split
from benchmarks.table import Measured
from benchmarks.targets import target_rows
from utils.errors import InputError
from utils.formats.files import read_text, write_text

KINDS = ("CPU", "GPU")
HEAD = """\
# Performance

Written by `python scripts/benchmark.py all --out FILE`, which replaces the section of its own kind of device; not
edited by hand. All data are **simulated** (scripts/benchmarks/made.py): the figures say how fast, and nothing of how
well. A second varies from machine to machine and from hour to hour; ratios and shares have both sides measured in
turns in one run.
"""
NEVER = (
    "trainings on real features; their times are in docs/results.md where they have run",
    "several machines; more than two processes",
)


def require_own(path: Path) -> None:
    """InputError if there is a file that is not such a page, before hours of measuring end in that."""
    if path.exists() and not _read(path).startswith(HEAD.splitlines()[0]):
        raise InputError(f"{path}: is not a page of this command, which would replace it; name another file")


def write_page(
    path: Path, tables: Sequence[Measured], not_run: Sequence[str], machine: dict, words: Sequence[str], minutes: float
) -> None:
    """Replace one section of the page, and its picture; the other kind's stays as it is."""
    kind = "GPU" if machine["gpu"] else "CPU"
    sections = {name: f"## {name}: not measured\n\nThe command has not run on a {name} yet.\n" for name in KINDS}
    sections |= _sections(_read(path)) if path.exists() else {}
    sections[kind] = _section(kind, path, tables, not_run, machine, words, minutes)
    write_text(path, "\n".join([HEAD, *(sections[name] for name in KINDS)]))


def _section(
    kind: str,
    path: Path,
    tables: Sequence[Measured],
    not_run: Sequence[str],
    machine: dict,
    words: Sequence[str],
    minutes: float,
) -> str:
    rows = {table.name: table.rows for table in tables}
    command = shlex.join(["python", "scripts/benchmark.py", *words])
    parts = [
        f"## {kind}: {machine['gpu'] or machine['cpu'] + ', ' + str(machine['cores']) + ' cores'}\n",
        f"`{command}`, {date.today()}, {minutes:.1f} minutes, revision {revision()}.\n",
        f"Machine: {machine_line(machine)}.\n",
    ]
    if split := rows.get("train_split"):
        picture = path.with_name(f"{path.stem}_{kind.lower()}.png")
        draw_split(picture, split)
        parts.append(f"![Where the time of a training step goes, ours and the plain one]({picture.name})\n")
    parts += [_targets(kind, rows), *(table.as_markdown() for table in tables)]
    missing = [
        *(f"{subject}: not asked for" for subject in not_run),
        *(m for table in tables for m in table.not_measured),
    ]
    missing += [f"{subject}: it did not end well: {why}" for subject, why in _failures(tables)]
    parts.append("### Not measured here\n\n" + "".join(f"* {line}\n" for line in (*missing, *NEVER)))
    return "\n".join(parts)


def _targets(kind: str, rows: dict[str, Sequence[dict]]) -> str:
    lines = [("target", "limit", "measured", ""), ("---", "---:", "---:", "---"), *target_rows(kind, rows)]
    return "### Targets\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _failures(tables: Sequence[Measured]) -> list[tuple[str, str]]:
    """Trainings of their own that did not end well, by their table."""
    ended = ((table.name, row.get("ended", "ok")) for table in tables for row in table.rows)
    return [(name, how) for name, how in ended if how != "ok"]


def _sections(text: str) -> dict[str, str]:
    """The sections that a page has, by kind."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return {kind: part.rstrip("\n") + "\n" for kind in KINDS for part in parts if part.startswith(f"## {kind}: ")}


def _read(path: Path) -> str:
    return read_text(path, "a page of Markdown")


def revision() -> str:
    """The code's revision, `-dirty` if it was changed since; "unknown" without git."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
