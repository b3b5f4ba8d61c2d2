"""Which detection takes which ground truth: ActivityNet's greedy matching, exactly, by array operations.

The rule (ActivityNet's `compute_average_precision_detection`): within a class, in order of score, each detection
takes, among the ground truth of its video that is still free and reaches the threshold, the one of highest
tIoU. Each threshold is on its own.

How it is done at once: let every detection ask for its best ground truth, give each ground truth to the best-scored
of those who ask, and strike out its pairs with all worse-scored detections: they can never get it. Whoever
lost its first choice asks for the next, until nobody is turned down. Because all ground truths rank the detections
alike, by score, the outcome (a stable matching) is the one the sequential rule gives. Detections come in
blocks of falling score, so most pairs are struck out before they are ever compared: memory stays linear.
"""

from collections.abc import Iterator

import numpy as np

from eval.detection_files import Table
from utils.segments import tiou

FIRST_BLOCK, LARGEST_BLOCK = 1 << 13, 1 << 20  # pairs; the first ones take most of the ground truth
FREE = np.iinfo(np.int64).max


def match(ground_truth: Table, detections: Table, tiou_thresholds: np.ndarray) -> np.ndarray:
    """The ground-truth row that each detection takes at each threshold, or -1: (thresholds, detections) int32.

    Detections come by falling score: the earlier row goes first. Both tables number videos and classes alike; a
    video that the ground truth lacks is -1. Thresholds > 0, in any order. Among ground truths of equal tIoU the
    last row is taken.
    """
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    matched = np.full((len(thresholds), len(detections)), -1, dtype=np.int32)
    if len(ground_truth) == 0 or len(detections) == 0:
        return matched
    rows, low, high = _candidates(ground_truth, detections)
    truth = np.stack([ground_truth.start, ground_truth.end], axis=1)[rows]
    segments = np.stack([detections.start, detections.end], axis=1)
    # holder[t, g]: the first detection d that asked for ground truth g at threshold t, as t * N + d
    holder = np.full((len(thresholds), len(rows)), FREE)
    for begin, stop in _blocks(high - low):
        detection, which = _pairs(low[begin:stop], high[begin:stop])  # (P,) each
        detection += begin
        overlap = tiou(truth[which], segments[detection])
        lowest_free = np.where(holder == FREE, thresholds[:, None], np.inf).min(axis=0)  # (G,)
        useful = overlap >= lowest_free[which]
        detection, which, overlap = detection[useful], which[useful], overlap[useful]
        preference = np.lexsort((-rows[which], -overlap, detection))
        detection, which, overlap = detection[preference], which[preference], overlap[preference]
        threshold, pair = np.nonzero(overlap >= thresholds[:, None])
        _assign(holder, threshold * len(segments) + detection[pair], threshold * len(rows) + which[pair])

    threshold, which = np.nonzero(holder != FREE)
    matched[threshold, holder[threshold, which] - threshold * len(segments)] = rows[which]
    return matched


def _assign(holder: np.ndarray, asker: np.ndarray, asked: np.ndarray) -> None:
    """Deferred acceptance among the pairs (asker, asked), (P,) each; `holder` (thresholds, G) is updated.

    Pairs come threshold by threshold, asker by asker in order of score, each asker's in its order of preference.
    """
    flat = holder.reshape(-1)
    while True:
        possible = asker <= flat[asked]
        asker, asked = asker[possible], asked[possible]
        first = np.ones(len(asker), dtype=bool)
        first[1:] = asker[1:] != asker[:-1]
        choosers, choice = asker[first], asked[first]
        np.minimum.at(flat, choice, choosers)
        if (flat[choice] == choosers).all():
            return


def _candidates(ground_truth: Table, detections: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An interval search inside (video, class): which ground truth can overlap which detection.

    Returns ground-truth rows (G,) sorted by group and start, and for each detection the range [low, high) of
    that list outside which nothing overlaps it (N,) (N,); an empty range where its group has no ground truth.
    """
    num_classes = len(ground_truth.classes)
    key = ground_truth.video * num_classes + ground_truth.label
    rows = np.lexsort((ground_truth.start, key))
    start, end = ground_truth.start[rows], ground_truth.end[rows]
    groups, first = np.unique(key[rows], return_index=True)
    last = np.append(first[1:], len(rows))

    key = np.where(detections.video < 0, -1, detections.video * num_classes + detections.label)
    group = np.minimum(np.searchsorted(groups, key), len(groups) - 1)

    # All groups laid end to end on one line. Rounding there keeps the order (x < y gives X <= Y), so with
    # non-strict comparisons the range can only be too wide.
    earliest, span = start.min(), end.max() - start.min() + 1.0
    offset = np.arange(len(groups)) * span - earliest
    start = start + np.repeat(offset, last - first)
    end = np.maximum.accumulate(end + np.repeat(offset, last - first))
    low = np.searchsorted(end, np.maximum(detections.start, earliest) + offset[group])
    high = np.searchsorted(start, np.minimum(detections.end, earliest + span) + offset[group], side="right")
    low, high = np.maximum(low, first[group]), np.minimum(high, last[group])
    return rows, low, np.where(groups[group] == key, np.maximum(high, low), low)


def _blocks(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut detections with these numbers of pairs (N,) into ranges [begin, stop), each of twice the pairs of the last."""
    until, begin, size = np.cumsum(counts), 0, FIRST_BLOCK
    while begin < len(counts):
        done = until[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(until, done + size, side="right")))
        yield begin, stop
        begin, size = stop, min(2 * size, LARGEST_BLOCK)


def _pairs(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (i, j) with low[i] <= j < high[i], by i and then j: two arrays (P,)."""
    count = high - low
    first = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return first, within + low[first]
