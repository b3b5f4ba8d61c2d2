"""mAP of made detection lists, from arrays, on one thread: seconds, ratio and peak memory."""

import numpy as np
from tqdm import tqdm

from benchmarks import plain
from benchmarks.made import SCALES, made_detections, made_ground_truth
from benchmarks.measure import Settings, in_new_process, peak_memory, take_turns
from benchmarks.table import Column, Measured
from eval.detection import evaluate_detections
from eval.tables import Table, read_detections, read_ground_truth
from utils.datasets import DATASETS

SIZES = (("thumos14", 31_587), ("thumos14", 40_000), ("activitynet12", 240_000), ("activitynet12", 10_000_000))
QUICK_SIZES = (("thumos14", 2_000), ("activitynet12", 2_000))
PLAIN_UNTIL = 1_000_000  # detections; beyond, the plain matcher would take minutes

# Seconds that ActivityNet's own code took on lists like these (240,683 detections in the second), once, on one core
# of another machine.
ACTIVITYNET_SECONDS = {("thumos14", 40_000): 19.6, ("activitynet12", 240_000): 91.0}

TITLE = "mAP from arrays, `seconds` protocol, one thread"
COLUMNS = (
    Column("data", "data"),
    Column("detections", "detections", ","),
    Column("videos", "videos", ","),
    Column("instances", "instances", ","),
    Column("classes", "classes"),
    Column("thresholds", "tIoUs"),
    Column("seconds", "seconds", ".4f"),
    Column("plain_seconds", "plain", ".2f"),
    Column("ratio", "ratio", ".0f"),
    Column("results", "results"),
    Column("input_mb", "input MB", ",.0f"),
    Column("peak_mb", "peak MB", ",.0f"),
    Column("reference_seconds", "ActivityNet's*", ".1f"),
    Column("reference_ratio", "ratio*", ",.0f"),
)
NOTES = (
    f"plain: one detection after another, numpy inside, same run; not run beyond {PLAIN_UNTIL:,} detections",
    "peak MB: the whole process, interpreter and input included, each list in a process of its own",
    "* not run here: what ActivityNet's code took on such lists, once, on one core of another machine",
)


def measure(settings: Settings) -> list[Measured]:
    """A row a list. Threads and device make no difference: the evaluation is numpy on one thread."""
    budget = 0.05 if settings.quick else 4.0
    jobs = [(made_row, name, count, budget) for name, count in (QUICK_SIZES if settings.quick else SIZES)]
    jobs += [(file_row, *settings.files, budget)] if settings.files else []
    rows = [in_new_process(*job) for job in tqdm(jobs, "evaluation", leave=False, delay=2)]
    return [Measured("evaluation", TITLE, COLUMNS, rows, NOTES)]


def made_row(name: str, count: int, budget: float) -> dict:
    """One made list of this many detections."""
    truth = made_ground_truth(SCALES[name])
    row = _row(truth, made_detections(truth, count), DATASETS[name].tiou_thresholds, budget)
    if reference := ACTIVITYNET_SECONDS.get((name, count)):
        row |= {"reference_seconds": reference, "reference_ratio": reference / row["seconds"]}
    return {"data": f"made {name}", **row}


def file_row(annotations: str, detections: str, budget: float) -> dict:
    """A list and its ground truth, read from files; THUMOS14's thresholds."""
    dataset = DATASETS["thumos14"]
    truth = read_ground_truth(annotations, dataset.test_subset).segments
    found = read_detections(detections).renumbered(truth.videos, truth.classes)
    return {"data": "files", **_row(truth, found.select(found.label >= 0), dataset.tiou_thresholds, budget)}


def _row(truth: Table, found: Table, thresholds: tuple[float, ...], budget: float) -> dict:
    result = evaluate_detections(truth, found, thresholds)
    row = {
        "detections": len(found),
        "videos": len(truth.videos),
        "instances": len(truth),
        "classes": len(truth.classes),
        "thresholds": len(thresholds),
        "input_mb": _bytes(found) / 1e6,
        "peak_mb": peak_memory() / 1e6,  # now, before anything else runs here
    }

    def fast() -> None:
        evaluate_detections(truth, found, thresholds)

    if len(found) > PLAIN_UNTIL:
        return {**row, "seconds": take_turns(fast, budget=budget)[0]}
    answer = []

    def sequential() -> None:
        answer[:] = plain.evaluate(truth, found, thresholds)

    seconds, plain_seconds = take_turns(fast, sequential, budget=budget)
    row |= {"seconds": seconds, "plain_seconds": plain_seconds, "ratio": plain_seconds / seconds}
    same = np.array_equal(answer[1], result.matched)
    gap = np.nanmax(np.abs(answer[0] - result.ap))
    return {**row, "results": "equal" if same and gap == 0 else f"{(answer[1] != result.matched).sum()} differ"}


def _bytes(table: Table) -> int:
    return sum(column.nbytes for column in (table.video, table.label, table.start, table.end, table.score))
