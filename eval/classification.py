"""Average precision of video-level classification."""

import numpy as np

from utils.errors import InputError


def classification_map(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Compute the average precision of each class, and their mean.

    AP is the mean precision at the ranks of a class's positive videos, without interpolation, as in the release's
    classificationMAP. Among equal scores the earlier video ranks first.

    Args:
        scores: (N, C) score of each video for each class.
        labels: (N, C) multi-hot labels.

    Returns:
        AP (C,) and its mean, as fractions. A class without a positive video has AP NaN and does not enter the mean.

    Raises:
        InputError: The shapes differ or a score is not finite.
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
