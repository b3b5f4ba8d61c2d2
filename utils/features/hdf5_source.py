"""Features in one HDF5 file, ours or a stranger's."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from utils.datasets import Rate
from utils.errors import InputError
from utils.features.sources import Source, checked_rate
from utils.formats.hdf5 import (
    check_chunks,
    check_no_external_data,
    check_stored_size,
    dataset_paths,
    dataset_rows,
    follow,
    names_in,
)

_SHORT = 300  # characters of h5py's message


class HDF5Source(Source):
    """`/<modality>/<video_id>`; a slash in a video_id nests groups, as HDF5 has it.

    Soft links are followed within the file; a group that is linked to from several places is listed at the first. What
    lies outside the file is never opened, and no values are read for which the file has not the bytes.
    """

    form = "HDF5"

    def __init__(self, path: Path):
        self.path = path
        with self._reading("not a readable HDF5 file"):
            self._bytes = path.stat().st_size
            self._file = h5py.File(path, "r")
            self.simulated = "simulated" in self._file.attrs
            names = list(names_in(self._file))
        self._groups = {name: item for name in names if isinstance(item := self._at_root(name), h5py.Group)}
        self.modalities = tuple(self._groups)
        self._listed: dict[str, list[str]] = {}  # by modality
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in names}  # of what was checked
        self._unpacked: dict[str, set[str]] = {name: set() for name in names}

    def _at_root(self, name: str) -> h5py.Group | h5py.Dataset | h5py.Datatype:
        with self._reading(f"'{name}' cannot be read"):
            return follow(self._file, name)

    def video_ids(self, modality: str) -> list[str]:
        if modality not in self._listed:
            with self._reading(f"the group '{modality}' cannot be read"):
                self._listed[modality] = list(dataset_paths(self._groups[modality], {self._groups[modality]}))
        return self._listed[modality]

    def rate(self, modality: str) -> Rate | None:
        with self._reading(f"fps and stride of '{modality}' cannot be read"):
            places = (self._file.attrs, self._groups[modality].attrs)  # the group's own before the file's
            said = {name: _number(place, name) for place in places for name in ("fps", "stride") if name in place}
        return checked_rate(said, f"{self.path}: the attributes of '{modality}'") if said else None

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        if (known := self._shapes[modality].get(video_id)) is not None:
            return known
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            return getattr(self._found(modality, video_id), "shape", None) or ()  # () for what holds no array

    def read(self, modality: str, video_id: str) -> np.ndarray:
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            return self._unpackable(modality, video_id)[()]

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            return dataset_rows(self._unpackable(modality, video_id), snippets)

    def _unpackable(self, modality: str, video_id: str) -> h5py.Dataset | h5py.Group | h5py.Datatype:
        """What lies there; of an array it is checked, once, that each packed chunk is whole."""
        found = self._found(modality, video_id)
        if video_id not in self._unpacked[modality] and isinstance(found, h5py.Dataset):
            check_chunks(found)
            self._unpacked[modality].add(video_id)
        return found

    def _found(self, modality: str, video_id: str) -> h5py.Dataset | h5py.Group | h5py.Datatype:
        """What lies there; of an array it is checked, once, that the file holds what it promises."""
        found = follow(self._groups[modality], video_id)
        if video_id not in self._shapes[modality] and isinstance(found, h5py.Dataset) and found.shape is not None:
            check_no_external_data(found)
            check_stored_size(found, self._bytes)
            self._shapes[modality][video_id] = found.shape
        return found

    def close(self) -> None:
        """Let go of the file; nothing can be read any more."""
        self._file.close()

    @contextmanager
    def _reading(self, complaint: str) -> Iterator[None]:
        """What h5py raises for a damaged file, and the functions below for one not to be opened -> InputError."""
        try:
            yield
        except MemoryError:
            raise InputError(f"{self.path}: {complaint} (it does not fit into memory)") from None
        except Exception as error:  # for flipped bits h5py raises almost anything
            reason = str(error.args[-1] if error.args else type(error).__name__)
            raise InputError(f"{self.path}: {complaint} ({reason[:_SHORT]})") from None


def _number(attributes: h5py.AttributeManager, name: str) -> object:
    """The number that an attribute holds; of another attribute what it is, unread."""
    attribute = attributes.get_id(name)
    if attribute.shape is None or math.prod(attribute.shape) != 1 or attribute.dtype.kind not in "biuf":
        return f"{attribute.dtype} of shape {attribute.shape}"
    return np.asarray(attributes[name]).item()
