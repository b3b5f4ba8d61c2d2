"""The three forms in which features lie on disk, read as they are stored; `utils/features.py` unites them."""

from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from utils.annotations import RELEASE_SUFFIX
from utils.datasets import SNIPPET_RATE
from utils.errors import InputError
from utils.release_format import array_shape, as_text, load_array

JOINT_SUFFIX = "-I3D-JOINTFeatures.npy"


class Source(Protocol):
    """One form of features on disk; arrays as they are stored."""

    form: str
    path: Path
    modalities: tuple[str, ...]
    simulated: bool  # made by utils/simulate.py, which marks what it makes

    def video_ids(self, modality: str) -> list[str]: ...
    def rate(self, modality: str) -> float | None: ...  # snippets a second, None where nothing says so
    def shape(self, modality: str, video_id: str) -> tuple[int, ...]: ...
    def read(self, modality: str, video_id: str) -> np.ndarray: ...


class HDF5Source:
    form = "HDF5"

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{path}: not a readable HDF5 file ({error})") from None
        self._groups = {name: group for name, group in self._file.items() if isinstance(group, h5py.Group)}
        self.modalities = tuple(self._groups)
        self.simulated = "simulated" in self._file.attrs

    def video_ids(self, modality: str) -> list[str]:
        return list(self._groups[modality])

    def rate(self, modality: str) -> float | None:
        attributes = {**self._file.attrs, **self._groups[modality].attrs}
        if "fps" not in attributes or "stride" not in attributes:
            return None
        rate = float(attributes["fps"]) / float(attributes["stride"])
        if not (np.isfinite(rate) and rate > 0):
            raise InputError(f"{self.path}: fps / stride of '{modality}' is {rate}, expected snippets a second")
        return rate

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        return getattr(self._groups[modality][video_id], "shape", ())  # () for a group where data should be

    def read(self, modality: str, video_id: str) -> np.ndarray:
        try:
            return self._groups[modality][video_id][()]
        except OSError as error:
            raise InputError(f"{self.path}: '{modality}/{video_id}' cannot be read ({error})") from None


class FolderSource:
    form = "one .npy a video"
    simulated = False

    def __init__(self, path: Path):
        self.path = path
        folders = sorted(child for child in path.iterdir() if _is_modality_folder(child))
        self._files = {folder.name: {file.stem: file for file in folder.glob("*.npy")} for folder in folders}
        self.modalities = tuple(self._files)

    def video_ids(self, modality: str) -> list[str]:
        return sorted(self._files[modality])

    def rate(self, modality: str) -> float | None:
        return None

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        return array_shape(self._files[modality][video_id])

    def read(self, modality: str, video_id: str) -> np.ndarray:
        return load_array(self._files[modality][video_id])


class JointSource:
    """All videos in one object-dtype array of (T, 2048); it is a pickle, so all of it is read at once."""

    form = "release (joint .npy)"
    modalities = ("rgb", "flow")
    simulated = False

    def __init__(self, path: Path):
        self.path = path
        folder = path.parent / (path.name.removesuffix(JOINT_SUFFIX) + RELEASE_SUFFIX)
        names = [as_text(name) for name in load_array(folder / "videoname.npy")]
        rows = load_array(path)
        if len(rows) != len(names):
            raise InputError(f"{path}: {len(rows)} videos, but {folder / 'videoname.npy'} names {len(names)}")
        self._rows = dict(zip(names, rows, strict=True))

    def video_ids(self, modality: str) -> list[str]:
        return list(self._rows)

    def rate(self, modality: str) -> float | None:
        return SNIPPET_RATE

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        return np.shape(self.read(modality, video_id))

    def read(self, modality: str, video_id: str) -> np.ndarray:
        joint = np.asarray(self._rows[video_id])
        middle = joint.shape[-1] // 2 if joint.ndim else 0
        return joint[..., :middle] if modality == "rgb" else joint[..., middle:]


def open_source(path: Path) -> Source:
    """What `path` (a dataset folder or a feature file) holds; InputError if that is nothing we know."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        return JointSource(path) if path.name.endswith(JOINT_SUFFIX) else HDF5Source(path)
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


def _is_modality_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.endswith(RELEASE_SUFFIX) and any(path.glob("*.npy"))
