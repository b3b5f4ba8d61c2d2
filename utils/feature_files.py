"""The forms in which features lie on disk, read as they are stored; `utils/features.py` unites them.

The AVE release's is in utils/ave.py, beside its annotations.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from utils.annotations import RELEASE_SUFFIX
from utils.ave import AveSource, is_ave
from utils.datasets import RELEASE_RATE, Rate
from utils.errors import InputError, shown
from utils.files import read_json
from utils.hdf5 import dataset_paths, follow, names_in, require_held, require_own_values, require_unpacked
from utils.release_format import array_shape, load_plain_array, load_rows, load_video_ids

JOINT_SUFFIX = "-I3D-JOINTFeatures.npy"
_SHORT = 300  # characters of h5py's message


class Source(Protocol):
    """One form of features on disk; arrays as they are stored."""

    form: str
    path: Path
    modalities: tuple[str, ...]
    simulated: bool  # made by utils/simulate.py, which marks what it makes

    def video_ids(self, modality: str) -> list[str]: ...
    def rate(self, modality: str) -> Rate | None: ...  # None where nothing says it
    def shape(self, modality: str, video_id: str) -> tuple[int, ...]: ...
    def read(self, modality: str, video_id: str) -> np.ndarray: ...


class HDF5Source:
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
        self._checked: set[tuple[str, str]] = set()
        self._unpacked: set[tuple[str, str]] = set()

    def _at_root(self, name: str) -> h5py.Group | h5py.Dataset | h5py.Datatype:
        with self._reading(f"'{name}' cannot be read"):
            return follow(self._file, name)

    def video_ids(self, modality: str) -> list[str]:
        with self._reading(f"the group '{modality}' cannot be read"):
            return list(dataset_paths(self._groups[modality], {self._groups[modality]}))

    def rate(self, modality: str) -> Rate | None:
        with self._reading(f"fps and stride of '{modality}' cannot be read"):
            places = (self._file.attrs, self._groups[modality].attrs)  # the group's own before the file's
            said = {name: _number(place, name) for place in places for name in ("fps", "stride") if name in place}
        return _checked_rate(said, f"{self.path}: the attributes of '{modality}'") if said else None

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            return getattr(self._found(modality, video_id), "shape", None) or ()  # () for what holds no array

    def read(self, modality: str, video_id: str) -> np.ndarray:
        with self._reading(f"'{modality}/{video_id}' cannot be read"):
            found = self._found(modality, video_id)
            if (modality, video_id) not in self._unpacked and isinstance(found, h5py.Dataset):
                require_unpacked(found)
                self._unpacked.add((modality, video_id))
            return found[()]

    def _found(self, modality: str, video_id: str) -> h5py.Dataset | h5py.Group | h5py.Datatype:
        """What lies there; of an array it is checked, once, that the file holds what it promises."""
        found = follow(self._groups[modality], video_id)
        if (modality, video_id) not in self._checked and isinstance(found, h5py.Dataset) and found.shape is not None:
            require_own_values(found)
            require_held(found, self._bytes)
            self._checked.add((modality, video_id))
        return found

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


class FolderSource:
    """`<modality>/<video_id>.npy`, and the snippet rate in an optional `features.json` beside the modalities.

    `features.json` is `{"fps": 30, "stride": 16}` (stride: frames a snippet); without it nothing says the rate,
    and the dataset's is assumed. A video_id with a slash has no place here: use HDF5.
    """

    form = "one .npy a video"
    simulated = False

    def __init__(self, path: Path):
        self.path = path
        folders = sorted(child for child in path.iterdir() if _is_modality_folder(child))
        self._files = {folder.name: {file.stem: file for file in folder.glob("*.npy")} for folder in folders}
        self.modalities = tuple(self._files)

    def video_ids(self, modality: str) -> list[str]:
        return sorted(self._files[modality])

    def rate(self, modality: str) -> Rate | None:
        file = self.path / "features.json"
        return _checked_rate(read_json(file), str(file)) if file.exists() else None

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        return array_shape(self._files[modality][video_id])

    def read(self, modality: str, video_id: str) -> np.ndarray:
        return load_plain_array(self._files[modality][video_id])


class JointSource:
    """All videos in one object-dtype array of (T, 2048); it is a pickle, so all of it is read at once."""

    form = "release (joint .npy)"
    modalities = ("rgb", "flow")
    simulated = False

    def __init__(self, path: Path):
        self.path = path
        folder = path.parent / (path.name.removesuffix(JOINT_SUFFIX) + RELEASE_SUFFIX)
        names = load_video_ids(folder)
        rows = load_rows(path)
        if len(rows) != len(names):
            raise InputError(f"{path}: {len(rows)} videos, but {folder / 'videoname.npy'} names {len(names)}")
        self._rows = dict(zip(names, rows, strict=True))

    def video_ids(self, modality: str) -> list[str]:
        return list(self._rows)

    def rate(self, modality: str) -> Rate:
        return RELEASE_RATE

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        return np.shape(self.read(modality, video_id))

    def read(self, modality: str, video_id: str) -> np.ndarray:
        joint = self._rows[video_id]
        if not (isinstance(joint, np.ndarray) and joint.ndim == 2 and joint.shape[1] % 2 == 0):
            found = f"shape {joint.shape}" if isinstance(joint, np.ndarray) else f"{shown(joint)}"
            raise InputError(
                f"{self.path}: video '{video_id}': expected (snippets, channels) with RGB in the first half of the "
                f"channels and flow in the second, found {found}"
            )
        middle = joint.shape[1] // 2
        return joint[:, :middle] if modality == "rgb" else joint[:, middle:]


def open_source(path: Path) -> Source:
    """What `path` (a dataset folder or a feature file) holds; InputError if that is nothing we know."""
    if path.is_file():
        return JointSource(path) if path.name.endswith(JOINT_SUFFIX) else HDF5Source(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    if is_ave(path):
        return AveSource(path)
    files = [path / "features.h5"] if (path / "features.h5").is_file() else sorted(path.glob("*.h5"))
    files = files or sorted(path.glob(f"*{JOINT_SUFFIX}"))
    if len(files) > 1:
        raise InputError(f"{path}: several feature files ({', '.join(f.name for f in files)}); name one of them")
    if files:
        return open_source(files[0])
    if any(_is_modality_folder(child) for child in path.iterdir()):
        return FolderSource(path)
    raise InputError(
        f"{path}: no features found; looked for features.h5 or one *.h5, *{JOINT_SUFFIX}, and <modality>/<video_id>.npy"
    )


def _number(attributes: h5py.AttributeManager, name: str) -> object:
    """The number that an attribute holds; of another attribute what it is, unread."""
    attribute = attributes.get_id(name)
    if attribute.shape is None or math.prod(attribute.shape) != 1 or attribute.dtype.kind not in "biuf":
        return f"{attribute.dtype} of shape {attribute.shape}"
    return np.asarray(attributes[name]).item()


def _checked_rate(said: Mapping[str, object], where: str) -> Rate:
    """fps and stride as a file says them; InputError where either is missing or not a positive number."""
    try:
        rate = Rate(float(said["fps"]), float(said["stride"]))
        usable = rate.fps > 0 and 0 < rate.hz < np.inf
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        usable = False
    if not usable:
        expected = "fps / stride (frames a snippet) needs two positive numbers, as fps 25 and stride 16"
        raise InputError(f"{where}: {expected}; found {shown(said)}")
    return rate


def _is_modality_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.endswith(RELEASE_SUFFIX) and any(path.glob("*.npy"))
