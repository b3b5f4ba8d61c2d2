"""The forms in which features lie on disk, read as they are stored; `utils/features/store.py` unites them.

HDF5 is in utils/features/hdf5_source.py and utils/features/shards.py, the AVE release in utils/formats/ave.py, beside its annotations.
"""

from pathlib import Path

import numpy as np

from utils.annotations import RELEASE_SUFFIX
from utils.datasets import RELEASE_RATE, Rate
from utils.errors import InputError, shorten
from utils.features.hdf5_source import HDF5Source
from utils.features.shards import ShardedSource, is_shard
from utils.features.sources import Source, checked_rate
from utils.formats.ave import KEY, background_ids, is_ave, open_array, read_rows, require_clips
from utils.formats.files import read_json
from utils.formats.npy import array_shape, load_plain_array, load_plain_rows, load_rows, load_video_ids

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
            found = f"shape {joint.shape}" if isinstance(joint, np.ndarray) else f"{shorten(joint)}"
            raise InputError(
                f"{self.path}: video '{video_id}': expected (snippets, channels) with RGB in the first half of the "
                f"channels and flow in the second, found {found}"
            )
        middle = joint.shape[1] // 2
        return joint[:, :middle] if modality == "rgb" else joint[:, middle:]


class AveSource(Source):
    """The release's features, `audio` and `visual`; a utils.features.feature_files.Source."""

    form = "AVE release"

    def __init__(self, folder: Path):
        self.path = folder
        clips, background = [video_id for video_id, *_ in read_rows(folder)], background_ids(folder)
        self._places, self._arrays = {"audio": {}, "visual": {}}, {}  # of a clip: file and row
        for modality, places in self._places.items():
            for name, ids in ((f"{modality}_feature", clips), (f"{modality}_feature_noisy", background)):
                if (folder / f"{name}.h5").is_file():
                    array = self._arrays[name] = open_array(folder / f"{name}.h5", KEY)
                    require_clips(array, ids)
                    places.update({video_id: (name, row) for row, video_id in enumerate(ids)})
        self.modalities = tuple(modality for modality, places in self._places.items() if places)
        self.simulated = any("simulated" in array.file.attrs for array in self._arrays.values())

    def video_ids(self, modality: str) -> list[str]:
        return list(self._places[modality])

    def rate(self, modality: str) -> Rate:
        return Rate(1, 1)  # a second of the clip is a snippet

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        shape = self._arrays[self._places[modality][video_id][0]].shape
        return shape[1], shape[-1]

    def read(self, modality: str, video_id: str) -> np.ndarray:
        name, row = self._places[modality][video_id]
        try:
            values = self._arrays[name][row]  # (10, D) or (10, 7, 7, D)
        except Exception as error:  # as above
            raise InputError(f"{self.path / name}.h5: row {row} cannot be read ({error})") from None
        return values.mean(axis=(1, 2), dtype=np.float32) if values.ndim == 4 else values


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
