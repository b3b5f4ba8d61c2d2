"""The rows of the page's tables. A cell is a fraction (a number of metrics.json), a text, or None for nothing."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.average_precision import mean_over_range, nan_to_none, range_name
from eval.detection import DetectionResult
from eval.html_report.finished_run import DETECTED, FinishedRun
from eval.protocols import PROTOCOLS
from utils.datasets import DatasetSpec
from utils.errors import InputError
from utils.formats.files import read_json

PUBLISHED = Path(__file__).resolve().parent.parent / "published.json"
ROUNDING = 0.1  # points: what an average of published, rounded values may be off by


def mean_or_none(scores: dict, tiou_range: tuple[float, float]) -> float | None:
    """Mean of one protocol's mAP over a range of tIoU; None where one of them is undefined."""
    return nan_to_none(mean_over_range(scores["tiou_thresholds"], scores["map"], *tiou_range))


def headline(run: FinishedRun) -> dict:
    """The one number of each checkpoint that the field compares, under the run's first protocol."""
    protocol = run.protocols[0]
    scores = [
        (name, metrics["iteration"], mean_or_none(metrics[protocol], run.spec.main_range))
        for name, metrics in run.metrics.items()
    ]
    return {"name": run.name, "protocol": protocol, "scores": scores, "simulated": run.simulated}


def run_facts(runs: Sequence[FinishedRun]) -> list[tuple[str, list[str]]]:
    """What one wants to know of a run first: a row a fact, a column a run."""
    columns = [_facts(run) for run in runs]
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def _facts(run: FinishedRun) -> dict[str, str]:
    environment, options = run.environment, run.options
    features = {True: "SIMULATED", False: "of real videos", None: "unknown whether simulated (they are not here)"}
    revision = str(environment.get("revision") or "unknown")
    changed = ", with uncommitted changes" if environment.get("uncommitted_changes") else ""
    versions = [f"{name} {environment[name]}" for name in ("python", "torch", "numpy") if name in environment]
    return {
        "dataset": f"{run.spec.name}, {run.spec.test_subset} subset",
        "features": f"{' + '.join(map(str, options.get('modalities', [])))}, {features[run.simulated]}",
        "iterations": str(options.get("max_iter", "unknown")),
        "seed": str(options.get("seed", "unknown")),
        "command": shlex.join(map(str, environment.get("command", []))) or "unknown",
        "code revision": revision + changed,
        "versions": ", ".join(versions) or "unknown",
        "device": f"{environment.get('device', 'unknown')}, {environment.get('platform', 'unknown platform')}",
    }


def options_table(runs: Sequence[FinishedRun]) -> list[tuple[str, list[str], bool]]:
    """Name, value in each run, and whether the runs differ in it."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    rows = []
    for name in names:
        values = [_option(run.options[name]) if name in run.options else "–" for run in runs]
        rows.append((name, values, len(set(values)) > 1))
    return rows


def _option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def results_tables(runs: Sequence[FinishedRun]) -> list[dict]:
    """A table a protocol: every run and checkpoint, and the paper's rows that were scored the same way.

    A last one without rows of ours: published rows whose protocol nobody says.
    """
    spec, published = runs[0].spec, _published(runs[0].spec)
    checkpoints = [(run.name, name, metrics) for run in runs for name, metrics in run.metrics.items()]
    tables = [
        {
            "protocol": protocol,
            "ours": [
                {"run": run, "checkpoint": name, "iteration": metrics["iteration"], **_scores(metrics, protocol, spec)}
                for run, name, metrics in checkpoints
            ],
            "published": [row for row in published if row["protocol"] == protocol],
        }
        for protocol in runs[0].protocols
    ]
    if unknown := [row for row in published if row["protocol"] not in runs[0].protocols]:
        tables.append({"protocol": None, "ours": [], "published": unknown})
    return tables


def _scores(metrics: dict, protocol: str, spec: DatasetSpec) -> dict:
    scores = metrics[protocol]
    return {
        "map": scores["map"],
        "averages": [mean_or_none(scores, bounds) for bounds in spec.average_ranges],
        "classification": metrics.get("classification_map"),
    }


def _published(spec: DatasetSpec) -> list[dict]:
    """The paper's rows for this dataset, in its columns: texts as printed, None where it has no number."""
    try:
        content = read_json(PUBLISHED)
    except (OSError, ValueError) as error:
        raise InputError(f"{PUBLISHED}: cannot be read ({error})") from None
    table = content.get(spec.name)
    return [_published_row(row, table, spec, content["supervision"]) for row in table["rows"]] if table else []


def _published_row(row: dict, table: dict, spec: DatasetSpec, supervision: dict[str, str]) -> dict:
    at = dict(zip(table["tiou_thresholds"], row["map"], strict=True))
    over = dict(zip(map(tuple, table["average_ranges"]), row["averages"], strict=True))
    doubtful = [
        f"AVG {range_name(bounds)} is printed as {told}; the row's own values give {mean:.1f}"
        for bounds, told in over.items()
        if told is not None and (mean := _mean_of_all(at, bounds, spec)) and abs(mean - told) > ROUNDING
    ]
    return {
        "method": row["method"].replace("CO2-Net", "CO₂-Net"),
        "year": row["year"],
        "supervision": supervision[row["supervision"]],
        "protocol": row["protocol"],
        "map": [_as_printed(at.get(threshold)) for threshold in spec.tiou_thresholds],
        "averages": [_as_printed(over.get(tuple(bounds))) for bounds in spec.average_ranges],
        "doubtful": "; ".join(doubtful),
    }


def _mean_of_all(at: dict[float, float | None], bounds: tuple[float, float], spec: DatasetSpec) -> float | None:
    """The mean of a published row over a range, if it has a value at each of its thresholds."""
    values = [at.get(threshold) for threshold in spec.tiou_thresholds if bounds[0] <= threshold <= bounds[1]]
    return None if None in values else float(np.mean(values))


def _as_printed(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def protocol_rows(run: FinishedRun, results: dict[str, DetectionResult]) -> dict:
    """The same detections under every protocol: checkpoints by metrics.json's, then `last` by published variants.

    Of two protocols the third row is their difference.
    """
    spec, groups = run.spec, []
    for name, metrics in run.metrics.items():
        rows = [{"protocol": protocol, **_scores(metrics, protocol, spec)} for protocol in run.protocols]
        groups.append({"checkpoint": name, "iteration": metrics["iteration"], "rows": rows})
        if len(rows) == 2:
            groups[-1]["difference"] = {
                key: [_minus(a, b) for a, b in zip(rows[0][key], rows[1][key], strict=True)]
                for key in ("map", "averages")
            }
    variants = []
    for protocol, result in results.items():
        if protocol not in run.protocols:
            averages = [mean_over_range(result.tiou_thresholds, result.map, *bounds) for bounds in spec.average_ranges]
            variants.append({"protocol": protocol, "map": result.map.tolist(), "averages": averages})
    return {"run": run.name, "groups": groups, "variants": variants, "detected": DETECTED, "papers": PROTOCOLS}


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def diagnosis_rows(diagnosis: dict, threshold: float) -> dict:
    """What the diagnosis says at one threshold, in rows."""
    at = diagnosis["tiou_thresholds"].index(threshold)
    return {
        "protocol": diagnosis["protocol"],
        "removal": diagnosis["removal"],
        "average_map_n": diagnosis["average_map_n"],
        "not_found": diagnosis["not_found"][at],
        "characteristics": {
            name: [{**row, "not_found": row["not_found"] and row["not_found"][at]} for row in bins]
            for name, bins in diagnosis["characteristics"].items()
        },
        "notes": diagnosis["notes"],
    }
