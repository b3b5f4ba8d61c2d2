"""Reader of the folder of a finished run, as main.py writes it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.detection_formats import read_detections
from eval.outputs import open_outputs
from eval.protocols import PROTOCOLS
from eval.tables import Table
from utils.datasets import DatasetSpec, dataset_spec
from utils.errors import InputError, shorten
from utils.formats.files import read_json, read_json_lines, read_yaml

ROOT = Path(__file__).resolve().parents[2]
OUTPUT_CHECKPOINT = "last"  # the checkpoint that detections.json and outputs.h5 come from
REQUIRED_FILES = ("metrics.json", "options.yaml", "detections.json")
MAX_DEPTH = 8  # of JSON in a run folder


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """Contents of a run folder; or a detection file, for which most parts are empty."""

    name: str
    folder: Path
    options: dict
    environment: dict
    log: list[dict]  # one record per evaluation
    metrics: dict[str, dict]  # by checkpoint; None for an undefined number
    protocols: tuple[str, ...]  # in the order of metrics.json
    detections: Table  # in seconds
    outputs: Path | None  # HDF5 file with one group per video; None without curves
    snippet_rate: float  # Hz
    dataset: Path | None  # folder with the annotations
    simulated: bool | None  # None if unknown
    spec: DatasetSpec
    checkpoint: str = OUTPUT_CHECKPOINT  # name in `metrics` that the detections belong to
    is_trained: bool = True  # False for a detection file
    facts: dict[str, str] = field(default_factory=dict)  # of a detection file, for the first table
    notes: tuple[str, ...] = ()  # on how the file was read
    videos: tuple[str, ...] | None = None  # the only videos to evaluate on; None for all


def read_runs(folders: Sequence[str | Path], path_dataset: str | Path | None = None) -> list[FinishedRun]:
    """Read the runs to compare, in the given order, each under a unique name.

    Raises:
        InputError: A folder is not a finished run, or the runs are on different datasets.
    """
    folders = [Path(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise InputError("the same run is given twice")
    runs = [_read_run(folder, name, path_dataset) for folder, name in zip(folders, names, strict=True)]
    for run in runs[1:]:
        if run.spec != runs[0].spec or run.protocols != runs[0].protocols:
            raise InputError(
                f"{run.folder} is a run on {run.spec.name}, {runs[0].folder} one on {runs[0].spec.name}: "
                "they cannot be compared; make a report of each"
            )
    return runs


def _read_run(folder: Path, name: str, path_dataset: str | Path | None) -> FinishedRun:
    if not folder.is_dir():
        raise InputError(f"{folder}: run folder not found")
    for file in REQUIRED_FILES:
        if not (folder / file).is_file():
            raise InputError(
                f"{folder}: {file} not found; expected the folder of a finished run (main.py --resume finishes a "
                "stopped one) or a detection file"
            )
    options = _read_options(folder / "options.yaml")
    metrics = _read_metrics(folder / "metrics.json")
    environment = read_environment(folder / "environment.json")
    spec, detections = dataset_spec(options), read_detections(folder / "detections.json")
    outputs, snippet_rate = folder / "outputs.h5", detections.snippet_rate or spec.snippet_rate
    if outputs.is_file():
        with open_outputs(outputs) as content:
            snippet_rate = content.snippet_rate
    return FinishedRun(
        name=name,
        folder=folder,
        options=options,
        environment=environment,
        log=_read_log(folder / "log.jsonl"),
        metrics=metrics,
        protocols=tuple(protocols_of(metrics[OUTPUT_CHECKPOINT])),
        detections=detections,
        outputs=outputs if outputs.is_file() else None,
        snippet_rate=snippet_rate,
        dataset=_dataset_folder(options, folder, path_dataset),
        simulated=environment.get("features", {}).get("simulated"),
        spec=spec,
    )


def protocols_of(metrics: dict) -> list[str]:
    """Return the protocols of one checkpoint of metrics.json."""
    return [name for name, value in metrics.items() if isinstance(value, dict) and "tiou_thresholds" in value]


def _read_options(path: Path) -> dict:
    options = read_yaml(path, verify=True)
    types = {"dataset": str, "modalities": list, "path_dataset": str | None}
    is_valid = isinstance(options, dict) and all(
        isinstance(options[name], kind) for name, kind in types.items() if name in options
    )
    if not is_valid or "dataset" not in options:
        raise InputError(f"{path}: not the options of a run; expected a line 'dataset: NAME'")
    dataset_spec(options)
    return options


def _read_metrics(path: Path) -> dict[str, dict]:
    metrics = _finite_json(read_json(path))
    try:
        is_valid = OUTPUT_CHECKPOINT in metrics and all(map(_is_checkpoint, metrics.values()))
        is_valid = is_valid and len({tuple(protocols_of(checkpoint)) for checkpoint in metrics.values()}) == 1
    except (AttributeError, KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise InputError(f"{path}: not the metrics of a run; expected {{checkpoint: {{protocol: {{...}}}}}}")
    return metrics


def _is_checkpoint(metrics: dict) -> bool:
    """Return True for one checkpoint of metrics.json that is complete."""
    protocols = protocols_of(metrics)
    is_valid = isinstance(metrics["iteration"], int) and _is_number(metrics.get("classification_map"))
    is_valid = is_valid and isinstance(metrics.get("collapsed"), str | None)
    return bool(protocols) and is_valid and all(_is_result(name, metrics[name]) for name in protocols)


def _is_result(protocol: str, scores: dict) -> bool:
    """Return True if the AP of every class and the mAP are present at every threshold."""
    classes, thresholds, ap, mean_ap = (scores[name] for name in ("classes", "tiou_thresholds", "ap", "map"))
    if not all(isinstance(column, list) for column in (classes, thresholds, ap, mean_ap)):
        return False
    rows = [row for row in ap if isinstance(row, list) and len(row) == len(classes)]
    return (
        scores["protocol"] == protocol in PROTOCOLS
        and all(isinstance(name, str) for name in classes)
        and all(isinstance(threshold, float) for threshold in thresholds)
        and len(rows) == len(ap) == len(mean_ap) == len(thresholds)
        and all(map(_is_number, [*mean_ap, scores.get("average_map"), *(value for row in rows for value in row)]))
    )


def _is_number(value: object) -> bool:
    """Return True for a number, and for None, which stands for an undefined one."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53)


def read_environment(path: Path) -> dict:
    """Return environment.json of a run folder, empty if there is none.

    Raises:
        InputError: The file is not the environment of a run.
    """
    environment = read_json(path) if path.is_file() else {}
    types = {"features": dict, "command": list}
    if not (
        isinstance(environment, dict)
        and all(isinstance(environment.get(name, kind()), kind) for name, kind in types.items())
        and isinstance(environment.get("features", {}).get("simulated"), bool | None)
    ):
        raise InputError(f"{path}: not the environment of a run")
    return environment


def _read_log(path: Path) -> list[dict]:
    """Return one record per evaluation: iteration, losses and scores."""
    log = [_finite_json(record) for record in read_json_lines(path)] if path.is_file() else []
    for record in log:
        if not _is_evaluation(record):
            raise InputError(f"{path}: expected iteration, losses and scores in every line, got {shorten(record)}")
    return log


def _is_evaluation(record: object) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
        return False
    parts = [record.get(name) for name in ("losses", "scores")]
    return all(isinstance(part, dict) and all(map(_is_number, part.values())) for part in parts)


def _finite_json(content: object, depth: int = MAX_DEPTH) -> object:
    """Replace numbers that are not finite, and anything nested too deep, by None."""
    if not depth:
        return None
    if isinstance(content, dict):
        return {name: _finite_json(value, depth - 1) for name, value in content.items()}
    if isinstance(content, list):
        return [_finite_json(value, depth - 1) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _dataset_folder(options: dict, folder: Path, path_dataset: str | Path | None) -> Path:
    """Return the folder with the annotations; the path of a run is relative to where it started."""
    if path_dataset is not None:
        return Path(path_dataset)
    if trained_on := options.get("path_dataset"):
        for path in (Path(trained_on), ROOT / trained_on):
            if path.exists():
                return path
    raise InputError(f"{folder}: dataset folder {trained_on or ''} not found; set it with --path-dataset")
