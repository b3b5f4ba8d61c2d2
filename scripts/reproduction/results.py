"""Finished runs -> numbers: mean and standard deviation over seeds, and whether the paper's order of rows holds."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from eval.average_precision import mean_over_range
from scripts.reproduction.plan import PlannedRun, Row, Table
from utils.datasets import DATASETS, DatasetSpec
from utils.engine import PROTOCOLS
from utils.formats.files import atomic_write, read_json, read_yaml

CHECKPOINTS = ("last", "best")


@dataclass(frozen=True)
class Result:
    """One finished run, as its folder tells it."""

    key: str  # the row's
    folder: Path
    options: dict
    environment: dict
    metrics: dict

    @property
    def seed(self) -> int:
        return self.options["seed"]

    def average(self, checkpoint: str, measure: str) -> float:
        """Under a protocol: mean mAP over the main range of tIoU. On a subset: snippet accuracy. Fractions."""
        spec = DATASETS[self.options["dataset"]]
        if measure in spec.accuracy_subsets:
            return self.metrics[checkpoint]["snippet_accuracy"][measure]["accuracy"]
        scores = self.metrics[checkpoint][measure]
        return mean_over_range(scores["tiou_thresholds"], scores["map"], *spec.main_range)


@dataclass(frozen=True)
class Column:
    """Finished runs that may be compared: one setting, one number of iterations."""

    folder: Path
    iterations: int
    results: tuple[Result, ...]

    @cached_property
    def _first(self) -> Result:
        return self.results[0]

    @property
    def spec(self) -> DatasetSpec:
        return DATASETS[self._first.options["dataset"]]

    @property
    def base(self) -> str:
        return self.folder.parent.name

    @property
    def simulated(self) -> bool:
        return bool(self._first.environment["features"]["simulated"])

    @property
    def features(self) -> str:
        """What was trained on, and SIMULATED where it was."""
        kind = "SIMULATED features" if self.simulated else "features"
        modalities = max((result.options["modalities"] for result in self.results), key=len)  # some rows use one alone
        return f"{kind} {' + '.join(modalities)} of {self.folder.name}"

    @property
    def seeds(self) -> list[int]:
        return sorted({result.seed for result in self.results})

    @property
    def devices(self) -> list[str]:
        return sorted({result.environment["device"] for result in self.results})

    @property
    def revisions(self) -> list[str]:
        known = {str(result.environment.get("revision"))[:10] for result in self.results}
        return sorted(known)

    def measures(self, protocol: str) -> tuple[str, ...]:
        """What its tables show, the first of them deciding on order: protocol, or subsets that have an accuracy."""
        return self.spec.accuracy_subsets or (protocol,)

    @property
    def snippet_accuracy(self) -> dict[str, dict]:
        """Of its first run, for what holds of all: how many videos, and what knowing the classes is worth."""
        return self._first.metrics["last"]["snippet_accuracy"]

    def averages(self, row: Row, checkpoint: str, measure: str) -> dict[int, float]:
        """{seed: mean mAP or accuracy in percent} of a row."""
        mine = [result for result in self.results if row.ours and result.key == row.key]
        return {result.seed: 100 * result.average(checkpoint, measure) for result in mine}


def read_result(folder: Path) -> Result:
    """A run folder that has metrics.json."""
    options = read_yaml(folder / "options.yaml")
    environment, metrics = (read_json(folder / f"{name}.json") for name in ("environment", "metrics"))
    return Result(folder.name.rpartition("_s")[0], folder, options, environment, metrics)


def columns_of(results: Iterable[Result]) -> list[Column]:
    """The results by setting and iterations, in order of their folders."""
    groups = defaultdict(list)
    for result in results:
        groups[result.folder.parent, result.metrics["last"]["iteration"]].append(result)
    return [Column(*key, tuple(group)) for key, group in sorted(groups.items())]


def results_of(runs: Sequence[PlannedRun]) -> list[Result]:
    """Of those runs that are done."""
    return [read_result(run.folder) for run in runs if run.is_done()]


def find_results(run_dir: Path) -> list[Result]:
    """Of every finished run below run_dir/BASE/DATASET/ROW_sSEED."""
    return [read_result(path.parent) for path in sorted(run_dir.glob("*/*/*_s*/metrics.json"))]


def spread(values: Mapping[int, float]) -> str:
    """Mean ± standard deviation over seeds (of the sample, n - 1); the value alone for one seed."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values.values()):.1f}"
    return f"{mean} ± {statistics.stdev(values.values()):.1f}" if len(values) > 1 else mean


def pairs_in_order(paper: Mapping[str, float], ours: Mapping[str, float]) -> tuple[int, int]:
    """How many pairs of rows stand as in the paper, of how many pairs on which the paper decides."""
    pairs = [(a, b) for a, b in combinations(paper, 2) if paper[a] != paper[b]]
    return sum((paper[a] - paper[b]) * (ours[a] - ours[b]) > 0 for a, b in pairs), len(pairs)


def order_line(table: Table, column: Column, checkpoint: str, protocol: str) -> str | None:
    """Whether the paper's order of rows holds; None where it has none, or a row has not run."""
    rows = [row for row in table.rows_for(column.spec.name) if row.paper is not None]
    measure = column.measures(protocol)[0]
    averages = {row.name: column.averages(row, checkpoint, measure) for row in rows}
    seeds = set.intersection(*(set(values) for values in averages.values())) if len(rows) > 1 else set()
    if not seeds:
        return None
    paper = {row.name: row.paper for row in rows}
    means = {name: statistics.mean(values[seed] for seed in seeds) for name, values in averages.items()}
    right, pairs = pairs_in_order(paper, means)
    alike = [pairs_in_order(paper, {name: values[seed] for name, values in averages.items()}) for seed in seeds]
    agree = sum(held == count for held, count in alike)
    holds = "holds" if right == pairs else "does not hold"
    return (
        f"{checkpoint}: the paper's order of rows {holds} for the mean ({right} of {pairs} pairs of rows stand as "
        f"there); seeds that agree with the whole order: {agree} of {len(seeds)}"
    )


def write_csv(path: Path, tables: Sequence[Table], columns: Sequence[Column]) -> None:
    """Every seed, checkpoint and protocol, and the paper's numbers: a line each, in percent."""
    thresholds = sorted({t for column in columns for t in column.spec.tiou_thresholds})
    head = [
        "table",
        "row",
        "source",
        "features",
        "iterations",
        "seed",
        "checkpoint",
        "at_iteration",
        "protocol",
        "mean",
    ]
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *(f"mAP@{t:g}" for t in thresholds)])
        for table in tables:
            for row in table.rows:
                if row.paper is not None:
                    values = [row.at.get(t, "") for t in thresholds]
                    writer.writerow([table.key, row.name, "paper", "", "", "", "", "", "", row.paper, *values])
            for column in columns:
                writer.writerows(_csv_rows(table, column, thresholds))


def _csv_rows(table: Table, column: Column, thresholds: Sequence[float]) -> Iterable[list]:
    for row in table.rows_for(column.spec.name):
        for result in (result for result in column.results if result.key == row.key):
            for checkpoint in CHECKPOINTS:
                metrics = result.metrics[checkpoint]
                for protocol in (*PROTOCOLS, *column.spec.accuracy_subsets):
                    scores = metrics.get(protocol, {"tiou_thresholds": [], "map": []})  # an accuracy has no tIoU
                    at = dict(zip(scores["tiou_thresholds"], scores["map"], strict=True))
                    facts = [table.key, row.name, "ours", column.features, column.iterations, result.seed, checkpoint]
                    mean = f"{100 * result.average(checkpoint, protocol):.4f}"
                    values = [f"{100 * at[t]:.4f}" if t in at else "" for t in thresholds]
                    yield [*facts, metrics["iteration"], protocol, mean, *values]
