"""Localize actions: from the T-CAM and attention of one video to detections.

`outer_inner` is Section 3.6 of arXiv:2107.12589. `two_stage` is the thresholding of W-TALC (Paul et al., ECCV 2018),
which the audio-visual paper uses (its Section 4.2). `um` is that of UM's release (Lee et al., AAAI 2021).
`localize_proposals` is the inference of P-MIL (Ren et al., CVPR 2023), a second stage that scores given proposals.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from utils.datasets import SNIPPET_RATE
from utils.errors import InputError
from utils.segments import hard_nms, runs, snippets_to_seconds, soft_nms

DETECTION = np.dtype([("label", np.int64), ("start", np.int64), ("end", np.int64), ("score", np.float64)])
FRACTIONAL = np.dtype([("label", np.int64), ("start", np.float64), ("end", np.float64), ("score", np.float64)])
ATTENTION_THRESHOLDS = np.linspace(0.1, 0.9, 10)
NOT_SETTINGS = ("labels", "ambiguous", "snippet_rate")  # arguments of a localization that are not options: data
NMS = ("soft", "hard")
ACTIVATION_THRESHOLDS, MAGNITUDE_THRESHOLDS = np.arange(0, 0.25, 0.025), np.arange(0.4, 0.625, 0.025)
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
    return softmax(_topk_mean(attention[:, None] * cas, topk_divisor))


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
    cas, attention = _checked(cas, attention)
    scores = video_scores(cas, attention, topk_divisor)[:-1]  # (C,)
    labels = _predicted(scores, class_threshold, fallback_class) if labels is None else labels  # (L,)

    thresholds = np.asarray(attention_thresholds, dtype=np.float64)
    _, start, end = runs(attention > thresholds[:, None])
    segments = np.stack([start, end], axis=1)  # (N, 2), the same proposals for every class
    times, padding = _padded_times(segments, nms_padding, snippet_rate)
    contrast = outer_inner_contrast(attention[:, None] * cas[:, labels], segments, outer_margin)  # (N, L)
    detections = [np.empty(0, dtype=DETECTION)]
    for label, score in zip(labels, (contrast + class_score_weight * scores[labels]).T, strict=True):
        is_soft = nms == "soft"
        order, score = soft_nms(times, score, nms_sigma, padding) if is_soft else hard_nms(times, score, nms_tiou)
        detections.append(_rows(label, segments[order], score))
    detections = np.concatenate(detections)
    detections = detections[detections["end"] - detections["start"] >= min_length]
    return _without_ambiguous(detections, ambiguous)


def probability_scores(cas: np.ndarray, attention: np.ndarray, topk_divisor: int = 8) -> np.ndarray:
    """Compute class probabilities of one video: top-k mean over time of the snippets' class probabilities.

    Args:
        cas: (T, C + 1) logits or log probabilities, background last.
        attention: Not used; `cas` contains it already.
        topk_divisor: K = max(1, T // topk_divisor); 8 in W-TALC.

    Returns:
        (C + 1,) scores, background last.
    """
    return _topk_mean(softmax(cas), topk_divisor)


def localize_two_stage(
    cas: np.ndarray,
    attention: np.ndarray,
    *,
    activation_threshold: float = 0.5,
    class_score_weight: float = 0.7,
    snippet_rate: float = SNIPPET_RATE,
    labels: np.ndarray | None = None,
    ambiguous: np.ndarray | None = None,
) -> np.ndarray:
    """Detect the actions of one video by two thresholds.

    The first threshold selects the classes whose video-level score is at least the mean over all action classes. The
    second selects the runs of snippets with a high class probability. The score of a run is its highest probability
    plus the weighted video-level score. The paper gives neither value; the defaults are those of W-TALC's code.

    Args:
        cas: (T, C + 1) logits or log probabilities, background last.
        attention: (T,). Only checked; `cas` contains it already.
        activation_threshold: Second threshold, from 0 (the class's lowest probability) to 1 (its highest).
        class_score_weight: Weight of the video-level score.
        snippet_rate: Not used.
        labels: Classes to localize; by default those that the first threshold selects.
        ambiguous: (M, 2) segments in snippets. Detections that share a snippet with one are deleted.

    Returns:
        Structured array (N,) as from `localize`, class by class, each class in order of time.

    Raises:
        InputError: The shapes do not fit or a value is not finite.
    """
    cas, attention = _checked(cas, attention)
    scores = probability_scores(cas, attention)[:-1]  # (C,)
    labels = _predicted(scores, scores.mean()) if labels is None else labels  # (L,)
    activation = softmax(cas)[:, labels].T  # (L, T)
    low, high = activation.min(axis=1, keepdims=True), activation.max(axis=1, keepdims=True)
    row, start, end = runs(activation >= low + activation_threshold * (high - low))
    detections = np.empty(len(row), dtype=DETECTION)
    detections["label"], detections["start"], detections["end"] = labels[row], start, end
    highest = [activation[index, first:last].max() for index, first, last in zip(row, start, end, strict=True)]
    detections["score"] = np.array(highest) + class_score_weight * scores[labels[row]]
    return _without_ambiguous(detections, ambiguous)


def topk_scores(cas: np.ndarray, magnitude: np.ndarray, topk_divisor: int = 9) -> np.ndarray:
    """Compute class probabilities of one video: softmax of the top-k mean of the T-CAM over time.

    Args:
        cas: (T, C) logits, without background.
        magnitude: Not used.
        topk_divisor: K = max(1, T // topk_divisor).

    Returns:
        (C,) probabilities.
    """
    return softmax(_topk_mean(cas, topk_divisor))


def localize_um(
    cas: np.ndarray,
    magnitude: np.ndarray,
    *,
    class_threshold: float = 0.2,
    activation_thresholds: np.ndarray = ACTIVATION_THRESHOLDS,
    attention_thresholds: np.ndarray = MAGNITUDE_THRESHOLDS,
    outer_margin: float = 0.25,
    class_score_weight: float = 0.2,
    nms_tiou: float = 0.6,
    nms_padding: str = "second",
    topk_divisor: int = 9,
    background_divisor: int = 4,
    upsampling: int = 24,
    snippet_rate: float = SNIPPET_RATE,
    labels: np.ndarray | None = None,
    ambiguous: np.ndarray | None = None,
) -> np.ndarray:
    """Detect the actions of one video by thresholds on class activation and on feature magnitude (UM's release).

    The magnitude is rescaled: the mean of the lowest snippets becomes 0, that of the highest ones 1. The activation is
    the class probability times the magnitude, rescaled to [0, 1] over time. Both are upsampled. Proposals are the runs
    of at least two frames that reach one of several thresholds. They have outer-inner scores, and go through hard NMS.

    Args:
        cas: (T, C) logits, without background.
        magnitude: (T,) norms of the features.
        class_threshold: Lowest probability of a class that is localized. If none reaches it, the best class is.
        activation_thresholds: Thresholds on the activation. Its values below a threshold count as 0 in the score.
        attention_thresholds: Thresholds on the normalized magnitude.
        outer_margin: Margin on either side of a proposal, as a share of its length.
        class_score_weight: Weight of the class probability in the score.
        nms_tiou: tIoU from which NMS deletes the detection with the lower score.
        nms_padding: Length added to each segment in the tIoU of NMS, one of PADDINGS.
        topk_divisor: Divisor of T in the number of action snippets, and of the video-level scores.
        background_divisor: Divisor of T in the number of background snippets.
        upsampling: Frames per snippet.
        snippet_rate: Snippets per second, for a padding of one second.
        labels: Classes to localize; by default those that the video-level scores predict.
        ambiguous: (M, 2) segments in snippets. Detections that share time with one are deleted.

    Returns:
        Structured array (N,) as from `localize`, with fractions of snippets as start and end, class by class, each
        class in descending order of score.

    Raises:
        InputError: The shapes do not fit or a value is not finite.
    """
    cas, magnitude = _checked(cas, magnitude, "magnitude", background=False)
    scores = topk_scores(cas, magnitude, topk_divisor)  # (C,)
    labels = _predicted(scores, class_threshold) if labels is None else labels  # (L,)
    low, high = -_topk_mean(-magnitude, background_divisor), _topk_mean(magnitude, topk_divisor)
    magnitude = _rescale(magnitude, low, high)
    activation = softmax(cas) * magnitude[:, None]  # (T, C), not negative
    activation = _rescale(activation, activation.min(axis=0), activation.max(axis=0))[:, labels]
    activation, magnitude = _upsample(activation, upsampling), _upsample(magnitude, upsampling)  # frames for T

    _, *segments_of_magnitude = runs(magnitude >= np.asarray(attention_thresholds)[:, None])
    thresholds = np.asarray(activation_thresholds)[:, None]  # (K, 1)
    of_classes = [np.empty(0, dtype=FRACTIONAL)]
    for label, frames in zip(labels, activation.T, strict=True):
        thresholded = np.where(frames >= thresholds, frames, 0.0)  # (K, frames)
        row, *segments = runs(thresholded > 0)
        segments = np.concatenate([np.stack(segments, axis=1), np.stack(segments_of_magnitude, axis=1)])  # (N, 2)
        row = np.concatenate([row, np.full(len(segments) - len(row), len(thresholds))])
        is_long = segments[:, 1] - segments[:, 0] >= 2
        segments, row = segments[is_long], row[is_long]
        curves = np.concatenate([thresholded, frames[None]]).T  # (frames, K + 1)
        contrast = outer_inner_contrast(curves, segments, outer_margin)[np.arange(len(row)), row]
        score = contrast + class_score_weight * scores[label]
        segments = segments / upsampling  # snippets
        times, padding = _padded_times(segments, nms_padding, snippet_rate)
        # The release also drops at the threshold itself.
        order, score = hard_nms(times, score, np.nextafter(nms_tiou, 0), padding)
        of_classes.append(_rows(label, segments[order], score))
    return _without_ambiguous(np.concatenate(of_classes), ambiguous)


def proposal_scores(probabilities: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Compute class scores of one video: the mean of its proposals' probabilities, weighted by their attention.

    Args:
        probabilities: (M, C + 1) class probabilities of M proposals, background last.
        attention: (M,) in [0, 1].

    Returns:
        (C,) scores.
    """
    return attention @ probabilities[:, :-1] / (attention.sum() + 1e-6)  # 1e-6: release


def localize_proposals(
    probabilities: np.ndarray,
    attention: np.ndarray,
    completeness: np.ndarray,
    segments: np.ndarray,
    *,
    class_threshold: float = 0.2,
    class_score_weight: float = 0.2,
    nms_sigma: float = 0.3,
    ambiguous: np.ndarray | None = None,
) -> np.ndarray:
    """Detect the actions of one video among given proposals (P-MIL, P7 of docs/beyond.md).

    Every proposal is a detection of every predicted class. Its score is the product of probability, attention and
    completeness, plus the weighted class score of the video.

    Args:
        probabilities: (M, C + 1) class probabilities of the proposals, background last.
        attention: (M,) in [0, 1].
        completeness: (M,) in [0, 1].
        segments: (M, 2) proposals in snippets.
        class_threshold: Lowest score of a class that is localized. If none reaches it, the best class is.
        class_score_weight: Weight of the class score in the score of a detection.
        nms_sigma: Width of soft-NMS, which pads each segment by one snippet.
        ambiguous: (K, 2) segments in whole snippets. Detections that share a whole snippet with one are deleted.

    Returns:
        Structured array (N,) as from `localize`, with fractions of snippets as start and end.
    """
    scores = proposal_scores(probabilities, attention)  # (C,)
    detections = [np.empty(0, dtype=FRACTIONAL)]
    for label in _predicted(scores, class_threshold):
        of_proposals = probabilities[:, label] * attention * completeness + class_score_weight * scores[label]  # (M,)
        order, score = soft_nms(segments, of_proposals, nms_sigma)
        detections.append(_rows(label, np.asarray(segments, dtype=np.float64)[order], score))
    return _without_ambiguous(np.concatenate(detections), ambiguous, whole_snippets=True)


class Localization(NamedTuple):
    """Functions of some outputs of one video: video-level scores, and detections.

    Attributes:
        outputs: Names of these outputs, in the order of the functions' arguments.
        video_scores: Returns class scores (C,), or (C + 1,) with the background last.
        localize: Returns detections. Its named arguments, except NOT_SETTINGS, are settings.
    """

    outputs: tuple[str, ...]
    video_scores: Callable[..., np.ndarray]
    localize: Callable[..., np.ndarray]

    def settings(self) -> dict[str, object]:
        """Return the settings that `localize` takes by name, with the published values."""
        parameters = inspect.signature(self.localize).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in NOT_SETTINGS}


LOCALIZATIONS = {
    "outer_inner": Localization(("cas", "attention"), video_scores, localize),
    "two_stage": Localization(("cas", "attention"), probability_scores, localize_two_stage),
    "um": Localization(("cas", "magnitude"), topk_scores, localize_um),
}


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


def _predicted(scores: np.ndarray, threshold: float, fallback: bool = True) -> np.ndarray:
    """Return the classes whose scores (C,) reach a threshold; if there are none, the best one."""
    labels = np.flatnonzero(scores >= threshold)
    return scores.argmax(keepdims=True) if len(labels) == 0 and fallback else labels


def _rows(label: int, segments: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return detections of one class from segments (N, 2) in whole snippets or in fractions, and scores (N,)."""
    rows = np.empty(len(segments), dtype=DETECTION if segments.dtype.kind == "i" else FRACTIONAL)
    rows["label"], rows["score"] = label, scores
    rows["start"], rows["end"] = segments.T
    return rows


def _padded_times(segments: np.ndarray, padding: str, snippet_rate: float) -> tuple[np.ndarray, float]:
    """Return segments (N, 2) in the unit of the padding, snippets or seconds, and the length of the padding."""
    if padding == "second":
        return snippets_to_seconds(segments, snippet_rate), 1.0
    return segments, 1.0 if padding == "snippet" else 0.0


def _rescale(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Map low to 0 and high to 1, and clip. If high is not above low, divide by 1."""
    return np.clip((values - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)


def _upsample(values: np.ndarray, factor: int) -> np.ndarray:
    """Interpolate values (T, ...) linearly to (T * factor, ...), frame i at snippet i / factor.

    The last frames, after the last snippet, continue its slope (release). They may leave the range of the values.
    """
    if len(values) == 1:
        return np.repeat(values, factor, axis=0)
    position = np.arange(len(values) * factor) / factor
    left = np.minimum(position.astype(np.int64), len(values) - 2)
    step = (position - left).reshape(-1, *[1] * (values.ndim - 1))
    return values[left] + step * (values[left + 1] - values[left])


def _checked(
    cas: np.ndarray, curve: np.ndarray, name: str = "attention", background: bool = True
) -> tuple[np.ndarray, np.ndarray]:
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


def _topk_mean(values: np.ndarray, topk_divisor: int) -> np.ndarray:
    """Average the T // topk_divisor (at least one) largest of values (T, C) over time, per class."""
    k = max(1, len(values) // topk_divisor)
    return np.partition(values, -k, axis=0)[-k:].mean(axis=0)  # (C,)


def _without_ambiguous(
    detections: np.ndarray, ambiguous: np.ndarray | None, whole_snippets: bool = False
) -> np.ndarray:
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
