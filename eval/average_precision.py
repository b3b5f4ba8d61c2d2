"""Matched detections -> interpolated average precision, bit-equal to ActivityNet's (numpy only)."""

import numpy as np


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


def mean_over_range(tiou_thresholds: np.ndarray, mean_ap: np.ndarray, low: float, high: float) -> float:
    """Mean of mAP (T,) over the tIoU thresholds (T,) from low to high, both included; NaN if there are none."""
    thresholds = np.asarray(tiou_thresholds)
    inside = (thresholds > low - 1e-9) & (thresholds < high + 1e-9)
    return float(np.asarray(mean_ap)[inside].mean()) if inside.any() else float("nan")
