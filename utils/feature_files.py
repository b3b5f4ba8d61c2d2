"""The forms in which features lie on disk, read as they are stored; `utils/features.py` unites them.

HDF5 is in utils/hdf5_source.py and utils/shards.py, the AVE release in utils/ave.py, beside its annotations.
"""

from pathlib import Path

import numpy as np

from utils.annotations import RELEASE_SUFFIX
from utils.ave import AveSource, is_ave
from utils.datasets import RELEASE_RATE, Rate
from utils.errors import InputError, shown
from utils.files import read_json
from utils.hdf5_source import HDF5Source
from utils.release_format import array_shape, load_plain_array, load_plain_rows, load_rows, load_video_ids
from utils.shards import ShardedSource, is_shard
from utils.sources import Source, checked_rate

JOINT_SUFFIX = "-I3D-JOINTFeatures.npy"


class FolderSource(Source):
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
        return checked_rate(read_json(file), str(file)) if file.exists() else None

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        return array_shape(self._files[modality][video_id])

    def place(self, modality: str, video_id: str) -> Path:
        return self._files[modality].get(video_id, self.path / modality / f"{video_id}.npy")

    def read(self, modality: str, video_id: str) -> np.ndarray:
        return load_plain_array(self._files[modality][video_id])

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        return load_plain_rows(self._files[modality][video_id], snippets)


class JointSource(Source):
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
    if any(is_shard(file) for file in path.glob("*.h5")):
        return ShardedSource(path)
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
