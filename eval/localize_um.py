"""Localization of UM's release (Lee et al., AAAI 2021): thresholds on class activation and on feature magnitude."""

import numpy as np

from eval.proposals import (
    FRACTIONAL,
    checked_outputs,
    class_detections,
    outer_inner_contrast,
    padded_times,
    predicted_classes,
    softmax,
    topk_mean,
    without_ambiguous,
)
from utils.datasets import SNIPPET_RATE
from utils.segments import hard_nms, runs

ACTIVATION_THRESHOLDS, MAGNITUDE_THRESHOLDS = np.arange(0, 0.25, 0.025), np.arange(0.4, 0.625, 0.025)


def topk_scores(cas: np.ndarray, magnitude: np.ndarray, topk_divisor: int = 9) -> np.ndarray:
    """Compute class probabilities of one video: softmax of the top-k mean of the T-CAM over time.

    Args:
        cas: (T, C) logits, without background.
        magnitude: Not used.
        topk_divisor: K = max(1, T // topk_divisor).

    Returns:
        (C,) probabilities.
    """
    return softmax(topk_mean(cas, topk_divisor))


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
    cas, magnitude = checked_outputs(cas, magnitude, "magnitude", background=False)
    scores = topk_scores(cas, magnitude, topk_divisor)  # (C,)
    labels = predicted_classes(scores, class_threshold) if labels is None else labels  # (L,)
    low, high = -topk_mean(-magnitude, background_divisor), topk_mean(magnitude, topk_divisor)
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
        times, padding = padded_times(segments, nms_padding, snippet_rate)
        # The release also drops at the threshold itself.
        order, score = hard_nms(times, score, np.nextafter(nms_tiou, 0), padding)
        of_classes.append(class_detections(label, segments[order], score))
    return without_ambiguous(np.concatenate(of_classes), ambiguous)


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
