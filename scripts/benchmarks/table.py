"""Tables of figures, for the screen and for the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eval.tables import format_table


@dataclass(frozen=True)
class ResultTable:
    """Figures of one measurement, with the notes that a reader needs.

    Attributes:
        name: Key in the JSON file.
        title: What the rows are about.
        rows: One dict per row, from heading to value; a row may lack a value.
        notes: One sentence each.
        not_measured: What belongs here and was not measured, with the reason.
    """

    name: str
    title: str
    rows: Sequence[dict]
    notes: Sequence[str] = ()
    not_measured: Sequence[str] = ()

    def as_text(self) -> str:
        """Format the table for the screen."""
        notes = [f"  {note}" for note in self.notes] + [f"  not measured: {line}" for line in self.not_measured]
        cells = [format_table(self._cells())] if self.rows else []
        return "\n".join([f"{self.name}: {self.title}", *cells, *notes])

    def as_markdown(self) -> str:
        """Format the table as a section of a page."""
        notes = "".join(f"* {note}\n" for note in self.notes)
        cells = markdown_table(self._cells()) if self.rows else "Not measured.\n"
        return f"### {self.name}: {self.title}\n\n{cells}\n{notes}"

    def slower_rows(self) -> list[str]:
        """Return a description of each row whose ratio to plain code is below 1."""
        slower = []
        for row in self.rows:
            if row.get("ratio") is not None and row["ratio"] < 1:
                words = [value for value in row.values() if isinstance(value, str)]
                slower.append(f"{self.name}, {', '.join(words)} (ratio {row['ratio']:.2f})")
        return slower

    def _cells(self) -> list[list[str]]:
        """Return headings and rows as text, without the columns that no row fills."""
        headings = dict.fromkeys(key for row in self.rows for key in row)
        headings = [key for key in headings if any(row.get(key) is not None for row in self.rows)]
        return [headings, *([format_value(key, row.get(key)) for key in headings] for row in self.rows)]


def format_value(heading: str, value: object) -> str:
    """Format one figure: whole numbers in full, shares in percent, others to three digits."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if heading.startswith("share"):
        return f"{value:.0%}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.0e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(digits, 0)}f}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells, headings first, as Markdown."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---:"] * len(head), *body))
