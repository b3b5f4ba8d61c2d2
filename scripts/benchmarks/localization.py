"""Localization of one video: from T-CAM and attention to detections."""

import numpy as np

from eval.proposals import localize
from scripts.benchmarks import plain
from scripts.benchmarks.measure import Settings, progress, time_in_turns
from scripts.benchmarks.synthetic import make_outputs
from scripts.benchmarks.table import ResultTable

VIDEOS = 5  # per length, so that no single video decides
AUTHORS_MS = {300: 5.8, 5000: 98.0}  # the authors' own code on smooth attention, once, on another machine

TITLE = f"one video (mean of {VIDEOS} synthetic ones), 20 classes, one thread"
NOTES = (
    "plain: loops over classes, thresholds, runs and soft-NMS, numpy inside, same run",
    "the synthetic attention is as smooth as that of a trained network (synthetic.py: make_outputs)",
    "* not run here: the authors' code on smooth attention of these lengths, measured once on another machine",
)


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row per video length."""
    lengths = (40, 100) if settings.quick else (100, 300, 1000, 5000)
    rows = [_row(snippets, settings) for snippets in progress(lengths, "localization")]
    return [ResultTable("localization", TITLE, rows, NOTES)]


def _row(snippets: int, settings: Settings) -> dict:
    videos = [make_outputs(snippets, seed=seed) for seed in range(VIDEOS)]

    def fast() -> list:
        return [localize(*video) for video in videos]

    def plainly() -> list:
        return [plain.localize(*video) for video in videos]

    detections, expected = fast(), plainly()
    classes = sum(len(set(array["label"])) for array in detections)
    ms, plain_ms = (1000 * s / VIDEOS for s in time_in_turns(fast, plainly, budget=settings.budget(4.0)))
    row = {
        "T": snippets,
        "proposals per class": round(sum(map(len, detections)) / classes),
        "classes localized": classes / VIDEOS,
        "ms": ms,
        "plain ms": plain_ms,
        "ratio": plain_ms / ms,
        "results": "equal" if all(map(_equal, detections, expected)) else "DIFFERENT",
    }
    if reference := AUTHORS_MS.get(snippets):
        row |= {"authors' ms*": reference, "ratio*": reference / ms}
    return row


def _equal(detections: np.ndarray, rows: list[tuple]) -> bool:
    """Return True for equal segments in equal order, with scores equal up to rounding."""
    rows = np.array(rows).reshape(-1, 4)
    segments = np.stack([detections["label"], detections["start"], detections["end"]], axis=1)
    return np.array_equal(segments, rows[:, :3]) and np.allclose(detections["score"], rows[:, 3], rtol=0, atol=1e-9)
