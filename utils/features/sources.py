"""Formats of features on disk: folders of array files, the releases' joint file and the AVE release.

A source returns arrays as they are stored. `utils/features/store.py` chooses the source of a folder and combines its
modalities; `utils/features/hdf5_source.py` and `utils/features/shards.py` read HDF5.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from utils.annotations import RELEASE_SUFFIX
from utils.datasets import RELEASE_RATE, Rate
from utils.errors import InputError, shorten
from utils.features.layouts import FPS, TIMESTAMPS, Arrangement, Location, scan_folder
from utils.formats.ave import KEY, background_ids, check_clip_shape, open_array, read_clips
from utils.formats.files import read_json
from utils.formats.npy import array_shape, load_plain_array, load_plain_rows, load_rows, load_video_ids
from utils.segments import aligned_snippets
from utils.video_table import numbered

JOINT_SUFFIX = "-I3D-JOINTFeatures.npy"
SETTINGS = "features.json"
MAX_STRETCH = 200  # for features that were rescaled to 100 snippets, 3.5 hours at the releases' rate


class Source(Protocol):
    """Features in one format on disk."""

    form: str  # name of the format
    path: Path
    modalities: tuple[str, ...]
    simulated: bool  # True for features that carry the mark of utils/features/simulate.py
    recipe: dict | None = None  # recipe of the extraction, see utils/features/recipes.py

    def video_ids(self, modality: str) -> list[str]:
        """Return the videos that have the modality."""

    def numbers(self, modality: str) -> dict[str, int]:
        """Return the number of each video that has the modality, in stored order."""
        return numbered(self.video_ids(modality))

    def rate(self, modality: str) -> Rate | None:
        """Return how the modality was extracted, None if it is not stored."""

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return the stored shape, without reading values where the format allows it."""
        return self.read(modality, video_id).shape

    def shapes(self, modality: str, video_ids: Sequence[str]) -> np.ndarray:
        """Return the shapes of arrays (N, 2), (0, 0) for one that only `shape` can tell."""
        return np.zeros((len(video_ids), 2), dtype=np.int64)

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return the stored array."""

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """Return `read(...)[snippets]` for sorted snippets of a (T, D) array, reading as little else as possible."""
        return self.read(modality, video_id)[snippets]

    def path_of(self, modality: str, video_id: str) -> Path:
        """Return the file that contains the modality of a video."""
        return self.path


class FolderSource(Source):
    """Files of one array each, in any layout of utils/features/layouts.py.

    The rate is in `features.json`, `{"fps": 30, "stride": 16}` (stride: frames per snippet), or in the timestamps of
    the video_features tool. A video_id with a slash needs HDF5.
    """

    form = "one file per video"
    simulated = False

    def __init__(self, path: Path, suffixes: Sequence[str] = ()):
        self.path = path
        self._files, self._extras = scan_folder(path, suffixes)
        self.modalities = tuple(self._files)

    def video_ids(self, modality: str) -> list[str]:
        """Return the videos, sorted."""
        return sorted(self._files[modality])

    def rate(self, modality: str) -> Rate | None:
        """Return the rate in `features.json` or in the timestamps, which all modalities share."""
        content = read_settings(self.path)
        if {"fps", "stride"}.intersection(content) or (
            not {"split", "rescaled"}.intersection(content) and (self.path / SETTINGS).exists()
        ):
            return checked_rate(content, str(self.path / SETTINGS))
        return self._timestamp_rate

    @cached_property
    def _timestamp_rate(self) -> Rate | None:
        """Rate that the timestamps of all videos share, None without timestamps."""
        shared = None
        for video_id, location in self._extras.get(TIMESTAMPS, {}).items():
            times = _load_numbers(location)
            if len(times) > 1:
                fps = _load_numbers(self._extras[FPS][video_id])[0] if video_id in self._extras.get(FPS, {}) else 1000.0
                stride = round(fps * float(np.median(np.diff(times))) / 1000, 4)
                rate = checked_rate({"fps": fps, "stride": stride}, str(location.path))
                shared = shared or rate
                if abs(rate.snippet_rate / shared.snippet_rate - 1) > 0.01:
                    raise InputError(
                        f"{location.path}: {rate.snippet_rate:g} snippets per second, earlier videos have "
                        f"{shared.snippet_rate:g}; extract all videos at one frame rate (--extraction_fps)"
                    )
        return shared

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return the shape in the file's header."""
        return array_shape(*self._files[modality][video_id])

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return the array of one file; object dtype is refused."""
        return load_plain_array(*self._files[modality][video_id])

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """Return rows of the array in one file."""
        path, member = self._files[modality][video_id]
        return load_plain_rows(path, snippets, member)

    def path_of(self, modality: str, video_id: str) -> Path:
        """Return the video's own file, the folder if it does not exist."""
        location = self._files[modality].get(video_id)
        return location.path if location else self.path


class ArrangedSource(Source):
    """Another source with its arrays transposed, split into modalities by channels, or brought back to real time.

    Features that were rescaled to a fixed length have one rate per video, snippets / duration. They are read on the
    grid of one common rate, by default the releases'. Each snippet of the grid repeats the one around its middle.
    """

    def __init__(self, source: Source, arrangement: Arrangement):
        self._durations = arrangement.durations
        self.form, self.path, self.simulated, self.recipe = source.form, source.path, source.simulated, source.recipe
        self._source, self._transpose, self._split = source, arrangement.transpose, arrangement.split
        if self._split and len(source.modalities) != 1:
            raise InputError(
                f"{source.path}: a split needs one array per video with all channels, got the modalities "
                f"{', '.join(source.modalities[:3])}"
            )
        self.modalities = tuple(self._split or source.modalities)

    def _stored(self, modality: str) -> str:
        return self._source.modalities[0] if self._split else modality

    def video_ids(self, modality: str) -> list[str]:
        """Return the videos of the stored modality, only those with a duration if they were rescaled."""
        video_ids = self._source.video_ids(self._stored(modality))
        return video_ids if self._durations is None else [name for name in video_ids if self._durations.get(name)]

    def rate(self, modality: str) -> Rate | None:
        """Return the rate of the stored modality, that of the grid if it was rescaled."""
        rate = self._source.rate(self._stored(modality))
        return rate if self._durations is None else rate or RELEASE_RATE

    def _grid(self, modality: str, video_id: str, count: int) -> np.ndarray:
        """Return the row of a rescaled array that each snippet of the grid repeats."""
        rate, duration = self.rate(modality).snippet_rate, self._durations[video_id]
        if duration * rate > MAX_STRETCH * count:
            raise InputError(
                f"{self.path}: video '{video_id}' has {count} snippets for {duration:g} s; correct its duration"
            )
        return aligned_snippets(max(1, round(duration * rate)), rate, count, count / duration)

    def shape(self, modality: str, video_id: str) -> tuple[int, ...]:
        """Return the shape after transposing and splitting."""
        shape = tuple(self._source.shape(self._stored(modality), video_id))
        if self._transpose and len(shape) > 1:
            shape = (*shape[:-2], shape[-1], shape[-2])
        if self._durations is not None and len(shape) == 2 and shape[0]:
            shape = (len(self._grid(modality, video_id, shape[0])), shape[1])
        if not self._split:
            return shape
        first, last = self._split[modality]
        if len(shape) < 2 or shape[-1] < last:
            path = self.path_of(modality, video_id)
            raise InputError(
                f"{path}: shape {shape} has no channels {first} to {last} of '{modality}'; correct the split"
            )
        return (*shape[:-1], last - first)

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return a view of the stored array."""
        self.shape(modality, video_id)  # checks the split
        values = self._source.read(self._stored(modality), video_id)
        values = values.swapaxes(-1, -2) if self._transpose and values.ndim > 1 else values
        if self._durations is not None and values.ndim == 2 and len(values):
            values = values[self._grid(modality, video_id, len(values))]
        return values[..., slice(*self._split[modality])] if self._split else values

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """Return rows of the array."""
        if self._transpose or self._durations is not None:
            return self.read(modality, video_id)[snippets]
        self.shape(modality, video_id)
        return self._source.rows(self._stored(modality), video_id, snippets)[:, slice(*self._split[modality])]

    def path_of(self, modality: str, video_id: str) -> Path:
        """Return the file of the stored modality."""
        return self._source.path_of(self._stored(modality), video_id)


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


def read_settings(folder: Path) -> dict:
    """Return the content of a folder's features.json, {} without one.

    Raises:
        InputError: It is not a JSON object.
    """
    path = folder / SETTINGS
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with positive numbers fps and stride, got {shorten(content)}")
    return content


def _load_numbers(location: Location) -> np.ndarray:
    """Return the numbers in a file as float64, at least one."""
    values = load_plain_array(*location)
    if values.dtype.kind not in "iuf" or not values.size or not np.isfinite(values).all():
        raise InputError(f"{location.path}: expected finite numbers, got dtype {values.dtype}, shape {values.shape}")
    return values.astype(np.float64).ravel()
