"""Localization of W-TALC (Paul et al., ECCV 2018): two thresholds.

The audio-visual paper uses it (its Section 4.2).
"""

import numpy as np

from eval.proposals import DETECTION, checked_outputs, predicted_classes, softmax, topk_mean, without_ambiguous
from utils.datasets import SNIPPET_RATE
from utils.segments import runs


def probability_scores(cas: np.ndarray, attention: np.ndarray, topk_divisor: int = 8) -> np.ndarray:
    """Compute class probabilities of one video: top-k mean over time of the snippets' class probabilities.

    Args:
        cas: (T, C + 1) logits or log probabilities, background last.
        attention: Not used; `cas` contains it already.
        topk_divisor: K = max(1, T // topk_divisor); 8 in W-TALC.

    Returns:
        (C + 1,) scores, background last.
    """
    return topk_mean(softmax(cas), topk_divisor)


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
    cas, attention = checked_outputs(cas, attention)
    scores = probability_scores(cas, attention)[:-1]  # (C,)
    labels = predicted_classes(scores, scores.mean()) if labels is None else labels  # (L,)
    activation = softmax(cas)[:, labels].T  # (L, T)
    low, high = activation.min(axis=1, keepdims=True), activation.max(axis=1, keepdims=True)
    row, start, end = runs(activation >= low + activation_threshold * (high - low))
    detections = np.empty(len(row), dtype=DETECTION)
    detections["label"], detections["start"], detections["end"] = labels[row], start, end
    highest = [activation[index, first:last].max() for index, first, last in zip(row, start, end, strict=True)]
    detections["score"] = np.array(highest) + class_score_weight * scores[labels[row]]
    return without_ambiguous(detections, ambiguous)
