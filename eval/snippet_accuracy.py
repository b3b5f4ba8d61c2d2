"""Snippet accuracy, the measure of AVE: the share of snippets with the annotated class, background included."""

from collections.abc import Sequence

import numpy as np

from utils.annotations import Annotations, Video


def snippet_classes(video: Video, classes: Sequence[str], num_snippets: int, rate: float) -> np.ndarray:
    """Return the annotated class of each snippet.

    A snippet has the class of the first segment that contains its middle.

    Args:
        video: Annotated video.
        classes: Names that the result indexes.
        num_snippets: Number of snippets T.
        rate: Snippets per second.

    Returns:
        (T,) class indices; len(classes) is the background.
    """
    middle = (np.arange(num_snippets) + 0.5) / rate
    result = np.full(num_snippets, len(classes))
    rows = list(zip(video.segments, video.segment_labels, strict=True))
    for (start, end), label in reversed(rows):
        result[(start <= middle) & (middle < end)] = classes.index(label)
    return result


def snippet_accuracy(
    activations: dict[str, np.ndarray], annotations: Annotations, subsets: Sequence[str], rate: float
) -> dict[str, dict]:
    """Compute the accuracy on each subset, and a baseline.

    Args:
        activations: (T, C + 1) activation per video_id, background last; the highest one is the prediction.
        annotations: Ground truth.
        subsets: Names of subsets; `val+test` is the union of both.
        rate: Snippets per second.

    Returns:
        Per subset: `accuracy`; `class_everywhere`, the accuracy of predicting each video's true class for all of its
        snippets; the numbers of `videos` and `snippets`.

    Raises:
        InputError: A subset does not exist.
    """
    result = {}
    for subset in subsets:
        videos = [video for video in annotations.subset(subset) if video.video_id in activations]
        truth = [snippet_classes(v, annotations.classes, len(activations[v.video_id]), rate) for v in videos]
        right = [activations[v.video_id].argmax(axis=1) == row for v, row in zip(videos, truth, strict=True)]
        foreground = np.concatenate(truth) < len(annotations.classes)
        result[subset] = {
            "accuracy": float(np.concatenate(right).mean()),
            "class_everywhere": float(foreground.mean()),
            "videos": len(videos),
            "snippets": len(foreground),
        }
    return result


def accuracy_note(scores: dict[str, dict]) -> str:
    """Return the note below a table of accuracies: sizes of the subsets, and the baseline."""
    sizes = "; ".join(f"{subset}: {score['videos']} videos" for subset, score in scores.items())
    worth = " and ".join(f"{100 * score['class_everywhere']:.1f} ({subset})" for subset, score in scores.items())
    return f"snippet accuracy in percent ({sizes}); predicting a video's true class for all its seconds scores {worth}"
