"""Localize actions: from the T-CAM and attention of one video to detections (Section 3.6 of arXiv:2107.12589).

The parts of `localize` also serve the other localizations; eval/localizations.py lists them.
"""

import numpy as np

from utils.datasets import SNIPPET_RATE
from utils.errors import InputError
from utils.segments import hard_nms, runs, snippets_to_seconds, soft_nms

DETECTION = np.dtype([("label", np.int64), ("start", np.int64), ("end", np.int64), ("score", np.float64)])
FRACTIONAL = np.dtype([("label", np.int64), ("start", np.float64), ("end", np.float64), ("score", np.float64)])
ATTENTION_THRESHOLDS = np.linspace(0.1, 0.9, 10)
NMS = ("soft", "hard")
PADDINGS = ("snippet", "second", "none")  # length added to each segment in the tIoU of NMS


def video_scores(cas: np.ndarray, attention: np.ndarray, topk_divisor: int = 10) -> np.ndarray:
    """Compute class probabilities of one video: softmax of the top-k mean of A * S over time.

    Args:
        cas: (T, C + 1) logits, background last.
        attention: (T,).
        topk_divisor: K = max(1, T // topk_divisor).

    Returns:
        (C + 1,) probabilities, background last.
    """
    return softmax(topk_mean(attention[:, None] * cas, topk_divisor))


def localize(
    cas: np.ndarray,
    attention: np.ndarray,
    *,
    class_threshold: float = 0.2,
    attention_thresholds: np.ndarray = ATTENTION_THRESHOLDS,
    outer_margin: float = 0.25,
    class_score_weight: float = 0.2,
    nms: str = "soft",
    nms_sigma: float = 0.3,
    nms_tiou: float = 0.5,
    topk_divisor: int = 10,
    fallback_class: bool = True,
    nms_padding: str = "snippet",
    min_length: int = 1,
    snippet_rate: float = SNIPPET_RATE,
    labels: np.ndarray | None = None,
    ambiguous: np.ndarray | None = None,
) -> np.ndarray:
    """Detect the actions of one video by outer-inner contrast (Section 3.6).

    Proposals are the runs of snippets whose attention exceeds one of several thresholds. The score of a proposal is its
    outer-inner contrast plus the weighted class probability.

    Args:
        cas: (T, C + 1) logits, background last.
        attention: (T,) in [0, 1].
        class_threshold: Lowest probability of a class that is localized.
        attention_thresholds: Thresholds of the proposals.
        outer_margin: Margin on either side of a proposal, as a share of its length.
        class_score_weight: Weight of the class probability in the score.
        nms: `soft` as in the paper, or `hard`.
        nms_sigma: Width of soft-NMS.
        nms_tiou: Threshold of hard NMS.
        topk_divisor: Divisor of the video-level scores; see `video_scores`.
        fallback_class: Localize the best class if none reaches the threshold (release).
        nms_padding: Length added to each segment in the tIoU of soft-NMS, one of PADDINGS.
        min_length: Shortest detection in snippets; shorter ones are deleted after NMS.
        snippet_rate: Snippets per second, for a padding of one second.
        labels: Classes to localize; by default those that the video-level scores predict.
        ambiguous: (M, 2) segments in snippets. Detections that share a snippet with one are deleted (THUMOS14).

    Returns:
        Structured array (N,), class by class, each class in the order of NMS: label (class index), start and end
        (snippets, end exclusive), score.

    Raises:
        InputError: The shapes do not fit or a value is not finite.
    """
    cas, attention = checked_outputs(cas, attention)
    scores = video_scores(cas, attention, topk_divisor)[:-1]  # (C,)
    labels = predicted_classes(scores, class_threshold, fallback_class) if labels is None else labels  # (L,)

    thresholds = np.asarray(attention_thresholds, dtype=np.float64)
    _, start, end = runs(attention > thresholds[:, None])
    segments = np.stack([start, end], axis=1)  # (N, 2), the same proposals for every class
    times, padding = padded_times(segments, nms_padding, snippet_rate)
    contrast = outer_inner_contrast(attention[:, None] * cas[:, labels], segments, outer_margin)  # (N, L)
    detections = [np.empty(0, dtype=DETECTION)]
    for label, score in zip(labels, (contrast + class_score_weight * scores[labels]).T, strict=True):
        is_soft = nms == "soft"
        order, score = soft_nms(times, score, nms_sigma, padding) if is_soft else hard_nms(times, score, nms_tiou)
        detections.append(class_detections(label, segments[order], score))
    detections = np.concatenate(detections)
    detections = detections[detections["end"] - detections["start"] >= min_length]
    return without_ambiguous(detections, ambiguous)


def outer_inner_contrast(activation: np.ndarray, segments: np.ndarray, margin: float) -> np.ndarray:
    """Compute the mean activation inside each segment minus the mean in its margins.

    Margins end at the borders of the video and are rounded towards its first snippet, as in the release. The mean of
    an empty margin is 0.

    Args:
        activation: (T, L) activation of L classes.
        segments: (N, 2) in snippets.
        margin: Margin on either side, as a share of the segment's length.

    Returns:
        (N, L) contrast.
    """
    start, end = segments[:, 0], segments[:, 1]
    reach = margin * (end - start)
    outer_start = np.maximum(0, (start - reach).astype(np.int64))
    outer_end = np.minimum(len(activation), (end - 1 + reach).astype(np.int64) + 1)
    until = np.concatenate([np.zeros((1, activation.shape[1])), np.cumsum(activation, axis=0)])  # (T + 1, L)
    inner = until[end] - until[start]  # (N, L)
    outer = (until[outer_end] - until[outer_start]) - inner
    outer_length = (outer_end - outer_start) - (end - start)
    return inner / (end - start)[:, None] - outer / np.maximum(outer_length, 1)[:, None]


def predicted_classes(scores: np.ndarray, threshold: float, fallback: bool = True) -> np.ndarray:
    """Return the classes whose scores (C,) reach a threshold; if there are none, the best one."""
    labels = np.flatnonzero(scores >= threshold)
    return scores.argmax(keepdims=True) if len(labels) == 0 and fallback else labels


def class_detections(label: int, segments: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return detections of one class from segments (N, 2) in whole snippets or in fractions, and scores (N,)."""
    rows = np.empty(len(segments), dtype=DETECTION if segments.dtype.kind == "i" else FRACTIONAL)
    rows["label"], rows["score"] = label, scores
    rows["start"], rows["end"] = segments.T
    return rows


def padded_times(segments: np.ndarray, padding: str, snippet_rate: float) -> tuple[np.ndarray, float]:
    """Return segments (N, 2) in the unit of the padding, snippets or seconds, and the length of the padding."""
    if padding == "second":
        return snippets_to_seconds(segments, snippet_rate), 1.0
    return segments, 1.0 if padding == "snippet" else 0.0


def checked_outputs(
    cas: np.ndarray, curve: np.ndarray, name: str = "attention", background: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return a T-CAM and a curve over time as float64.

    Args:
        cas: (T, C + 1) with background, or (T, C) without.
        curve: (T,).
        name: Name of the curve, for messages.
        background: True if the T-CAM has a background column.

    Raises:
        InputError: The shapes do not fit or a value is not finite.
    """
    cas, curve = np.asarray(cas, dtype=np.float64), np.asarray(curve, dtype=np.float64)
    if cas.ndim != 2 or cas.shape[0] < 1 or cas.shape[1] < 1 + background or curve.shape != cas.shape[:1]:
        columns = "C + 1" if background else "C"
        raise InputError(
            f"localize: expected cas (T, {columns}) and {name} (T,) with T >= 1, C >= 1, "
            f"got {cas.shape} and {curve.shape}"
        )
    for which, values in (("cas", cas), (name, curve)):
        if not np.isfinite(values).all():
            snippet = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise InputError(f"localize: {which} is not finite at snippet {snippet}; check the features and weights")
    return cas, curve


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def topk_mean(values: np.ndarray, topk_divisor: int) -> np.ndarray:
    """Average the T // topk_divisor (at least one) largest of values (T, C) over time, per class."""
    k = max(1, len(values) // topk_divisor)
    return np.partition(values, -k, axis=0)[-k:].mean(axis=0)  # (C,)


def without_ambiguous(detections: np.ndarray, ambiguous: np.ndarray | None, whole_snippets: bool = False) -> np.ndarray:
    """Delete the detections that share time with an ambiguous segment of (M, 2).

    With `whole_snippets`, the borders of the detections are rounded down for this comparison.
    """
    if ambiguous is None:
        return detections
    ambiguous = np.asarray(ambiguous).reshape(-1, 2)
    start, end = (np.floor(detections[name]) if whole_snippets else detections[name] for name in ("start", "end"))
    latest_start = np.maximum(start[:, None], ambiguous[:, 0])  # (N, M)
    earliest_end = np.minimum(end[:, None], ambiguous[:, 1])
    return detections[~(latest_start < earliest_end).any(axis=1)]
