"""Measured rows -> a table on the screen or on a page."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column: the key of its value in a row, its heading, and how a value is written."""

    key: str
    heading: str
    form: str = ""  # as in format(value, form)

    def text(self, row: dict) -> str:
        value = row.get(self.key)
        return "-" if value is None else format(value, self.form)


@dataclass(frozen=True)
class Measured:
    """The rows of one measurement, and what a reader must know of them.

    Attributes:
        name: of the rows in the JSON file.
        not_measured: a line for whatever belongs here and could not be measured on this machine.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[dict]
    notes: Sequence[str] = ()
    not_measured: Sequence[str] = ()

    def as_text(self) -> str:
        notes = [f"  {note}" for note in self.notes]
        return "\n".join([f"{self.name}: {self.title}", format_table(self.columns, self.rows), *notes])

    def as_markdown(self) -> str:
        """A section of the third level; columns that no row has anything in are left out."""
        columns = [column for column in self.columns if any(row.get(column.key) is not None for row in self.rows)]
        lines = [[column.heading for column in columns], ["---:"] * len(columns)]
        lines += [[column.text(row).replace("|", "\\|") for column in columns] for row in self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        notes = "".join(f"* {note}\n" for note in self.notes)
        return f"### {self.name}: {self.title}\n\n{body}\n\n{notes}"


def format_table(columns: Sequence[Column], rows: Sequence[dict]) -> str:
    """Headings and a line a row, right-aligned; what a row lacks is a dash."""
    lines = [[column.heading for column in columns]] + [[column.text(row) for column in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
