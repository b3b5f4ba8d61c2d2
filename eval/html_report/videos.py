"""Each detection judged and each video summed up, and the curves of a video made small enough for a page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.average_precision import average_precisions
from eval.detection import DetectionResult
from eval.diagnosis import KINDS, error_kinds
from eval.outputs import open_outputs
from utils.annotations import Annotations

JUDGED_AT = 0.5  # tIoU
SHOWN = 50  # detections a class and video that the page holds; soft-NMS leaves hundreds with decayed scores


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What became of each detection of a DetectionResult (N, by falling score), and of each of its videos (V).

    The counts are about as many detections of each class as it has instances, the best-scored ones: without
    such a cut they would be about soft-NMS's long tail.
    """

    kinds: np.ndarray  # (N,) index into KINDS, at tIoU 0.5
    counts: np.ndarray  # (V, len(KINDS))
    missed: np.ndarray  # (V,) instances that none of the counted detections found
    ap: np.ndarray  # (V,) at tIoU 0.5, of all detections of the video in one list; NaN without instances


def judge(result: DetectionResult) -> Verdicts:
    """Detections and videos of a result that has the threshold JUDGED_AT."""
    at = int(np.flatnonzero(result.tiou_thresholds == JUDGED_AT)[0])
    found, truth = result.detections, result.ground_truth
    kinds, number = error_kinds(result)[at].astype(np.int64), len(truth.videos)
    known = found.video >= 0  # -1: videos that the ground truth lacks
    counted = known & _best_of_each_class(found.label, np.bincount(truth.label, minlength=len(truth.classes)))
    cells = found.video[counted] * len(KINDS) + kinds[counted]
    counts = np.bincount(cells, minlength=number * len(KINDS)).reshape(number, len(KINDS))
    instances = np.bincount(truth.video, minlength=number)
    ap = average_precisions(found.video[known], result.matched[at : at + 1, known], instances)[0]
    return Verdicts(kinds, counts, instances - counts[:, 0], ap)


def _best_of_each_class(labels: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """(N,) bool: the first instances[c] rows of each class c; rows come by falling score."""
    best = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(instances):
        best[np.flatnonzero(labels == label)[:count]] = True
    return best


def shown_detections(result: DetectionResult, kinds: np.ndarray, rate: float) -> dict[str, list]:
    """{video_id: [[class, start, end, score, kind], ...]} in seconds, by falling score, SHOWN a class at most.

    `rate` is the unit of the result's times: snippets a second, or 1 for seconds.
    """
    found = result.detections
    shown: dict[str, list] = {}
    taken: dict[tuple[int, int], int] = {}
    columns = (found.video, found.label, found.start / rate, found.end / rate, found.score, kinds)
    for video, label, start, end, score, kind in zip(*(c.tolist() for c in columns), strict=True):
        place = taken[video, label] = taken.get((video, label), 0) + 1
        if video >= 0 and place <= SHOWN:
            row = [label, round(start, 2), round(end, 2), float(f"{score:.4g}"), kind]
            shown.setdefault(found.videos[video], []).append(row)
    return shown


def read_curves(path: Path, video_classes: dict[str, Sequence[int]], annotations: Annotations) -> dict[str, dict]:
    """{video_id: curves} from a run's outputs.h5: attentions, and the T-CAM of the asked classes of each video.

    A video that the file lacks is left out. InputError: not such a file, a class that the annotations lack.
    """
    with open_outputs(path) as outputs:
        columns = {name: column for column, name in enumerate(outputs.classes)}
        asked = {video: classes for video, classes in video_classes.items() if video in outputs}
        return {
            video: _video_curves(
                outputs[video], outputs.snippet_rate, {c: columns[annotations.classes[c]] for c in classes}
            )
            for video, classes in asked.items()
        }


def _video_curves(curves: dict[str, np.ndarray], rate: float, columns: dict[int, int]) -> dict:
    return {
        "rate": rate,
        "snippets": len(curves["attention"]),
        "attention": [_packed(values) for values in (*curves["modality_attention"], curves["attention"])],
        "cas": {str(number): _packed(curves["cas"][:, column]) for number, column in columns.items()},
    }


def _packed(values: np.ndarray) -> dict:
    """Little-endian 16-bit steps between the lowest and the highest value, in base64: a fifth of the digits."""
    values = np.nan_to_num(values.astype(np.float64))
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    steps = np.round((values - low) * (65535 / (high - low if high > low else 1.0))).astype("<u2")
    return {"low": low, "high": high, "steps": base64.b64encode(steps.tobytes()).decode()}
