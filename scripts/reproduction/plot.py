"""Plot of one table in one setting: seeds, means, and the paper's values."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from scripts.reproduction.plan import Table
from scripts.reproduction.results import features_of, heading, measures_of, rows_that_ran
from utils.formats.files import save_figure

COLOR, PAPER_COLOR = "#1f77b4", "#d62728"
# The same bytes for the same runs: text as text, and ids that do not change.
REPRODUCIBLE = {"svg.fonttype": "none", "svg.hashsalt": "results"}


def plot_table(path: Path, table: Table, group: pd.DataFrame) -> None:
    """Draw the `last` score of each seed as a dot, their mean as a line, and the paper's value as a diamond.

    Args:
        path: The SVG file to write.
        table: Table with the rows.
        group: Runs of one setting.
    """
    rows, measure = rows_that_ran(table, group), measures_of(group)[0]
    with mpl.rc_context(REPRODUCIBLE):
        figure = Figure(figsize=(8, 1.3 + 0.35 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            scores = group.loc[group["key"] == row.key, f"last/{measure}/mean"]
            axes.plot(scores, [place] * len(scores), "o", color=COLOR, alpha=0.6)
            axes.plot([scores.mean()] * 2, [place - 0.35, place + 0.35], color=COLOR, linewidth=2.5)
            if row.paper is not None:
                axes.plot(row.paper, place, "D", color=PAPER_COLOR, markerfacecolor="none")
        axes.set(yticks=range(len(rows)), yticklabels=[row.name for row in rows], ylim=(len(rows) - 0.5, -0.5))
        axes.set_xlabel(f"last, {measure}, percent; dots: seeds, lines: their mean, diamonds: the paper")
        axes.set_title(f"{heading(group)}\n{features_of(group)}", loc="left", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        save_figure(figure, path, dpi=100)
