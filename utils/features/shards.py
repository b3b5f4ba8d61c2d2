"""Sharded features: many HDF5 files in one folder, read as one source.

The files are `features-00000-of-00064.h5` to `features-00063-of-00064.h5`. Each contains some of the videos, with all
their modalities. Few files are open at a time, and listing the videos reads no features.
"""

import re
from collections import OrderedDict, defaultdict
from pathlib import Path
from sys import intern
from threading import RLock

import numpy as np

from utils.datasets import Rate
from utils.errors import InputError
from utils.features.hdf5_source import HDF5Source
from utils.features.sources import Source
from utils.formats.hdf5 import RowPlaces

MAX_OPEN = 16  # files
_NAME = re.compile(r"features-(\d{1,6})-of-(\d{1,6})\.h5", re.ASCII)


def shard_name(number: int, count: int) -> str:
    """Return the file name of one of `count` shards."""
    return f"features-{number:05d}-of-{count:05d}.h5"


def is_shard(path: Path) -> bool:
    """Return True for the path of a shard, judging by its name."""
    return _NAME.fullmatch(path.name) is not None


class ShardedSource(Source):
    """Shards of one folder. Threads read one after another.

    Raises:
        InputError: A shard is missing or surplus, shards differ in their rate, or two of them contain the same video.
    """

    form = "sharded HDF5"

    def __init__(self, path: Path):
        self.path = path
        self._files = _shards_in(path)
        self._open: OrderedDict[int, HDF5Source] = OrderedDict()  # least recently used first
        self._lock = RLock()
        self._shards: dict[str, int] = {}  # by video
        self._video_ids: dict[str, list[str]] = defaultdict(list)  # by modality
        self._rates: dict[str, Rate | None] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)  # by modality and video
        self.simulated = False
        for number in range(len(self._files)):
            self._list_videos(number)
        self.modalities = tuple(self._video_ids)

    def _list_videos(self, number: int) -> None:
        source = self._source(number)
        self.simulated |= source.simulated
        if number == 0:
            self.recipe = source.recipe
        if source.recipe != self.recipe:
            raise InputError(f"{source.path}: has another recipe than earlier shards; extract all shards by one recipe")
        for modality in source.modalities:
            rate = source.rate(modality)
            if self._rates.setdefault(modality, rate) != rate:
                raise InputError(
                    f"{source.path}: '{modality}' has {rate}, in earlier shards {self._rates[modality]}; "
                    "extract all shards at one rate"
                )
            for video_id in map(intern, source.video_ids(modality)):
                if (first := self._shards.setdefault(video_id, number)) != number:
                    raise InputError(
                        f"{source.path}: video '{video_id}' is also in {self._files[first].name}; remove one of them"
                    )
                self._video_ids[modality].append(video_id)

    def _source(self, number: int) -> HDF5Source:
        """Return an open shard; close the least recently used one if there are too many."""
        if number not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[number] = HDF5Source(self._files[number])
        self._open.move_to_end(number)
        return self._open[number]

    def shard(self, video_id: str) -> int:
        """Return the number of the shard that contains a video."""
        return self._shards[video_id]

    def path_of(self, modality: str, video_id: str) -> Path:
        """Return the shard that contains a video."""
        return self._files[self._shards[video_id]]

    def video_ids(self, modality: str) -> list[str]:
        """Return the videos of all shards, shard by shard."""
        return self._video_ids[modality]

    def rate(self, modality: str) -> Rate | None:
        """Return the rate that all shards share."""
        return self._rates[modality]

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return the stored shape; the first call for a shard notes all its shapes."""
        with self._lock:
            number = self._shards[video_id]
            if video_id not in self._shapes[modality]:
                self._note_shapes(number)
            shape = self._shapes[modality].get(video_id)
            return self._source(number).shape(modality, video_id) if shape is None else shape

    def _note_shapes(self, number: int) -> None:
        """Note the shapes of a whole shard, because annotations list the videos in another order."""
        source = self._source(number)
        for modality in source.modalities:
            for video_id in source.video_ids(modality):
                try:
                    self._shapes[modality][intern(video_id)] = source.shape(modality, video_id)
                except InputError:  # raised again when this video's shape is requested
                    continue

    def places(self, modality: str, video_id: str) -> RowPlaces | None:
        """Return where the rows of a video are stored, None if only HDF5 can read them."""
        with self._lock:
            return self._source(self._shards[video_id]).places(modality, video_id)

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return all values of a video."""
        with self._lock:
            return self._source(self._shards[video_id]).read(modality, video_id)

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """Return rows of a video."""
        with self._lock:
            return self._source(self._shards[video_id]).rows(modality, video_id, snippets)


def _shards_in(folder: Path) -> list[Path]:
    """Return the shards in a folder by number; raise InputError unless they are one complete set."""
    files: dict[int, Path] = {}
    counts = set()
    for path in sorted(folder.glob("*.h5")):
        name = _NAME.fullmatch(path.name)
        if name is None:
            raise InputError(f"{folder}: {path.name} is beside shards of features; move it or the shards away")
        number, count = int(name[1]), int(name[2])
        counts.add(count)
        if number in files and len(counts) == 1:
            raise InputError(f"{folder}: {files[number].name} and {path.name} have the same number; remove one of them")
        files[number] = path
    if len(counts) > 1:
        sets = " and ".join(f"of {count}" for count in sorted(counts))
        raise InputError(f"{folder}: expected one set of shards, got shards {sets}; remove the others")
    (count,) = counts
    if max(files) >= count:
        raise InputError(f"{folder}: {files[max(files)].name} is surplus; the last of {count} shards is {count - 1}")
    if len(files) < count:
        first = shard_name(next(number for number in range(count) if number not in files), count)
        raise InputError(f"{folder}: {count - len(files)} of {count} shards not found, first {first}; copy them here")
    return [files[number] for number in range(count)]
