"""Tables of the counts, for the screen and docs/reliability.md."""

import os
import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from tests.torture.corpus import FORMS
from tests.torture.isolation import CPU_SECONDS, GROWTH
from tests.torture.kills import COUNTS
from tests.torture.workspace import CLASSES, FAILURES, VIDEOS, Failure

OUTCOMES = ("refused", "unchanged", "accepted", "failures")
NOTES = {
    "Failures": "Each must be 0; otherwise the exit status of the command is 1.",
    "Kills": f"""\
Each training has {VIDEOS} simulated videos and {CLASSES} classes. It is killed at random moments and continued with
`--resume` until it ends. Its end is then compared, bit for bit, with that of an undisturbed training: model, optimizer,
batches, random states and choices in `last.pt`, `best.pt` and `selected.pt`; `log.jsonl` without its speed;
`metrics.json`, `detections.json` and `outputs.h5`.

{"".join(f"* *{name.strip()}*: {text}" + chr(10) for name, text in COUNTS.items() if text)}""",
    "Drawn inputs": f"""\
Hypothesis draws these inputs. Each is one change to a good file, and the reader of the commands opens it.

* *refused*: in one line.
* *unchanged*: the values are those of the good file.
* *accepted*: other values, which nobody can notice.
* *failures*: code of the input runs, a file appears outside its folder, a traceback, a crash, more than
  {CPU_SECONDS:g} s, more than {GROWTH / 2**20:,.0f} MB, or a silent wrong number.

The first rows count random damage to files: a bit, byte or digit changed, several bytes changed, the end cut off, a
block zeroed, repeated or inserted. A file with checksums (the first six rows) must be refused or read unchanged. A file
without checksums may give another value, but must be well-formed. One flip must not change several values, except where
a few bytes stand for many:
{", ".join(name for name, form in FORMS.items() if form.shortcut)}.
`python scripts/convert_features.py` writes features with checksums.

The last rows: *arrays* have any dtype and shape; *headers* have any content; *one value changed* replaces, removes or
renames one value of a JSON, YAML or CSV file or a checkpoint; *pickles* call functions that would create a folder.
""",
    "Explicit inputs": """\
These hostile files are written by hand: bombs, links that lead outside, code in tags, depth, values without meaning.
Accepting one is a failure, except for *undamaged* and some of *HDF5*.
""",
    "Names, and a control": """\
Paths (`../`, absolute, only dots), line ends, 5,000 letters, HTML, scripts, half characters and null bytes are video
ids and class names of a training. They must come back from `outputs.h5`, `detections.json` and the report. The report
must have no markup beyond that of other reports. The control opens the hostile pickles with Python's own reader.
""",
}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence], total: bool = False) -> str:
    """Return a Markdown table under its title and note; `total` adds the sums of the columns."""
    if total:
        rows = [*rows, ("all", *(sum(row[column] for row in rows) for column in range(1, len(head))))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    body = "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)
    return f"## {title}\n\n{NOTES[title].rstrip()}\n\n{body}"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("  ", "&nbsp;&nbsp;")


def inputs_table(title: str, tally: Mapping[str, Counter]) -> str:
    """Return the table of drawn or explicit inputs, forms in their order."""
    order = [f"{name}{more}" for name in FORMS for more in ("", ", one flip", ", more")]
    groups = sorted(tally, key=lambda name: (order.index(name) if name in order else len(order), name))
    rows = [(name, tally[name].total(), *(tally[name][outcome] for outcome in OUTCOMES)) for name in groups]
    return table(title, ("input", "count", *OUTCOMES), rows, total=True)


def names_table(counts: Mapping[str, int], controls: tuple[int, int]) -> str:
    rows = [
        ("video ids and class names", counts["names"]),
        ("trainings with them", counts["trainings"]),
        ("  refused in one line", counts["refused"]),
        ("control: hostile pickles", controls[1]),
        ("  that run in Python's own reader", controls[0]),
    ]
    return table("Names, and a control", ("names", "count"), rows)


def as_page(tables: Sequence[str], failures: Sequence[Failure], words: Sequence[str], minutes: float) -> str:
    """Return docs/reliability.md."""
    kinds = Counter(failure.kind for failure in failures)
    failed = table("Failures", ("failures", "count"), [(kind, kinds[kind]) for kind in FAILURES], total=True)
    lines = [f"- {failure.kind}, {failure.part} {failure.number}: `{failure.what[:200]}`" for failure in failures]
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "h5py", "hypothesis"))
    head = f"""\
# Reliability

`python -m tests.torture {shlex.join(words)}` wrote this page in {minutes:.1f} minutes. It is not edited by hand.
Machine: {os.cpu_count()} cores ({platform.machine()}), one thread; python {platform.python_version()}, {versions}.

All of it uses a small **simulated** dataset in a temporary folder. The counts show how the program treats files. They
say nothing about accuracy on real videos.
"""
    return "\n".join([head, failed, *tables, *(["## What failed\n", *lines, ""] if lines else [])])
