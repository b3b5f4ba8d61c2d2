"""Feature stores: precomputed snippet features of a video, whatever the form they lie in.

`open_features(path, modalities)` gives a `FeatureStore`, and `store[video_id]` is (T, D) float32, the asked
modalities side by side. Four forms are read (utils/features/feature_files.py):

* HDF5: `/<modality>/<video_id>` (T, D); attributes `fps` and `stride` (frames a snippet) on the modality's
  group, else on the file's root, give the snippet rate. One file, or shards of one (utils/features/shards.py).
* `<modality>/<video_id>.npy` folders; `features.json` beside them, `{"fps": 30, "stride": 16}`, gives the rate.
* the releases' `<name>-I3D-JOINTFeatures.npy` (RGB first, flow last, 25 fps, stride 16), whose rows
  `<name>-Annotations/videoname.npy` names.
* the AVE release (utils/formats/ave.py), `audio` and `visual`, a snippet a second.

Modalities whose rates differ are aligned by time, on the grid of the one named first.

Run `python -m utils.features DIR` to see what a folder holds and whether it fits its annotations, and with `--check`
to find all that is wrong with it (utils/features/check.py).
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.features.feature_files import open_source
from utils.features.shards import ShardedSource
from utils.features.sources import Source
from utils.segments import aligned_snippets

DIFFERENCE_SUFFIX = "_diff"


class FeatureStore:
    """Features by video_id: (T, D) float32, D = sum(modality_dims), modalities in the order asked for."""

    def __init__(self, source: Source, modalities: Sequence[str]):
        self.source = source
        self.modalities = tuple(modalities)
        # What each is made from; the same twice where it comes with its own difference.
        self.stored_modalities = tuple(_stored_modality(source, modality) for modality in self.modalities)

    @cached_property
    def video_ids(self) -> list[str]:
        """The videos that have every asked modality, in the file's order."""
        listed = {stored: self.source.video_ids(stored) for stored in self.stored_modalities}
        shared = set.intersection(*map(set, listed.values()))
        return [video_id for video_id in listed[self.stored_modalities[0]] if video_id in shared]

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.video_ids)

    def describe(self) -> dict:
        """Where the features lie, in which form, and whether they are simulated."""
        return {"path": str(self.source.path), "form": self.source.form, "simulated": self.source.simulated}

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._known

    @cached_property
    def modality_dims(self) -> tuple[int, ...]:
        """Channels of each modality, those of its first video; every other video is checked against it.

        InputError: no video at all, a first video that is not (T, D) with a channel at least.
        """
        if not self.video_ids:
            raise InputError(f"{self.source.path}: no video has all of {list(self.modalities)}")
        shapes = [self.source.shape(stored, self.video_ids[0]) for stored in self.stored_modalities]
        for stored, shape in zip(self.stored_modalities, shapes, strict=True):
            if len(shape) != 2 or shape[1] == 0:
                raise self._bad_shape(stored, self.video_ids[0], shape, "(snippets, channels), one channel at least")
        return tuple(shape[1] for shape in shapes)

    def _bad_shape(self, stored: str, video_id: str, shape: tuple[int, ...], expected: str) -> InputError:
        found = f"'{stored}' of video '{video_id}' has shape {tuple(shape)}"
        return InputError(f"{self.source.path}: {found}, expected {expected}")

    @cached_property
    def snippet_rate(self) -> float | None:
        """Snippets a second, those of the first modality; None where the features do not say."""
        return self._rates[0]

    @cached_property
    def _rates(self) -> tuple[float | None, ...]:
        """Of each modality; one that does not say its rate has that of the others."""
        rates = [self.source.rate(stored) for stored in self.stored_modalities]
        given = next((rate.hz for rate in rates if rate is not None), None)
        return tuple(given if rate is None else rate.hz for rate in rates)

    def num_snippets(self, video_id: str) -> int:
        """T of one video, from its stored shape. InputError: not (T, D), another width, modalities that do not fit."""
        return self._lengths(video_id)[0]

    def _lengths(self, video_id: str) -> list[int]:
        """Snippets of each modality, on its own grid."""
        self._require(video_id)
        lengths = {}
        for stored, width in zip(self.stored_modalities, self.modality_dims, strict=True):
            shape = self.source.shape(stored, video_id)
            if len(shape) != 2 or shape[1] != width:
                raise self._bad_shape(stored, video_id, shape, f"(snippets, {width})")
            lengths[stored] = shape[0]
        if fault := self.length_fault(video_id, lengths):
            raise InputError(f"{self.source.path}: {fault}")
        return [lengths[stored] for stored in self.stored_modalities]

    def length_fault(self, video_id: str, lengths: dict[str, int]) -> str | None:
        """Why these numbers of snippets, by stored modality, are not one video's; None if they may be.

        Of equal rates they must be equally many. Of different ones they must last equally long, but extractors drop
        what does not fill a snippet: two of the coarser grid, or a tenth, are no difference.
        """
        by_stored = dict(zip(self.stored_modalities, self._rates, strict=True))
        rates = [by_stored[stored] for stored in lengths]
        if len(set(rates)) < 2:
            if len(set(lengths.values())) < 2:
                return None
            return (
                f"the modalities of video '{video_id}' differ in snippets: {lengths}; "
                "extract them again from the same frames"
            )
        durations = [length / rate for length, rate in zip(lengths.values(), rates, strict=True)]
        if min(durations) and max(durations) - min(durations) <= max(2 / min(rates), 0.1 * max(durations)):
            return None
        told = ", ".join(f"{stored} {seconds:.1f} s" for stored, seconds in zip(lengths, durations, strict=True))
        return (
            f"the modalities of video '{video_id}' do not last equally long ({told}); "
            "extract them again from the same video, or correct fps and stride"
        )

    def __getitem__(self, video_id: str) -> np.ndarray:
        """(T, D) float32. InputError: no such video, bad shape or dtype, values that are NaN or infinite."""
        return self._features(video_id, None)

    def rows(self, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """`self[video_id][snippets]`, (len(snippets), D) float32, reading as little else as the form on disk allows.

        snippets: sorted, in [0, T); they may repeat. InputError as above, values only of what is read; IndexError for
        snippets that are none of the video or not sorted.
        """
        return self._features(video_id, np.asarray(snippets))

    def _features(self, video_id: str, snippets: np.ndarray | None) -> np.ndarray:
        """All of a video, or these snippets of it."""
        lengths = self._lengths(video_id)
        if snippets is not None:
            _require_sorted(snippets, lengths[0])
        count = lengths[0] if snippets is None else len(snippets)
        features = np.empty((count, sum(self.modality_dims)), dtype=np.float32)
        parts = np.split(features, np.cumsum(self.modality_dims)[:-1], axis=1)
        columns = (parts, self.modalities, self.stored_modalities, lengths, self._rates)
        for part, modality, stored, length, rate in zip(*columns, strict=True):
            rows = snippets
            if rate != self.snippet_rate:
                aligned = aligned_snippets(lengths[0], self.snippet_rate, length, rate)
                rows = aligned if snippets is None else aligned[snippets]
            if modality == stored:
                part[:] = self.stored_values(stored, video_id, rows)
            else:
                part[:] = self._differences(stored, video_id, length, rows)
        return features

    def _differences(self, stored: str, video_id: str, length: int, rows: np.ndarray | None) -> np.ndarray:
        """`mean_difference` of a stored modality of so many snippets, of all of them or in these rows."""
        if rows is None:
            return mean_difference(self.stored_values(stored, video_id).astype(np.float32, copy=False))
        # Beside each row its neighbors, so that what is next to it here is so in the video too.
        near = np.unique(np.concatenate([rows - 1, rows, rows + 1]).clip(0, length - 1))
        values = self.stored_values(stored, video_id, near).astype(np.float32, copy=False)
        return mean_difference(values)[np.searchsorted(near, rows)]

    def stored_values(self, stored: str, video_id: str, rows: np.ndarray | None = None) -> np.ndarray:
        """One stored modality of a video in its own dtype, or sorted rows of it.

        InputError: no floats, values that float32 cannot hold.
        """
        source = self.source
        values = source.read(stored, video_id) if rows is None else source.rows(stored, video_id, rows)
        if values.dtype.kind != "f":
            raise InputError(
                f"{self.source.path}: '{stored}' of video '{video_id}' has dtype {values.dtype}, "
                "expected float16 or float32"
            )
        finite = is_finite(values)
        if not finite.all():
            row = int(np.flatnonzero(~finite.all(axis=1))[0])
            row = row if rows is None else int(rows[row])
            raise InputError(
                f"{self.source.path}: '{stored}' of video '{video_id}' has NaN or infinite values, first in row {row}"
            )
        return values

    def shards(self, video_ids: Sequence[str]) -> np.ndarray:
        """(N,) the number of the file that each video lies in. InputError: the features are not in several files."""
        if not isinstance(self.source, ShardedSource):
            raise InputError(
                f"{self.source.path}: is not sharded, so --open-shards has nothing to choose from; leave it out, or "
                "shard the features with scripts/convert_features.py --shards N"
            )
        return np.array([self.source.shard(video_id) for video_id in video_ids])

    def _require(self, video_id: str) -> None:
        if video_id not in self:
            lacking = [
                modality
                for modality, stored in zip(self.modalities, self.stored_modalities, strict=True)
                if video_id not in set(self.source.video_ids(stored))
            ]
            raise InputError(f"{self.source.path}: video '{video_id}' has no features ({', '.join(lacking)})")


def open_features(path: str | Path, modalities: Sequence[str] | None = ("rgb", "flow")) -> FeatureStore:
    """The features in a dataset folder or a file, by the names of the modalities (None: all that are there).

    `<modality>_diff` is `mean_difference` of a stored modality. In a folder, features.h5 or the only *.h5
    comes first, then the release's joint file, then folders of .npy. InputError: no such path, nothing found,
    a modality that is not there.
    """
    source = open_source(Path(path))
    if not source.modalities:
        raise InputError(f"{source.path}: holds no modality; expected groups or folders <modality>/<video_id>")
    return FeatureStore(source, source.modalities if modalities is None else modalities)


def is_finite(values: np.ndarray) -> np.ndarray:
    """Where floats of any width are finite as float32, which all of them become."""
    if values.dtype.itemsize == 2:  # all bits of the exponent; numpy itself takes 17 times as long
        exponents = values.view(values.dtype.str.replace("f", "u")) & 0x7C00
        return exponents != 0x7C00
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32) if values.dtype.itemsize > 4 else values)


def _require_sorted(snippets: np.ndarray, length: int) -> None:
    """IndexError unless they are non-decreasing and in [0, length): past a video lies another one's."""
    if len(snippets) and not (snippets[0] >= 0 and (np.diff(snippets) >= 0).all() and snippets[-1] < length):
        raise IndexError(f"expected sorted snippets in [0, {length}), found {snippets}")


def mean_difference(features: np.ndarray) -> np.ndarray:
    """(T, D) -> (T, D): mean absolute difference to the neighboring snippets (at the ends the one).

    A stand-in for motion where there is one stream only; zeros for a single snippet.
    """
    differences = np.zeros_like(features)
    if len(features) > 1:
        steps = np.abs(np.diff(features, axis=0))  # (T - 1, D)
        differences[0], differences[-1] = steps[0], steps[-1]
        differences[1:-1] = (steps[:-1] + steps[1:]) / 2
    return differences


def _stored_modality(source: Source, modality: str) -> str:
    """The stored modality that `modality` is made from: itself, or what `<modality>_diff` differentiates."""
    for name in (modality, modality.removesuffix(DIFFERENCE_SUFFIX)):
        if name in source.modalities:
            return name
    found = ", ".join(source.modalities)
    raise InputError(
        f"{source.path}: no modality '{modality}'; found {found} (and <modality>{DIFFERENCE_SUFFIX} of each)"
    )
