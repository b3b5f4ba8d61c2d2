"""Tables of segments, and the files they are read from and written to.

Ground truth: whatever `utils.annotations` reads. Detections: ActivityNet's JSON
(`{"results": {video: [{"label", "score", "segment": [start, end]}, ...]}}`) or CSV with a header
(`video-id,t-start,t-end,label,score`). Times in seconds, as numbers or strings.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.average_precision import mean_over_range, range_name
from eval.snippet_accuracy import accuracy_note
from utils.annotations import (
    Annotations,
    Video,
    checked_name,
    load_annotations,
    parse_annotations,
    start_and_end,
)
from utils.datasets import DatasetSpec
from utils.errors import InputError, shorten
from utils.formats.files import read_json, write_json
from utils.segments import snippets_to_seconds

CSV_COLUMNS = ("video-id", "t-start", "t-end", "label", "score")


@dataclass(frozen=True)
class Table:
    """Segments in columns, a row each. `video` and `label` index `videos` and `classes`; a video that nobody
    knows is -1. Ground truth has no score.
    """

    videos: tuple[str, ...]
    classes: tuple[str, ...]
    video: np.ndarray  # (N,) int
    label: np.ndarray  # (N,) int
    start: np.ndarray  # (N,) float64; seconds unless said otherwise
    end: np.ndarray  # (N,) float64
    score: np.ndarray | None = None  # (N,) float64

    def __len__(self) -> int:
        return len(self.start)

    def select(self, rows: np.ndarray) -> "Table":
        """The same table with these rows only (mask or indices)."""
        columns = {name: getattr(self, name)[rows] for name in ("video", "label", "start", "end")}
        return replace(self, **columns, score=None if self.score is None else self.score[rows])

    def renumbered(self, videos: tuple[str, ...], classes: tuple[str, ...]) -> "Table":
        """The same rows with other name lists; what these lack becomes -1."""
        return replace(
            self,
            videos=videos,
            classes=classes,
            video=_renumber(self.videos, videos)[self.video],
            label=_renumber(self.classes, classes)[self.label],
        )


@dataclass(frozen=True)
class GroundTruth:
    """What detections are compared with."""

    segments: Table  # the annotated instances
    ambiguous: Table  # segments that some protocols do not judge; one nameless class


GroundTruthSource = GroundTruth | Annotations | Table | np.ndarray | dict | str | Path
DetectionSource = Table | np.ndarray | dict | str | Path


def make_table(
    rows: Iterable[tuple], videos: Iterable[str] = (), classes: Iterable[str] = (), scored: bool = True
) -> Table:
    """Rows (video, label, start, end, score) -> Table. Names are numbered as listed, then as they appear."""
    rows = list(rows)
    video, label, start, end, score = zip(*rows, strict=True) if rows else ((),) * 5
    videos, classes = tuple(dict.fromkeys((*videos, *video))), tuple(dict.fromkeys((*classes, *label)))
    return Table(
        videos=videos,
        classes=classes,
        video=_numbers(video, videos),
        label=_numbers(label, classes),
        start=np.array(start, dtype=np.float64),
        end=np.array(end, dtype=np.float64),
        score=np.array(score, dtype=np.float64) if scored else None,
    )


def table_of_records(records: np.ndarray, where: str) -> Table:
    """A structured array with the fields video, label, start, end and, for detections, score -> Table."""
    missing = {"video", "label", "start", "end"} - set(records.dtype.names or ())
    if missing:
        raise InputError(f"{where}: the array has no field {sorted(missing)}; it has {records.dtype.names}")
    names = {column: records[column].tolist() for column in ("video", "label")}
    videos, classes = tuple(dict.fromkeys(names["video"])), tuple(dict.fromkeys(names["label"]))
    return Table(
        videos=videos,
        classes=classes,
        video=_numbers(names["video"], videos),
        label=_numbers(names["label"], classes),
        start=records["start"].astype(np.float64),
        end=records["end"].astype(np.float64),
        score=records["score"].astype(np.float64) if "score" in records.dtype.names else None,
    )


def localized_table(localized: dict[str, np.ndarray], classes: Iterable[str], snippet_rate: float) -> Table:
    """What `eval.proposals.localize` found, {video_id: structured array} in snippets -> Table in seconds."""
    arrays = list(localized.values())
    lengths = [len(array) for array in arrays]

    def column(name: str) -> np.ndarray:
        return np.concatenate([array[name] for array in arrays]) if arrays else np.zeros(0, dtype=np.int64)

    return Table(
        videos=tuple(localized),
        classes=tuple(classes),
        video=np.repeat(np.arange(len(arrays)), lengths),
        label=column("label"),
        start=snippets_to_seconds(column("start"), snippet_rate),
        end=snippets_to_seconds(column("end"), snippet_rate),
        score=column("score").astype(np.float64),
    )


def read_ground_truth(source: GroundTruthSource, subset: str | None) -> GroundTruth:
    """The annotated and the ambiguous segments of one subset, in seconds.

    `subset` None means `test` where there is such a subset, else the only one there is. Classes: the file's
    own list, else in order of first appearance in the subset; those of Annotations, which have been read, are
    theirs. Tables and structured arrays are taken whole.
    """
    if isinstance(source, GroundTruth):
        return source
    if isinstance(source, np.ndarray):
        source = table_of_records(source, "ground truth")
    if isinstance(source, Table):
        return GroundTruth(source, make_table((), source.videos, ("",), scored=False))
    annotations, classes = _read_annotations(source)
    videos = annotations.subset(_only_subset(annotations.videos.values()) if subset is None else subset)
    names = [video.video_id for video in videos]
    instances = (
        (video.video_id, label, *segment, None)
        for video in videos
        for label, segment in zip(video.segment_labels, video.segments, strict=True)
    )
    ambiguous = ((video.video_id, "", *segment, None) for video in videos for segment in video.ambiguous)
    return GroundTruth(
        make_table(instances, names, classes, scored=False), make_table(ambiguous, names, ("",), scored=False)
    )


def _read_annotations(source: Annotations | dict | str | Path) -> tuple[Annotations, tuple[str, ...]]:
    """Annotations, and the class list that the file itself gives (empty if it gives none)."""
    if isinstance(source, Annotations):
        return source, source.classes
    if not isinstance(source, dict):
        path = Path(source)
        if path.is_dir() and (path / "annotations.json").is_file():
            path = path / "annotations.json"
        if path.is_dir() or not path.exists():
            annotations = load_annotations(path)
            return annotations, annotations.classes
        source, where = read_json(path), str(path)
    else:
        where = "ground truth"
    annotations = parse_annotations(source, where)
    return annotations, annotations.classes if "classes" in source else ()


def _only_subset(videos: Iterable[Video]) -> str:
    present = sorted({video.subset for video in videos})
    if "test" in present:
        return "test"
    if len(present) > 1:
        raise InputError(f"the annotations have several subsets, choose one of {present}")
    return present[0]


def read_detections(source: DetectionSource) -> Table:
    """Detections from a table, a structured array, an ActivityNet-form dict, or a .json or .csv file."""
    if isinstance(source, np.ndarray):
        source = table_of_records(source, "detections")
    if isinstance(source, Table):
        if source.score is None:
            raise InputError("detections: the table has no scores")
        return source
    if isinstance(source, dict):
        return _parse_detections(source, "detections")
    path = Path(source)
    if path.suffix.lower() == ".csv":
        return make_table(_csv_rows(path))
    if path.suffix.lower() != ".json":
        raise InputError(f"{path}: expected detections as a .json or .csv file")
    return _parse_detections(read_json(path), str(path))


def write_detections(path: str | Path, detections: Table, snippet_rate: float | None = None) -> None:
    """Write detections (seconds) in ActivityNet's submission form; videos without any get an empty list.

    snippet_rate: Hz, the grid they were found on, kept beside them for the protocols that round to it.
    """
    results: dict[str, list] = {video: [] for video in detections.videos}
    columns = (detections.video, detections.label, detections.start, detections.end, detections.score)
    for video, label, start, end, score in zip(*(column.tolist() for column in columns), strict=True):
        results[detections.videos[video]].append(
            {"label": detections.classes[label], "score": score, "segment": [start, end]}
        )
    content = {"version": "VERSION 1.3", "results": results, "external_data": {}}
    if snippet_rate is not None:
        content["snippet_rate"] = snippet_rate
    write_json(path, content)


def _parse_detections(data: object, where: str) -> Table:
    results = data.get("results") if isinstance(data, dict) else None
    if not isinstance(results, dict):
        raise InputError(f"{where}: no 'results' {{video: [...]}}; is this a detection file?")
    return make_table(_json_rows(results, where), videos=results)


def _json_rows(results: dict[str, list], where: str) -> Iterator[tuple]:
    for video, entries in results.items():
        if not isinstance(entries, list):
            raise InputError(f"{where}: video '{video}': expected a list, found {shorten(entries)}")
        for row, entry in enumerate(entries):
            place = f"{where}: video '{video}', detection {row}"
            try:
                start, end = start_and_end(entry["segment"])
                label, score = entry["label"], entry["score"]
            except KeyError as error:
                raise InputError(f"{place}: no {error}") from None
            except (TypeError, ValueError):
                expected = "{'label': ..., 'score': ..., 'segment': [start, end]}"
                raise InputError(f"{place}: expected {expected}, found {shorten(entry)}") from None
            yield _checked_row(video, label, start, end, score, place)


def _csv_rows(path: Path) -> Iterator[tuple]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)  # or a quote left open swallows the rest of the file
            if reader.fieldnames is None:
                raise InputError(f"{path}: the file is empty")
            if len(set(reader.fieldnames)) < len(reader.fieldnames):
                raise InputError(f"{path}: the header names a column twice: {shorten(reader.fieldnames)}")
            missing = [name for name in CSV_COLUMNS if name not in reader.fieldnames]
            if missing:
                raise InputError(f"{path}: no column {missing}; the header must have {','.join(CSV_COLUMNS)}")
            for entry in reader:
                video, start, end, label, score = (entry[name] for name in CSV_COLUMNS)
                place = f"{path}: video '{video!s:.80}', line {reader.line_num}"
                if None in entry or None in entry.values():  # csv's sign of more, and of fewer, fields
                    raise InputError(f"{place}: expected {len(reader.fieldnames)} fields, as in the header")
                yield _checked_row(video, label, start, end, score, place)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; expected CSV") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error}); is a quote left open, or a field not quoted?") from None


def _checked_row(video, label, start, end, score, place: str) -> tuple[str, str, float, float, float]:
    try:
        numbers = float(start), float(end), float(score)
    except (TypeError, ValueError, OverflowError):
        found = f"segment [{shorten(start)}, {shorten(end)}], score {shorten(score)}"
        raise InputError(f"{place}: not numbers: {found}") from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{place}: not finite: segment [{start}, {end}], score {score}")
    if numbers[1] < numbers[0]:
        raise InputError(f"{place}: the segment [{start}, {end}] ends before it starts")
    return checked_name(video, f"{place}, video"), checked_name(label, f"{place}, label"), *numbers


def _numbers(names: Iterable, order: tuple) -> np.ndarray:
    index = {name: number for number, name in enumerate(order)}
    return np.array([index[name] for name in names], dtype=np.int64)


def _renumber(names: tuple, order: tuple) -> np.ndarray:
    """Where each of `names` stands in `order`, -1 if nowhere; one -1 more at the end, for the number -1."""
    index = {name: number for number, name in enumerate(order)}
    return np.array([*(index.get(name, -1) for name in names), -1], dtype=np.int64)


def format_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align the cells of a table in columns, two spaces apart.

    Args:
        rows: Cells of each row; the header is the first row.
        left: Number of left-aligned columns. The columns after them are right-aligned.

    Returns:
        Text with one line per row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [cell.ljust(width) for cell, width in zip(row[:left], widths[:left], strict=True)]
        + [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        for row in rows
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


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
            table.append([name, str(iteration), protocol, *map(_percent, values)])
    title = "mAP@tIoU in percent, its means over ranges of tIoU, and video-level classification mAP"
    notes = [accuracy_note(rows[-1][2]["snippet_accuracy"])] if accuracies else []
    return "\n".join([title, format_table(table, left=0), *notes])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
