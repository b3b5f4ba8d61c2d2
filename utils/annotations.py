"""Annotations of a dataset: videos, weak labels, segments and ambiguous segments. All times are in seconds.

Three formats are read into the same `Annotations`:

* `annotations.json`: ActivityNet's schema with four optional extensions. They are `classes`, `labels` (the weak,
  video-level labels), `ambiguous`, and times written as strings. A name is a string or an integer.
* The folder `<name>-Annotations/` of .npy files that W-TALC and its descendants share. Its `labels_all.npy` contains
  the weak labels. In 28 of the 412 THUMOS14 videos they differ from the set of annotated classes.
* The folder of the AVE release (utils/formats/ave.py).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError, name_some, shorten
from utils.formats.ave import is_ave, read_ave
from utils.formats.files import read_json, read_text
from utils.formats.npy import decode_names, load_names, load_rows, load_video_ids
from utils.video_table import Video, VideoTable

RELEASE_SUFFIX = "-Annotations"
FEATURE_SUFFIXES = (".h5", ".hdf5", ".npy", ".npz")
_NOT_VIDEOS = ("classes", "version", "taxonomy", "database")  # keys of a file without `database`


class InvertedSegments(InputError):
    """Annotated segments that end before they start, all of a file."""

    def __init__(self, where: str, rows: list[tuple[str, str]]):
        self.where, self.rows = where, rows  # video_id and message of each segment
        super().__init__(
            f"{where}: {len(rows)} of the segments end before they start ({name_some(row for _, row in rows)}); "
            "correct them, or leave them out with scripts/convert_features.py --drop-inverted"
        )


@dataclass(frozen=True)
class Annotations:
    """Videos in file order, and classes in label order."""

    classes: tuple[str, ...]
    videos: VideoTable  # any mapping is packed
    num_dropped: int = 0  # segments that end before they start and were left out
    where: str = "annotations"  # file or folder, for messages

    def __post_init__(self):
        if not isinstance(self.videos, VideoTable):
            object.__setattr__(self, "videos", VideoTable.pack(self.videos.values()))

    def subset(self, name: str) -> list[Video]:
        """Return the videos of one subset, see `subset_ids`."""
        return [self.videos[video_id] for video_id in self.subset_ids(name)]

    def subset_ids(self, name: str) -> list[str]:
        """Return the ids of one subset, or of several (`val+test`), in file order; upper and lower case are equal.

        Raises:
            InputError: The subset has no video.
        """
        video_ids = self.videos.in_subset(name)
        if not video_ids:
            present = name_some(map(repr, self.subsets), 8)
            raise InputError(
                f"{self.where}: no video of subset '{name}'; subsets present: {present}; choose another subset, or "
                "another --dataset"
            )
        return video_ids

    @property
    def subsets(self) -> list[str]:
        """Names of the subsets with videos, as written and sorted."""
        return sorted(self.videos.subsets)


def load_annotations(path: str | Path, drop_inverted: bool = False) -> Annotations:
    """Read a JSON file, a release folder, or a dataset folder that contains either.

    Args:
        path: File or folder.
        drop_inverted: Leave out segments that end before they start; `num_dropped` counts them.

    Raises:
        InvertedSegments: Segments end before they start.
        InputError: The annotations are not found or cannot be used; the message names the video and the row.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        if path.suffix.lower() in FEATURE_SUFFIXES:
            raise InputError(f"{path}: is a file of features; give the folder that holds it and the annotations")
        return parse_annotations(read_json(path), str(path), drop_inverted)
    if file := find_annotations(path):
        return load_annotations(file, drop_inverted)
    if (path / "videoname.npy").is_file():
        return parse_annotations(_read_release(path), str(path), drop_inverted)
    if is_ave(path):
        return parse_annotations(read_ave(path), str(path))
    folders = sorted(folder for folder in path.glob(f"*{RELEASE_SUFFIX}") if folder.is_dir())
    if len(folders) != 1:
        got = "several folders" if folders else "neither"
        raise InputError(f"{path}: expected annotations.json or one *{RELEASE_SUFFIX} folder, got {got}")
    return parse_annotations(_read_release(folders[0]), str(folders[0]), drop_inverted)


def find_annotations(folder: Path) -> Path | None:
    """Return the JSON file of annotations in a dataset folder, None without.

    That is annotations.json, gt.json (BaS-Net and its descendants) or the only annotations/*.json (ActionFormer).
    """
    inside = sorted(folder.glob("annotations/*.json"))
    files = [folder / "annotations.json", folder / "gt.json", *(inside if len(inside) == 1 else ())]
    return next((file for file in files if file.is_file()), None)


def parse_annotations(data: dict, where: str, drop_inverted: bool = False) -> Annotations:
    """Convert the content of an annotations.json.

    Args:
        data: The content. Without `classes`, classes are numbered in order of first appearance.
        where: Name of the file in messages.
        drop_inverted: See `load_annotations`.

    Raises:
        InvertedSegments: Segments end before they start.
        InputError: The content cannot be used; the message names the video and the row.
    """
    database = _database(data, where)
    classes = data.get("classes")
    classes = _classes_by_appearance(database, where) if classes is None else _classes(classes, where)
    if not classes:
        raise InputError(
            f"{where}: no class; 'classes' is empty, and no video has 'labels' or an annotated segment; "
            "give each video its 'labels'"
        )
    order = {name: index for index, name in enumerate(classes)}
    inverted: list[tuple[str, str]] = []
    videos = {video_id: _parse_video(video_id, entry, order, where, inverted) for video_id, entry in database.items()}
    if inverted and not drop_inverted:
        raise InvertedSegments(where, inverted)
    return Annotations(tuple(order), videos, len(inverted), where)


def _database(data: object, where: str) -> dict[str, dict]:
    """Return the entries by video_id: `data["database"]`, or all of `data` without that key."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object with a 'database', got {type(data).__name__}")
    database = data.get("database")
    if database is None:
        database = {key: value for key, value in data.items() if key not in _NOT_VIDEOS}
    if not isinstance(database, dict) or not database:
        raise InputError(f"{where}: 'database' must contain at least one video ({{video_id: {{...}}}})")
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
        video = f"{where}: video '{video_id}'"
        classes.update(dict.fromkeys(_weak_labels(entry.get("labels", []), video)))
        classes.update(dict.fromkeys(_row_label(row, video) for row in entry.get("annotations", [])))
    return list(classes)


def _parse_video(
    video_id: str, entry: dict, order: dict[str, int], where: str, inverted: list[tuple[str, str]]
) -> Video:
    """Convert one entry; segments that end before they start are left out and added to `inverted`."""
    checked_name(video_id, f"{where}: 'database'")
    where = f"{where}: video '{video_id}'"
    rows = entry.get("annotations", [])
    segment_labels = tuple(_row_label(row, where) for row in rows)
    labels = set(_weak_labels(entry["labels"], where)) if "labels" in entry else set(segment_labels)
    for label in (*segment_labels, *sorted(labels)):
        if label not in order:
            raise InputError(f"{where} has the label '{label}', which 'classes' lacks; add it or correct the label")
    segments = _segments([row.get("segment") for row in rows], f"{where}, annotation")
    ambiguous = _segments(entry.get("ambiguous", []), f"{where}, ambiguous segment")
    for kind, times in (("annotation", segments), ("ambiguous segment", ambiguous)):
        for row in np.flatnonzero(times[:, 0] > times[:, 1]).tolist():
            start, end = times[row].tolist()
            inverted.append((video_id, f"video '{video_id}', {kind} {row}: [{start:g}, {end:g}]"))
    forward = segments[:, 0] <= segments[:, 1]
    return Video(
        video_id=video_id,
        subset=checked_name(entry["subset"], f"{where}, subset"),
        duration=_duration(entry.get("duration"), where),
        labels=tuple(sorted(labels, key=order.__getitem__)),
        segments=segments[forward],
        segment_labels=tuple(label for label, keep in zip(segment_labels, forward, strict=True) if keep),
        ambiguous=ambiguous[ambiguous[:, 0] <= ambiguous[:, 1]],
    )


def _weak_labels(labels: list, where: str) -> list[str]:
    return [checked_name(label, f"{where}, labels") for label in labels]


def _row_label(row: object, where: str) -> str:
    if not isinstance(row, dict) or "label" not in row:
        raise InputError(f"{where}: expected {{'label': ..., 'segment': [...]}}, got {shorten(row)}")
    return checked_name(row["label"], f"{where}, label")


def checked_name(value: object, where: str) -> str:
    """Return a name from a file, a string or an integer, as a string.

    Raises:
        InputError: The value is anything else, such as null.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or "\0" in str(value):
        raise InputError(f"{where}: expected a name, got {shorten(value)}")
    return str(value)


def _duration(value: object, where: str) -> float | None:
    if value is None:
        return None
    try:
        duration = float(value)
    except (TypeError, ValueError, OverflowError):
        duration = math.nan
    if not (math.isfinite(duration) and duration >= 0):
        raise InputError(f"{where}: duration {shorten(value)} is not a number of seconds")
    return duration


def _segments(rows: object, where: str) -> np.ndarray:
    """Convert rows of [start, end], finite numbers or strings, to (N, 2) float64."""
    if not isinstance(rows, list):
        raise InputError(f"{where}s must be a list of [start, end] in seconds")
    segments = np.empty((len(rows), 2), dtype=np.float64)
    for index, row in enumerate(rows):
        try:
            start, end = (float(time) for time in start_and_end(row))
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{where} {index}: expected [start, end] in seconds, got {shorten(row)}") from None
        if not (math.isfinite(start) and math.isfinite(end)):
            raise InputError(f"{where} {index}: [{start}, {end}] is not a segment of finite times")
        segments[index] = start, end
    return segments


def start_and_end(segment: object) -> tuple:
    """Return the two members of a segment, unconverted.

    Raises:
        TypeError: The segment is not a sequence, or a string such as "12".
        ValueError: It does not have two members.
    """
    if isinstance(segment, str | bytes | dict):
        raise TypeError("expected [start, end]")
    start, end = segment
    return start, end


def _read_release(folder: Path) -> dict:
    """Convert a release's <name>-Annotations folder to the content of an annotations.json.

    classlist (C,), videoname (N,) and subset (N,) are bytes, duration is (N, 1) float64. labels_all, labels and
    segments are (N,) objects: per video, a list of weak labels, of segment labels, and of [start, end].
    """
    columns = {
        "videoname": load_video_ids(folder),
        "subset": load_names(folder / "subset.npy"),
        "duration": load_rows(folder / "duration.npy"),
        **{name: _load_lists(folder / f"{name}.npy") for name in ("labels_all", "labels", "segments")},
    }
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) != 1:
        raise InputError(f"{folder}: the files differ in the number of videos: {sizes}")
    if columns["duration"].size != sizes["duration"]:
        shape = columns["duration"].shape
        raise InputError(f"{folder / 'duration.npy'}: expected one number of seconds per video, got shape {shape}")
    columns["duration"] = columns["duration"].reshape(-1)
    ambiguous = _read_ambiguous(folder / "Ambiguous_test.txt")
    database = {}
    for video_id, subset, duration, weak_labels, labels, segments in zip(*columns.values(), strict=True):
        if len(labels) != len(segments):
            raise InputError(f"{folder}: video '{video_id}' has {len(labels)} labels for {len(segments)} segments")
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
    """Read a .npy file with one list per video."""
    rows = []
    for number, row in enumerate(load_rows(path)):
        if not (isinstance(row, list | tuple) or (isinstance(row, np.ndarray) and row.ndim)):
            raise InputError(f"{path}: row {number}: expected a list, got {shorten(row)}")
        rows.append(list(row))
    return rows


def _read_ambiguous(path: Path) -> dict[str, list[list[str]]]:
    """Read lines of `video_id start end` as {video_id: [[start, end], ...]}, {} if there is no file."""
    segments: dict[str, list[list[str]]] = {}
    if not path.is_file():
        return segments
    lines = read_text(path, "lines of 'video_id start end'").splitlines()
    for number, line in enumerate(lines, start=1):
        if fields := line.split():
            if len(fields) != 3:
                raise InputError(f"{path}: line {number}: expected 'video_id start end', got {shorten(line)}")
            segments.setdefault(fields[0], []).append(fields[1:])
    return segments


def annotations_to_json(annotations: Annotations) -> dict:
    """Return the content of an annotations.json; the inverse of `parse_annotations`."""
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
