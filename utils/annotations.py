"""The annotation file -> videos, video-level labels, segments, ambiguous segments. All times in seconds.

Three forms are read into the same `Annotations`:

* `annotations.json`, ActivityNet's schema plus four optional things: `classes`, `labels` (the weak,
  video-level labels), `ambiguous`, and times written as strings. A name is text or a whole number.
* the `<name>-Annotations/` folder of .npy files that W-TALC and its descendants share. Its `labels_all.npy`
  are the weak labels; in 28 of the 412 THUMOS14 videos they differ from the set of annotated classes.
* the folder of the AVE release (utils/formats/ave.py).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError, shorten
from utils.formats.ave import is_ave, read_ave
from utils.formats.files import read_json, read_text
from utils.formats.npy import decode_names, load_names, load_rows, load_video_ids

RELEASE_SUFFIX = "-Annotations"
_NOT_VIDEOS = ("classes", "version", "taxonomy", "database")


@dataclass(frozen=True)
class Video:
    """One video and what is known about it."""

    video_id: str
    subset: str
    duration: float | None  # seconds
    labels: tuple[str, ...]  # weak, video-level labels in class order: all that training may read
    segments: np.ndarray  # (N, 2) float64, [start, end] in seconds
    segment_labels: tuple[str, ...]  # (N,)
    ambiguous: np.ndarray  # (M, 2) float64, seconds


@dataclass(frozen=True)
class Annotations:
    """The videos of one annotation file, in its order, and the classes in the order that numbers them."""

    classes: tuple[str, ...]
    videos: dict[str, Video]

    def subset(self, name: str) -> list[Video]:
        """The videos of one subset, or of several (`val+test`), in file order; InputError if there is none."""
        names = subset_names(name)
        videos = [video for video in self.videos.values() if video.subset in names]
        if not videos:
            present = sorted({video.subset for video in self.videos.values()})
            raise InputError(f"no video of subset '{name}' in the annotations; subsets present: {present}")
        return videos


def subset_names(name: str) -> set[str]:
    """The subsets that a name stands for: itself, and of `val+test` both."""
    return {name, *name.split("+")}


def load_annotations(path: str | Path) -> Annotations:
    """Read a JSON file, a release folder, or a dataset folder that holds either.

    InputError, one line: no such path, no annotations in the folder, a file that is empty, cut off, of
    another kind or names a video twice, no class, a label that `classes` lacks or that is no name, a segment
    that is inverted or not finite.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        return parse_annotations(read_json(path), str(path))
    if (path / "annotations.json").is_file():
        return load_annotations(path / "annotations.json")
    if (path / "videoname.npy").is_file():
        return parse_annotations(_read_release(path), str(path))
    if is_ave(path):
        return parse_annotations(read_ave(path), str(path))
    folders = sorted(folder for folder in path.glob(f"*{RELEASE_SUFFIX}") if folder.is_dir())
    if len(folders) != 1:
        found = "several folders" if folders else "neither"
        raise InputError(f"{path}: looked for annotations.json or a *{RELEASE_SUFFIX} folder, found {found}")
    return parse_annotations(_read_release(folders[0]), str(folders[0]))


def parse_annotations(data: dict, where: str) -> Annotations:
    """The content of an annotation file -> Annotations; `where` names the file in messages.

    Without `classes` the classes are numbered in order of first appearance. InputError names the file, the
    video and the row of whatever cannot be used.
    """
    database = _database(data, where)
    classes = data.get("classes")
    classes = _classes_by_appearance(database, where) if classes is None else _classes(classes, where)
    if not classes:
        raise InputError(
            f"{where}: no class: 'classes' names none, and no video has 'labels' or an annotated segment; "
            "give each video its 'labels'"
        )
    order = {name: index for index, name in enumerate(classes)}
    videos = {video_id: _parse_video(video_id, entry, order, where) for video_id, entry in database.items()}
    return Annotations(tuple(order), videos)


def _database(data: object, where: str) -> dict[str, dict]:
    """The `{video_id: entry}` part: `data["database"]`, or all of `data` where the file has no such key."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object with a 'database', found a {type(data).__name__}")
    database = data.get("database")
    if database is None:
        database = {key: value for key, value in data.items() if key not in _NOT_VIDEOS}
    if not isinstance(database, dict) or not database:
        raise InputError(f"{where}: 'database' must hold at least one video ({{video_id: {{...}}}})")
    for video_id, entry in database.items():
        if not isinstance(entry, dict) or "subset" not in entry:
            raise InputError(f"{where}: video '{video_id}' has no 'subset'; is this an annotation file?")
        if not all(isinstance(entry.get(key, []), list) for key in ("annotations", "labels")):
            raise InputError(f"{where}: video '{video_id}': 'annotations' and 'labels' must be lists")
    return database


def _classes(classes: object, where: str) -> list[str]:
    names = [checked_name(name, f"{where}: 'classes'") for name in classes] if isinstance(classes, list) else []
    if not isinstance(classes, list) or len(set(names)) != len(names):
        raise InputError(f"{where}: 'classes' must be a list of different names")
    return names


def _classes_by_appearance(database: dict[str, dict], where: str) -> list[str]:
    classes: dict[str, None] = {}
    for video_id, entry in database.items():
        place = f"{where}: video '{video_id}'"
        classes.update(dict.fromkeys(_weak_labels(entry.get("labels", []), place)))
        classes.update(dict.fromkeys(_row_label(row, place) for row in entry.get("annotations", [])))
    return list(classes)


def _parse_video(video_id: str, entry: dict, order: dict[str, int], where: str) -> Video:
    place = f"{where}: video '{video_id}'"
    checked_name(video_id, f"{where}: 'database'")
    rows = entry.get("annotations", [])
    segment_labels = tuple(_row_label(row, place) for row in rows)
    labels = set(_weak_labels(entry["labels"], place)) if "labels" in entry else set(segment_labels)
    for label in (*segment_labels, *sorted(labels)):
        if label not in order:
            raise InputError(
                f"{place} has the label '{label}', which 'classes' lacks; add it to 'classes' or correct the label"
            )
    return Video(
        video_id=video_id,
        subset=checked_name(entry["subset"], f"{place}, subset"),
        duration=_duration(entry.get("duration"), place),
        labels=tuple(sorted(labels, key=order.__getitem__)),
        segments=_segments([row.get("segment") for row in rows], f"{place}, annotation"),
        segment_labels=segment_labels,
        ambiguous=_segments(entry.get("ambiguous", []), f"{place}, ambiguous segment"),
    )


def _weak_labels(labels: list, place: str) -> list[str]:
    return [checked_name(label, f"{place}, labels") for label in labels]


def _row_label(row: object, place: str) -> str:
    if not isinstance(row, dict) or "label" not in row:
        raise InputError(f"{place}: expected {{'label': ..., 'segment': [...]}}, found {shorten(row)}")
    return checked_name(row["label"], f"{place}, label")


def checked_name(value: object, place: str) -> str:
    """A name as a file gives it, text or a whole number; InputError for anything else, so that null is no class."""
    if isinstance(value, bool) or not isinstance(value, str | int) or "\0" in str(value):
        raise InputError(f"{place}: expected a name, found {shorten(value)}")
    return str(value)


def _duration(value: object, place: str) -> float | None:
    if value is None:
        return None
    try:
        duration = float(value)
    except (TypeError, ValueError, OverflowError):
        duration = math.nan
    if not (math.isfinite(duration) and duration >= 0):
        raise InputError(f"{place}: duration {shorten(value)} is not a number of seconds")
    return duration


def _segments(rows: object, place: str) -> np.ndarray:
    """Rows of [start, end], numbers or strings -> (N, 2) float64; InputError names the bad row (from 0)."""
    if not isinstance(rows, list):
        raise InputError(f"{place}s must be a list of [start, end] in seconds")
    segments = np.empty((len(rows), 2), dtype=np.float64)
    for index, row in enumerate(rows):
        try:
            start, end = (float(time) for time in start_and_end(row))
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{place} {index}: expected [start, end] in seconds, found {shorten(row)}") from None
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise InputError(f"{place} {index}: [{start}, {end}] is not a segment (finite, start <= end)")
        segments[index] = start, end
    return segments


def start_and_end(segment: object) -> tuple:
    """The two members of a segment, unconverted; TypeError or ValueError for anything else, text like "12" too."""
    if isinstance(segment, str | bytes | dict):
        raise TypeError("expected [start, end]")
    start, end = segment
    return start, end


def _read_release(folder: Path) -> dict:
    """A release's <name>-Annotations folder -> the content of the annotations.json that says the same.

    classlist (C,) and videoname, subset (N,) bytes; duration (N, 1) float64; labels_all, labels and
    segments (N,) objects: one list of names, of names and of [start, end] a video.
    """
    columns = {
        "videoname": load_video_ids(folder),
        "subset": load_names(folder / "subset.npy"),
        "duration": load_rows(folder / "duration.npy"),
        **{name: _load_lists(folder / f"{name}.npy") for name in ("labels_all", "labels", "segments")},
    }
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) != 1:
        raise InputError(f"{folder}: the files disagree on the number of videos: {sizes}")
    if columns["duration"].size != sizes["duration"]:
        shape = columns["duration"].shape
        raise InputError(f"{folder / 'duration.npy'}: expected one number of seconds a video, found shape {shape}")
    columns["duration"] = columns["duration"].reshape(-1)
    ambiguous = _read_ambiguous(folder / "Ambiguous_test.txt")
    database = {}
    for video_id, subset, duration, weak_labels, labels, segments in zip(*columns.values(), strict=True):
        if len(labels) != len(segments):
            counts = f"{len(labels)} labels for {len(segments)} segments"
            raise InputError(f"{folder}: video '{video_id}' has {counts}")
        rows = zip(decode_names(labels), segments, strict=True)
        database[video_id] = {
            "subset": subset,
            "duration": duration,
            "labels": decode_names(weak_labels),
            "annotations": [{"label": label, "segment": segment} for label, segment in rows],
            "ambiguous": ambiguous.get(video_id, []),
        }
    return {"classes": load_names(folder / "classlist.npy"), "database": database}


def _load_lists(path: Path) -> list[list]:
    """A .npy file with a list a video; InputError for any other row."""
    rows = []
    for number, row in enumerate(load_rows(path)):
        if not (isinstance(row, list | tuple) or (isinstance(row, np.ndarray) and row.ndim)):
            raise InputError(f"{path}: row {number}: expected a list, found {shorten(row)}")
        rows.append(list(row))
    return rows


def _read_ambiguous(path: Path) -> dict[str, list[list[str]]]:
    """Lines of `video_id start end` -> {video_id: [[start, end], ...]}; {} where there is no such file."""
    segments: dict[str, list[list[str]]] = {}
    if not path.is_file():
        return segments
    lines = read_text(path, "lines of 'video_id start end'").splitlines()
    for number, line in enumerate(lines, start=1):
        if fields := line.split():
            if len(fields) != 3:
                raise InputError(f"{path}: line {number}: expected 'video_id start end', found {shorten(line)}")
            segments.setdefault(fields[0], []).append(fields[1:])
    return segments


def annotations_to_json(annotations: Annotations) -> dict:
    """The inverse of `parse_annotations`: a dict to write as annotations.json."""
    database = {}
    for video in annotations.videos.values():
        rows = zip(video.segment_labels, video.segments.tolist(), strict=True)
        database[video.video_id] = {
            "subset": video.subset,
            "duration": video.duration,
            "labels": list(video.labels),
            "annotations": [{"label": label, "segment": segment} for label, segment in rows],
            "ambiguous": video.ambiguous.tolist(),
        }
    return {"classes": list(annotations.classes), "database": database}
