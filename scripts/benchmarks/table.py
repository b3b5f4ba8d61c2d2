"""Measured rows -> a table on the screen."""

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


def format_table(columns: Sequence[Column], rows: Sequence[dict]) -> str:
    """Headings and a line a row, right-aligned; what a row lacks is a dash."""
    lines = [[column.heading for column in columns]] + [[column.text(row) for column in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
