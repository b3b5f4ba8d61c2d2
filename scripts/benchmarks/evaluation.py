"""Detection mAP of synthetic detections, from arrays, on one thread."""

import numpy as np

from eval.detection import evaluate_detections
from eval.detection_formats import read_detections
from eval.tables import Table, read_ground_truth
from scripts.benchmarks import plain
from scripts.benchmarks.evaluation_files import measure_files
from scripts.benchmarks.machine import peak_memory
from scripts.benchmarks.measure import Settings, progress, time_in_turns
from scripts.benchmarks.synthetic import ACTIVITYNET12, THUMOS14, make_detections, make_ground_truth
from scripts.benchmarks.table import ResultTable
from utils.datasets import DATASETS

SCALES = {"thumos14": THUMOS14, "activitynet12": ACTIVITYNET12}
SIZES = (("thumos14", 31_587), ("thumos14", 40_000), ("activitynet12", 240_000), ("activitynet12", 10_000_000))
QUICK_SIZES = (("thumos14", 2_000), ("activitynet12", 2_000))
PLAIN_UNTIL = 1_000_000  # detections; the plain matcher takes minutes for more

# Seconds of ActivityNet's own code for lists of these sizes, measured once on one core of another machine.
ACTIVITYNET_SECONDS = {("thumos14", 40_000): 19.6, ("activitynet12", 240_000): 91.0}

NOTES = (
    f"plain: one detection after another, numpy inside, same run; not run for more than {PLAIN_UNTIL:,} detections",
    "peak MB: the whole process, interpreter, PyTorch and input included; each list in a process of its own",
    "* not run here: ActivityNet's code on lists of these sizes, measured once on one core of another machine",
)


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row per list of detections, and one per file. The evaluation is numpy on one thread of the CPU."""
    budget = settings.budget(4.0)
    jobs = [(synthetic_row, name, count, budget) for name, count in (QUICK_SIZES if settings.quick else SIZES)]
    jobs += [(file_row, *settings.files, budget)] if settings.files else []
    rows = [settings.run_apart(*job) for job in progress(jobs, "evaluation")]
    arrays = ResultTable("evaluation", "mAP from arrays, `seconds` protocol, one thread", rows, NOTES)
    return [arrays, measure_files(settings)]


def synthetic_row(name: str, count: int, budget: float) -> dict:
    """Measure one synthetic list of `count` detections."""
    truth = make_ground_truth(SCALES[name])
    row = _row(truth, make_detections(truth, count), DATASETS[name].tiou_thresholds, budget)
    if reference := ACTIVITYNET_SECONDS.get((name, count)):
        row |= {"ActivityNet's seconds*": reference, "ratio*": reference / row["seconds"]}
    return {"data": f"synthetic {name}", **row}


def file_row(annotations: str, detections: str, budget: float) -> dict:
    """Measure detections and ground truth from files, at THUMOS14's thresholds."""
    dataset = DATASETS["thumos14"]
    truth = read_ground_truth(annotations, dataset.test_subset).segments
    table = read_detections(detections).renumber(truth.videos, truth.classes)
    return {"data": "files", **_row(truth, table.select(table.label >= 0), dataset.tiou_thresholds, budget)}


def _row(truth: Table, detections: Table, thresholds: tuple[float, ...], budget: float) -> dict:
    result = evaluate_detections(truth, detections, thresholds)
    columns = (detections.video, detections.label, detections.start, detections.end, detections.score)
    row = {
        "detections": len(detections),
        "videos": len(truth.videos),
        "segments": len(truth),
        "classes": len(truth.classes),
        "tIoUs": len(thresholds),
        "input MB": sum(column.nbytes for column in columns) / 1e6,
        "peak MB": peak_memory() / 1e6,  # before anything else runs here
    }

    def fast() -> None:
        evaluate_detections(truth, detections, thresholds)

    if len(detections) > PLAIN_UNTIL:
        return {**row, "seconds": time_in_turns(fast, budget=budget)[0]}
    answer = []

    def sequential() -> None:
        answer[:] = plain.evaluate(truth, detections, thresholds)

    seconds, plain_seconds = time_in_turns(fast, sequential, budget=budget)
    ap, matched = answer
    equal = np.array_equal(matched, result.matched) and np.array_equal(ap, result.ap, equal_nan=True)
    row |= {"seconds": seconds, "plain seconds": plain_seconds, "ratio": plain_seconds / seconds}
    return {**row, "results": "equal" if equal else f"{(matched != result.matched).sum()} differ"}
