"""A finished run folder, as main.py leaves it -> what the report shows of it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.outputs import open_outputs
from eval.protocols import PROTOCOLS
from eval.tables import Table, read_detections
from utils.datasets import DATASETS, DatasetSpec
from utils.errors import InputError, shorten
from utils.formats.files import read_json, read_json_lines, read_yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DETECTED = "last"  # the checkpoint that detections.json and outputs.h5 are of


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a run folder says about the run; `simulated` is None where nobody can tell."""

    name: str
    folder: Path
    options: dict
    environment: dict
    log: list[dict]  # a record an evaluation
    metrics: dict[str, dict]  # by checkpoint; None for a number that is undefined
    protocols: tuple[str, ...]  # those of metrics.json, in its order
    detections: Table  # seconds
    outputs: Path  # HDF5, a group a video
    snippet_rate: float  # Hz
    dataset: Path  # folder with the annotations
    simulated: bool | None

    @property
    def spec(self) -> DatasetSpec:
        return DATASETS[self.options["dataset"]]


def read_runs(folders: Sequence[str | Path], path_dataset: str | Path | None = None) -> list[FinishedRun]:
    """The runs to compare, in the order given, each under a name of its own.

    InputError, one line: a folder that is no finished run, runs of different datasets.
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
        raise InputError(f"{folder}: no such run folder")
    for file in ("metrics.json", "options.yaml", "detections.json", "outputs.h5"):
        if not (folder / file).is_file():
            raise InputError(f"{folder}: no {file}; a finished run has one (main.py --resume writes what is missing)")
    options = _read_options(folder / "options.yaml")
    metrics = _read_metrics(folder / "metrics.json")
    environment = _read_environment(folder / "environment.json")
    dataset = _dataset_folder(options, folder, path_dataset)
    return FinishedRun(
        name=name,
        folder=folder,
        options=options,
        environment=environment,
        log=_read_log(folder / "log.jsonl"),
        metrics=metrics,
        protocols=tuple(protocols_of(next(iter(metrics.values())))),
        detections=read_detections(folder / "detections.json"),
        outputs=folder / "outputs.h5",
        snippet_rate=_snippet_rate(folder / "outputs.h5"),
        dataset=dataset,
        simulated=environment.get("features", {}).get("simulated"),
    )


def protocols_of(metrics: dict) -> list[str]:
    """The protocols under which one checkpoint of metrics.json is scored."""
    return [name for name, value in metrics.items() if isinstance(value, dict) and "tiou_thresholds" in value]


def _read_options(path: Path) -> dict:
    options = read_yaml(path)
    kinds = {"dataset": str, "modalities": list, "path_dataset": str | None}
    whole = isinstance(options, dict) and all(
        isinstance(options[name], kind) for name, kind in kinds.items() if name in options
    )
    if not whole or options.get("dataset") not in DATASETS:
        raise InputError(f"{path}: not the options of a run (a 'dataset' of {sorted(DATASETS)} among them)")
    return options


def _read_metrics(path: Path) -> dict[str, dict]:
    metrics = _finite(read_json(path))
    try:
        complete = DETECTED in metrics and all(map(_is_scored, metrics.values()))
        alike = complete and len({tuple(protocols_of(values)) for values in metrics.values()}) == 1
    except (AttributeError, KeyError, TypeError):
        alike = False
    if not alike:
        raise InputError(f"{path}: not the metrics of a run: {{checkpoint: {{protocol: {{...}}}}}} expected")
    return metrics


def _is_scored(values: dict) -> bool:
    """Whether a checkpoint of metrics.json has what main.py writes of it."""
    protocols = protocols_of(values)
    whole = isinstance(values["iteration"], int) and _is_number(values.get("classification_map"))
    return bool(protocols) and whole and all(_are_scores(name, values[name]) for name in protocols)


def _are_scores(protocol: str, scores: dict) -> bool:
    """Whether the AP of every class and the mAP are there at every threshold."""
    classes, thresholds, table, means = (scores[name] for name in ("classes", "tiou_thresholds", "ap", "map"))
    if not all(isinstance(column, list) for column in (classes, thresholds, table, means)):
        return False
    rows = [row for row in table if isinstance(row, list) and len(row) == len(classes)]
    return (
        scores["protocol"] == protocol in PROTOCOLS
        and all(isinstance(name, str) for name in classes)
        and all(isinstance(threshold, float) for threshold in thresholds)
        and len(rows) == len(table) == len(means) == len(thresholds)
        and all(map(_is_number, [*means, scores.get("average_map"), *(value for row in rows for value in row)]))
    )


def _is_number(value: object) -> bool:
    """A number as our JSON has it; None for one that is undefined."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53)


def _read_environment(path: Path) -> dict:
    environment = read_json(path) if path.is_file() else {}
    parts = {"features": dict, "command": list}
    if not (
        isinstance(environment, dict)
        and all(isinstance(environment.get(name, kind()), kind) for name, kind in parts.items())
        and isinstance(environment.get("features", {}).get("simulated"), bool | None)
    ):
        raise InputError(f"{path}: not the environment of a run")
    return environment


def _read_log(path: Path) -> list[dict]:
    """A record an evaluation: its iteration, losses and scores; None for what is undefined."""
    log = [_finite(record) for record in read_json_lines(path)] if path.is_file() else []
    for record in log:
        if not _is_evaluation(record):
            raise InputError(f"{path}: expected iteration, losses and scores in every line, found {shorten(record)}")
    return log


def _is_evaluation(record: object) -> bool:
    """Whether a line of log.jsonl has what the charts draw."""
    if not isinstance(record, dict):
        return False
    numbers = [record.get(name) for name in ("losses", "scores")]
    return isinstance(record.get("iteration"), int) and all(
        isinstance(part, dict) and all(map(_is_number, part.values())) for part in numbers
    )


def _finite(content: object, depth: int = 8) -> object:
    """What json read, with None, as our own files have it, for each number that is not finite.

    What is nested deeper than ours are becomes None, too, and is refused as what it then is.
    """
    if not depth:
        return None
    if isinstance(content, dict):
        return {name: _finite(value, depth - 1) for name, value in content.items()}
    if isinstance(content, list):
        return [_finite(value, depth - 1) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _dataset_folder(options: dict, folder: Path, path_dataset: str | Path | None) -> Path:
    """Where the annotations are: as asked for, else as the run was told, from here or from the checkout."""
    if path_dataset is not None:
        return Path(path_dataset)
    told = Path(os.fspath(options.get("path_dataset") or "."))
    for path in (told, ROOT / told):
        if options.get("path_dataset") and path.exists():
            return path
    raise InputError(f"{folder}: its dataset folder {told} is not here; say where it is with --path-dataset")


def _snippet_rate(path: Path) -> float:
    with open_outputs(path) as outputs:
        return outputs.snippet_rate
