"""Plain command to evaluate a detection file, to measure `python -m eval.detection` against.

    python -m scripts.benchmarks.plain_evaluation DATASET TRUTH DETECTIONS

It reads as a careful person writes first: a loop over the rows that a library returns, with the same checks. The metric
is that of the fast command.
"""

import csv
import json
import math
import sys
from collections.abc import Iterator

import pandas as pd

from eval.average_precision import named_means
from eval.detection import evaluate_detections, map_table
from eval.detection_columns import COLUMNS
from eval.tables import make_table
from utils.datasets import DATASETS


def read_rows(path: str) -> Iterator[tuple]:
    """Yield (video, start, end, label, score) of each detection."""
    if path.endswith(".json"):
        with open(path, encoding="utf-8") as file:
            results = json.load(file)["results"]
        for video, entries in results.items():
            for entry in entries:
                yield video, *entry["segment"], entry["label"], entry["score"]
    elif path.endswith(".csv"):
        with open(path, newline="", encoding="utf-8") as file:
            yield from ([row[name] for name in COLUMNS] for row in csv.DictReader(file))
    else:
        yield from pd.read_parquet(path)[list(COLUMNS)].itertuples(index=False)


def checked_rows(path: str) -> Iterator[tuple]:
    """Yield (video, label, start, end, score), after a check of the numbers."""
    for video, start, end, label, score in read_rows(path):
        start, end, score = float(start), float(end), float(score)
        if not (math.isfinite(start) and math.isfinite(end) and math.isfinite(score) and start <= end):
            raise ValueError(f"{path}: a bad row: {video}, {start}, {end}, {label}, {score}")
        yield video, label, start, end, score


def main() -> None:
    """Print the table of scores."""
    name, truth, path = sys.argv[1:]
    dataset = DATASETS[name]
    thresholds = dataset.tiou_thresholds
    result = evaluate_detections(truth, make_table(checked_rows(path)), thresholds, subset=dataset.test_subset)
    print(map_table([result], named_means(thresholds, thresholds, dataset.average_ranges)))


if __name__ == "__main__":
    main()
