"""Temporal segments: units, overlap, runs and soft-NMS. Time changes its unit only here.

Seconds are floats, snippets are integers on the feature grid. `snippet_rate` is snippets per second (25 / 16 for the
published I3D features). A segment is [start, end), its length end - start.
"""

import heapq

import numpy as np


def seconds_to_snippets(seconds: np.ndarray, snippet_rate: float) -> np.ndarray:
    """Return the nearest snippet borders as integers; halves go to the even border, as in the release."""
    return np.round(np.asarray(seconds, dtype=np.float64) * snippet_rate).astype(np.int64)


def snippets_to_seconds(snippets: np.ndarray, snippet_rate: float) -> np.ndarray:
    """Return the times of snippet borders."""
    return np.asarray(snippets, dtype=np.float64) / snippet_rate


def aligned_snippets(count: int, snippet_rate: float, other_count: int, other_rate: float) -> np.ndarray:
    """Return, for each of `count` snippets, the snippet of another grid that contains its middle, (count,) indices.

    Both grids begin at 0 s. Past the end of the other grid, its last snippet is repeated.
    """
    middle = (np.arange(count) + 0.5) / snippet_rate  # seconds
    # A middle on a border, such as 1.5 / 3 s at 2 Hz, belongs to the later snippet in spite of rounding errors.
    return np.minimum(np.floor(middle * other_rate + 1e-9).astype(np.int64), other_count - 1)


def tiou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the temporal intersection over union of segments (..., 2) and (..., 2), broadcast to (...).

    Two segments of zero length have tIoU 0. For all pairs of (N, 2) and (M, 2), call `tiou(a[:, None], b[None])`.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    intersection = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    intersection = np.maximum(intersection, 0.0)
    # In the order of ActivityNet's code: another order changes the last bit of tIoU, which can cross a threshold.
    union = (second[..., 1] - second[..., 0]) + (first[..., 1] - first[..., 0]) - intersection
    return intersection / np.where(union > 0, union, 1.0)


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the runs of True along the rows of a (K, T) mask.

    Returns:
        Row, start and end (exclusive) of each run, (N,) each, ordered by row and time.
    """
    edges = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=bool)
    edges[:, :-1] = mask
    edges[:, 1:] ^= mask
    row, position = np.nonzero(edges)
    return row[::2], position[::2], position[1::2]


def soft_nms(
    segments: np.ndarray, scores: np.ndarray, sigma: float, padding: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Apply Gaussian soft-NMS (Bodla et al., ICCV 2017) as in the release.

    Take the segment with the highest score and multiply every other score by exp(-overlap^2 / sigma). Repeat until no
    segment is left. No score is cut off. Ties go to the first in input order.

    Time and memory grow with the number of overlapping pairs, which is small among the nested runs of a few thresholds.

    Args:
        segments: (N, 2) in any unit of time.
        scores: (N,).
        sigma: Width of the Gaussian.
        padding: Time added to the end of each segment before overlap is computed; 1 in the release.

    Returns:
        Indices of the segments in the order taken, and the score of each when it was taken, (N,) each.
    """
    bounds, others, weights = _decays(segments, sigma, padding)
    remaining = np.asarray(scores, dtype=np.float64).tolist()
    heap = [(-score, index) for index, score in enumerate(remaining)]
    heapq.heapify(heap)
    order, taken = [], []
    while heap:
        score, best = heap[0]
        if remaining[best] is None:
            heapq.heappop(heap)
            continue
        if remaining[best] != -score:  # decayed since it was pushed: put it back in the queue
            heapq.heapreplace(heap, (-remaining[best], best))
            continue
        heapq.heappop(heap)
        order.append(best)
        taken.append(remaining[best])
        remaining[best] = None
        pairs = slice(bounds[best], bounds[best + 1])
        for other, weight in zip(others[pairs], weights[pairs], strict=True):
            if remaining[other] is not None:
                remaining[other] *= weight
                if remaining[other] < 0:  # a negative score rises as it decays: its old position is too low
                    heapq.heappush(heap, (-remaining[other], other))
    return np.array(order, dtype=np.int64), np.array(taken, dtype=np.float64)


def hard_nms(
    segments: np.ndarray, scores: np.ndarray, threshold: float, padding: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Apply hard NMS: drop every segment whose tIoU with a better one exceeds a threshold.

    Args:
        segments: (N, 2) in any unit of time.
        scores: (N,). Ties go to the first in input order.
        threshold: tIoU in [0, 1]; 1 drops nothing.
        padding: Time added to the end of each segment before overlap is computed.

    Returns:
        Indices of the segments that remain, by falling score, and their scores.
    """
    padded = segments + np.array([0.0, padding])
    remaining, order = np.argsort(-scores, kind="stable"), []
    while len(remaining):
        order.append(remaining[0])
        overlap = tiou(padded[remaining[0]], padded[remaining[1:]])
        remaining = remaining[1:][overlap <= threshold]
    order = np.array(order, dtype=np.int64)
    return order, scores[order]


def _decays(segments: np.ndarray, sigma: float, padding: float) -> tuple[list[int], list[int], list[float]]:
    """Return (bounds, others, weights) of soft-NMS.

    When segment i is taken, the scores of others[bounds[i] : bounds[i + 1]] are multiplied by these weights.
    """
    inclusive = np.stack([segments[:, 0], segments[:, 1] + padding], axis=1).astype(np.float64)
    by_start = np.argsort(inclusive[:, 0], kind="stable")
    inclusive = inclusive[by_start]
    # In order of start, the later segments that overlap segment i are those that start before it ends.
    here = np.arange(len(inclusive))
    count = np.searchsorted(inclusive[:, 0], inclusive[:, 1]) - here - 1
    first = np.repeat(here, count)
    second = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first + 1
    weight = np.exp(-(tiou(inclusive[first], inclusive[second]) ** 2) / sigma)

    first, second = by_start[first], by_start[second]
    first, second = np.concatenate([first, second]), np.concatenate([second, first])
    by_first = np.argsort(first, kind="stable")
    bounds = np.searchsorted(first[by_first], np.arange(len(segments) + 1))
    return bounds.tolist(), second[by_first].tolist(), np.tile(weight, 2)[by_first].tolist()
