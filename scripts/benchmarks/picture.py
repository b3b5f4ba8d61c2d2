"""Where the time of a training step goes: one bar a step, ours and the plain one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.split import PARTS
from utils.formats.files import save_figure

COLORS = ("#8c8c8c", "#0072b2", "#e69f00", "#56b4e9", "#009e73")  # told apart by the color-blind too (Okabe, Ito)


def draw_split(path: Path, rows: Sequence[dict]) -> None:
    """A PNG of the rows of the table `train_split`, milliseconds."""
    figure = Figure(figsize=(8, 0.8 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row['size']}, {row['precision']}, {row['step']}" for row in rows]
    left = np.zeros(len(rows))
    for part, color in zip(PARTS, COLORS, strict=True):
        values = np.array([row[part] for row in rows])
        axes.barh(names, values, left=left, color=color, label=part)
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("ms a training step, each part by itself")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path, dpi=100)
