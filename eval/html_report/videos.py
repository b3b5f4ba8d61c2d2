"""Verdicts on the detections and videos of a run, and curves packed small enough for a page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.average_precision import average_precisions
from eval.detection import DetectionResult
from eval.diagnosis import KINDS, error_kinds
from eval.outputs import open_outputs
from eval.tables import Table
from utils.annotations import Annotations

VERDICT_TIOU = 0.5  # or the dataset's threshold nearest to it
MAX_SHOWN = 50  # detections per class and video on the page; soft-NMS leaves hundreds with decayed scores


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Verdict on each detection of a DetectionResult (N, in order of score) and summary of each video (V).

    The counts use the best detections of each class, as many as the class has segments. Without this limit they
    would mostly count the low-scored detections that soft-NMS leaves.
    """

    kinds: np.ndarray  # (N,) index into KINDS
    counts: np.ndarray  # (V, len(KINDS))
    missed: np.ndarray  # (V,) segments that no counted detection matches
    ap: np.ndarray  # (V,) AP of all detections of the video as one list; NaN without segments


def verdict_threshold(tiou_thresholds: Sequence[float]) -> float:
    """Return the threshold nearest to VERDICT_TIOU."""
    return min(tiou_thresholds, key=lambda threshold: abs(threshold - VERDICT_TIOU))


def judge(result: DetectionResult) -> Verdicts:
    """Return the verdicts at the threshold nearest to VERDICT_TIOU."""
    at = int(np.abs(result.tiou_thresholds - VERDICT_TIOU).argmin())
    detections, truth = result.detections, result.ground_truth
    kinds, num_videos = error_kinds(result)[at].astype(np.int64), len(truth.videos)
    known = detections.video >= 0  # -1: a video without ground truth
    segments_per_class = np.bincount(truth.label, minlength=len(truth.classes))
    counted = known & _best_of_each_class(detections.label, segments_per_class)
    cells = detections.video[counted] * len(KINDS) + kinds[counted]
    counts = np.bincount(cells, minlength=num_videos * len(KINDS)).reshape(num_videos, len(KINDS))
    segments_per_video = np.bincount(truth.video, minlength=num_videos)
    ap = average_precisions(detections.video[known], result.matched[at : at + 1, known], segments_per_video)[0]
    return Verdicts(kinds, counts, segments_per_video - counts[:, 0], ap)


def _best_of_each_class(labels: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return a mask (N,) of the first limits[c] rows of each class c."""
    best = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(limits):
        best[np.flatnonzero(labels == label)[:count]] = True
    return best


def shown_detections(detections: Table, kinds: np.ndarray | None, rate: float) -> dict[str, list]:
    """Return the detections on the page, in order of score, at most MAX_SHOWN per class and video.

    Args:
        detections: Detections by falling score.
        kinds: Verdict on each detection (N,), None without ground truth.
        rate: Time units of the detections per second: the snippet rate, or 1 if their times are in seconds.

    Returns:
        {video_id: [[class, start, end, score, kind], ...]} with times in seconds; kind is None without ground truth.
    """
    kinds = np.full(len(detections), None) if kinds is None else kinds
    shown: dict[str, list] = {}
    ranks: dict[tuple[int, int], int] = {}
    start, end = detections.start / rate, detections.end / rate
    columns = (detections.video, detections.label, start, end, detections.score, kinds)
    for video, label, start, end, score, kind in zip(*(column.tolist() for column in columns), strict=True):
        rank = ranks[video, label] = ranks.get((video, label), 0) + 1
        if video >= 0 and rank <= MAX_SHOWN:
            row = [label, round(start, 2), round(end, 2), float(f"{score:.4g}"), kind]
            shown.setdefault(detections.videos[video], []).append(row)
    return shown


def read_curves(path: Path, video_classes: dict[str, Sequence[int]], annotations: Annotations) -> dict[str, dict]:
    """Read attention and T-CAM of videos from outputs.h5, without the videos that the file lacks.

    Args:
        path: The outputs.h5 of a run.
        video_classes: Class numbers per video whose T-CAM to read.
        annotations: Annotations of the dataset.

    Returns:
        {video_id: curves}.

    Raises:
        InputError: The file is invalid or has a class that the annotations lack.
    """
    with open_outputs(path) as outputs:
        columns = {name: column for column, name in enumerate(outputs.classes)}
        return {
            video: _pack_curves(
                outputs[video],
                outputs.snippet_rate,
                {c: columns[name] for c in classes if (name := annotations.classes[c]) in columns},
            )
            for video, classes in video_classes.items()
            if video in outputs
        }


def _pack_curves(curves: dict[str, np.ndarray], rate: float, columns: dict[int, int]) -> dict:
    return {
        "rate": rate,
        "snippets": len(curves["attention"]),
        "attention": [_pack(values) for values in (*curves["modality_attention"], curves["attention"])],
        "cas": {str(number): _pack(curves["cas"][:, column]) for number, column in columns.items()},
    }


def _pack(values: np.ndarray) -> dict:
    """Encode values as little-endian 16-bit steps between minimum and maximum, in base64."""
    values = np.nan_to_num(values.astype(np.float64))
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    steps = np.round((values - low) * (65535 / (high - low if high > low else 1.0))).astype("<u2")
    return {"low": low, "high": high, "steps": base64.b64encode(steps.tobytes()).decode()}
