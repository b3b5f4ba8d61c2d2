"""Reader of the AVE dataset as its authors release it (Tian et al., ECCV 2018; github.com/YapengTian/AVE-ECCV18).

* `Annotations.txt`: one clip of ten seconds per line, `class&YouTube id&quality&start&end`, times in seconds. Line i
  describes row i of the other files. Classes are numbered in order of first appearance; background is the last class.
* `train_order.h5`, `val_order.h5`, `test_order.h5`: the rows of a subset, in dataset `order`.
* `audio_feature.h5` (N, 10, 128) and `visual_feature.h5` (N, 10, 7, 7, 512): features in dataset `avadataset`, one
  snippet per second. Visual maps may also come averaged, (N, 10, D).
* `audio_feature_noisy.h5`, `visual_feature_noisy.h5`: the same for M clips without an event, which `labels_noisy.h5`
  (M, 29) counts. Here they are the subset `background`, for training together with `train`.

A clip's video_id is its YouTube id. The second clip of one YouTube video adds `#2`.
"""

from collections import Counter
from pathlib import Path

import h5py

from utils.errors import InputError, shorten
from utils.formats.files import read_text
from utils.formats.hdf5 import check_chunks, check_no_external_data, check_stored_size, follow

ANNOTATIONS = "Annotations.txt"
HEADER = "Category&VideoID&Quality&StartTime&EndTime"  # first line of some copies
LINE = "class&YouTube id&quality&start&end"
SECONDS = 10  # duration of every clip
SUBSETS = ("train", "val", "test")
BACKGROUND = "background"
KEY = "avadataset"


def is_ave(folder: Path) -> bool:
    """Return True if a folder contains the release."""
    return (folder / ANNOTATIONS).is_file()


def read_ave(folder: Path) -> dict:
    """Return the release's annotations in the format of annotations.json.

    Raises:
        InputError: A file is missing or not as released.
    """
    rows = read_clips(folder)
    subsets = _read_subsets(folder, len(rows))
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
    """Open a dataset of an HDF5 file without reading values.

    Raises:
        InputError: The dataset is missing, or the file is too small for it.
    """
    try:
        array = follow(h5py.File(path, "r"), key)
        if not isinstance(array, h5py.Dataset) or not array.shape:
            raise ValueError("not an array")
        check_no_external_data(array)
        check_stored_size(array, path.stat().st_size)
        check_chunks(array)
    except Exception as error:  # for a damaged file h5py raises almost anything
        raise InputError(f"{path}: not a readable HDF5 file with the array '{key}' ({error})") from None
    return array


def read_clips(folder: Path) -> list[tuple[str, str, int, int]]:
    """Return video_id, class, start and end in seconds of each clip."""
    path = folder / ANNOTATIONS
    rows, counts = [], Counter()
    for number, line in enumerate(read_text(path, f"lines of '{LINE}'").splitlines(), start=1):
        if number == 1 and line == HEADER:
            continue
        try:
            name, youtube_id, _, start, end = line.split("&")
            start, end = int(start), int(end)
        except ValueError:
            raise InputError(f"{path}: line {number}: expected '{LINE}', got {shorten(line)}") from None
        if not 0 <= start <= end <= SECONDS:
            raise InputError(f"{path}: line {number}: expected seconds from 0 to {SECONDS}, got {start} to {end}")
        counts[youtube_id] += 1
        video_id = youtube_id if counts[youtube_id] == 1 else f"{youtube_id}#{counts[youtube_id]}"
        rows.append((video_id, name, start, end))
    if not rows:
        raise InputError(f"{path}: expected at least one clip, got none")
    return rows


def _read_subsets(folder: Path, count: int) -> list[str]:
    """Return the subset of each of `count` rows; InputError unless each row is in exactly one."""
    subsets: list[str | None] = [None] * count
    for subset in SUBSETS:
        path = folder / f"{subset}_order.h5"
        for row in open_array(path, "order")[()].tolist():
            if not isinstance(row, int) or not 0 <= row < count:
                raise InputError(f"{path}: expected rows below {count} as in {ANNOTATIONS}, got {shorten(row)}")
            if subsets[row] is not None:
                raise InputError(f"{path}: row {row} is in '{subsets[row]}' already")
            subsets[row] = subset
    if None in subsets:
        raise InputError(f"{folder}: row {subsets.index(None)} is in no subset, expected {', '.join(SUBSETS)}")
    return subsets


def background_ids(folder: Path) -> list[str]:
    """Return the video_ids of the clips without an event."""
    return [f"{BACKGROUND}_{row:04d}" for row in range(len(open_array(folder / "labels_noisy.h5", KEY)))]


def check_clip_shape(array: h5py.Dataset, count: int) -> None:
    """Raise an InputError unless the array has features of `count` clips."""
    if array.ndim not in (3, 5) or array.shape[:2] != (count, SECONDS):
        expected = f"({count}, {SECONDS}, channels) or ({count}, {SECONDS}, rows, columns, channels)"
        raise InputError(f"{array.file.filename}: expected shape {expected} of '{KEY}', got {array.shape}")
