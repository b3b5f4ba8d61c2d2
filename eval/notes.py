"""Notes on an evaluation: rows that do not count as given, and signs that times or names mean something else."""

from collections.abc import Mapping, Sequence

import numpy as np

from eval.names import find_difference, list_names, used_names
from eval.tables import Table
from utils.errors import count_noun

BEYOND = 1.05, 1.0  # a segment ends beyond a video of duration d if it ends after 1.05 d + 1 s
FRAMES, MILLISECONDS = 2.0, 100.0  # median of end / duration from which times seem to be in this unit


def unmatched_note(
    consequence: str, noun: str, names: Sequence[str], numbers: np.ndarray, known: Sequence[str]
) -> list[str]:
    """Return a note on the detections of names that the ground truth lacks, if there are any.

    Args:
        consequence: What becomes of these detections.
        noun: `video` or `class`.
        names: Names that `numbers` indexes.
        numbers: One per detection that the note is about.
        known: Names of the ground truth.
    """
    if len(numbers) == 0:
        return []
    unknown = sorted(used_names(names, numbers))
    lacks = f"of {count_noun(len(unknown), noun)} that the ground truth lacks: {list_names(unknown)}"
    difference = find_difference(unknown, known)
    advice = "" if difference is None else f" ({difference})"
    return [f"{consequence}: {count_noun(len(numbers), 'detection')} {lacks}{advice}"]


def undetected_note(segments: Table, detections: Table) -> list[str]:
    """Return a note on the annotated classes without any detection, if there are any.

    Args:
        segments: Ground truth as the protocol counts it.
        detections: Detections as the protocol counts them, numbering the classes as the ground truth does.
    """
    annotated = np.unique(segments.label)
    missing = used_names(segments.classes, annotated[~np.isin(annotated, detections.label)])
    if not missing:
        return []
    share = f"{len(missing)} of {len(annotated)} annotated classes"
    return [f"{share} without any detection, counted with AP 0: {list_names(missing)}"]


def zero_length_note(segments: Table) -> list[str]:
    """Return a note on annotated segments of zero length, if there are any."""
    number = int((segments.start == segments.end).sum())
    if number == 0:
        return []
    rule = "as in ActivityNet's code, any detection of zero length in the same video and class matches"
    return [f"{count_noun(number, 'annotated segment')} of zero length; {rule}"]


def unit_notes(segments: Table, detections: Table, durations: Mapping[str, float]) -> list[str]:
    """Return a note for each table whose times seem not to be in seconds.

    Args:
        segments: Ground truth, expected in seconds.
        detections: Detections, expected in seconds.
        durations: {video_id: seconds}, of the videos where it is known.
    """
    longest = max(durations.values(), default=segments.end.max(initial=0.0))  # seconds
    tables = {"detections": detections, "annotated segments": segments}
    return [note for name, table in tables.items() for note in _unit_note(name, table, durations, longest)]


def _unit_note(name: str, table: Table, durations: Mapping[str, float], longest: float) -> list[str]:
    if len(table) and longest > BEYOND[0] + BEYOND[1] and table.start.min() >= 0 and table.end.max() <= 1:
        return [f"all {len(table)} {name} lie within [0, 1]; they seem to be fractions of the duration, not seconds"]
    seconds = np.array([durations.get(video, np.nan) for video in table.videos], dtype=np.float64)
    seconds = np.append(seconds, np.nan)[table.video]  # (N,)
    known = np.isfinite(seconds)
    beyond = known & (table.end > BEYOND[0] * seconds + BEYOND[1])
    if beyond.sum() * 2 <= known.sum():
        return []
    ratio = np.median(table.end[beyond] / seconds[beyond])
    unit = "milliseconds" if ratio > MILLISECONDS else "frames" if ratio > FRAMES else "another unit"
    problem = f"{beyond.sum()} of {known.sum()} {name} end beyond their video's duration"
    return [f"{problem}; their times seem to be in {unit}, not seconds"]
