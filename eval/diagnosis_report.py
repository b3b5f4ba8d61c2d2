"""Print and draw the result of `eval.diagnosis.diagnose`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.tables import format_table
from utils.formats.files import save_figure

COLORS = ("#2a9d4a", "#9ad1a8", "#3465a4", "#edae49", "#d1495b", "#bbbbbb")  # one per kind; the first is not an error
BAR, MISSED, BASELINE = "#3465a4", "#d1495b", "#333333"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # keeps lines from crossing numbers


def diagnosis_table(diagnosis: dict) -> str:
    """Return the diagnosis as text: percent, means over the tIoU thresholds, '-' where undefined."""
    thresholds = " ".join(f"{threshold:g}" for threshold in diagnosis["tiou_thresholds"])
    head = f"{diagnosis['detections']} detections, {diagnosis['instances']} instances (G), {diagnosis['protocol']}"
    shares = _profile_shares(diagnosis)
    profile = [["", *_slice_names(shares)]]
    profile += [[kind, *_percents(row)] for kind, row in zip(diagnosis["kinds"], shares.T, strict=True)]
    removal = [["", "mAP", "mAP_N"]]
    removal.append(["as it is", *(f"{100 * diagnosis[name]:.2f}" for name in ("average_map", "average_map_n_top"))])
    for kind, gain in diagnosis["removal"].items():
        removal.append([f"without {kind}", *(f"{100 * value:+.2f}" for value in gain.values())])
    classes = [["class", "number", "AP"]]
    classes += [[e["class"], str(e["instances"]), f"{100 * e['average_ap']:.1f}"] for e in diagnosis["classes"]]
    parts = [
        "\n".join(f"note: {note}" for note in diagnosis["notes"]),
        f"{head}; percent, means over tIoU {thresholds}",
        f"profile of the top detections\n{format_table(profile)}",
        f"average mAP, and mAP_N of the top 10G, without one kind of error\n{format_table(removal)}",
        *(_bin_table(name, bins) for name, bins in diagnosis["characteristics"].items()),
        format_table(classes),
    ]
    return "\n\n".join(part for part in parts if part)


def _bin_table(name: str, bins: list[dict]) -> str:
    rows = [
        [name, *(part["bin"] for part in bins)],
        ["up to", *map(_upper, bins)],
        ["number", *(str(part["instances"]) for part in bins)],
        ["mAP_N", *_percents(part["average_map_n"] for part in bins)],
        ["not found", *_percents(_mean(part["not_found"]) for part in bins)],
    ]
    return format_table(rows)


def _profile_shares(diagnosis: dict) -> np.ndarray:
    """Return the share of each kind per slice (slices, kinds), mean over thresholds; NaN in an empty slice."""
    counts = np.array(diagnosis["profile"], dtype=float).mean(axis=0)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(axis=1, keepdims=True)


def _slice_names(shares: np.ndarray) -> list[str]:
    return [f"{number}G" for number in range(1, len(shares) + 1)]


def _upper(part: dict) -> str:
    return f"> {part['above']:g}" if part["up_to"] is None else f"{part['up_to']:g}"


def _bounds(part: dict) -> str:
    bounds = _upper(part) if part["up_to"] is None else f"≤ {_upper(part)}"
    return bounds.replace("0.", ".")


def _percents(values: Iterable[float | None]) -> list[str]:
    return ["-" if value is None or np.isnan(value) else f"{100 * value:.1f}" for value in values]


def _mean(values: list[float] | None) -> float | None:
    return None if values is None else float(np.mean(values))


def diagnosis_figure(diagnosis: dict, path: str | Path) -> None:
    """Draw five panels: profile, cost of each kind of error, sensitivity, instances not found, AP by class.

    Args:
        diagnosis: Result of `eval.diagnosis.diagnose`.
        path: Image file to write; the suffix selects its type.

    Raises:
        InputError: The file cannot be written.
        ValueError: Matplotlib does not support the file type.
    """
    figure = Figure(figsize=(14, 13), layout="constrained")
    panels = figure.subplot_mosaic([["profile", "removal"], ["sensitivity", "missed"], ["classes", "classes"]])
    thresholds = ", ".join(f"{threshold:g}" for threshold in diagnosis["tiou_thresholds"])
    figure.suptitle(f"{diagnosis['protocol']} protocol, means over tIoU {thresholds}")
    _draw_profile(panels["profile"], diagnosis)
    _draw_removal(panels["removal"], diagnosis)
    maps = [[part["average_map_n"] for part in bins] for bins in diagnosis["characteristics"].values()]
    missed = [[_mean(part["not_found"]) for part in bins] for bins in diagnosis["characteristics"].values()]
    _draw_bins(panels["sensitivity"], diagnosis, maps, BAR, diagnosis["average_map_n"])
    panels["sensitivity"].set(title="sensitivity to the instances", ylabel="average mAP_N in percent")
    _draw_bins(panels["missed"], diagnosis, missed, MISSED, _mean(diagnosis["not_found"]))
    panels["missed"].set(title="false negatives", ylabel="instances not found, in percent")
    _draw_classes(panels["classes"], diagnosis["classes"])
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=110)


def _draw_profile(axes: Axes, diagnosis: dict) -> None:
    shares = 100 * np.nan_to_num(_profile_shares(diagnosis))
    bottom = np.zeros(len(shares))
    for kind, color, share in zip(diagnosis["kinds"], COLORS, shares.T, strict=True):
        axes.bar(_slice_names(shares), share, 0.85, bottom, color=color, label=kind)
        bottom += share
    axes.set(title="profile of the top detections", ylabel="share in percent", ylim=(0, 100))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, frameon=False)


def _draw_removal(axes: Axes, diagnosis: dict) -> None:
    gains = [100 * gain["average_map"] for gain in diagnosis["removal"].values()]
    bars = axes.barh(list(diagnosis["removal"]), gains, color=COLORS[1:])
    axes.bar_label(bars, fmt="%+.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    base = 100 * diagnosis["average_map"]
    axes.set(title=f"average mAP {base:.1f}: what it gains without one kind of error", xlabel="points of average mAP")


def _draw_bins(axes: Axes, diagnosis: dict, groups: list[list], color: str, baseline: float) -> None:
    """Draw the bars of all bins side by side, and the value over all instances as a dashed line."""
    first, ticks, names = 0, [], []
    for (name, bins), values in zip(diagnosis["characteristics"].items(), groups, strict=True):
        places = np.arange(first, first + len(bins))
        bars = axes.bar(places, [100 * (value or 0) for value in values], 0.85, color=color)
        axes.bar_label(bars, _percents(values), padding=2, fontsize=8, bbox=LABEL_BOX)
        axes.text(places.mean(), 1.0, name, ha="center", va="top", transform=axes.get_xaxis_transform())
        ticks.extend(places)
        names.extend(f"{part['bin']}\n{_bounds(part)}" for part in bins)
        first += len(bins) + 1
    axes.axhline(100 * baseline, color=BASELINE, linestyle="--", linewidth=1, zorder=0)
    axes.set_xticks(ticks, names, fontsize=7)
    axes.set_ylim(0, 1.2 * axes.dataLim.ymax or 1)


def _draw_classes(axes: Axes, classes: list[dict]) -> None:
    names = [f"{entry['class']} ({entry['instances']})" for entry in classes]
    axes.bar(range(len(names)), [100 * entry["average_ap"] for entry in classes], color=BAR)
    axes.set_xticks(range(len(names)), names, parse_math=False)  # names may contain dollar signs
    axes.tick_params(axis="x", rotation=90, labelsize=9 if len(names) <= 40 else 6)
    axes.margins(x=0.01)
    axes.set(title="AP by class (number of instances)", ylabel="average AP in percent")
