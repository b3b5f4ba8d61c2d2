"""Interpolated average precision of matched detections, equal to ActivityNet's to the last bit."""

from collections.abc import Iterable, Sequence

import numpy as np

from eval.sorting import number_order

SAME_TIOU = 1e-9  # for means over thresholds, 0.3 and linspace's 0.30000000000000004 are the same


def average_precisions(labels: np.ndarray, matched: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Compute average precision at each threshold, per class.

    Args:
        labels: (N,) class index of each detection, by falling score.
        matched: (T, N) ground-truth row that each detection takes at each threshold; negative for a false positive.
        positives: (C,) number of ground-truth segments per class.

    Returns:
        (T, C) float64; NaN for a class without ground truth.
    """
    rank = _class_ranks(labels, len(positives))  # (N,)
    threshold, hit = np.nonzero(matched >= 0)  # (H,) each
    column = threshold * len(positives) + labels[hit]  # one column per threshold and class
    by_column = np.argsort(column, kind="stable")  # within a column, hits stay in order of score
    bounds = np.searchsorted(column[by_column], np.arange(len(matched) * len(positives) + 1))
    ranks = rank[hit[by_column]]
    ap = [
        average_precision(ranks[begin:end], count) if count else np.nan
        for begin, end, count in zip(bounds[:-1], bounds[1:], np.tile(positives, len(matched)), strict=True)
    ]
    return np.array(ap).reshape(len(matched), len(positives))


def average_precision(ranks: np.ndarray, num_positives: int) -> float:
    """Compute interpolated average precision (VOC 2010), summed in ActivityNet's order.

    Args:
        ranks: (K,) ranks of the hits in the list by score, counted from 1, ascending.
        num_positives: Number of ground-truth segments, at least 1.
    """
    hits = np.arange(1, len(ranks) + 1)
    precision, recall = hits / ranks, hits / num_positives
    # Precision falls between hits, so the best precision at or beyond a recall lies at a hit.
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    terms = recall * interpolated
    terms[1:] = (recall[1:] - recall[:-1]) * interpolated[1:]
    if len(ranks) < num_positives:
        terms = np.append(terms, 0.0)  # ActivityNet sums one more term if full recall is not reached
    return float(terms.sum())


def _class_ranks(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the rank of each row within its class (N,), counted from 1."""
    by_class = number_order(labels, num_classes)
    first = np.searchsorted(labels[by_class], np.arange(num_classes))
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(1, len(labels) + 1) - first[labels[by_class]]
    return ranks


def range_name(bounds: tuple[float, float]) -> str:
    """Return the name of a mean over tIoU thresholds, such as `0.1:0.7`."""
    return f"{bounds[0]:g}:{bounds[1]:g}"


def mean_over_range(tiou_thresholds: Sequence[float], mean_ap: Sequence[float], low: float, high: float) -> float:
    """Compute the mean of mAP over the tIoU thresholds from low to high, both included.

    Args:
        tiou_thresholds: (T,) thresholds.
        mean_ap: (T,) mAP at each threshold; None counts as NaN.
        low: Lower end of the range.
        high: Upper end of the range.

    Returns:
        The mean; NaN if no threshold lies in the range or an mAP in it is undefined.
    """
    rows = _rows_within(tiou_thresholds, low, high)
    return float(np.asarray(mean_ap, dtype=np.float64)[rows].mean()) if len(rows) else float("nan")


def nan_to_none(value: float) -> float | None:
    """Return the value, or None for NaN, which JSON cannot store."""
    return None if np.isnan(value) else value


def named_means(
    tiou_thresholds: Sequence[float], usual: Sequence[float], ranges: Iterable[tuple[float, float]]
) -> dict[str, np.ndarray]:
    """Find the means of mAP that tables can show.

    A published `low:high` is the mean over a dataset's usual thresholds in that range. It is defined only if all of
    them are evaluated, and further thresholds do not enter it.

    Args:
        tiou_thresholds: Evaluated thresholds.
        usual: The dataset's usual thresholds.
        ranges: (low, high) of each published mean.

    Returns:
        {name: indices of the evaluated thresholds it averages}; `mean` over all of them if no range is defined.
    """
    evaluated, usual = np.asarray(tiou_thresholds), np.asarray(usual)
    means = {}
    for bounds in ranges:
        same = np.abs(usual[_rows_within(usual, *bounds)][:, None] - evaluated) < SAME_TIOU
        if same.any(axis=1).all():
            means[range_name(bounds)] = same.argmax(axis=1)
    return means or {"mean": np.arange(len(evaluated))}


def _rows_within(tiou_thresholds: Sequence[float], low: float, high: float) -> np.ndarray:
    thresholds = np.asarray(tiou_thresholds)
    return np.flatnonzero((thresholds > low - SAME_TIOU) & (thresholds < high + SAME_TIOU))
