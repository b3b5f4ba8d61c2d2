"""Features in HDF5 files whose shapes and places are known: read without HDF5, and without an object per video."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.datasets import Rate
from utils.errors import InputError
from utils.features.sources import Source
from utils.formats.hdf5 import PLACED_DTYPES
from utils.formats.rows import iter_blocks, read_rows

Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def stamp_of(status: os.stat_result) -> Stamp:
    """Return size and time stamp of a file."""
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Places:
    """Shapes of the N arrays of a modality, and where their values are.

    Attributes:
        numbers: Number of each video by id, in order.
        length: (N,) rows; 0 with `width` 0 for an array that must be read with HDF5, such as a compressed one.
        width: (N,) channels.
        dtype: (N,) numbers in `PLACED_DTYPES`.
        file: (N,) number of the file.
        chunk_length: (N,) rows per chunk; the last chunk may have fewer. A contiguous array has one chunk.
        chunk_starts: (N + 1,) first chunk of each array.
        offsets: (K,) bytes before each chunk in its file.
    """

    numbers: dict[str, int]
    length: np.ndarray
    width: np.ndarray
    dtype: np.ndarray
    file: np.ndarray
    chunk_length: np.ndarray
    chunk_starts: np.ndarray
    offsets: np.ndarray


class Facts(NamedTuple):
    """Attributes of a source, see `Source`."""

    path: Path
    form: str
    simulated: bool
    recipe: dict | None


class IndexedSource(Source):
    """Features of an index (utils/features/index.py).

    The first read of an array goes through HDF5, which verifies checksums, and compares the values with those at the
    place in the index. Every read checks that the file has not changed.

    Args:
        index: Path of the index.
        facts: The same source without index, or its attributes.
        rates: Rate of each modality, None if it is not stored.
        places: Arrays of each modality.
        files: Paths and stamps of the files.
        open_plain: Function that opens the source without the index.
    """

    def __init__(
        self,
        index: Path,
        facts: Facts | Source,
        rates: Mapping[str, Rate | None],
        places: Mapping[str, Places],
        files: Mapping[Path, Stamp],
        open_plain: Callable[[], Source],
    ):
        self.index = index
        self.path, self.form, self.simulated, self.recipe = facts.path, facts.form, facts.simulated, facts.recipe
        self.modalities = tuple(places)
        self.rates, self.places, self._open_plain = rates, places, open_plain
        self._files = list(files.items())
        self._is_verified = {modality: np.zeros(len(each.numbers), bool) for modality, each in places.items()}

    @cached_property
    def _plain(self) -> Source:
        return self._open_plain()

    def video_ids(self, modality: str) -> list[str]:
        """Return the videos in stored order."""
        return list(self.places[modality].numbers)

    def numbers(self, modality: str) -> dict[str, int]:
        """Return the number of each video in stored order."""
        return self.places[modality].numbers

    def rate(self, modality: str) -> Rate | None:
        """Return the stored rate."""
        return self.rates[modality]

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return the stored shape."""
        places, number = self.places[modality], self.places[modality].numbers[video_id]
        if not places.width[number]:
            return self._plain.shape(modality, video_id)
        return int(places.length[number]), int(places.width[number])

    def shapes(self, modality: str, video_ids: Sequence[str]) -> np.ndarray:
        """Return the shapes (N, 2) of arrays, (0, 0) where HDF5 must be asked."""
        places = self.places[modality]
        rows = np.fromiter(map(places.numbers.__getitem__, video_ids), np.int64, len(video_ids))
        return np.stack([places.length[rows], places.width[rows]], axis=1).astype(np.int64)

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return all values of an array."""
        places, number = self.places[modality], self.places[modality].numbers[video_id]
        if self._is_verified[modality][number]:
            return self._read_rows(modality, video_id, np.arange(places.length[number]))
        with self._opened(modality, video_id):
            values = self._plain.read(modality, video_id)
        if places.width[number]:
            if values.shape != self.shape(modality, video_id) or not self._is_placed(modality, video_id, values):
                raise InputError(f"{self.index}: is wrong for '{modality}/{video_id}'; delete it")
            self._is_verified[modality][number] = True
        return values

    def _is_placed(self, modality: str, video_id: str, values: np.ndarray) -> bool:
        placed = self._read_rows(modality, video_id, np.arange(len(values)))
        return placed.dtype == values.dtype and placed.tobytes() == values.tobytes()

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """Return rows of an array, reading little else."""
        if self._is_verified[modality][self.places[modality].numbers[video_id]]:
            return self._read_rows(modality, video_id, snippets)
        return self.read(modality, video_id)[snippets]

    def path_of(self, modality: str, video_id: str) -> Path:
        """Return the file that contains an array."""
        return self._plain.path_of(modality, video_id)

    def shard(self, video_id: str) -> int:
        """Return the number of the file that contains a video."""
        places = next(places for places in self.places.values() if video_id in places.numbers)
        return int(places.file[places.numbers[video_id]])

    def _read_rows(self, modality: str, video_id: str, rows: np.ndarray) -> np.ndarray:
        """Read sorted rows of an array at its place in the file."""
        places, number = self.places[modality], self.places[modality].numbers[video_id]
        chunk_length, first_chunk = int(places.chunk_length[number]), int(places.chunk_starts[number])
        values = np.empty((len(rows), places.width[number]), PLACED_DTYPES[places.dtype[number]])
        with self._opened(modality, video_id) as descriptor:
            for positions, first, _ in iter_blocks(rows, chunk_length):
                chunk = first // chunk_length
                offset = int(places.offsets[first_chunk + chunk])
                read_rows(descriptor, offset, rows[positions] - chunk * chunk_length, values[positions])
        return values

    @contextmanager
    def _opened(self, modality: str, video_id: str) -> Iterator[int]:
        """Open the file of an array, which must be the one that was indexed."""
        places = self.places[modality]
        path, stamp = self._files[places.file[places.numbers[video_id]]]
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                if stamp_of(os.fstat(descriptor)) != stamp:
                    raise InputError(f"{path}: has changed since it was opened; start the command again")
                yield descriptor
            finally:
                os.close(descriptor)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: '{modality}/{video_id}' cannot be read ({reason})") from None
