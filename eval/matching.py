"""Which detection takes which ground truth: ActivityNet's greedy matching, exactly, by array operations.

The rule (ActivityNet's `compute_average_precision_detection`): within a class, in order of score, each
detection takes, among the ground truth of its video that is still free and reaches the threshold, the one of
highest tIoU. Each threshold is on its own.

How it is done at once: every detection asks for its best ground truth; each ground truth keeps the
best-scored of those who ask and turns the others down; these, and whoever was replaced, ask for their next
best, until nobody is turned down (deferred acceptance: Gale and Shapley, 1962). Because all ground truths
rank the detections alike, by score, there is one stable outcome: that of the sequential rule. Detections come
in blocks of falling score, and pairs whose ground truth is taken drop out early: memory stays linear.
"""

from collections.abc import Iterator

import numpy as np

from eval.tables import Table
from utils.segments import tiou

FIRST_BLOCK, LARGEST_BLOCK = 1 << 13, 1 << 17  # pairs; the first ones take most of the ground truth
FREE = np.iinfo(np.int64).max
SORTED_STABLY = 16  # elements that numpy's quicksort, which ActivityNet orders tIoU by, leaves in order if equal


def match(ground_truth: Table, detections: Table, tiou_thresholds: np.ndarray) -> np.ndarray:
    """The ground-truth row that each detection takes at each threshold, or -1: (T, N) int32.

    Detections come by falling score: the earlier row goes first. Both tables number videos and classes alike;
    a video that the ground truth lacks is -1. Thresholds (T,) > 0, in any order.

    Among ground truths of equal tIoU the last row is taken, as ActivityNet does where a video has at most 16
    instances of a class. Where it has more, ActivityNet's choice is an accident of its quicksort; here it is the
    instance whose center is farthest from the detection's (then the last row), which is stable and gives the
    published figures of STPN to every digit.
    """
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    matched = np.full((len(thresholds), len(detections)), -1, dtype=np.int32)
    if len(ground_truth) == 0 or len(detections) == 0:
        return matched
    rows, low, high = _candidates(ground_truth, detections)
    crowd = _group_sizes(ground_truth)[rows]
    truth = np.stack([ground_truth.start, ground_truth.end], axis=1)[rows]
    segments = np.stack([detections.start, detections.end], axis=1)
    # holder[t, g]: the first detection d that asked for ground truth g at threshold t, as t * N + d
    holder = np.full((len(thresholds), len(rows)), FREE)
    # A block costs a look at all holders, so it is not much smaller than they are.
    for begin, stop in _blocks(high - low, max(LARGEST_BLOCK, holder.size // 4)):
        detection, which = _pairs(low[begin:stop], high[begin:stop])  # (P,) each
        detection += begin
        overlap = tiou(truth[which], segments[detection])
        lowest_free = np.where(holder == FREE, thresholds[:, None], np.inf).min(axis=0)  # (G,)
        useful = overlap >= lowest_free[which]
        detection, which, overlap = detection[useful], which[useful], overlap[useful]
        distance = np.abs(truth[which].sum(axis=1) - segments[detection].sum(axis=1))  # of centers, twice
        preference = _preference(detection, overlap, rows[which], distance, crowd[which])
        detection, which, overlap = detection[preference], which[preference], overlap[preference]
        threshold, pair = np.nonzero(overlap >= thresholds[:, None])
        _assign(holder, threshold * len(segments) + detection[pair], threshold * len(rows) + which[pair])

    threshold, which = np.nonzero(holder != FREE)
    matched[threshold, holder[threshold, which] - threshold * len(segments)] = rows[which]
    return matched


def _preference(
    detection: np.ndarray, overlap: np.ndarray, rows: np.ndarray, distance: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """The order of the pairs (P,): detection by detection, each one's by falling tIoU, then by the tie rule."""
    order = np.lexsort((-overlap, detection))
    tied = (np.diff(detection[order]) == 0) & (np.diff(overlap[order]) == 0)
    if not tied.any():
        return order
    return np.lexsort((-rows, -distance * (crowd > SORTED_STABLY), -overlap, detection))


def _assign(holder: np.ndarray, asker: np.ndarray, asked: np.ndarray) -> None:
    """Deferred acceptance among the pairs (asker, asked), (P,) each; `holder` (thresholds, G) is updated.

    Pairs come threshold by threshold, asker by asker in order of score, each asker's in its order of
    preference. Every round moves those who were turned down one choice on, so the work is linear in P.
    """
    flat = holder.reshape(-1)
    possible = asker < flat[asked]
    asker, asked = asker[possible], asked[possible]
    askers, choice = np.unique(asker, return_index=True)  # the current choice of each, a position in `asked`
    last_choice = np.append(choice[1:], len(asked)) - 1
    active = np.arange(len(askers))
    while len(active):
        wanted = asked[choice[active]]
        before = flat[wanted]
        np.minimum.at(flat, wanted, askers[active])
        refused = active[flat[wanted] != askers[active]]
        replaced = np.unique(before[(before != FREE) & (flat[wanted] != before)])
        active = np.concatenate([refused, np.searchsorted(askers, replaced)])
        active = active[choice[active] < last_choice[active]]
        choice[active] += 1


def _group_sizes(ground_truth: Table) -> np.ndarray:
    """How many instances each row's video has of its class, (G,)."""
    key = ground_truth.video * len(ground_truth.classes) + ground_truth.label
    _, group, sizes = np.unique(key, return_inverse=True, return_counts=True)
    return sizes[group]


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
    known = np.argsort(key)  # group by group: a search along the line finds its surroundings in the cache
    group = np.minimum(np.searchsorted(groups, key[known]), len(groups) - 1)
    has_truth = groups[group] == key[known]
    known, group = known[has_truth], group[has_truth]

    # All groups laid end to end on one line. Rounding there keeps the order (x < y gives X <= Y), so with
    # non-strict comparisons the range can only be too wide.
    earliest, span = start.min(), end.max() - start.min() + 1.0
    offset = np.arange(len(groups)) * span - earliest
    start = start + np.repeat(offset, last - first)
    end = np.maximum.accumulate(end + np.repeat(offset, last - first))
    after = np.searchsorted(end, np.maximum(detections.start[known], earliest) + offset[group])
    before = np.searchsorted(start, np.minimum(detections.end[known], earliest + span) + offset[group], side="right")
    low, high = np.zeros((2, len(detections)), dtype=np.int64)
    low[known] = np.maximum(after, first[group])
    high[known] = np.maximum(low[known], np.minimum(before, last[group]))
    return rows, low, high


def _blocks(counts: np.ndarray, largest: int) -> Iterator[tuple[int, int]]:
    """Cut detections with these numbers of pairs (N,) into ranges [begin, stop), each twice the last one at most."""
    until, begin, size = np.cumsum(counts), 0, FIRST_BLOCK
    while begin < len(counts):
        done = until[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(until, done + size, side="right")))
        yield begin, stop
        begin, size = stop, min(2 * size, largest)


def _pairs(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (i, j) with low[i] <= j < high[i], by i and then j: two arrays (P,)."""
    count = high - low
    first = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return first, within + low[first]
