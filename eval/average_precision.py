"""Matched detections -> interpolated average precision, bit-equal to ActivityNet's (numpy only)."""

from collections.abc import Iterable, Sequence

import numpy as np

SAME_TIOU = 1e-9  # 0.3 and linspace's 0.30000000000000004 are the same threshold to a mean over thresholds


def score_order(scores: np.ndarray) -> np.ndarray:
    """Rows by falling score (N,); among equal scores the later row comes first.

    That is a stable ascending sort read backwards, which is what ActivityNet's reversed argsort gives on
    small input; on large input its order of ties depends on the processor.
    """
    order = np.argsort(scores)  # much faster than a stable sort, and the same where no score is repeated
    ascending = scores[order]
    if (ascending[1:] == ascending[:-1]).any():
        order = np.argsort(scores, kind="stable")
    return order[::-1]


def average_precisions(labels: np.ndarray, matched: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """AP (T, C) of detections by falling score; NaN for a class without ground truth.

    labels (N,) class numbers; matched (T, N), negative where a detection is a false positive at a
    threshold; positives (C,) ground truths a class.
    """
    rank = _class_ranks(labels, len(positives))
    threshold, hit = np.nonzero(matched >= 0)
    column = threshold * len(positives) + labels[hit]
    by_column = np.argsort(column, kind="stable")  # within a column hits stay in order of score
    bounds = np.searchsorted(column[by_column], np.arange(len(matched) * len(positives) + 1))
    ranks = rank[hit[by_column]]
    ap = [
        average_precision(ranks[begin:end], count) if count else np.nan
        for begin, end, count in zip(bounds[:-1], bounds[1:], np.tile(positives, len(matched)), strict=True)
    ]
    return np.array(ap).reshape(len(matched), len(positives))


def average_precision(ranks: np.ndarray, num_positives: int) -> float:
    """Interpolated average precision (VOC 2010), summed in ActivityNet's order.

    ranks (K,): the places of the hits in the list by score, from 1, ascending; num_positives >= 1.
    """
    hits = np.arange(1, len(ranks) + 1)
    precision, recall = hits / ranks, hits / num_positives
    # Precision falls between hits, so the best precision at or beyond a recall is found at a hit.
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    terms = recall * interpolated
    terms[1:] = (recall[1:] - recall[:-1]) * interpolated[1:]
    if len(ranks) < num_positives:
        terms = np.append(terms, 0.0)  # the recall never reached: one more term in the pairwise sum
    return float(terms.sum())


def _class_ranks(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The place of each row within its class (N,), from 1."""
    # numpy sorts 8- and 16-bit integers by radix, ten times faster than others
    by_class = np.argsort(labels.astype(np.min_scalar_type(num_classes)), kind="stable")
    first = np.searchsorted(labels[by_class], np.arange(num_classes))
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(1, len(labels) + 1) - first[labels[by_class]]
    return ranks


def range_name(bounds: tuple[float, float]) -> str:
    """`0.1:0.7`, as tables name the mean over these thresholds."""
    return f"{bounds[0]:g}:{bounds[1]:g}"


def mean_over_range(tiou_thresholds: np.ndarray, mean_ap: np.ndarray, low: float, high: float) -> float:
    """Mean of mAP (T,) over the tIoU thresholds (T,) from low to high, both included; NaN if there are none.

    An mAP of None counts as NaN, and so makes the mean NaN.
    """
    rows = _rows_within(tiou_thresholds, low, high)
    return float(np.asarray(mean_ap, dtype=np.float64)[rows].mean()) if len(rows) else float("nan")


def nan_to_none(value: float) -> float | None:
    """Return the value, or None for NaN, which JSON cannot store."""
    return None if np.isnan(value) else value


def named_means(
    tiou_thresholds: Sequence[float], usual: Sequence[float], ranges: Iterable[tuple[float, float]]
) -> dict[str, np.ndarray]:
    """The means of mAP that go by a name: {name: which of the evaluated thresholds (T,) it is over}.

    A published `low:high` is the mean over the `usual` thresholds in the range, so it is there only if all of
    them were evaluated, and over them only. Where no range is there: `mean`, over all that were evaluated.
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
