"""Rows of the report's tables. A cell is a fraction from metrics.json, a text, or None for an empty cell."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.average_precision import mean_over_range, nan_to_none, range_name
from eval.detection import DetectionResult
from eval.html_report.finished_run import FinishedRun
from utils.datasets import DatasetSpec
from utils.errors import InputError
from utils.formats.files import read_json

PUBLISHED = Path(__file__).resolve().parents[1] / "published.json"
ROUNDING = 0.1  # points; tolerance for the mean of published, rounded values
FEATURES = {True: "SIMULATED", False: "of real videos", None: "unknown whether simulated"}


def headline(run: FinishedRun) -> dict:
    """Return the mean mAP of each checkpoint over the main tIoU range, under the run's first protocol."""
    protocol = run.protocols[0]
    scores = [
        (name, metrics["iteration"], range_mean(metrics[protocol], run.spec.main_range))
        for name, metrics in run.metrics.items()
    ]
    collapsed = {name: note for name, metrics in run.metrics.items() if (note := metrics.get("collapsed"))}
    return {
        "name": run.name,
        "protocol": protocol,
        "scores": scores,
        "collapsed": collapsed,
        "simulated": run.simulated,
    }


def range_mean(scores: dict, tiou_range: tuple[float, float]) -> float | None:
    """Return the mean mAP of one protocol of metrics.json over a range of tIoU; None if it is undefined."""
    return nan_to_none(mean_over_range(scores["tiou_thresholds"], scores["map"], *tiou_range))


def run_facts(runs: Sequence[FinishedRun]) -> list[tuple[str, list[str]]]:
    """Return the most important facts about the runs: one row per fact, one column per run."""
    columns = [_facts(run) for run in runs]
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def _facts(run: FinishedRun) -> dict[str, str]:
    if not run.is_trained:
        return run.facts
    environment, options = run.environment, run.options
    changes = ", with uncommitted changes" if environment.get("uncommitted_changes") else ""
    scale = environment.get("features", {}).get("scale")
    scaled = "" if scale is None else f", multiplied by {scale:g}"
    versions = [f"{name} {environment[name]}" for name in ("python", "torch", "numpy") if name in environment]
    return {
        "dataset": f"{run.spec.name}, {run.spec.test_subset} subset",
        "features": f"{' + '.join(map(str, options.get('modalities', [])))}, {FEATURES[run.simulated]}{scaled}",
        "iterations": str(options.get("max_iter", "unknown")),
        "seed": str(options.get("seed", "unknown")),
        "command": shlex.join(map(str, environment.get("command", []))) or "unknown",
        "code revision": str(environment.get("revision") or "unknown") + changes,
        "versions": ", ".join(versions) or "unknown",
        "device": f"{environment.get('device', 'unknown')}, {environment.get('platform', 'unknown platform')}",
    }


def options_table(runs: Sequence[FinishedRun]) -> list[tuple[str, list[str], bool]]:
    """Return, per option, its name, its value in each run, and True if the values differ."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    rows = []
    for name in names:
        values = [_option(run.options[name]) if name in run.options else "–" for run in runs]
        rows.append((name, values, len(set(values)) > 1))
    return rows


def _option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def results_tables(runs: Sequence[FinishedRun]) -> list[dict]:
    """Return one table per protocol, with every run and checkpoint and the published rows under that protocol.

    The last table has published rows alone: those whose protocol is unknown.
    """
    spec, published = runs[0].spec, _published(runs[0].spec)
    tables = []
    for protocol in runs[0].protocols:
        rows = [
            {
                "run": run.name,
                "checkpoint": name,
                "iteration": metrics["iteration"],
                "classification": metrics.get("classification_map"),
                "collapsed": metrics.get("collapsed"),
                **_scores(metrics[protocol], spec),
            }
            for run in runs
            for name, metrics in run.metrics.items()
        ]
        same_protocol = [row for row in published if row["protocol"] == protocol]
        tables.append({"protocol": protocol, "runs": rows, "published": same_protocol})
    if unknown := [row for row in published if row["protocol"] not in runs[0].protocols]:
        tables.append({"protocol": None, "runs": [], "published": unknown})
    return tables


def _scores(scores: dict, spec: DatasetSpec) -> dict[str, list[float | None]]:
    """Return the mAP at each threshold and its mean over each range."""
    return {"map": scores["map"], "averages": [range_mean(scores, bounds) for bounds in spec.average_ranges]}


def _published(spec: DatasetSpec) -> list[dict]:
    """Return the paper's rows for a dataset in the report's columns, as texts; None where a number is missing."""
    try:
        content = read_json(PUBLISHED)
    except (OSError, ValueError) as error:
        raise InputError(f"{PUBLISHED}: cannot be read ({error})") from None
    table = content.get(spec.name)
    return [_published_row(row, table, spec, content["supervision"]) for row in table["rows"]] if table else []


def _published_row(row: dict, table: dict, spec: DatasetSpec, supervision: dict[str, str]) -> dict:
    at = dict(zip(table["tiou_thresholds"], row["map"], strict=True))
    averages = dict(zip(map(tuple, table["average_ranges"]), row["averages"], strict=True))
    doubtful = [
        f"AVG {range_name(bounds)} is printed as {printed}, but the row's own values give {mean:.1f}"
        for bounds, printed in averages.items()
        if printed is not None and (mean := _published_mean(at, bounds, spec)) and abs(mean - printed) > ROUNDING
    ]
    return {
        "method": row["method"].replace("CO2-Net", "CO₂-Net"),
        "year": row["year"],
        "supervision": supervision[row["supervision"]],
        "protocol": row["protocol"],
        "map": [_one_decimal(at.get(threshold)) for threshold in spec.tiou_thresholds],
        "averages": [_one_decimal(averages.get(tuple(bounds))) for bounds in spec.average_ranges],
        "doubtful": "; ".join(doubtful),
    }


def _published_mean(at: dict[float, float | None], bounds: tuple[float, float], spec: DatasetSpec) -> float | None:
    """Return the mean of a published row over a range, or None if it lacks a threshold."""
    values = [at.get(threshold) for threshold in spec.tiou_thresholds if bounds[0] <= threshold <= bounds[1]]
    return None if None in values else float(np.mean(values))


def _one_decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def protocol_rows(run: FinishedRun, results: dict[str, DetectionResult]) -> dict:
    """Return the scores of the same detections under every protocol.

    Each checkpoint is a group with the protocols of metrics.json and, if there are two, their difference. The
    published variants come last; they are evaluated on detections.json.
    """
    spec, groups = run.spec, []
    for name, metrics in run.metrics.items():
        rows = [{"protocol": protocol, **_scores(metrics[protocol], spec)} for protocol in run.protocols]
        groups.append({"checkpoint": name, "iteration": metrics["iteration"], "rows": rows})
        if len(rows) == 2:
            groups[-1]["difference"] = [
                None if a is None or b is None else a - b
                for key in ("map", "averages")
                for a, b in zip(rows[0][key], rows[1][key], strict=True)
            ]
    variants = [
        {"protocol": protocol, **_scores(result.as_dict(), spec)}
        for protocol, result in results.items()
        if protocol not in run.protocols
    ]
    return {"run": run.name, "groups": groups, "variants": variants, "checkpoint": run.checkpoint}


def diagnosis_rows(diagnosis: dict, threshold: float) -> dict:
    """Return the rows of the diagnosis at one tIoU threshold."""
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
