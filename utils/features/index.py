"""Index of a dataset folder, so that a training starts fast and needs little memory per video.

The file `features.index` is a .npz file of columns: the annotated videos, and the shape and place of every array in
HDF5. It lists size and time stamp of the files that it was made from, and is made again if one of them differs. Other
forms of features have no index. Results are the same without it.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.annotations import Annotations, find_annotations, load_annotations
from utils.datasets import Rate
from utils.errors import InputError
from utils.features.hdf5_source import HDF5Source
from utils.features.indexed import Facts, IndexedSource, Places, Stamp, stamp_of
from utils.features.shards import ShardedSource
from utils.features.sources import Source
from utils.features.store import FeatureStore, hdf5_features, open_features, open_source
from utils.formats.ave import is_ave
from utils.formats.files import atomic_write
from utils.formats.hdf5 import PLACED_DTYPES
from utils.formats.npy import load_plain_array
from utils.video_table import VideoTable, numbered

INDEX = "features.index"  # file name
FORMAT = 1  # raise it for other columns, or for another check of a dataset
_PLACES = ("length", "width", "dtype", "file", "chunk_length")  # columns with one value per array
_VIDEOS = ("subset", "duration")  # columns with one value per video
_PARTS = {"labels": "label", "segments": "segment", "ambiguous": "ambiguous"}  # columns of any length, and their starts


def open_dataset(path: str | Path, modalities: Sequence[str] = ("rgb", "flow")) -> tuple[Annotations, FeatureStore]:
    """Open the annotations and the features of a dataset folder, by its index if the features are in HDF5.

    Raises:
        InputError: As `load_annotations` and `open_features`.
    """
    if opened := open_index(Path(path)):
        annotations, source = opened
        return annotations, open_features(path, modalities, source=source)
    return load_annotations(path), open_features(path, modalities)


def open_index(path: Path) -> tuple[Annotations, IndexedSource] | None:
    """Return the annotations and the features of a dataset folder, None if it is of a form without index.

    The index is made if there is none. One line says that an index is replaced, or cannot be written.

    Raises:
        InputError: The annotations or the features cannot be used.
    """
    if not path.is_dir() or is_ave(path) or not hdf5_features(path) or not find_annotations(path):
        return None
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except _UnusableIndex as error:
        print(f"{path / INDEX}: {error}; making it again")
    stamps = file_stamps(path)  # before the files are read
    annotations, opened = load_annotations(path), open_source(path)
    places = {modality: _find_places(opened, modality) for modality in opened.modalities}
    rates = {modality: opened.rate(modality) for modality in opened.modalities}
    source = indexed_source(path, opened, rates, places, stamps)
    try:
        save_index(path, annotations, source, stamps)
    except InputError as error:
        print(f"{error}; every start has to read all shapes")
    return annotations, source


class _UnusableIndex(Exception):
    """Reason for which an index is made again."""


def save_index(path: Path, annotations: Annotations, source: IndexedSource, stamps: Mapping[str, Stamp]) -> None:
    """Write the index of a dataset folder, whose files have these stamps.

    Raises:
        InputError: The file cannot be written.
    """
    meta = {
        "format": FORMAT,
        "stamps": stamps,
        "classes": annotations.classes,
        "labels": annotations.videos.classes,
        "subsets": annotations.videos.subsets,
        "form": source.form,
        "simulated": source.simulated,
        "recipe": source.recipe,
        "path": str(source.path.relative_to(path)),
        "rates": source.rates,
    }
    columns = {f"videos/{name}": column for name, column in annotations.videos.columns.items()}
    columns["videos/ids"] = _join(annotations.videos)
    for number, places in enumerate(source.places.values()):
        columns[f"{number}/ids"] = _join(places.numbers)
        columns |= {f"{number}/{name}": getattr(places, name) for name in ("chunk_starts", "offsets")}
        columns |= {f"{number}/{name}": _compact(getattr(places, name)) for name in _PLACES}
    with atomic_write(path / INDEX) as partial, partial.open("wb") as file:
        np.savez(file, meta=_to_bytes(json.dumps(meta)), **columns)


def remember(store: FeatureStore, question: object, answer: Callable[[], list[str]]) -> list[str]:
    """Return texts that depend on a dataset and a question only; the index stores them.

    Args:
        store: Features of the dataset.
        question: Anything whose representation names the question.
        answer: Function that finds the texts; it is not called if the index has them.
    """
    if not isinstance(store.source, IndexedSource):
        return answer()
    path = store.source.index
    name = f"answers/{hashlib.sha256(repr((store.modalities, question)).encode()).hexdigest()}"
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return list(map(str, json.loads(archive.read(name))))
    texts = answer()
    with suppress(InputError, OSError), atomic_write(path) as partial:
        shutil.copyfile(path, partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(name, json.dumps(texts))
    return texts


def file_stamps(path: Path) -> dict[str, Stamp]:
    """Return size and time stamp of the annotations and of the files of features, by name."""
    files = [find_annotations(path), *hdf5_features(path)]
    return {str(file.relative_to(path)): stamp_of(file.stat()) for file in files}


def indexed_source(
    path: Path,
    facts: Facts | Source,
    rates: Mapping[str, Rate | None],
    places: Mapping[str, Places],
    stamps: Mapping[str, Stamp],
) -> IndexedSource:
    """Return the features of a dataset folder with the content of its index."""
    files = {file: stamps[file.name] for file in hdf5_features(path)}
    return IndexedSource(path / INDEX, facts, rates, places, files, lambda: open_source(path))


def _find_places(source: HDF5Source | ShardedSource, modality: str) -> Places:
    """Return the shapes and places of the arrays of a modality."""
    video_ids = source.video_ids(modality)
    rows, chunks, offsets = [], [0], []
    for video_id in tqdm(video_ids, f"indexing {modality}", unit="video", leave=False, delay=2, disable=None):
        try:
            found = source.places(modality, video_id)
        except InputError:  # raised again when the video is used
            found = None
        rows.append((*found[:3], source.shard(video_id), found.chunk_length) if found else (0,) * len(_PLACES))
        offsets += found.offsets if found else []
        chunks.append(len(offsets))
    columns = np.array(rows, np.uint32).reshape(-1, len(_PLACES)).T
    columns = dict(zip(_PLACES, columns, strict=True))
    return Places(
        numbered(video_ids), **columns, chunk_starts=np.array(chunks, np.uint32), offsets=np.array(offsets, np.uint64)
    )


def _read(path: Path) -> tuple[Annotations, IndexedSource]:
    """Return the annotations and the features of an index.

    Raises:
        FileNotFoundError: There is no index.
        _UnusableIndex: The index is damaged, or not that of the files in the folder.
    """
    if not (path / INDEX).exists():
        raise FileNotFoundError(path / INDEX)
    try:
        meta = json.loads(_text(path, "meta"))
        if meta["format"] != FORMAT:
            raise _UnusableIndex("of another version")
        stamps = {name: tuple(stamp) for name, stamp in meta["stamps"].items()}
        if stamps != file_stamps(path):
            raise _UnusableIndex("not up to date")
        videos = _read_videos(path, meta)
        places: dict[str, Places] = {}
        known = [(load_plain_array(path / INDEX, "videos/ids"), videos.numbers)]
        for number, modality in enumerate(meta["rates"]):
            places[modality] = _read_places(path, str(number), len(stamps) - 1, known)
        rates = {modality: rate and Rate(*rate) for modality, rate in meta["rates"].items()}
        facts = Facts(path / meta["path"], meta["form"], meta["simulated"], meta["recipe"])
        annotations = Annotations(tuple(meta["classes"]), videos, where=str(find_annotations(path)))
        return annotations, indexed_source(path, facts, rates, places, stamps)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError, RecursionError):
        raise _UnusableIndex("damaged") from None


def _read_videos(path: Path, meta: dict) -> VideoTable:
    names = [*_VIDEOS, *_PARTS, "segment_labels", *(f"{name}_starts" for name in _PARTS.values())]
    columns = {name: load_plain_array(path / INDEX, f"videos/{name}") for name in names}
    numbers, known = numbered(_split(_text(path, "videos/ids"))), len(meta["labels"])
    _require(all(len(columns[name]) == len(numbers) for name in _VIDEOS))
    _require((columns["subset"] < len(meta["subsets"])).all())
    for rows, name in _PARTS.items():
        _check_starts(columns[f"{name}_starts"], len(numbers), len(columns[rows]))
    _require(len(columns["segments"]) == len(columns["segment_labels"]))
    _require((columns["labels"] < known).all() and (columns["segment_labels"] < known).all())
    return VideoTable(numbers, meta["subsets"], meta["labels"], columns)


def _read_places(path: Path, prefix: str, num_files: int, known: list[tuple[np.ndarray, dict[str, int]]]) -> Places:
    """Return the places of a modality; videos that are numbered equally elsewhere share the memory.

    Args:
        path: Dataset folder.
        prefix: Names of the columns begin with it.
        num_files: Number of files with features.
        known: Joined ids and their numbers, to which this function adds.
    """
    video_ids = load_plain_array(path / INDEX, f"{prefix}/ids")
    numbers = next((numbers for other, numbers in known if np.array_equal(other, video_ids)), None)
    if numbers is None:
        same = {name: name for name in known[0][1]}
        numbers = numbered(same.get(name, name) for name in _split(video_ids.tobytes().decode()))
        known.append((video_ids, numbers))
    columns = {name: load_plain_array(path / INDEX, f"{prefix}/{name}") for name in _PLACES}
    columns = {name: np.broadcast_to(column, len(numbers)) for name, column in columns.items()}
    chunk_starts, offsets = (load_plain_array(path / INDEX, f"{prefix}/{name}") for name in ("chunk_starts", "offsets"))
    _check_starts(chunk_starts, len(numbers), len(offsets))
    _require((columns["dtype"] < len(PLACED_DTYPES)).all() and (columns["file"] < num_files).all())
    return Places(numbers, **columns, chunk_starts=chunk_starts, offsets=offsets)


def _check_starts(starts: np.ndarray, count: int, total: int) -> None:
    _require(len(starts) == count + 1 and starts[0] == 0 and starts[-1] == total and (starts[1:] >= starts[:-1]).all())


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("damaged")


def _compact(column: np.ndarray) -> np.ndarray:
    """Return one value instead of equal ones."""
    return column[:1] if (column == column[:1]).all() else column


def _to_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _join(names: list[str]) -> np.ndarray:
    return _to_bytes("".join(f"{name}\0" for name in names))


def _text(path: Path, member: str) -> str:
    return load_plain_array(path / INDEX, member).tobytes().decode()


def _split(text: str) -> list[str]:
    return text.split("\0")[:-1]
