"""Features in one HDF5 file."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from utils.datasets import Rate
from utils.errors import InputError
from utils.features.layouts import STREAMS
from utils.features.recipes import RECIPE, parse_recipe
from utils.features.sources import Source, checked_rate
from utils.formats.hdf5 import (
    RowPlaces,
    check_chunks,
    check_no_external_data,
    check_stored_size,
    dataset_paths,
    dataset_rows,
    follow,
    names_in,
    row_places,
)

VIDEO_PREFIX = "v_"  # of ActivityNet's feature files, not of its annotations
_MAX_MODALITIES = 8  # with more groups at the top of a file, they may be videos
_MESSAGE_LENGTH = 300  # characters quoted of a message of h5py


class HDF5Source(Source):
    """One HDF5 file with datasets `/<modality>/<video_id>`; a slash in a video_id nests groups.

    The order `/<video_id>/<modality>`, as in ActivityNet's C3D file, is recognized. Its prefix `v_` of every video is
    left out, as in ActivityNet's annotations. A file of datasets `/<video_id>` alone has one modality, which is called
    like the file without its extension.

    Soft links are followed within the file. A group with several links is listed at the first one only. No other file
    is opened, and no dataset is read that claims more values than the file can contain.
    """

    form = "HDF5"

    def __init__(self, path: Path):
        self.path = path
        with self._reading("not a readable HDF5 file"):
            self._file_bytes = path.stat().st_size
            self._file = h5py.File(path, "r")
            self.simulated = "simulated" in self._file.attrs
            self.recipe = _read_recipe(self._file.attrs)
            names = list(names_in(self._file))
        self._groups: dict[str, h5py.Group] = {}
        has_arrays = False
        for name in names:
            with self._reading(f"'{name}' cannot be read"):
                if isinstance(item := follow(self._file, name), h5py.Group):
                    self._groups[name] = item
                has_arrays |= isinstance(item, h5py.Dataset)
        if has_arrays and not self._groups:
            self._groups = {path.stem: self._file}
        try:
            self._members = self._read_members()
        except Exception:  # of a damaged group, which reading reports
            self._members = {}
        self.modalities = tuple(sorted(set().union(*self._members.values())) or self._groups)
        self._video_ids: dict[str, list[str]] = {}  # by modality
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)  # of checked sizes
        self._unpacked: dict[str, set[str]] = defaultdict(set)  # videos whose chunks are checked

    def _read_members(self) -> dict[str, frozenset[str]]:
        """Return the modalities of each video in a file of the order video/modality, {} for the other order.

        The groups at the top are videos if the few names in them are of modalities, or fewer than the groups.
        """
        if not self._groups or "fps" in next(iter(self._groups.values())).attrs:
            return {}
        members, every = {}, set()
        for name, group in self._groups.items():
            if _is_modality(name):
                return {}
            inside = frozenset(itertools.islice(names_in(group), _MAX_MODALITIES + 1))
            members[name] = inside
            every |= inside
            if not inside or len(every) > _MAX_MODALITIES:
                return {}
        if not all(map(_is_modality, every)) and len(members) <= max(_MAX_MODALITIES, len(every)):
            return {}
        first, inside = next(iter(members.items()))
        if not all(isinstance(follow(self._groups[first], name), h5py.Dataset) for name in inside):
            return {}
        prefix = VIDEO_PREFIX if all(name.startswith(VIDEO_PREFIX) for name in members) else ""
        self._groups = {name.removeprefix(prefix): group for name, group in self._groups.items()}
        return {name.removeprefix(prefix): inside for name, inside in members.items()}

    def video_ids(self, modality: str) -> list[str]:
        """Return the paths of all datasets in the modality's group."""
        if modality not in self._video_ids and self._members:
            self._video_ids[modality] = [video for video, names in self._members.items() if modality in names]
        elif modality not in self._video_ids:
            with self._reading(f"the group '{modality}' cannot be read"):
                group = self._groups[modality]
                self._video_ids[modality] = list(dataset_paths(group, {group}))
        return self._video_ids[modality]

    def rate(self, modality: str) -> Rate | None:
        """Return the rate in the attributes of the modality's group, or else of the file."""
        with self._reading(f"fps and stride of '{modality}' cannot be read"):
            attributes = {}
            groups = [self._file] if self._members else [self._file, self._groups[modality]]
            for level in (group.attrs for group in groups):  # the modality's group takes precedence
                attributes |= {name: _read_number(level, name) for name in ("fps", "stride") if name in level}
        return checked_rate(attributes, f"{self.path}: the attributes of '{modality}'") if attributes else None

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return the shape of the dataset, () for an item that is not an array."""
        if (shape := self._shapes[modality].get(video_id)) is not None:
            return shape
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            return getattr(self._item(modality, video_id), "shape", None) or ()

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return all values of the dataset."""
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            return self._checked_item(modality, video_id)[()]

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """Return rows of the dataset, reading only the chunks that contain them."""
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            return dataset_rows(self._checked_item(modality, video_id), snippets)

    def shard(self, video_id: str) -> int:
        """Return the number of the file, see ShardedSource."""
        return 0

    def places(self, modality: str, video_id: str) -> RowPlaces | None:
        """Return where the rows of the dataset are stored, None if only HDF5 can read them."""
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            item = self._item(modality, video_id)
            return row_places(item) if isinstance(item, h5py.Dataset) and item.shape is not None else None

    def close(self) -> None:
        """Close the file; the source cannot be used any more."""
        self._file.close()

    def _item(self, modality: str, video_id: str) -> h5py.Dataset | h5py.Group | h5py.Datatype:
        """Return the item of a video; check once that the file can contain all values of a dataset."""
        group, name = (video_id, modality) if self._members else (modality, video_id)
        item = follow(self._groups[group], name)
        if video_id not in self._shapes[modality] and isinstance(item, h5py.Dataset) and item.shape is not None:
            check_no_external_data(item)
            check_stored_size(item, self._file_bytes)
            self._shapes[modality][video_id] = item.shape
        return item

    def _checked_item(self, modality: str, video_id: str) -> h5py.Dataset | h5py.Group | h5py.Datatype:
        """Return the item of a video; check once that every compressed chunk of a dataset is complete."""
        item = self._item(modality, video_id)
        if video_id not in self._unpacked[modality] and isinstance(item, h5py.Dataset):
            check_chunks(item)
            self._unpacked[modality].add(video_id)
        return item

    @contextmanager
    def _reading(self, complaint: str) -> Iterator[None]:
        """Turn every exception into an InputError: for a damaged file, h5py raises almost anything."""
        try:
            yield
        except MemoryError:
            raise InputError(f"{self.path}: {complaint} (it does not fit into memory)") from None
        except Exception as error:
            reason = str(error.args[-1] if error.args else type(error).__name__)
            raise InputError(f"{self.path}: {complaint} ({reason[:_MESSAGE_LENGTH]})") from None


def _is_modality(name: str) -> bool:
    return name in STREAMS or name.endswith("_features")


def _read_recipe(attributes: h5py.AttributeManager) -> dict | None:
    """Return the recipe in the attributes of a file, None without one; ValueError for an invalid one."""
    if RECIPE not in attributes:
        return None
    attribute = attributes.get_id(RECIPE)
    if attribute.shape != () or attribute.dtype.kind != "S":  # HDF5 has no checksum for texts of variable length
        raise ValueError(f"expected a recipe of fixed length, got {attribute.dtype} of shape {attribute.shape}")
    return parse_recipe(attributes[RECIPE].decode())


def _read_number(attributes: h5py.AttributeManager, name: str) -> object:
    """Return a numeric attribute, or a description of any other attribute without reading it."""
    attribute = attributes.get_id(name)
    if attribute.shape is None or math.prod(attribute.shape) != 1 or attribute.dtype.kind not in "biuf":
        return f"{attribute.dtype} of shape {attribute.shape}"
    return np.asarray(attributes[name]).item()
