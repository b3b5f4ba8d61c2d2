"""Tables of segments: make them, read ground truth, and print tables as text.

Ground truth is anything that `utils.annotations` reads, or CSV with the header `video-id,t-start,t-end,label`. Times
are in seconds, as numbers or strings. `eval.csv_rows` lists the column names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

import numpy as np

from eval.average_precision import mean_over_range, range_name
from eval.csv_rows import SEGMENT_COLUMNS, read_rows
from eval.proposals import DETECTION
from eval.snippet_accuracy import accuracy_note
from utils.annotations import Annotations, Video, load_annotations, parse_annotations
from utils.datasets import DatasetSpec
from utils.errors import InputError
from utils.formats.files import read_json
from utils.segments import snippets_to_seconds


@dataclass(frozen=True)
class Table:
    """Segments in columns: detections, or ground truth without scores."""

    videos: tuple[str, ...]  # names that `video` indexes
    classes: tuple[str, ...]  # names that `label` indexes
    video: np.ndarray  # (N,) int; -1 for a video that `videos` lacks
    label: np.ndarray  # (N,) int; -1 for a class that `classes` lacks
    start: np.ndarray  # (N,) float64, seconds unless stated otherwise
    end: np.ndarray  # (N,) float64
    score: np.ndarray | None = None  # (N,) float64
    snippet_rate: float | None = None  # Hz, of detections whose file states it

    def __len__(self) -> int:
        return len(self.start)

    def select(self, rows: np.ndarray) -> "Table":
        """Return a table with these rows only, given as a mask or as indices."""
        if rows.dtype == bool and rows.all():
            return self
        columns = {name: getattr(self, name)[rows] for name in ("video", "label", "start", "end")}
        return replace(self, **columns, score=None if self.score is None else self.score[rows])

    def group_sizes(self) -> np.ndarray:
        """Return the number of rows with the same video and class as each row, (N,)."""
        group = self.video * len(self.classes) + self.label
        _, group, sizes = np.unique(group, return_inverse=True, return_counts=True)
        return sizes[group]

    def renumber(self, videos: tuple[str, ...], classes: tuple[str, ...]) -> "Table":
        """Return the same rows indexing other lists of names; a name that a list lacks becomes -1."""
        # The appended -1 is what the index -1 finds.
        video = np.append(positions(self.videos, videos), -1)[self.video]
        label = np.append(positions(self.classes, classes), -1)[self.label]
        return replace(self, videos=videos, classes=classes, video=video, label=label)


@dataclass(frozen=True)
class GroundTruth:
    """Annotated segments of one subset."""

    segments: Table
    ambiguous: Table  # segments that some protocols do not judge, all of one nameless class
    durations: Mapping[str, float] = field(default_factory=dict)  # seconds, of the videos where it is known
    annotated: Mapping[str, Video] = field(default_factory=dict)  # all annotated videos, other subsets included
    class_numbers: Mapping[int, str] = field(default_factory=dict)  # names by number, empty if the file has no order


GroundTruthSource = GroundTruth | Annotations | Table | np.ndarray | dict | str | Path


def make_table(rows: Iterable[tuple], videos: Iterable[str] = (), classes: Iterable[str] = ()) -> Table:
    """Build a table from rows (video, label, start, end) or (video, label, start, end, score).

    Args:
        rows: All with a score or all without. A table of no rows has scores.
        videos: Names that come first in the table's list, in this order; further ones follow as they appear.
        classes: The same for the classes.
    """
    columns = list(zip(*rows, strict=True)) or [()] * 5
    return _table_of_columns(*columns, videos=videos, classes=classes)


def _table_of_columns(video, label, start, end, score=None, *, videos=(), classes=()) -> Table:
    videos, classes = tuple(dict.fromkeys((*videos, *video))), tuple(dict.fromkeys((*classes, *label)))
    return Table(
        videos=videos,
        classes=classes,
        video=positions(video, videos),
        label=positions(label, classes),
        start=np.array(start, dtype=np.float64),
        end=np.array(end, dtype=np.float64),
        score=None if score is None else np.array(score, dtype=np.float64),
    )


def table_of_records(records: np.ndarray, where: str) -> Table:
    """Convert a structured array with the fields video, label, start and end, and possibly score."""
    fields = records.dtype.names or ()
    if missing := {"video", "label", "start", "end"} - set(fields):
        raise InputError(f"{where}: the array has no field {sorted(missing)}; its fields are {records.dtype.names}")
    numbers = [records[name] for name in ("start", "end", "score") if name in fields]
    return _table_of_columns(records["video"].tolist(), records["label"].tolist(), *numbers)


def positions(names: Iterable[str], order: tuple[str, ...]) -> np.ndarray:
    """Return the index in `order` of each name, -1 if it is not there."""
    index = {name: number for number, name in enumerate(order)}
    return np.fromiter(map(index.get, names, repeat(-1)), dtype=np.int64)


def localized_table(localized: dict[str, np.ndarray], classes: Iterable[str], snippet_rate: float) -> Table:
    """Collect the detections of several videos in one table, in seconds.

    Args:
        localized: Detections per video, in snippets, as `eval.proposals.localize` returns them.
        classes: Names that the labels index.
        snippet_rate: Snippets per second.
    """
    rows = np.concatenate([np.empty(0, DETECTION), *localized.values()])
    return Table(
        videos=tuple(localized),
        classes=tuple(classes),
        video=np.repeat(np.arange(len(localized)), list(map(len, localized.values()))),
        label=rows["label"],
        start=snippets_to_seconds(rows["start"], snippet_rate),
        end=snippets_to_seconds(rows["end"], snippet_rate),
        score=rows["score"],
    )


def read_ground_truth(source: GroundTruthSource, subset: str | None) -> GroundTruth:
    """Read the annotated and the ambiguous segments of one subset, in seconds.

    Args:
        source: Annotations, a path or the content of an annotation file, a table, or a structured array with the
            fields video, label, start and end. Tables, arrays and CSV files without a column `subset` are used whole.
        subset: Subset of the annotations; None for `test` if it exists, else for the only subset.

    Returns:
        The segments. Classes are in the file's own order, else in order of first appearance in the subset.

    Raises:
        InputError: The source cannot be used, or the subset does not exist.
    """
    if isinstance(source, GroundTruth):
        return source
    if isinstance(source, np.ndarray):
        source = table_of_records(source, "ground truth")
    if isinstance(source, Table):
        return GroundTruth(source, make_table((), source.videos, ("",)))
    annotations, classes, class_numbers = read_annotations(source, subset)
    videos = annotations.videos
    names = annotations.subset_ids(_default_subset(annotations) if subset is None else subset)
    rows, owners = videos.rows_of(names, "segment")
    labels = videos.columns["segment_labels"][rows]
    classes = tuple(dict.fromkeys((*classes, *(videos.classes[label] for label in dict.fromkeys(labels.tolist())))))
    times = videos.columns["segments"][rows].T
    segments = Table(tuple(names), classes, owners, positions(videos.classes, classes)[labels], *times)
    rows, owners = videos.rows_of(names, "ambiguous")
    times = videos.columns["ambiguous"][rows].T
    durations = videos.columns["duration"][[videos.numbers[name] for name in names]].tolist()
    return GroundTruth(
        segments,
        Table(tuple(names), ("",), owners, np.zeros_like(owners), *times),
        durations={name: duration for name, duration in zip(names, durations, strict=True) if duration > 0},
        annotated=videos,
        class_numbers=class_numbers,
    )


def read_annotations(
    source: Annotations | dict | str | Path, subset: str | None
) -> tuple[Annotations, tuple[str, ...], dict[int, str]]:
    """Return annotations, their class list (empty if a file does not list its classes), and the class numbers.

    `subset` is that of a CSV file without a column for it.
    """
    where = "ground truth"
    if not isinstance(source, Annotations | dict):
        path = Path(source)
        if (path / "annotations.json").is_file():
            path = path / "annotations.json"
        if path.is_file():
            is_csv = path.suffix.lower() == ".csv"
            source, where = _csv_annotations(path, subset) if is_csv else read_json(path), str(path)
        else:
            source = load_annotations(path)  # a release's folder
    if isinstance(source, Annotations):
        return source, source.classes, dict(enumerate(source.classes))
    annotations = parse_annotations(source, where)
    if "classes" in source:
        return annotations, annotations.classes, dict(enumerate(annotations.classes))
    return annotations, (), _class_numbers(source.get("database") or source)


def _csv_annotations(path: Path, subset: str | None) -> dict:
    """Convert a CSV ground truth to the content of an annotations.json."""
    database: dict[str, dict] = {}
    for place, fields in read_rows(path, SEGMENT_COLUMNS, ("subset", "duration")):
        video, start, end, label, own_subset, duration = fields
        entry = {"subset": own_subset or subset or "all", "duration": duration or None}
        known = database.setdefault(video, {**entry, "annotations": []})
        if any(known[name] != value for name, value in entry.items()):
            raise InputError(f"{place}: its subset or duration differs from that of an earlier row")
        known["annotations"].append({"label": label, "segment": [start, end]})
    if not database:
        raise InputError(f"{path}: no row after the header")
    return {"database": database}


def _class_numbers(database: dict) -> dict[int, str]:
    """Return the class of each `label_id`, as ActionFormer's files have it; {} unless all rows agree."""
    rows = [row for entry in database.values() if isinstance(entry, dict) for row in entry.get("annotations", [])]
    if not all(isinstance(row.get("label_id"), int) for row in rows):
        return {}
    pairs = {(row["label_id"], str(row["label"])) for row in rows}
    numbers = dict(pairs)
    return numbers if len(numbers) == len(pairs) == len(set(numbers.values())) else {}


def _default_subset(annotations: Annotations) -> str:
    present = annotations.subsets
    if "test" in map(str.casefold, present):
        return "test"
    if len(present) > 1:
        raise InputError(f"the annotations have several subsets, choose one of {present}")
    return present[0]


def format_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align the cells of a table in columns, two spaces apart.

    Args:
        rows: Cells of each row; the header is the first row.
        left: Number of left-aligned columns. The columns after them are right-aligned.

    Returns:
        Text with one line per row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def results_table(rows: Sequence[tuple[str, int, dict]], spec: DatasetSpec, protocols: Sequence[str]) -> str:
    """Return the scores of checkpoints under each protocol as text, in percent.

    Args:
        rows: Name, iteration and metrics (as in metrics.json) of each checkpoint.
        spec: Dataset that defines the tIoU thresholds and their averaged ranges.
        protocols: Protocols to show, one row each per checkpoint.
    """
    accuracies = [f"acc. {subset}" for subset in spec.accuracy_subsets]
    columns = [f"{threshold:g}" for threshold in spec.tiou_thresholds]
    columns += [*map(range_name, spec.average_ranges), "class.", *accuracies]
    table = [["checkpoint", "iteration", "protocol", *columns]]
    for name, iteration, metrics in rows:
        for protocol in protocols:
            thresholds, maps = metrics[protocol]["tiou_thresholds"], metrics[protocol]["map"]
            values = [*maps, *(mean_over_range(thresholds, maps, *bounds) for bounds in spec.average_ranges)]
            values.append(metrics["classification_map"])
            values += [metrics["snippet_accuracy"][subset]["accuracy"] for subset in spec.accuracy_subsets]
            cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
            table.append([name, "–" if iteration is None else str(iteration), protocol, *cells])
    title = "mAP@tIoU in percent, its means over ranges of tIoU, and video-level classification mAP"
    notes = [accuracy_note(rows[-1][2]["snippet_accuracy"])] if accuracies else []
    notes += [f"`{name}` collapsed: {note}" for name, _, metrics in rows if (note := metrics.get("collapsed"))]
    return "\n".join([title, format_table(table, left=0), *notes])
