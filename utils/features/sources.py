"""Formats of features on disk: HDF5, folders of .npy files, the releases' joint file and the AVE release.

A source returns arrays as they are stored. `utils/features/store.py` chooses the source of a folder and combines its
modalities; `utils/features/shards.py` reads many HDF5 files as one source.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from utils.annotations import RELEASE_SUFFIX
from utils.datasets import RELEASE_RATE, Rate
from utils.errors import InputError, shorten
from utils.formats.ave import KEY, background_ids, check_clip_shape, open_array, read_clips
from utils.formats.files import read_json
from utils.formats.hdf5 import (
    check_chunks,
    check_no_external_data,
    check_stored_size,
    dataset_paths,
    dataset_rows,
    follow,
    names_in,
)
from utils.formats.npy import array_shape, load_plain_array, load_plain_rows, load_rows, load_video_ids

JOINT_SUFFIX = "-I3D-JOINTFeatures.npy"
_MESSAGE_LENGTH = 300  # characters quoted of a message of h5py


class Source(Protocol):
    """Features in one format on disk."""

    form: str  # name of the format
    path: Path
    modalities: tuple[str, ...]
    simulated: bool  # True for features that carry the mark of utils/features/simulate.py

    def video_ids(self, modality: str) -> list[str]:
        """Return the videos that have the modality."""

    def rate(self, modality: str) -> Rate | None:
        """Return how the modality was extracted, None if it is not stored."""

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return the stored shape, without reading values where the format allows it."""
        return self.read(modality, video_id).shape

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return the stored array."""

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """Return `read(...)[snippets]` for sorted snippets of a (T, D) array, reading as little else as possible."""
        return self.read(modality, video_id)[snippets]

    def path_of(self, modality: str, video_id: str) -> Path:
        """Return the file that contains the modality of a video."""
        return self.path


class HDF5Source(Source):
    """One HDF5 file with datasets `/<modality>/<video_id>`; a slash in a video_id nests groups.

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
            names = list(names_in(self._file))
        self._groups: dict[str, h5py.Group] = {}
        for name in names:
            with self._reading(f"'{name}' cannot be read"):
                if isinstance(item := follow(self._file, name), h5py.Group):
                    self._groups[name] = item
        self.modalities = tuple(self._groups)
        self._video_ids: dict[str, list[str]] = {}  # by modality
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in names}  # of checked sizes
        self._unpacked: dict[str, set[str]] = {name: set() for name in names}  # videos whose chunks are checked

    def video_ids(self, modality: str) -> list[str]:
        """Return the paths of all datasets in the modality's group."""
        if modality not in self._video_ids:
            with self._reading(f"the group '{modality}' cannot be read"):
                group = self._groups[modality]
                self._video_ids[modality] = list(dataset_paths(group, {group}))
        return self._video_ids[modality]

    def rate(self, modality: str) -> Rate | None:
        """Return the rate in the attributes of the modality's group, or else of the file."""
        with self._reading(f"fps and stride of '{modality}' cannot be read"):
            attributes = {}
            for level in (self._file.attrs, self._groups[modality].attrs):  # the group takes precedence
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

    def close(self) -> None:
        """Close the file; the source cannot be used any more."""
        self._file.close()

    def _item(self, modality: str, video_id: str) -> h5py.Dataset | h5py.Group | h5py.Datatype:
        """Return the item of a video; check once that the file can contain all values of a dataset."""
        item = follow(self._groups[modality], video_id)
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


class FolderSource(Source):
    """Files `<modality>/<video_id>.npy`, with the rate in an optional `features.json` beside the folders.

    `features.json` is `{"fps": 30, "stride": 16}` (stride: frames per snippet). A video_id with a slash needs HDF5.
    """

    form = "one .npy per video"
    simulated = False

    def __init__(self, path: Path):
        self.path = path
        folders = sorted(folder for folder in path.iterdir() if is_modality_folder(folder))
        self._files = {folder.name: {file.stem: file for file in folder.glob("*.npy")} for folder in folders}
        self.modalities = tuple(self._files)

    def video_ids(self, modality: str) -> list[str]:
        """Return the file names without suffix, sorted."""
        return sorted(self._files[modality])

    def rate(self, modality: str) -> Rate | None:
        """Return the rate in `features.json`, which all modalities share."""
        file = self.path / "features.json"
        return checked_rate(read_json(file), str(file)) if file.exists() else None

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return the shape in the file's header."""
        return array_shape(self._files[modality][video_id])

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return the array of one file; object dtype is refused."""
        return load_plain_array(self._files[modality][video_id])

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """Return rows of the array in one file."""
        return load_plain_rows(self._files[modality][video_id], snippets)

    def path_of(self, modality: str, video_id: str) -> Path:
        """Return the video's own file, also where it does not exist."""
        return self._files[modality].get(video_id, self.path / modality / f"{video_id}.npy")


class JointSource(Source):
    """The releases' `<name>-I3D-JOINTFeatures.npy`: one object array of (T, 2048), RGB first, flow last.

    The file is a pickle, so all of it is read at once. `<name>-Annotations/videoname.npy` names its rows.
    """

    form = "release (joint .npy)"
    modalities = ("rgb", "flow")
    simulated = False

    def __init__(self, path: Path):
        self.path = path
        folder = path.parent / (path.name.removesuffix(JOINT_SUFFIX) + RELEASE_SUFFIX)
        names = load_video_ids(folder)
        videos = load_rows(path)
        if len(videos) != len(names):
            raise InputError(f"{path}: has {len(videos)} videos, but {folder / 'videoname.npy'} names {len(names)}")
        self._videos = dict(zip(names, videos, strict=True))

    def video_ids(self, modality: str) -> list[str]:
        """Return all videos; each has both modalities."""
        return list(self._videos)

    def rate(self, modality: str) -> Rate:
        """Return the rate of the releases' features."""
        return RELEASE_RATE

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return one half of the channels, a view."""
        joint = self._videos[video_id]
        if not (isinstance(joint, np.ndarray) and joint.ndim == 2 and joint.shape[1] % 2 == 0):
            got = f"shape {joint.shape}" if isinstance(joint, np.ndarray) else shorten(joint)
            raise InputError(
                f"{self.path}: video '{video_id}': expected (snippets, channels), the first half of the channels RGB "
                f"and the second half flow, got {got}"
            )
        rgb, flow = np.split(joint, 2, axis=1)
        return rgb if modality == "rgb" else flow


class AveSource(Source):
    """The AVE release's `audio` and `visual` features, described in utils/formats/ave.py."""

    form = "AVE release"

    def __init__(self, folder: Path):
        self.path = folder
        clips, background = [video_id for video_id, *_ in read_clips(folder)], background_ids(folder)
        self._arrays: dict[str, h5py.Dataset] = {}  # by file name
        self._rows: dict[str, dict[str, tuple[str, int]]] = {}  # modality -> video_id -> file name, row
        for modality in ("audio", "visual"):
            rows = {}
            for name, video_ids in ((f"{modality}_feature", clips), (f"{modality}_feature_noisy", background)):
                if (folder / f"{name}.h5").is_file():
                    self._arrays[name] = open_array(folder / f"{name}.h5", KEY)
                    check_clip_shape(self._arrays[name], len(video_ids))
                    rows.update({video_id: (name, row) for row, video_id in enumerate(video_ids)})
            if rows:
                self._rows[modality] = rows
        self.modalities = tuple(self._rows)
        self.simulated = any("simulated" in array.file.attrs for array in self._arrays.values())

    def video_ids(self, modality: str) -> list[str]:
        """Return the clips, then the background clips."""
        return list(self._rows[modality])

    def rate(self, modality: str) -> Rate:
        """Return one snippet per second."""
        return Rate(1, 1)

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return (10, D)."""
        name, _ = self._rows[modality][video_id]
        shape = self._arrays[name].shape  # (N, 10, D) or (N, 10, 7, 7, D)
        return shape[1], shape[-1]

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return one clip; spatial maps are averaged."""
        name, row = self._rows[modality][video_id]
        try:
            values = self._arrays[name][row]  # (10, D) or (10, 7, 7, D)
        except Exception as error:  # for a damaged file, h5py raises almost anything
            raise InputError(f"{self.path / name}.h5: row {row} cannot be read ({error})") from None
        return values.mean(axis=(1, 2), dtype=np.float32) if values.ndim == 4 else values


def checked_rate(attributes: Mapping[str, object], where: str) -> Rate:
    """Return the rate that `fps` and `stride` give.

    Raises:
        InputError: One of them is missing or not a positive number.
    """
    try:
        rate = Rate(float(attributes["fps"]), float(attributes["stride"]))
        usable = rate.fps > 0 and 0 < rate.snippet_rate < np.inf
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        usable = False
    if not usable:
        expected = "expected positive numbers fps and stride (frames per snippet), such as 25 and 16"
        raise InputError(f"{where}: {expected}, got {shorten(attributes)}")
    return rate


def is_modality_folder(path: Path) -> bool:
    """Return True for a folder of .npy files that can be features."""
    return path.is_dir() and not path.name.endswith(RELEASE_SUFFIX) and any(path.glob("*.npy"))


def _read_number(attributes: h5py.AttributeManager, name: str) -> object:
    """Return a numeric attribute, or a description of any other attribute without reading it."""
    attribute = attributes.get_id(name)
    if attribute.shape is None or math.prod(attribute.shape) != 1 or attribute.dtype.kind not in "biuf":
        return f"{attribute.dtype} of shape {attribute.shape}"
    return np.asarray(attributes[name]).item()
