"""Detection files as columns of the report, with or without ground truth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.command import Inputs
from eval.detection import evaluate_detections
from eval.detection_formats import read_detections
from eval.html_report.finished_run import FinishedRun, read_environment
from eval.outputs import open_outputs
from eval.tables import Table, read_annotations
from utils.annotations import Annotations, Video
from utils.datasets import DatasetSpec
from utils.errors import InputError, count_noun
from utils.formats.files import read_json

CHECKPOINT = "detections"  # name of the only column of scores
PROTOCOL = "seconds"  # that the verdicts follow


def is_detection_file(path: Path) -> bool:
    """Return True for a file, and for a folder of scripts/detect.py or test.py, or of a run without scores."""
    if not (path / "detections.json").is_file():
        return path.is_file()
    return not (path / "options.yaml").is_file() or _is_unscored(path / "metrics.json")


def detection_file(path: Path) -> Path:
    """Return the detection file in such a folder, or the file itself."""
    return path / "detections.json" if path.is_dir() else path


def open_detections(
    paths: Sequence[Path],
    spec: DatasetSpec,
    inputs: Inputs | None = None,
    facts: dict[str, str] | None = None,
    simulated: bool | None = None,
    modalities: Sequence[str] = (),
) -> list[FinishedRun]:
    """Return one column of the report per detection file.

    Args:
        paths: Files, or folders of scripts/detect.py or test.py, whose outputs.h5 gives the curves.
        spec: Dataset with the thresholds of the evaluation.
        inputs: Ground truth, and the detections of these files with its names; None without ground truth.
        facts: Further facts for the first table.
        simulated: True for simulated features; None for what environment.json beside a file states.
        modalities: Names for the curves.

    Raises:
        InputError: A file cannot be used, or is given twice.
    """
    files = [detection_file(path) for path in paths]
    names = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    if len(set(names)) < len(names):
        names = list(map(str, paths))
    if len(set(names)) < len(names):
        raise InputError("the same detections are given twice")
    tables = [read_detections(file) for file in files] if inputs is None else inputs.detections
    runs = []
    for name, file, table in zip(names, files, tables, strict=True):
        run = _read_column(name, file, table, spec, inputs)
        options = {"modalities": list(modalities)} if modalities else {}
        if simulated is not None:
            run = replace(run, simulated=simulated)
        runs.append(replace(run, facts={**run.facts, **(facts or {})}, options=options))
    return runs


def _read_column(name: str, file: Path, table: Table, spec: DatasetSpec, inputs: Inputs | None) -> FinishedRun:
    outputs = file.with_name("outputs.h5") if file.name == "detections.json" else None
    outputs = outputs if outputs is not None and outputs.is_file() else None
    rate = inputs.snippet_rate if inputs else spec.snippet_rate
    if outputs and not inputs:
        with open_outputs(outputs) as content:
            rate = content.snippet_rate
    environment = read_environment(file.with_name("environment.json"))
    metrics, notes, videos = {}, (), None
    if inputs:
        result = evaluate_detections(inputs.truth, table, spec.tiou_thresholds, protocol=PROTOCOL, videos=inputs.videos)
        metrics = {CHECKPOINT: {"iteration": None, PROTOCOL: result.as_dict()}}
        notes, videos = (*inputs.notes, *inputs.coverage_notes(result.ground_truth, table)), inputs.videos
    number = f"{count_noun(len(table), 'detection')} in {count_noun(len(table.videos), 'video')}"
    return FinishedRun(
        name=name,
        folder=file.parent,
        options={},
        environment={},
        log=[],
        metrics=metrics,
        protocols=(PROTOCOL,),
        detections=table,
        outputs=outputs,
        snippet_rate=rate,
        dataset=None,
        simulated=environment.get("features", {}).get("simulated"),
        spec=spec,
        checkpoint=CHECKPOINT,
        is_trained=False,
        facts={"file": str(file), "detections": number, "classes": str(len(table.classes))},
        notes=notes,
        videos=videos,
    )


def _is_unscored(path: Path) -> bool:
    """Return True for the metrics.json of a run whose test videos have no annotated segments."""
    metrics = read_json(path) if path.is_file() else None
    checkpoints = list(metrics.values()) if isinstance(metrics, dict) else []
    return bool(checkpoints) and all(isinstance(each, dict) and each.keys() == {"iteration"} for each in checkpoints)


def annotations_of(
    runs: Sequence[FinishedRun], inputs: Inputs | None = None, ground_truth: str | None = None
) -> Annotations:
    """Return the classes and videos of the page: those of the ground truth, or else those with detections.

    Raises:
        InputError: The ground truth cannot be used.
    """
    if inputs is not None:
        annotations = read_annotations(ground_truth, None)[0]
        return replace(annotations, classes=inputs.truth.segments.classes)
    classes = dict.fromkeys(name for run in runs for name in run.detections.classes)
    none = np.empty((0, 2))
    videos = {
        name: Video(name, "", duration=None, labels=(), segments=none, segment_labels=(), ambiguous=none)
        for run in runs
        for name in run.detections.videos
    }
    return Annotations(tuple(classes), videos)
