"""Average recall at a number of detections per video (AR@AN), by ActivityNet's definition.

Labels are ignored: a segment is recalled if any of the first detections of its video reaches the tIoU threshold.
Recall is averaged over the thresholds 0.5, 0.55, ..., 0.95. An average number N of detections per video stands for the
same share of every video's detections, by falling score: N / (detections / videos).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.sorting import score_order
from eval.tables import Table, format_table
from utils.segments import tiou

TIOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # as in ActivityNet's code
MAX_NUMBER = 100  # detections per video on average, at the end of the curve
SHOWN = (1, 5, 10, 100)


@dataclass(frozen=True, eq=False)
class AverageRecall:
    """Curve of average recall over the average number of detections per video."""

    number: np.ndarray  # (100,) average number of detections per video
    recall: np.ndarray  # (100,) mean over the tIoU thresholds, fraction

    @property
    def area(self) -> float:
        """Area under the curve as a fraction of the largest possible one (AUC)."""
        steps = np.diff(self.number) * (self.recall[1:] + self.recall[:-1]) / 2
        return float(steps.sum() / self.number[-1])

    def as_dict(self) -> dict:
        """Return the curve and its area as JSON stores them, as fractions."""
        return {"number": self.number.tolist(), "recall": self.recall.tolist(), "auc": self.area}


def average_recall(ground_truth: Table, detections: Table, max_number: float = MAX_NUMBER) -> AverageRecall:
    """Compute average recall at 1 to 100 percent of `max_number` detections per video.

    Args:
        ground_truth: Annotated segments, at least one.
        detections: Detections that number the videos as the ground truth does, -1 for unknown videos. Detections of
            unknown videos recall nothing, but they count in the average number.
        max_number: Average number of detections per video at the end of the curve.
    """
    detections = detections.select(score_order(detections.score))
    videos = np.unique(ground_truth.video)
    ratio = max_number * len(videos) / max(len(detections), 1)
    rows, segments = _rows_by_video(detections, videos), _rows_by_video(ground_truth, videos)
    counts = [min(int(len(own) * ratio), len(own)) for own in rows]
    total = sum(counts)
    if total == 0:
        zeros = np.zeros(100)
        return AverageRecall(np.arange(1, 101) / 100.0 * max_number, zeros)
    # In the order of ActivityNet's code, because int() below makes the last bit matter.
    shares = np.arange(1, 101) / 100.0 * (max_number * float(len(videos)) / total)
    matches = np.zeros((len(TIOU_THRESHOLDS), len(shares)))
    for own, count, truth in zip(rows, counts, segments, strict=True):
        if count:
            own = own[:count]
            pairs = np.stack([detections.start[own], detections.end[own]], axis=1)
            instances = np.stack([ground_truth.start[truth], ground_truth.end[truth]], axis=1)
            overlap = tiou(pairs, instances[:, None])  # (G, count)
            used = np.minimum((count * shares).astype(np.int64), count)  # (100,)
            best = np.maximum.accumulate(overlap, axis=1)
            best = np.concatenate([np.zeros((len(best), 1)), best], axis=1)[:, used]  # (G, 100)
            matches += (best >= TIOU_THRESHOLDS[:, None, None]).sum(axis=1)
    recall = matches / len(ground_truth)
    return AverageRecall(shares * (float(total) / len(videos)), recall.mean(axis=0))


def _rows_by_video(table: Table, videos: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each video, in the table's order."""
    order = np.argsort(table.video, kind="stable")
    sorted_videos = table.video[order]
    first, last = (np.searchsorted(sorted_videos, videos, side=side) for side in ("left", "right"))
    return [order[begin:end] for begin, end in zip(first, last, strict=True)]


def recall_table(recalls: Mapping[str, AverageRecall], shown: Sequence[int] = SHOWN) -> str:
    """Return average recall in percent as text, one row per protocol."""
    rows = [["AR@AN", *map(str, shown), "AUC"]]
    for name, curve in recalls.items():
        values = [*(curve.recall[number - 1] for number in shown), curve.area]
        rows.append([name, *(f"{100 * value:.2f}" for value in values)])
    return format_table(rows)
