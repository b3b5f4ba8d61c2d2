"""Plain evaluation and localization with the same results as the fast code, to measure it against.

Both loop over what the rule loops over, with numpy inside: the code that a careful person writes first.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from eval.tables import Table

CROWD = 16  # segments of a class in a video; with more, distance decides between equal tIoU


def evaluate(truth: Table, detections: Table, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate as ActivityNet does, one detection after another.

    Returns:
        AP (T, C), and the ground-truth row that each detection takes at each threshold (T, N), -1 for none. Detections
        are sorted by falling score; of equal scores the later row comes first.
    """
    rows_of = defaultdict(list)  # (video, class) -> ground-truth rows
    for row, key in enumerate(zip(truth.video.tolist(), truth.label.tolist(), strict=True)):
        rows_of[key].append(row)
    rows_of = {key: np.array(rows) for key, rows in rows_of.items()}
    order = np.argsort(detections.score, kind="stable")[::-1]
    taken = np.zeros((len(thresholds), len(truth)), dtype=bool)
    matched = np.full((len(thresholds), len(detections)), -1)
    for place, detection in enumerate(order):
        rows = rows_of.get((int(detections.video[detection]), int(detections.label[detection])))
        if rows is None:
            continue
        overlap = _tiou(truth.start[rows], truth.end[rows], detections.start[detection], detections.end[detection])
        # Of equal tIoU the last row comes first; in a crowd, the one with the farthest center (see eval.matching).
        centers = truth.start[rows] + truth.end[rows] - (detections.start[detection] + detections.end[detection])
        best_first = np.lexsort((np.abs(centers) * (len(rows) > CROWD), overlap))[::-1]
        for level, threshold in enumerate(thresholds):
            for choice in best_first:
                if overlap[choice] < threshold:
                    break
                if not taken[level, rows[choice]]:
                    taken[level, rows[choice]] = True
                    matched[level, place] = rows[choice]
                    break
    labels, positives = detections.label[order], np.bincount(truth.label, minlength=len(truth.classes))
    ap = [[_average_precision(row[labels == c] >= 0, n) for c, n in enumerate(positives)] for row in matched]
    return np.array(ap), matched


def _tiou(starts: np.ndarray, ends: np.ndarray, start: float, end: float) -> np.ndarray:
    shared = (np.minimum(ends, end) - np.maximum(starts, start)).clip(0)
    union = (end - start) + (ends - starts) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _average_precision(hit: np.ndarray, positives: int) -> float:
    """Return the area under the interpolated precision-recall curve; hits (N,) are sorted by falling score."""
    if positives == 0:
        return np.nan
    hits = np.cumsum(hit)
    precision = np.concatenate([[0.0], hits / np.arange(1, len(hit) + 1), [0.0]])
    recall = np.concatenate([[0.0], hits / positives, [1.0]])
    for place in range(len(precision) - 1, 0, -1):
        precision[place - 1] = max(precision[place - 1], precision[place])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


def localize(cas: np.ndarray, attention: np.ndarray) -> list[tuple[int, float, float, float]]:
    """Localize as in Section 3.6, by loops over classes, thresholds and runs: rows (label, start, end, score)."""
    suppressed = attention[:, None] * cas
    top = np.sort(suppressed, axis=0)[-max(1, len(cas) // 10) :]
    probability = np.exp(top.mean(axis=0))
    scores = (probability / probability.sum())[:-1]
    labels = np.flatnonzero(scores >= 0.2)
    rows = []
    for label in labels if len(labels) else [scores.argmax()]:
        proposals = [
            (start, end, _contrast(suppressed[:, label], start, end) + 0.2 * scores[label])
            for threshold in np.linspace(0.1, 0.9, 10)
            for start, end in _runs(attention > threshold)
        ]
        rows += [(int(label), *detection) for detection in _soft_nms(proposals)]
    return rows


def _runs(above: np.ndarray) -> Iterator[tuple[int, int]]:
    start = None
    for snippet, inside in enumerate(above.tolist()):
        if inside and start is None:
            start = snippet
        if not inside and start is not None:
            yield start, snippet
            start = None
    if start is not None:
        yield start, len(above)


def _contrast(activation: np.ndarray, start: int, end: int) -> float:
    """Return the mean inside minus the mean of a quarter of the length on either side."""
    reach = 0.25 * (end - start)
    before = activation[max(0, int(start - reach)) : start]
    after = activation[end : int(end - 1 + reach) + 1]
    outside = np.concatenate([before, after])
    return activation[start:end].mean() - (outside.mean() if len(outside) else 0.0)


def _soft_nms(proposals: list[tuple[int, int, float]], sigma: float = 0.3) -> list[tuple[float, float, float]]:
    """Take the best proposal and lower the scores of those that overlap it, until none is left."""
    left, detections = np.array(proposals).reshape(-1, 3), []
    while len(left):
        best = left[:, 2].argmax()
        start, end, score = left[best].tolist()
        detections.append((start, end, score))
        left = np.delete(left, best, axis=0)
        shared = (np.minimum(left[:, 1], end) - np.maximum(left[:, 0], start) + 1).clip(0)
        union = (left[:, 1] - left[:, 0] + 1) + (end - start + 1) - shared
        left[:, 2] *= np.exp(-((shared / union) ** 2) / sigma)
    return detections
