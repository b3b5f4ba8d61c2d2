"""Snippet accuracy, AVE's measure: the share of snippets whose class, background included, is the annotated one."""

from collections.abc import Sequence

import numpy as np

from utils.annotations import Annotations, Video


def snippet_classes(video: Video, classes: Sequence[str], num_snippets: int, rate: float) -> np.ndarray:
    """The annotated class of each snippet (T,), len(classes) being the background; `rate` in snippets a second.

    A snippet has the class of the segment in which its middle lies, of several the first one.
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
    """The accuracy on each subset (`val+test` is both), and what it is worth.

    Args:
        activations: by video_id (T, C + 1), the background last; the highest one is what is predicted.

    Returns:
        By subset: `accuracy`; `class_everywhere`, the accuracy of putting each video's true class on all of its
        snippets, which knows nothing of when; `videos` and `snippets`. InputError: a subset that does not exist.
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
    """What a reader must know of the accuracies in a table."""
    sizes = "; ".join(f"{subset}: {score['videos']} videos" for subset, score in scores.items())
    worth = " and ".join(f"{100 * score['class_everywhere']:.1f} ({subset})" for subset, score in scores.items())
    return f"snippet accuracy in percent ({sizes}); putting the true class on all of a video's seconds scores {worth}"
