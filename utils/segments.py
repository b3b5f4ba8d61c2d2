"""Temporal segments: overlap, runs, soft-NMS, and the only place where time changes its unit.

Seconds are floats, snippets are integers on the feature grid; `rate` is snippets a second (25 / 16 for the
published I3D features). A segment is [start, end), its length end - start.
"""

import heapq

import numpy as np


def seconds_to_snippets(seconds: np.ndarray, rate: float) -> np.ndarray:
    """Nearest snippet border, halves to the even one (as the release rounds); integers of the same shape."""
    return np.round(np.asarray(seconds, dtype=np.float64) * rate).astype(np.int64)


def snippets_to_seconds(snippets: np.ndarray, rate: float) -> np.ndarray:
    """Where snippet borders lie in seconds; floats of the same shape."""
    return np.asarray(snippets, dtype=np.float64) / rate


def aligned_snippets(count: int, rate: float, other_count: int, other_rate: float) -> np.ndarray:
    """For each of `count` snippets, which of `other_count` on another grid its middle lies in: (count,) indices.

    Both grids begin at 0 s; where the other one ends early, its last snippet stands in.
    """
    middle = (np.arange(count) + 0.5) / rate  # seconds
    # A middle on a border, as 1.5 / 3 on a grid of 2 Hz, belongs to the later snippet however it is rounded.
    return np.minimum(np.floor(middle * other_rate + 1e-9).astype(np.int64), other_count - 1)


def tiou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Temporal intersection over union of segments (..., 2) and (..., 2), broadcast against each other.

    Two zero-length segments have union 0: their tIoU is 0, wherever they lie. For all pairs of (N, 2) and
    (M, 2) call `tiou(a[:, None], b[None])`.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    intersection = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    intersection = np.maximum(intersection, 0.0)
    # The order of these sums is ActivityNet's: another one moves tIoU by a bit, and so across a threshold.
    union = (second[..., 1] - second[..., 0]) + (first[..., 1] - first[..., 0]) - intersection
    return intersection / np.where(union > 0, union, 1.0)


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longest runs of True along the rows of a (K, T) mask: their row, start and end (exclusive), each (N,).

    Ordered by row, then by time.
    """
    edges = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=bool)
    edges[:, :-1] = mask
    edges[:, 1:] ^= mask
    row, position = np.nonzero(edges)
    return row[::2], position[::2], position[1::2]


def soft_nms(segments: np.ndarray, scores: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian soft-NMS (Bodla et al., ICCV 2017) as the release runs it.

    Take the best-scored segment, multiply every other's score by exp(-overlap^2 / sigma), repeat until none
    is left. Overlap counts lengths + 1, and no score is cut. Among equal scores the first in input order
    wins.

    segments (N, 2) snippets and scores (N,) -> order (N,), in which the segments were taken, and their
    scores (N,) at that moment, in that order. Time and memory grow with the number of overlapping pairs,
    which is small among the nested runs of a few thresholds.
    """
    bounds, others, weights = _decays(segments, sigma)
    remaining = np.asarray(scores, dtype=np.float64).tolist()
    heap = [(-score, index) for index, score in enumerate(remaining)]
    heapq.heapify(heap)
    order, taken = [], []
    while heap:
        score, best = heap[0]
        if remaining[best] is None:
            heapq.heappop(heap)
            continue
        if remaining[best] != -score:  # decayed since it was pushed: further back in the queue
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
                if remaining[other] < 0:  # a negative score rises as it decays: its old place is too low
                    heapq.heappush(heap, (-remaining[other], other))
    return np.array(order, dtype=np.int64), np.array(taken, dtype=np.float64)


def _decays(segments: np.ndarray, sigma: float) -> tuple[list[int], list[int], list[float]]:
    """What soft-NMS does to overlapping segments: entries bounds[i] to bounds[i + 1] of (others, weights) say
    which segments decay, and how much, when segment i is taken."""
    inclusive = np.stack([segments[:, 0], segments[:, 1] + 1], axis=1).astype(np.float64)
    by_start = np.argsort(inclusive[:, 0], kind="stable")
    inclusive = inclusive[by_start]
    # Sorted by start, the later segments that overlap segment i are those that start before it ends.
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
