"""Results of a training or a test: their files and their table."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.detection_formats import write_detections
from eval.outputs import write_outputs
from eval.pictures import plot_videos
from eval.tables import results_table
from utils.annotations import Annotations
from utils.datasets import DatasetSpec
from utils.engine import TABLE_PROTOCOLS, Evaluation
from utils.errors import count_noun
from utils.formats.files import write_json


def write_results(
    folder: Path,
    rows: Sequence[tuple[str, int, dict]],
    evaluation: Evaluation,
    annotations: Annotations,
    snippet_rate: float,
    modalities: Sequence[str],
    title: str,
    save_outputs: bool = True,
) -> None:
    """Write metrics.json, detections.json, outputs.h5 and the picture videos.png.

    Args:
        folder: Folder to write to.
        rows: Name, iteration and metrics of each evaluated checkpoint, for metrics.json.
        evaluation: Evaluation of one of them, for the other files.
        annotations: Classes and ground truth.
        snippet_rate: Snippets per second.
        modalities: Names for the picture.
        title: Title of the picture; it must say whether the data are simulated.
        save_outputs: Write outputs.h5; otherwise that of an earlier evaluation is removed.
    """
    metrics = {name: {"iteration": iteration, **metrics} for name, iteration, metrics in rows}
    write_json(folder / "metrics.json", metrics)
    write_detections(folder / "detections.json", evaluation.detections, snippet_rate)
    outputs = folder / "outputs.h5"
    if save_outputs:
        write_outputs(outputs, evaluation.results, annotations.classes, snippet_rate)
    else:
        outputs.unlink(missing_ok=True)
    plot_videos(folder / "videos.png", evaluation.results, annotations, snippet_rate, modalities, title)


def print_results(
    folder: Path,
    heading: str,
    rows: Sequence[tuple[str, int, dict]],
    evaluation: Evaluation,
    spec: DatasetSpec,
    notes: Iterable[str] = (),
) -> None:
    """Print the table of the evaluated checkpoints and the files of `write_results`.

    Args:
        folder: Folder with the files.
        heading: Text above the table; it must say whether the data are simulated.
        rows: Name, iteration and metrics of each checkpoint.
        evaluation: Evaluation of one of them. Without metrics there is no table.
        spec: Ranges of the table, and the name of the test subset.
        notes: Lines below the table.
    """
    print(heading)
    if evaluation.metrics:
        print(results_table(rows, spec, TABLE_PROTOCOLS))
    else:
        found = count_noun(len(evaluation.detections), "detection")
        print(f"subset '{spec.test_subset}' has no annotated segments: {found}, no scores")
    for note in notes:
        print(note)
    outputs = "outputs.h5, " if (folder / "outputs.h5").exists() else ""
    print(f"results in {folder}: metrics.json, detections.json, {outputs}videos.png")


def choice_notes(chosen: Iterable[str], spec: DatasetSpec) -> list[str]:
    """Return a line about each checkpoint in the table of a training.

    Args:
        chosen: Names of the chosen checkpoints, besides `last`.
        spec: Measure that selects `best`.
    """
    measure = f"mean mAP@{spec.main_range[0]:g}:{spec.main_range[1]:g} ({TABLE_PROTOCOLS[0]})"
    if spec.accuracy_subsets:
        measure = f"snippet accuracy ({spec.accuracy_subsets[0]})"
    notes = {
        "best": f"`best` has the highest {measure} on the test subset: an upper bound",
        "selected": "`selected` is the best on holdout training videos, by their video-level labels alone",
        "last": "`last` is the state after the last iteration; detections, outputs and pictures are of it",
    }
    return [note for name, note in notes.items() if name in (*chosen, "last")]
