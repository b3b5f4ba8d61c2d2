"""Video-level classification: average precision a class (numpy only)."""

import numpy as np

from utils.errors import InputError


def classification_map(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Average precision of each class (C,) and their mean, as fractions.

    scores (N, C), labels (N, C) multi-hot; N videos. AP is the mean, over a class's positive videos, of the
    precision at their rank, uninterpolated (the release's classificationMAP). Among equal scores the earlier
    video ranks first. A class without a positive video has AP NaN and is left out of the mean.
    Raises InputError for shapes that do not fit and for scores that are not finite.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    if scores.ndim != 2 or scores.shape != positive.shape:
        raise InputError(
            f"classification mAP: expected scores and labels (N, C), got {scores.shape} and {positive.shape}"
        )
    if not np.isfinite(scores).all():
        video, label = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(f"classification mAP: the score of video {video}, class {label} is not finite")
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(positive, order, axis=0)  # (N, C) by falling score
    precision = np.cumsum(hits, axis=0) / np.arange(1, len(hits) + 1)[:, None]
    count = hits.sum(axis=0)
    summed = np.where(hits, precision, 0.0).sum(axis=0)
    ap = np.divide(summed, count, out=np.full(len(count), np.nan), where=count > 0)
    return ap, float(ap[count > 0].mean()) if count.any() else float("nan")
