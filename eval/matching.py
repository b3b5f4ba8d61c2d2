"""Match detections to ground truth by ActivityNet's greedy rule, exactly, with array operations.

The rule (ActivityNet's `compute_average_precision_detection`): within a class, detections choose in order of score.
Each takes the segment of highest tIoU among the free segments of its video that reach the threshold. Thresholds are
independent of each other.

The array form is deferred acceptance (Gale and Shapley, 1962). Every detection asks for its best segment. Each segment
accepts the best-scored detection that asks and refuses the others. Refused and replaced detections ask for their next
best segment, until none is refused. Because all segments rank detections by score, there is one stable outcome: that
of the sequential rule. Detections come in blocks of falling score, and pairs whose segment is already taken drop out
early, so memory stays linear.

Videos do not depend on each other either. A few are matched at a time, so that their arrays stay in the cache.
"""

from collections.abc import Iterator

import numpy as np

from eval.sorting import number_order
from eval.tables import Table
from utils.segments import tiou

CHUNK = 1 << 15  # detections of the videos that are matched together
FIRST_BLOCK, LARGEST_BLOCK = 1 << 13, 1 << 17  # pairs; the first block takes most of the ground truth
FREE = np.iinfo(np.int64).max
ABOVE_ANY_TIOU = 2.0
SORTED_STABLY = 16  # up to this many elements, the quicksort by which ActivityNet orders tIoU is stable


def match(ground_truth: Table, detections: Table, tiou_thresholds: np.ndarray) -> np.ndarray:
    """Match detections to ground truth at each threshold.

    Two segments of zero length match at every threshold, before any others and wherever they lie in the video. Their
    tIoU in ActivityNet's code is 0 / 0 = NaN: it sorts above all numbers, and `NaN < threshold` is false.

    Among segments of equal tIoU a detection takes the last row. ActivityNet's code does so if a video has at most 16
    segments of a class; with more, its choice depends on its quicksort. Here it is then the segment whose center is
    farthest from that of the detection, then the last row. This is stable and reproduces STPN's published scores to
    every digit.

    Args:
        ground_truth: Annotated segments (G rows).
        detections: Detections (N rows) by falling score, numbering videos and classes as the ground truth does. The
            video is -1 if the ground truth lacks it.
        tiou_thresholds: (T,) thresholds above 0, in any order.

    Returns:
        (T, N) int32: the ground-truth row that each detection takes at each threshold, or -1.
    """
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    matched = np.full((len(thresholds), len(detections)), -1, dtype=np.int32)
    for truth_rows, rows in _chunks(ground_truth, detections):
        which, threshold, row = _match_chunk(ground_truth.select(truth_rows), detections.select(rows), thresholds)
        matched[threshold, rows[row]] = truth_rows[which]
    return matched


def _chunks(ground_truth: Table, detections: Table) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ground-truth rows and the detections of a few videos at a time."""
    num_videos = len(ground_truth.videos)
    truth_rows = number_order(ground_truth.video, num_videos)
    rows = number_order(detections.video + 1, num_videos + 1)
    truth_video, video = ground_truth.video[truth_rows], detections.video[rows]
    borders = np.unique(np.append(video[::CHUNK].clip(0), num_videos))
    first_truth, first = np.searchsorted(truth_video, borders), np.searchsorted(video, borders)
    for number in range(len(borders) - 1):
        inside = slice(first_truth[number], first_truth[number + 1]), slice(first[number], first[number + 1])
        if inside[0].start < inside[0].stop:
            yield truth_rows[inside[0]], np.sort(rows[inside[1]])  # by falling score again


def _match_chunk(
    ground_truth: Table, detections: Table, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match some videos; return ground-truth row, threshold and detection of each hit, (H,) each."""
    rows, low, high = _candidates(ground_truth, detections)
    crowd = ground_truth.group_sizes()[rows]  # (G,)
    truth = np.stack([ground_truth.start, ground_truth.end], axis=1)[rows]
    segments = np.stack([detections.start, detections.end], axis=1)
    truth_is_point, is_point = truth[:, 0] == truth[:, 1], segments[:, 0] == segments[:, 1]
    # holder[t, g]: the best-scored detection d that asked for segment g at threshold t, as t * N + d
    holder = np.full((len(thresholds), len(rows)), FREE)
    # Each block scans all holders, so blocks are not much smaller than `holder`.
    for begin, stop in _blocks(high - low, max(LARGEST_BLOCK, holder.size // 4)):
        detection, which = _pairs(low[begin:stop], high[begin:stop])  # (P,) each
        detection += begin
        overlap = tiou(truth[which], segments[detection])
        overlap[truth_is_point[which] & is_point[detection]] = ABOVE_ANY_TIOU
        lowest_free = np.where(holder == FREE, thresholds[:, None], np.inf).min(axis=0)  # (G,)
        useful = overlap >= lowest_free[which]
        detection, which, overlap = detection[useful], which[useful], overlap[useful]
        preference = np.lexsort((-overlap, detection))
        if ((np.diff(detection[preference]) == 0) & (np.diff(overlap[preference]) == 0)).any():
            distance = np.abs(truth[which].sum(axis=1) - segments[detection].sum(axis=1))  # of centers, twice
            far_first = -distance * (crowd[which] > SORTED_STABLY)
            preference = np.lexsort((-rows[which], far_first, -overlap, detection))
        detection, which, overlap = detection[preference], which[preference], overlap[preference]
        threshold, pair = np.nonzero(overlap >= thresholds[:, None])
        _assign(holder, threshold * len(segments) + detection[pair], threshold * len(rows) + which[pair])

    threshold, which = np.nonzero(holder != FREE)
    return rows[which], threshold, holder[threshold, which] - threshold * len(segments)


def _assign(holder: np.ndarray, asker: np.ndarray, asked: np.ndarray) -> None:
    """Run deferred acceptance among the pairs (asker, asked), (P,) each, and update `holder` (T, G) in place.

    Pairs are sorted by threshold, then by the asker's score, then by the asker's preference. Every round moves each
    refused asker to its next choice, so the work is linear in P.
    """
    flat = holder.reshape(-1)
    possible = asker < flat[asked]
    asker, asked = asker[possible], asked[possible]
    choice = np.flatnonzero(np.diff(asker, prepend=-1))  # current choice of each asker, an index of `asked`
    askers = asker[choice]
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


def _candidates(ground_truth: Table, detections: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the ground truth that can overlap each detection, by interval search within (video, class).

    Returns the ground-truth rows (G,) sorted by group and start, and the range [low, high) of this list for each
    detection, (N,) each. Nothing outside the range matches the detection; without ground truth the range is empty.
    """
    num_classes = len(ground_truth.classes)
    key = ground_truth.video * num_classes + ground_truth.label
    rows = np.lexsort((ground_truth.start, key))
    start, end = ground_truth.start[rows], ground_truth.end[rows]
    groups, first = np.unique(key[rows], return_index=True)
    last = np.append(first[1:], len(rows))

    known = number_order(detections.video + 1, len(ground_truth.videos) + 1)  # so that the search stays in the cache
    key = detections.video[known] * num_classes + detections.label[known]
    group = np.minimum(np.searchsorted(groups, key), len(groups) - 1)
    has_truth = groups[group] == key
    known, group = known[has_truth], group[has_truth]

    # Lay all groups end to end on one line. Rounding there preserves the order (x < y gives X <= Y), so with
    # non-strict comparisons the range can only be too wide.
    earliest, span = start.min(), end.max() - start.min() + 1.0
    offset = np.arange(len(groups)) * span - earliest
    start = start + np.repeat(offset, last - first)
    end = np.maximum.accumulate(end + np.repeat(offset, last - first))
    after = np.searchsorted(end, np.maximum(detections.start[known], earliest) + offset[group])
    before = np.searchsorted(start, np.minimum(detections.end[known], earliest + span) + offset[group], side="right")
    low, high = np.zeros((2, len(detections)), dtype=np.int32)
    low[known] = np.maximum(after, first[group])
    high[known] = np.maximum(low[known], np.minimum(before, last[group]))
    # Segments of zero length match wherever they lie, so these detections get their whole group.
    is_point = ground_truth.start[rows] == ground_truth.end[rows]
    has_points = np.logical_or.reduceat(is_point, first)
    whole = (detections.start[known] == detections.end[known]) & has_points[group]
    low[known[whole]], high[known[whole]] = first[group[whole]], last[group[whole]]
    return rows, low, high


def _blocks(counts: np.ndarray, largest: int) -> Iterator[tuple[int, int]]:
    """Cut detections with these numbers of pairs (N,) into ranges, each at most twice the size of the last."""
    until, begin, size = np.cumsum(counts), 0, FIRST_BLOCK
    while begin < len(counts):
        done = until[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(until, done + size, side="right")))
        yield begin, stop
        begin, size = stop, min(2 * size, largest)


def _pairs(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all (i, j) with low[i] <= j < high[i], by i and then j, as two arrays (P,)."""
    count = high - low
    first = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return first, within + low[first]
