"""T-CAM and attention of one video -> detections (numpy only).

Two ways: `outer_inner` of arXiv:2107.12589 (Section 3.6), and the two-stage thresholding of W-TALC (Paul et al., ECCV
2018), which the audio-visual paper follows (its Section 4.2).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.segments import runs, soft_nms

DETECTION = np.dtype([("label", np.int64), ("start", np.int64), ("end", np.int64), ("score", np.float64)])
ATTENTION_THRESHOLDS = np.linspace(0.1, 0.9, 10)


def video_scores(cas: np.ndarray, attention: np.ndarray, topk_divisor: int = 10) -> np.ndarray:
    """Class probabilities of a video (C + 1,), background last: softmax of the top-k mean of A * S.

    cas (T, C + 1) logits, attention (T,); k = max(1, T // topk_divisor).
    """
    suppressed = attention[:, None] * cas
    k = max(1, len(suppressed) // topk_divisor)
    logits = np.partition(suppressed, -k, axis=0)[-k:].mean(axis=0)
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def localize(
    cas: np.ndarray,
    attention: np.ndarray,
    *,
    class_threshold: float = 0.2,
    attention_thresholds: np.ndarray = ATTENTION_THRESHOLDS,
    outer_margin: float = 0.25,
    class_weight: float = 0.2,
    nms_sigma: float = 0.3,
    topk_divisor: int = 10,
    ambiguous: np.ndarray | None = None,
) -> np.ndarray:
    """Detections of one video, class by class, each class in the order of soft-NMS.

    cas (T, C + 1) logits, background last; attention (T,) in [0, 1]; ambiguous (M, 2) snippets: detections
    that share a snippet with one of these segments are deleted, whatever their class (THUMOS14).
    Returns a structured array (N,): label (class index), start, end (snippets, end exclusive), score.
    Raises InputError for shapes that do not fit and for values that are not finite.
    """
    cas, attention = _checked(cas, attention)
    scores = video_scores(cas, attention, topk_divisor)[:-1]
    labels = np.flatnonzero(scores >= class_threshold)
    if len(labels) == 0:
        labels = scores.argmax(keepdims=True)

    thresholds = np.asarray(attention_thresholds, dtype=np.float64)
    _, start, end = runs(attention > thresholds[:, None])
    segments = np.stack([start, end], axis=1)  # (N, 2), the same proposals for every class
    contrast = outer_inner_contrast(attention[:, None] * cas[:, labels], segments, outer_margin)  # (N, L)
    detections = np.empty((len(labels), len(segments)), dtype=DETECTION)
    for row, label, score in zip(detections, labels, (contrast + class_weight * scores[labels]).T, strict=True):
        order, row["score"] = soft_nms(segments, score, nms_sigma)
        row["label"], row["start"], row["end"] = label, start[order], end[order]
    detections = detections.ravel()
    return detections if ambiguous is None else detections[~_touches(detections, ambiguous)]


def probability_scores(cas: np.ndarray, attention: np.ndarray, topk_divisor: int = 8) -> np.ndarray:
    """Video-level scores (C + 1,), background last: top-k mean over time of the snippets' class probabilities.

    cas (T, C + 1) logits or log probabilities; attention is not looked at; k = max(1, T // topk_divisor), W-TALC's 8.
    """
    probabilities = _probabilities(cas)
    k = max(1, len(probabilities) // topk_divisor)
    return np.partition(probabilities, -k, axis=0)[-k:].mean(axis=0)


def localize_two_stage(
    cas: np.ndarray,
    attention: np.ndarray,
    *,
    activation_threshold: float = 0.5,
    class_weight: float = 0.7,
    ambiguous: np.ndarray | None = None,
) -> np.ndarray:
    """Detections of one video by two thresholds, class by class, each class in order of time.

    The first keeps the classes whose video-level score is at least the mean over all action classes. The second runs
    over time, at a share (`activation_threshold`) of the way from a class's lowest to its highest probability; each
    run of snippets at or above it is a detection, scored by its highest probability plus `class_weight` times the
    video-level score. The paper gives neither value; both are those of W-TALC's code. Arguments and result as
    `localize` has them; the attention is in the probabilities already.
    """
    cas, attention = _checked(cas, attention)
    scores = probability_scores(cas, attention)[:-1]
    labels = np.flatnonzero(scores >= scores.mean())
    activation = _probabilities(cas)[:, labels].T  # (L, T)
    low, high = activation.min(axis=1, keepdims=True), activation.max(axis=1, keepdims=True)
    row, start, end = runs(activation >= low + activation_threshold * (high - low))
    detections = np.empty(len(row), dtype=DETECTION)
    detections["label"], detections["start"], detections["end"] = labels[row], start, end
    highest = [activation[place, first:last].max() for place, first, last in zip(row, start, end, strict=True)]
    detections["score"] = np.array(highest) + class_weight * scores[labels[row]]
    return detections if ambiguous is None else detections[~_touches(detections, ambiguous)]


class Localization(NamedTuple):
    """A way from T-CAM and attention to video-level scores (C + 1,), and one to detections."""

    video_scores: Callable[..., np.ndarray]
    localize: Callable[..., np.ndarray]


LOCALIZATIONS = {
    "outer_inner": Localization(video_scores, localize),
    "two_stage": Localization(probability_scores, localize_two_stage),
}


def outer_inner_contrast(activation: np.ndarray, segments: np.ndarray, margin: float) -> np.ndarray:
    """Mean activation inside a segment minus that of its margins, `margin` of its length on either side.

    activation (T, L), segments (N, 2) snippets -> (N, L). Margins end where the video ends and are rounded
    towards its first snippet, as in the release; where none is left, their mean is 0.
    """
    start, end = segments[:, 0], segments[:, 1]
    reach = margin * (end - start)
    outer_start = np.maximum(0, (start - reach).astype(np.int64))
    outer_end = np.minimum(len(activation), (end - 1 + reach).astype(np.int64) + 1)
    until = np.concatenate([np.zeros((1, activation.shape[1])), np.cumsum(activation, axis=0)])  # (T + 1, L)
    inner = until[end] - until[start]
    outer = (until[outer_end] - until[outer_start]) - inner
    outer_length = (outer_end - outer_start) - (end - start)
    return inner / (end - start)[:, None] - outer / np.maximum(outer_length, 1)[:, None]


def _checked(cas: np.ndarray, attention: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, or InputError."""
    cas, attention = np.asarray(cas, dtype=np.float64), np.asarray(attention, dtype=np.float64)
    if cas.ndim != 2 or cas.shape[0] < 1 or cas.shape[1] < 2 or attention.shape != cas.shape[:1]:
        raise InputError(
            f"localize: expected cas (T, C + 1) and attention (T,) with T >= 1, C >= 1, "
            f"got {cas.shape} and {attention.shape}"
        )
    for name, values in (("cas", cas), ("attention", attention)):
        if not np.isfinite(values).all():
            snippet = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise InputError(f"localize: {name} is not finite at snippet {snippet}; check the features and weights")
    return cas, attention


def _probabilities(cas: np.ndarray) -> np.ndarray:
    """Softmax over the classes and the background, (T, C + 1)."""
    exponentials = np.exp(cas - cas.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _touches(detections: np.ndarray, ambiguous: np.ndarray) -> np.ndarray:
    """Which detections (N,) share at least one snippet with an ambiguous segment of (M, 2)."""
    ambiguous = np.asarray(ambiguous).reshape(-1, 2)
    latest_start = np.maximum(detections["start"][:, None], ambiguous[:, 0])  # (N, M)
    return (latest_start < np.minimum(detections["end"][:, None], ambiguous[:, 1])).any(axis=1)
