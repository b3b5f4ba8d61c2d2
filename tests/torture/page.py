"""What was counted -> tables on the screen and docs/reliability.md."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.tables import format_table
from scripts.benchmarks.machine import machine_line
from tests.torture.damage import OUTCOMES
from tests.torture.formats import FORMATS
from tests.torture.isolation import GROWTH, HANG
from tests.torture.kills import COUNTS
from tests.torture.mutate import EDGE, KINDS, SHARES
from tests.torture.setting import CLASSES, VIDEOS, Failure

MUST_BE_ZERO = (
    "lost run",
    "differing resume",
    "traceback",
    "code run",
    "silent wrong number",
    "malformed file accepted",
    "hostile file accepted",
    "file outside",
    "hang",
    "crash",
    "memory",
    "other",
)


@dataclass(frozen=True)
class Table:
    """Rows under a head, and what the reader must know of them."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple]
    note: str = ""

    def as_text(self) -> str:
        rows = [[value if isinstance(value, str) else f"{value:,}" for value in row] for row in self.rows]
        return f"{self.title}\n{format_table([self.head, *rows])}"

    def as_markdown(self) -> str:
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)]]
        lines += [[_cell(value) for value in row] for row in self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n" + (f"{self.note}\n\n" if self.note else "") + f"{body}\n"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("  ", "&nbsp;&nbsp;")


def kills_table(counts: Mapping[str, int]) -> Table:
    """What was done to the trainings."""
    rows = [(name, counts[name]) for name in COUNTS]
    told = "; ".join(f"*{name.strip()}*: {text}" for name, text in COUNTS.items() if text)
    note = (
        f"A training of {VIDEOS} simulated videos and {CLASSES} classes, killed at random moments and continued with "
        "`--resume` until it ended, then compared with the one that nobody disturbed, bit for bit: model, optimizer, "
        "batches, random states and choices in `last.pt`, `best.pt` and `selected.pt`; `log.jsonl` without its clock; "
        f"`metrics.json`, `detections.json`, `outputs.h5`. {told[0].upper()}{told[1:]}."
    )
    return Table("Kills", ("kills of a training", "count"), rows, note)


def damage_tables(tally: Mapping[str, Counter]) -> list[Table]:
    """Ours; foreign files with a single flip; foreign files with more damage."""
    ours = [(form.name, *_damage_row(tally[form.name], OUTCOMES[:2])) for form in FORMATS if form.ours]
    foreign = [form.name for form in FORMATS if not form.ours]
    flips = [(name, *_damage_row(tally[f"{name}, flip"], OUTCOMES)) for name in foreign]
    others = [(name, *_damage_row(tally[name], OUTCOMES)) for name in foreign]
    kinds = ", ".join(f"{name} ({share:.0%})" for name, share in zip(KINDS, SHARES, strict=True))
    where = f"at a random place, half of the time within {EDGE:,} bytes of an end of the file"
    noticed = (
        f"Files that this project writes and holds to checksums. {kinds}; {where}. Each was opened by the reader that "
        "the commands use. What is read must be what was written, or it is refused in one line: anything else is a "
        "silent wrong number."
    )
    unnoticed = (
        "Files without checksums, of others. One bit, byte or digit: a value that was flipped is another value, and "
        "nobody can notice. *one value*: one number, text or element differs from what was written; *structure*: a "
        "name, a count, a shape or a type does; *several values*: more than one, all else equal, which is a failure "
        "but in those formats where a few bytes speak for many values: "
        + "; ".join(f"{form.name} ({form.shortcut})" for form in FORMATS if form.shortcut)
        + ". A file that is not well-formed to a plain reader of its format, and is read as another value, is a "
        "failure too. `python scripts/convert_features.py` turns features into a file that notices all of this."
    )
    more = "The same files with more than one flip: what is still readable may say anything, and nobody can notice."
    return [
        Table("Damaged files of ours", ("ours", *_damage_head(OUTCOMES[:2])), _total(ours), noticed),
        Table("Damaged files of others, one flip", ("foreign", *_damage_head(OUTCOMES)), _total(flips), unnoticed),
        Table("Damaged files of others, more damage", ("foreign", *_damage_head(OUTCOMES)), _total(others), more),
    ]


def _damage_head(outcomes: Sequence[str]) -> tuple[str, ...]:
    return ("inputs", *outcomes, "failures")


def _damage_row(counts: Counter, outcomes: Sequence[str]) -> tuple[int, ...]:
    return (counts.total(), *(counts[name] for name in outcomes), counts["failures"])


def strangers_table(tally: Mapping[str, Counter], all_of_them: int) -> Table:
    rows = [
        (group, counts.total(), counts["refused"], counts["accepted"], counts["failures"])
        for group, counts in tally.items()
    ]
    done = sum(row[1] for row in rows)
    part = "All" if done == all_of_them else f"{done:,} of the {all_of_them:,}, drawn at random:"
    note = (
        f"{part} hostile inputs that there are: each was put among good files and opened as a command opens it. "
        "*refused*: in one line; *accepted*: harmless, or a value of another kind that has a meaning. Failures: a "
        "sentinel that only code in the input could make; a file outside the input's folder; use made of what holds "
        f"nothing usable; a traceback, a crash, more than {HANG:g} s, or more than {GROWTH / 2**20:,.0f} MB."
    )
    return Table("Files of strangers", ("strangers", "inputs", "refused", "accepted", "failures"), _total(rows), note)


def names_table(counts: Mapping[str, int], controls: tuple[int, int] | None) -> Table:
    rows = [
        ("video ids and class names", counts["names"]),
        ("trainings with them", counts["trainings"]),
        ("  refused in one line", counts["refused in one line"]),
    ]
    note = (
        "Paths (`../`, absolute, only dots), line ends, 5,000 letters, HTML and scripts, half characters and null "
        "bytes, as video ids and class names: through a training, into `outputs.h5`, `detections.json` and the "
        "report, and back. The report may have no element, attribute or script that its template does not write."
    )
    if controls:
        rows.append(("control: hostile pickles", controls[1]))
        rows.append(("  that run when Python itself opens them", controls[0]))
        note += " The control shows that the hostile pickles are: that many run code in Python's own reader."
    return Table("Names of strangers, and a control", ("names", "count"), rows, note)


def failures_table(failures: Sequence[Failure]) -> Table:
    counts = Counter(failure.kind for failure in failures)
    rows = [(kind, counts[kind]) for kind in MUST_BE_ZERO]
    return Table("Failures", ("failures", "count"), _total(rows), "Each must be 0, or the command's exit status is 1.")


def _total(rows: list[tuple]) -> list[tuple]:
    return [*rows, ("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))]


def as_page(
    tables: Sequence[Table], failures: Sequence[Failure], machine: dict, command: Sequence[str], did: str
) -> str:
    """docs/reliability.md."""
    parts = [
        "# Reliability\n",
        f"Written by `{shlex.join(command)}`; not edited by hand. {did}\n",
        f"Machine: {machine_line(machine)}.\n",
        "Everything was done to a small **simulated** dataset in a temporary folder: it shows what the program does to "
        "files, and says nothing about real videos.\n",
        failures_table(failures).as_markdown(),
        *(table.as_markdown() for table in tables),
    ]
    if failures:
        parts.append("## What failed\n\n" + "\n".join(_failure_line(failure) for failure in failures) + "\n")
    return "\n".join(parts)


def _failure_line(failure: Failure) -> str:
    last = (failure.message.strip().splitlines() or [""])[-1][:200].replace("`", "'")
    return f"- {failure.kind}, {failure.part} {failure.number}: {failure.what.replace('`', chr(39))[:200]}: `{last}`"
