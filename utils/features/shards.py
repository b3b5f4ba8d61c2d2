"""Features in many HDF5 files, read as one: `features-00000-of-00064.h5` to `features-00063-of-00064.h5` in a folder.

Each shard is a features.h5 of its own that holds some of the videos, each with all its modalities. Few are open at a
time, and no features are read to know which videos there are.
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

MAX_OPEN = 16
_NAME = re.compile(r"features-(\d{1,6})-of-(\d{1,6})\.h5", re.ASCII)


def shard_name(number: int, count: int) -> str:
    return f"features-{number:05d}-of-{count:05d}.h5"


def is_shard(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None


class ShardedSource(Source):
    """All shards of a folder. Reading is for one thread at a time; others wait."""

    form = "sharded HDF5"

    def __init__(self, path: Path):
        """InputError: shards that are missing, surplus or there twice, a video in two of them, differing rates."""
        self.path = path
        self._files = _complete(path)
        self._open: OrderedDict[int, HDF5Source] = OrderedDict()  # the one used last at the end
        self._lock = RLock()
        self._shards: dict[str, int] = {}  # by video
        self._listed: dict[str, list[str]] = defaultdict(list)  # by modality
        self._rates: dict[str, Rate | None] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
        self.simulated = False
        for number in range(len(self._files)):
            self._list(number)
        self.modalities = tuple(self._listed)

    def _list(self, number: int) -> None:
        source = self._source(number)
        self.simulated |= source.simulated
        for modality in source.modalities:
            rate = source.rate(modality)
            if self._rates.setdefault(modality, rate) != rate:
                raise InputError(
                    f"{source.path}: says {rate} for '{modality}', shards before it {self._rates[modality]}; "
                    "extract all of them at one rate"
                )
            listed = self._listed[modality]
            for video_id in map(intern, source.video_ids(modality)):
                if (first := self._shards.setdefault(video_id, number)) != number:
                    raise InputError(
                        f"{source.path}: holds video '{video_id}', which {self._files[first].name} holds too; "
                        "remove one of them"
                    )
                listed.append(video_id)

    def _source(self, number: int) -> HDF5Source:
        if number not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[number] = HDF5Source(self._files[number])
        self._open.move_to_end(number)
        return self._open[number]

    def shard(self, video_id: str) -> int:
        """The number of the shard that holds a video."""
        return self._shards[video_id]

    def place(self, modality: str, video_id: str) -> Path:
        return self._files[self._shards[video_id]]

    def video_ids(self, modality: str) -> list[str]:
        return self._listed[modality]

    def rate(self, modality: str) -> Rate | None:
        return self._rates[modality]

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        with self._lock:
            if video_id not in self._shapes[modality]:
                self._measure(self._shards[video_id])
            known = self._shapes[modality].get(video_id)
            return self._source(self._shards[video_id]).shape(modality, video_id) if known is None else known

    def _measure(self, number: int) -> None:
        """Note all shapes of a shard, since annotations name videos in another order; of what is damaged none."""
        source = self._source(number)
        for modality in source.modalities:
            for video_id in source.video_ids(modality):
                try:
                    self._shapes[modality][intern(video_id)] = source.shape(modality, video_id)
                except InputError:  # which is said to whoever asks for that video
                    continue

    def read(self, modality: str, video_id: str) -> np.ndarray:
        with self._lock:
            return self._source(self._shards[video_id]).read(modality, video_id)

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        with self._lock:
            return self._source(self._shards[video_id]).rows(modality, video_id, snippets)


def _complete(folder: Path) -> list[Path]:
    """The shards in a folder by their numbers; InputError unless they are one whole set and the only HDF5 files."""
    files: dict[int, Path] = {}
    counts = set()
    for path in sorted(folder.glob("*.h5")):
        name = _NAME.fullmatch(path.name)
        if name is None:
            raise InputError(f"{folder}: {path.name} lies beside shards of features; move it or them away")
        number, count = int(name[1]), int(name[2])
        counts.add(count)
        if number in files and len(counts) == 1:
            raise InputError(f"{folder}: {files[number].name} and {path.name} are one shard; remove one of them")
        files[number] = path
    if len(counts) > 1:
        sets = " and ".join(f"of {count}" for count in sorted(counts))
        raise InputError(f"{folder}: holds shards {sets}, which are several sets; keep one of them")
    (count,) = counts
    if max(files) >= count:
        raise InputError(f"{folder}: {files[max(files)].name} is surplus; the last one of {count} is {count - 1}")
    if len(files) < count:
        first = shard_name(next(number for number in range(count) if number not in files), count)
        raise InputError(f"{folder}: of {count} shards {count - len(files)} are missing, first {first}; copy them here")
    return [files[number] for number in range(count)]
