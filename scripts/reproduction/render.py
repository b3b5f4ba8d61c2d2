"""Results -> tables to read: on the screen, and as Markdown."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from eval.snippet_accuracy import accuracy_note
from scripts.reproduction.plan import Table
from scripts.reproduction.results import CHECKPOINTS, Column, order_line, spread
from utils.datasets import DATASETS, DatasetSpec
from utils.formats.files import write_text

# Bases whose features, where not simulated, are the paper's.
PAPERS_OWN = ("thumos14", "activitynet12", "ave", "activitynet12_audio_visual")
HOW_CHOSEN = (
    "`last` was not chosen; `best` was chosen on the test subset, as the paper's checkpoints were: an upper bound. "
    "± is the standard deviation over seeds (n - 1)."
)


def is_papers_own(column: Column) -> bool:
    """Whether a column is what the paper's numbers are about: its features and as many iterations."""
    return column.base in PAPERS_OWN and not column.simulated


def heading(column: Column) -> str:
    """SIMULATED first, so that no number stands without it."""
    data = f" on {column.folder.name}" if column.folder.name != column.base else ""
    return f"{'SIMULATED ' if column.simulated else ''}{column.base}{data}, {column.iterations} iterations"


def grid(table: Table, columns: Sequence[Column], protocol: str, empty: str | None = None) -> list[list[str]]:
    """Head and rows of a table: name | paper | of each column seeds, then last and best by each of its measures.

    Args:
        empty: the heading of a column without runs, put first, or None.
    """
    told = any(row.paper is not None for row in table.rows)
    head = ["", *(["paper"] if told else [])]
    head += [f"{empty}: {name}" for name in ("seeds", *CHECKPOINTS)] if empty else []
    head += [f"{heading(column)}: {name}" for column in columns for name in _names(column, protocol)]
    rows = []
    datasets = {column.spec.name for column in columns} or {table.dataset}
    for row in (row for row in table.rows if not row.ours or row.only is None or row.only in datasets):
        cells = [row.name] + ([f"{row.paper:.1f}" if row.paper is not None else "–"] if told else [])
        cells += ["–"] * 3 if empty else []
        for column in columns:
            measures = column.measures(protocol)
            found = [column.averages(row, checkpoint, measure) for measure in measures for checkpoint in CHECKPOINTS]
            cells += [" ".join(map(str, sorted(found[0]))) or "–", *map(spread, found)]
        rows.append(cells)
    return [head, *rows]


def _names(column: Column, protocol: str) -> list[str]:
    measures = column.measures(protocol)
    if len(measures) == 1:
        return ["seeds", *CHECKPOINTS]
    return ["seeds", *(f"{checkpoint} {measure}" for measure in measures for checkpoint in CHECKPOINTS)]


def measure(table: Table, columns: Sequence[Column], protocol: str) -> str:
    """What the numbers of a table are."""
    published = DATASETS[table.dataset]
    if published.accuracy_subsets:
        return accuracy_note(columns[0].snippet_accuracy) if columns else "snippet accuracy in percent"
    ours = f"{_mean_map(columns[0].spec if columns else published)} in percent, `{protocol}` protocol"
    if all(row.paper is None for row in table.rows):
        return ours
    told = ", CO2-Net's under `snippet`" if table.model == "co2net" else ""
    return f"{ours}; the paper's are {_mean_map(published)} of I3D features{told}"


def _mean_map(spec: DatasetSpec) -> str:
    return f"mean mAP@{spec.main_range[0]:g}:{spec.main_range[1]:g}"


def as_text(table: Table, column: Column, protocol: str) -> str:
    """One table on the screen."""
    lines = grid(table, [column], protocol)
    lines[0] = [cell.rpartition(": ")[2] for cell in lines[0]]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    about = f"{table.title} · {column.features}, config {column.base}, {column.iterations} iterations"
    return "\n".join([about, measure(table, [column], protocol), *text, *_orders(table, column, protocol), HOW_CHOSEN])


def as_markdown(table: Table, columns: Sequence[Column], protocol: str, empty: str | None = None) -> str:
    """One table, its title and what holds of its order."""
    lines = grid(table, columns, protocol, empty)
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    body = ["| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]]]
    orders = [f"- {heading(column)}, {line}" for column in columns for line in _orders(table, column, protocol)]
    text = ["### " + table.title, "", measure(table, columns, protocol) + ".", "", *body]
    return "\n".join(text + (["", *orders] if orders else [])) + "\n"


def _orders(table: Table, column: Column, protocol: str) -> list[str]:
    lines = [order_line(table, column, checkpoint, protocol) for checkpoint in CHECKPOINTS]
    return [line for line in lines if line]


def results_page(tables: Sequence[Table], columns: Sequence[Column], protocol: str, command: Sequence[str]) -> str:
    """docs/results.md: every table that has runs, what ran, and what did not."""
    parts = ["# Results\n", f"Written by `{shlex.join(command)}`; not edited by hand. {HOW_CHOSEN}\n"]
    parts += ["## What ran\n", _what_ran(columns)] if columns else ["No run is finished.\n"]
    if any(column.simulated for column in columns):
        parts.append("**SIMULATED** columns are of made-up features: they rehearse an experiment, of real videos they")
        parts.append("say nothing.\n")
    parts.append("## Tables\n")
    missing = []
    for table in tables:
        shown = [column for column in columns if _belongs(table, column)]
        missing += _missing(table, shown)
        if shown:
            own = any(is_papers_own(column) for column in shown)
            empty = None if own else _papers_features(table)
            parts.append(as_markdown(table, shown, protocol, empty))
            if empty:
                parts.append(f"The empty column is filled by `{_fill(table)}`.\n")
    return "\n".join([*parts, "## What did not run\n", *(missing or ["Nothing is missing."])]) + "\n"


def _belongs(table: Table, column: Column) -> bool:
    """Whether a column has a run of this table's own, or, where it only has the base, is of its data set."""
    keys = {row.key for row in table.rows_for(column.spec.name)}
    if own := keys - {table.model}:
        return any(result.key in own for result in column.results) and not _of_another_measure(table, column)
    return column.spec.name == table.dataset and any(result.key in keys for result in column.results)


def _of_another_measure(table: Table, column: Column) -> bool:
    """Accuracies and mAPs do not stand in one table."""
    return column.spec.accuracy_subsets != DATASETS[table.dataset].accuracy_subsets


def _papers_features(table: Table) -> str:
    return "AVE's real features" if table.dataset == "ave" else "the paper's I3D features"


def _fill(table: Table) -> str:
    return f"python scripts/reproduce.py {table.key} --path-dataset DIR --seeds 0 1 2"


def _what_ran(columns: Sequence[Column]) -> str:
    head = ["| column | features | seeds | runs | device | code |"]
    head += ["| --- | --- | --- | ---: | --- | --- |"]
    rows = [
        f"| {heading(c)} | {c.features} | {' '.join(map(str, c.seeds))} | {len(c.results)} | "
        f"{', '.join(c.devices)} | {', '.join(c.revisions)} |"
        for c in columns
    ]
    return "\n".join([*head, *rows]) + "\n"


def _missing(table: Table, columns: Sequence[Column]) -> list[str]:
    """What of a table did not run: a line each."""
    lines = []
    if not any(is_papers_own(column) for column in columns):
        lines.append(f"- {table.title}, {_papers_features(table)}: `{_fill(table)}`")
    for column in columns:
        gaps = []
        for row in table.rows_for(column.spec.name):
            absent = sorted(set(column.seeds) - set(column.averages(row, "last", column.measures("snippet")[0])))
            gaps += [f"{row.name} (seed {' '.join(map(str, absent))})"] if absent else []
        lines += [f"- {table.title}, {heading(column)}: {', '.join(gaps)}"] if gaps else []
    return lines


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
