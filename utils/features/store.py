"""Feature store: precomputed snippet features by video, in any supported format.

`open_features(path, modalities)` returns a `FeatureStore`; `store[video_id]` is (T, D) float32, the requested
modalities side by side. Supported formats:

* HDF5 with datasets `/<modality>/<video_id>` (T, D). Attributes `fps` and `stride` (frames per snippet), of the
  modality's group or of the file, give the snippet rate. One file, or shards of one (utils/features/shards.py).
* Folders `<modality>/<video_id>.npy`. `features.json` beside them, `{"fps": 30, "stride": 16}`, gives the rate.
* The releases' `<name>-I3D-JOINTFeatures.npy` (RGB first, flow last, 25 fps, stride 16) with
  `<name>-Annotations/videoname.npy`, which names its rows.
* The AVE release (utils/formats/ave.py) with `audio` and `visual`, one snippet per second.

Modalities with different rates are aligned in time, to the snippets of the first one.

`python -m utils.features DIR` describes a folder; with `--check` it reports every fault (utils/features/check.py).
"""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.annotations import load_annotations
from utils.errors import InputError, name_some, shorten
from utils.features.hdf5_source import HDF5Source
from utils.features.layouts import Arrangement, parse_split
from utils.features.shards import ShardedSource, is_shard
from utils.features.sources import (
    JOINT_SUFFIX,
    SETTINGS,
    ArrangedSource,
    AveSource,
    FolderSource,
    JointSource,
    Source,
    read_settings,
)
from utils.formats.ave import is_ave
from utils.segments import aligned_snippets
from utils.video_table import numbered

DIFFERENCE_SUFFIX = "_diff"


class FeatureStore:
    """Features by video_id: (T, D) float32, D = sum(modality_dims), modalities in the requested order."""

    scale = 1.0  # factor of all features; see `scaled`

    def __init__(self, source: Source, modalities: Sequence[str]):
        self.source = source
        self.modalities = tuple(modalities)
        # `rgb` for both `rgb` and `rgb_diff`
        self.stored_modalities = tuple(_stored_modality(source, modality) for modality in self.modalities)

    def scaled(self, scale: float) -> "FeatureStore":
        """Return a store of the same features, multiplied by a number."""
        store = copy(self)
        store.scale = scale
        return store

    @cached_property
    def video_ids(self) -> list[str]:
        """Videos that have every requested modality, in stored order."""
        first, *others = (self.source.video_ids(stored) for stored in self.stored_modalities)
        others = [set(listed) for listed in others if listed != first]
        return [video_id for video_id in first if all(video_id in listed for listed in others)] if others else first

    @cached_property
    def _numbers(self) -> dict[str, int]:
        numbers = self.source.numbers(self.stored_modalities[0])
        return numbers if len(numbers) == len(self.video_ids) else numbered(self.video_ids)

    @cached_property
    def _checked(self) -> dict[str, np.ndarray]:
        """Per stored modality (N,) bool, the videos whose values are checked."""
        return {stored: np.zeros(len(self.video_ids), dtype=bool) for stored in self.stored_modalities}

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._numbers

    @property
    def simulated_prefix(self) -> str:
        """Prefix of every text with a number that comes from these features: `SIMULATED `, or nothing."""
        return "SIMULATED " if self.source.simulated else ""

    @property
    def recipe(self) -> dict | None:
        """Recipe of the extraction, None if not stored; see utils/features/recipes.py."""
        return self.source.recipe

    def describe(self) -> dict:
        """Return path, format and recipe of the features, if they are simulated, and their scale unless it is 1."""
        facts = {"path": str(self.source.path), "form": self.source.form, "simulated": self.source.simulated}
        facts |= {"recipe": self.recipe} if self.recipe is not None else {}
        return facts if self.scale == 1 else {**facts, "scale": self.scale}

    @cached_property
    def modality_dims(self) -> tuple[int, ...]:
        """Channels per modality, those of the first video; every other video is checked against them.

        Raises:
            InputError: There is no video, or the first one is not (T, D) with D >= 1.
        """
        if not self.video_ids:
            raise InputError(f"{self.source.path}: no video has all modalities ({', '.join(self.modalities)})")
        shapes = [self.shape(stored, self.video_ids[0]) for stored in self.stored_modalities]
        for stored, shape in zip(self.stored_modalities, shapes, strict=True):
            if len(shape) != 2 or shape[1] == 0:
                raise self._bad_shape(stored, self.video_ids[0], shape, "(snippets, channels >= 1)")
        return tuple(shape[1] for shape in shapes)

    @cached_property
    def snippet_rate(self) -> float | None:
        """Snippets per second of the first modality, None if not stored."""
        return self._snippet_rates[0]

    @cached_property
    def _snippet_rates(self) -> tuple[float | None, ...]:
        """Snippets per second of each modality; one without a rate takes the first that is stored."""
        rates = [self.source.rate(stored) for stored in self.stored_modalities]
        default = next((rate.snippet_rate for rate in rates if rate is not None), None)
        return tuple(default if rate is None else rate.snippet_rate for rate in rates)

    def shape(self, stored: str, video_id: str) -> tuple[int, ...]:
        """Return the shape of a stored modality; (1, T, D) is (T, D)."""
        shape = tuple(self.source.shape(stored, video_id))
        return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape

    def num_snippets(self, video_id: str) -> int:
        """Return T of one video without reading values.

        Raises:
            InputError: The video has no features, another number of channels, or modalities that do not match.
        """
        return self._lengths(video_id)[self.stored_modalities[0]]

    def lengths(self, video_ids: Sequence[str]) -> np.ndarray:
        """Return T of each video, (N,) int64, see `num_snippets`."""
        if len(set(self._snippet_rates)) > 1:
            return np.array([self.num_snippets(video_id) for video_id in video_ids], dtype=np.int64)
        shapes = np.stack([self.source.shapes(stored, video_ids) for stored in self.stored_modalities])  # (M, N, 2)
        widths = np.array(self.modality_dims)[:, None]
        is_usual = ((shapes[..., 1] == widths) & (shapes[..., 0] == shapes[0, :, 0])).all(axis=0)
        lengths = shapes[0, :, 0]
        for row in np.flatnonzero(~is_usual).tolist():
            lengths[row] = self.num_snippets(video_ids[row])
        return lengths

    def _lengths(self, video_id: str) -> dict[str, int]:
        """Return the number of snippets that are used of each stored modality, at its own rate."""
        if video_id not in self:
            pairs = zip(self.modalities, self.stored_modalities, strict=True)
            missing = [modality for modality, stored in pairs if video_id not in set(self.source.video_ids(stored))]
            raise InputError(f"{self.source.path}: video '{video_id}' has no features ({', '.join(missing)})")
        lengths = {}
        for stored, width in zip(self.stored_modalities, self.modality_dims, strict=True):
            shape = self.shape(stored, video_id)
            if len(shape) != 2 or shape[1] != width:
                raise self._bad_shape(stored, video_id, shape, f"(snippets, {width})")
            lengths[stored] = shape[0]
        return self.common_lengths(video_id, lengths)

    def common_lengths(self, video_id: str, lengths: dict[str, int]) -> dict[str, int]:
        """Return how many snippets of each stored modality begin before the shortest modality ends.

        Durations may differ by two snippets of the lower rate, or by one percent: extractors drop frames that do not
        fill a snippet, and flow needs two frames.

        Raises:
            InputError: The durations differ by more.
        """
        if len(set(lengths.values())) < 2 and len(set(self._snippet_rates)) < 2:
            return lengths
        by_stored = dict(zip(self.stored_modalities, self._snippet_rates, strict=True))
        rates = {stored: by_stored[stored] or 1.0 for stored in lengths}
        durations = [length / rates[stored] for stored, length in lengths.items()]
        shortest, longest = min(durations), max(durations)
        if longest - shortest > max(2 / min(rates.values()), 0.01 * longest) + 1e-9 or (longest and not shortest):
            parts = (f"{stored} {length} snippets at {rates[stored]:g} Hz" for stored, length in lengths.items())
            got = ", ".join(parts) if len(set(rates.values())) > 1 else str(lengths)
            raise InputError(
                f"{self.source.path}: the modalities of video '{video_id}' differ by more than 2 snippets or 1 %: "
                f"{got}; extract them again from the same frames, or correct fps and stride"
            )
        return {stored: min(length, math.ceil(shortest * rates[stored] - 1e-6)) for stored, length in lengths.items()}

    def __getitem__(self, video_id: str) -> np.ndarray:
        return self.rows(video_id)

    def rows(self, video_id: str, snippets: np.ndarray | None = None) -> np.ndarray:
        """Return (N, D) float32, `self[video_id][snippets]`; see `parts` for arguments and errors."""
        features = np.concatenate(list(self.parts(video_id, snippets)), axis=1, dtype=np.float32, casting="same_kind")
        self.multiply(features, video_id)
        return features

    def parts(self, video_id: str, snippets: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield the features of each modality, not yet multiplied by `scale`.

        The first call for a video reads and checks all of its values, later ones read little more than the snippets.

        Args:
            video_id: The video.
            snippets: (N,) sorted indices in [0, T), which may repeat; None for all.

        Yields:
            (N, D) floats of any width in native byte order, finite as float32.

        Raises:
            InputError: The features cannot be used.
            IndexError: The indices are not sorted or not in [0, T).
        """
        lengths = self._lengths(video_id)
        total = lengths[self.stored_modalities[0]]
        if snippets is not None:
            _require_sorted(snippets, total)
        columns = (self.modalities, self.stored_modalities, self._snippet_rates)
        for modality, stored, rate in zip(*columns, strict=True):
            rows, length = snippets, lengths[stored]
            if rate != self.snippet_rate:
                aligned = aligned_snippets(total, self.snippet_rate, length, rate)
                rows = aligned if snippets is None else aligned[snippets]
            elif snippets is None and length < self.shape(stored, video_id)[0]:
                rows = np.arange(length)
            if modality == stored:
                values = self.stored_values(stored, video_id, rows)
                yield values.astype(values.dtype.newbyteorder("="), copy=False)
            else:
                yield self._differences(stored, video_id, length, rows)

    def multiply(self, features: np.ndarray, video_id: str) -> None:
        """Multiply float32 features of a video by `scale`, in place.

        Raises:
            InputError: The products are not finite.
        """
        if self.scale != 1:
            with np.errstate(over="ignore"):
                features *= np.float32(self.scale)
            if not np.isfinite(features).all():
                raise InputError(
                    f"{self.source.path}: video '{video_id}' times the feature scale {self.scale:g} is not finite as "
                    "float32; lower --feature-scale"
                )

    def _differences(self, stored: str, video_id: str, length: int, rows: np.ndarray | None) -> np.ndarray:
        """Return `mean_difference` of a stored modality with `length` snippets, at these rows or at all of them."""
        if rows is None:
            return mean_difference(self.stored_values(stored, video_id).astype(np.float32, copy=False))
        # With both neighbors of each row, so that rows that are adjacent here are adjacent in the video.
        near = np.unique(np.concatenate([rows - 1, rows, rows + 1]).clip(0, length - 1))
        values = self.stored_values(stored, video_id, near).astype(np.float32, copy=False)
        return mean_difference(values)[np.searchsorted(near, rows)]

    def stored_values(self, stored: str, video_id: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return a stored modality of a video in its own dtype, at these sorted rows or at all of them.

        The first call for a video reads and checks all of its values.

        Raises:
            InputError: The values are not floats, or not finite as float32.
        """
        checked, number = self._checked[stored], self._numbers[video_id]
        is_nested = len(self.source.shape(stored, video_id)) == 3  # (1, T, D)
        if checked[number] and rows is not None and not is_nested:
            return self.source.rows(stored, video_id, rows)
        values = self.source.read(stored, video_id)
        values = values[0] if is_nested else values
        if not checked[number]:
            self._check_values(values, f"{self.source.path}: '{stored}' of video '{video_id}'")
            checked[number] = True
        return values if rows is None else values[rows]

    def _check_values(self, values: np.ndarray, name: str) -> None:
        if values.dtype.kind != "f":
            raise InputError(f"{name} has dtype {values.dtype}, expected float16 or float32")
        finite = is_finite(values)
        if not finite.all():
            row = int(np.flatnonzero(~finite.all(axis=1))[0])
            raise InputError(f"{name} has NaN or infinite values, first in row {row}")

    def shards(self, video_ids: Sequence[str]) -> np.ndarray:
        """Return (N,), the number of the shard that contains each video.

        Raises:
            InputError: The features are not sharded.
        """
        if self.source.form != ShardedSource.form or isinstance(self.source, ArrangedSource):
            raise InputError(
                f"{self.source.path}: --open-shards needs sharded features; leave it out, or shard the features with "
                "scripts/convert_features.py --shards N"
            )
        return np.array([self.source.shard(video_id) for video_id in video_ids])

    def _bad_shape(self, stored: str, video_id: str, shape: tuple[int, ...], expected: str) -> InputError:
        return InputError(
            f"{self.source.path}: '{stored}' of video '{video_id}' has shape {tuple(shape)}, expected {expected}"
        )


def open_features(
    path: str | Path,
    modalities: Sequence[str] | None = ("rgb", "flow"),
    arrangement: Arrangement | None = None,
    source: Source | None = None,
) -> FeatureStore:
    """Open the features in a dataset folder or a file.

    Args:
        path: A dataset folder or a feature file.
        modalities: Names in the order wanted, None for all that are stored. `<modality>_diff` is `mean_difference`
            of a stored modality.
        arrangement: Arrangement of the arrays; None for the one in features.json, if there is one.
        source: The stored arrays, if they are already open.

    Raises:
        InputError: The path, the features or a modality is not found, or the format is not supported.
    """
    path = Path(path)
    arrangement = arrangement or stored_arrangement(path)
    source = source or open_source(path, arrangement.suffixes)
    if arrangement.split or arrangement.transpose or arrangement.durations is not None:
        source = ArrangedSource(source, arrangement)
    if not source.modalities:
        raise InputError(f"{source.path}: no modality found; expected groups or folders <modality>/<video_id>")
    return FeatureStore(source, source.modalities if modalities is None else modalities)


def stored_arrangement(path: Path) -> Arrangement:
    """Return the arrangement that `split` and `rescaled` in features.json give, in a folder or beside a file.

    Raises:
        InputError: features.json cannot be used, or there are no annotations with the durations of rescaled features.
    """
    folder = path if path.is_dir() else path.parent
    settings, where = read_settings(folder), str(folder / SETTINGS)
    split = settings.get("split")
    if not isinstance(settings.get("rescaled", False), bool):
        raise InputError(f"{where}: expected true or false for 'rescaled', got {shorten(settings['rescaled'])}")
    return Arrangement(
        split=None if split is None else parse_split(split, where),
        durations=read_durations(folder) if settings.get("rescaled") else None,
    )


def read_durations(folder: Path) -> dict[str, float | None]:
    """Return the annotated duration in seconds of each video, None where it is unknown."""
    videos = load_annotations(folder, drop_inverted=True).videos.values()
    return {video.video_id: video.duration for video in videos}


def open_source(path: Path, suffixes: Sequence[str] = ()) -> Source:
    """Open a dataset folder or a feature file in its own format.

    `suffixes` are the modalities that file names end with, see utils/features/layouts.py.
    In a folder, features.h5 or the only *.h5 or *.hdf5 comes first, then the releases' joint file, then array files.

    Raises:
        InputError: The path is not found, or it has no features, or more than one file of them.
    """
    if path.is_file():
        return JointSource(path) if path.name.endswith(JOINT_SUFFIX) else HDF5Source(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    if is_ave(path):
        return AveSource(path)
    files = hdf5_features(path) or _only_one(sorted(path.glob(f"*{JOINT_SUFFIX}")))
    if files:
        return ShardedSource(path) if is_shard(files[0]) else open_source(files[0])
    source = FolderSource(path, suffixes)
    if source.modalities:
        return source
    raise InputError(
        f"{path}: no features found; expected features.h5, one *.h5 or *.hdf5, *{JOINT_SUFFIX}, "
        "<modality>/<video_id>.npy or .npz, or <video_id>_<modality>.npy"
    )


def hdf5_features(folder: Path) -> list[Path]:
    """Return the HDF5 files with the features of a dataset folder: its shards, features.h5 or the only file.

    Raises:
        InputError: There are several files.
    """
    files = hdf5_files(folder)
    if shards := [file for file in files if is_shard(file)]:
        return shards
    return [file for file in files if file.name == "features.h5"] or _only_one(files)


def _only_one(files: list[Path]) -> list[Path]:
    if len(files) > 1:
        names = name_some(file.name for file in files)
        raise InputError(f"{files[0].parent}: several feature files ({names}); name one of them")
    return files


def hdf5_files(folder: Path) -> list[Path]:
    """Return the HDF5 files in a folder, sorted."""
    return sorted(file for pattern in ("*.h5", "*.hdf5") for file in folder.glob(pattern))


def mean_difference(features: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference to the neighboring snippets, (T, D) -> (T, D).

    It stands in for motion in datasets with a single stream. The ends have one neighbor; a single snippet gives zeros.
    """
    differences = np.zeros_like(features)
    if len(features) > 1:
        steps = np.abs(np.diff(features, axis=0))  # (T - 1, D)
        differences[0], differences[-1] = steps[0], steps[-1]
        differences[1:-1] = (steps[:-1] + steps[1:]) / 2
    return differences


def is_finite(values: np.ndarray) -> np.ndarray:
    """Return where floats of any width are finite as float32."""
    if values.dtype.itemsize == 2:  # all exponent bits set: 17 times as fast as np.isfinite
        exponents = values.view(values.dtype.str.replace("f", "u")) & 0x7C00
        return exponents != 0x7C00
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32) if values.dtype.itemsize > 4 else values)


def _require_sorted(snippets: np.ndarray, length: int) -> None:
    """Raise IndexError unless the snippets are sorted and in [0, length): beyond it lies another video."""
    if len(snippets) and not (snippets[0] >= 0 and (np.diff(snippets) >= 0).all() and snippets[-1] < length):
        raise IndexError(f"expected sorted snippets in [0, {length}), got {snippets}")


def _stored_modality(source: Source, modality: str) -> str:
    """Return the stored modality that `modality` is computed from: itself, or without `_diff`."""
    for name in (modality, modality.removesuffix(DIFFERENCE_SUFFIX)):
        if name in source.modalities:
            return name
    joined = len(source.modalities) == 1 and not modality.endswith(DIFFERENCE_SUFFIX)
    advice = '; if its channels are joined streams, give "split" in features.json or --split (docs/data.md)'
    raise InputError(
        f"{source.path}: modality '{modality}' not found; stored are {name_some(source.modalities)} "
        f"(and <modality>{DIFFERENCE_SUFFIX} of each){advice if joined else ''}"
    )
