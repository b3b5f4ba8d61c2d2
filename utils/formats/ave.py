"""AVE (Tian et al., ECCV 2018) as its authors release it (github.com/YapengTian/AVE-ECCV18), nothing converted.

* `Annotations.txt`: `class&YouTube id&quality&start&end`, a line a clip of ten seconds, times in seconds. Line i is
  row i of the other files; a class's number is its place in order of first appearance, the background is the last.
* `train_order.h5`, `val_order.h5`, `test_order.h5`: the rows of a subset, dataset `order`.
* `audio_feature.h5` (N, 10, 128), `visual_feature.h5` (N, 10, 7, 7, 512): dataset `avadataset`, a snippet a second.
  Maps are averaged over space as they are read, a clip at a time; (N, 10, D) without maps is read as well.
* `audio_feature_noisy.h5`, `visual_feature_noisy.h5`: the same of clips in which nothing happens, which
  `labels_noisy.h5` (M, 29) counts. They are subset `background` here, for training beside `train`.

Some clips come from one YouTube video. A clip's video_id is the YouTube id; the second clip of a video adds `#2`.
"""

from collections import Counter
from pathlib import Path

import h5py

from utils.errors import InputError, shorten
from utils.formats.files import read_text
from utils.formats.hdf5 import check_chunks, check_no_external_data, check_stored_size, follow

ANNOTATIONS = "Annotations.txt"
HEADER = "Category&VideoID&Quality&StartTime&EndTime"  # some copies of the file begin with it
SECONDS = 10  # of every clip
SUBSETS = ("train", "val", "test")
BACKGROUND = "background"
KEY = "avadataset"


def is_ave(folder: Path) -> bool:
    """Whether a folder holds the release."""
    return (folder / ANNOTATIONS).is_file()


def read_ave(folder: Path) -> dict:
    """The release -> the content of the annotations.json that says the same; InputError for a file that is not so."""
    rows = read_rows(folder)
    subsets = _subsets(folder, len(rows))
    database = {
        video_id: {
            "subset": subset,
            "duration": SECONDS,
            "labels": [name],
            "annotations": [{"label": name, "segment": [start, end]}],
        }
        for (video_id, name, start, end), subset in zip(rows, subsets, strict=True)
    }
    empty = {"subset": BACKGROUND, "duration": SECONDS, "labels": []}
    database |= dict.fromkeys(background_ids(folder), empty)
    return {"classes": list(dict.fromkeys(name for _, name, _, _ in rows)), "database": database}


def open_array(path: Path, key: str) -> h5py.Dataset:
    """A dataset of an HDF5 file, not read yet; InputError if there is none, or the file has not the bytes for it."""
    try:
        array = follow(h5py.File(path, "r"), key)
        if not isinstance(array, h5py.Dataset) or not array.shape:
            raise ValueError("it is no array")
        check_no_external_data(array)
        check_stored_size(array, path.stat().st_size)
        check_chunks(array)
    except Exception as error:  # for a damaged file h5py raises almost anything
        raise InputError(f"{path}: no readable HDF5 file with the array '{key}' ({error})") from None
    return array


def read_rows(folder: Path) -> list[tuple[str, str, int, int]]:
    """video_id, class, start and end in seconds of each clip."""
    path = folder / ANNOTATIONS
    lines = read_text(path, "lines of 'class&YouTube id&quality&start&end'").splitlines()
    rows, seen = [], Counter()
    for number, line in enumerate(lines, start=1):
        if number == 1 and line == HEADER:
            continue
        name, youtube_id, start, end = _fields(line, f"{path}: line {number}")
        seen[youtube_id] += 1
        video_id = youtube_id if seen[youtube_id] == 1 else f"{youtube_id}#{seen[youtube_id]}"
        rows.append((video_id, name, start, end))
    if not rows:
        raise InputError(f"{path}: names no clip")
    return rows


def _fields(line: str, place: str) -> tuple[str, str, int, int]:
    try:
        name, youtube_id, _, start, end = line.split("&")
        start, end = int(start), int(end)
    except ValueError:
        raise InputError(f"{place}: expected 'class&YouTube id&quality&start&end', found {shorten(line)}") from None
    if not 0 <= start <= end <= SECONDS:
        raise InputError(f"{place}: {start} to {end} are no seconds of a clip of {SECONDS}")
    return name, youtube_id, start, end


def _subsets(folder: Path, count: int) -> list[str]:
    """The subset of each row; InputError unless each row is in one."""
    subsets: list[str | None] = [None] * count
    for subset in SUBSETS:
        path = folder / f"{subset}_order.h5"
        for row in open_array(path, "order")[()].tolist():
            if not isinstance(row, int) or not 0 <= row < count:
                raise InputError(f"{path}: names row {shorten(row)}, {ANNOTATIONS} has {count} lines")
            if subsets[row] is not None:
                raise InputError(f"{path}: names row {row}, which is in '{subsets[row]}' already")
            subsets[row] = subset
    if None in subsets:
        raise InputError(f"{folder}: row {subsets.index(None)} is in none of {', '.join(SUBSETS)}")
    return subsets


def background_ids(folder: Path) -> list[str]:
    return [f"{BACKGROUND}_{row:04d}" for row in range(len(open_array(folder / "labels_noisy.h5", KEY)))]


def require_clips(array: h5py.Dataset, ids: list[str]) -> None:
    if array.ndim not in (3, 5) or array.shape[:2] != (len(ids), SECONDS):
        expected = f"({len(ids)}, {SECONDS}, channels) or ({len(ids)}, {SECONDS}, rows, columns, channels)"
        raise InputError(f"{array.file.filename}: '{KEY}' has shape {array.shape}, expected {expected}")
