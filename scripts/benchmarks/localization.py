"""T-CAM and attention of one video -> detections: milliseconds, and the ratio to Section 3.6 written plainly."""

import numpy as np
from tqdm import tqdm

from benchmarks import plain
from benchmarks.made import made_outputs
from benchmarks.measure import Settings, take_turns
from benchmarks.table import Column, Measured
from eval.proposals import localize

VIDEOS = 5  # of each length, so that no single one decides
REFERENCE_MS = {300: 5.8, 5000: 98.0}  # the authors' own code on smooth attention, once, on another machine

TITLE = f"one video (mean of {VIDEOS} made ones), 20 classes, one thread"
COLUMNS = (
    Column("snippets", "T", ","),
    Column("proposals", "proposals a class", ".0f"),
    Column("classes", "classes localized", ".1f"),
    Column("ms", "ms", ".2f"),
    Column("plain_ms", "plain ms", ".1f"),
    Column("ratio", "ratio", ".1f"),
    Column("results", "results"),
    Column("reference_ms", "authors' ms*", ".1f"),
    Column("reference_ratio", "ratio*", ".1f"),
)
NOTES = (
    "plain: loops over classes, thresholds, runs and soft-NMS, numpy inside, same run",
    "made attention is as smooth as a trained network's (benchmarks/made.py: made_outputs)",
    "* not run here: what the authors' code took on smooth attention of such lengths, once, on another machine",
)


def measure(settings: Settings) -> list[Measured]:
    """A row a length."""
    lengths, budget = ((40, 100), 0.05) if settings.quick else ((100, 300, 1000, 5000), 4.0)
    rows = [_row(snippets, budget) for snippets in tqdm(lengths, "localization", leave=False, delay=2)]
    return [Measured("localization", TITLE, COLUMNS, rows, NOTES)]


def _row(snippets: int, budget: float) -> dict:
    videos = [made_outputs(snippets, seed=seed) for seed in range(VIDEOS)]

    def fast() -> list:
        return [localize(*video) for video in videos]

    def plainly() -> list:
        return [plain.localize(*video) for video in videos]

    found, classes = fast(), sum(len(set(array["label"])) for array in fast())
    ms, plain_ms = (1000 * seconds / VIDEOS for seconds in take_turns(fast, plainly, budget=budget))
    row = {
        "snippets": snippets,
        "proposals": sum(map(len, found)) / classes,
        "classes": classes / VIDEOS,
        "ms": ms,
        "plain_ms": plain_ms,
        "ratio": plain_ms / ms,
        "results": "equal" if all(map(_same, found, plainly())) else "DIFFERENT",
    }
    if reference := REFERENCE_MS.get(snippets):
        row |= {"reference_ms": reference, "reference_ratio": reference / ms}
    return row


def _same(found: np.ndarray, rows: list[tuple]) -> bool:
    """The same segments in the same order; scores up to the rounding of their sums."""
    rows = np.array(rows).reshape(-1, 4)
    segments = np.stack([found["label"], found["start"], found["end"]], axis=1)
    return np.array_equal(segments, rows[:, :3]) and np.allclose(found["score"], rows[:, 3], rtol=0, atol=1e-9)
