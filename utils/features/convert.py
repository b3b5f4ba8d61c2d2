"""Writer of datasets (features.h5, annotations.json, SHA256SUMS), and converter of any features to that format.

Every file is written atomically. A features.h5 checks itself: fletcher32 covers every array, and its format has
checksums over names, shapes and attributes, so reading returns what was written or fails.
"""

import math
import shutil
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.annotations import annotations_to_json, load_annotations
from utils.datasets import Rate
from utils.errors import InputError, shorten
from utils.features.hdf5_source import HDF5Source
from utils.features.index import open_index
from utils.features.layouts import TRANSPOSED, Arrangement, array_files, looks_transposed
from utils.features.recipes import RECIPE, recipe_to_text
from utils.features.shards import shard_name
from utils.features.sources import JOINT_SUFFIX, Source
from utils.features.store import FeatureStore, open_features
from utils.formats.checksums import SUMS, format_checksums, read_checksums
from utils.formats.files import atomic_write, write_json, write_text
from utils.formats.hdf5 import MAX_LEVELS, create_hdf5, set_attributes

FEATURES, ANNOTATIONS = "features.h5", "annotations.json"
CHUNK_BYTES = 2**19  # before rounding up to rows; reading a batch's rows takes half the time of chunks of 4 MB
SIMULATED_SOURCE = "converted from simulated features"

Arrays = Iterable[tuple[str, np.ndarray]]  # ("modality/video_id", (T, D))
Attributes = Mapping[str, Mapping[str, object]]  # numbers and texts by group, "/" for the file


@dataclass(frozen=True)
class Conversion:
    """Summary of one converted modality."""

    modality: str
    videos: int
    channels: int
    dtypes: tuple[str, ...]  # in the source; wider ones than float32 became float32
    cut: int  # videos whose modalities were cut to the shorter


def write_dataset(out: Path, arrays: Arrays, attributes: Attributes, annotations: object | None) -> Path:
    """Write features.h5, annotations.json and SHA256SUMS into a folder, see `write_files`; return features.h5."""
    write_files(out, {FEATURES: arrays}, attributes, annotations)
    return out / FEATURES


def write_files(
    out: Path, files: Mapping[str, Arrays | None], attributes: Attributes, annotations: object | None
) -> None:
    """Write one feature file or several shards, annotations.json and SHA256SUMS.

    SHA256SUMS is removed before a file changes and rewritten after; entries of other files stay. If an array raises an
    error, nothing changes. One array at a time is in memory.

    Args:
        out: Folder, created if missing.
        files: Arrays by file name; None keeps the existing file.
        attributes: Attributes of every file.
        annotations: Content of annotations.json; None keeps the existing file, if there is one.

    Raises:
        InputError: The system refuses to write, or an existing SHA256SUMS is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    others = {name: value for name, value in read_checksums(out).items() if name not in (*files, ANNOTATIONS)}
    with ExitStack() as stack:  # renames all files after the last one is complete
        for name, arrays in files.items():
            if arrays is not None:
                write_features(stack.enter_context(atomic_write(out / name)), arrays, attributes)
        _write_checksums(out, others)
        if annotations is not None:
            write_json(out / ANNOTATIONS, annotations)
    present = [name for name in (*files, ANNOTATIONS) if (out / name).exists()]
    _write_checksums(out, others, format_checksums(out, present))
    with suppress(InputError):  # a training reports annotations that it cannot use
        open_index(out)


def convert_features(
    path: str | Path,
    out: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    subsets: Sequence[str] | None = None,
    fps: float | None = None,
    stride: float | None = None,
    shards: int | None = None,
    arrangement: Arrangement | None = None,
    drop_inverted: bool = False,
) -> list[Conversion]:
    """Convert features in any format, and their annotations, with `write_dataset`.

    Values stay equal bit for bit, but wider dtypes than float32 become float32. Memory stays small, except for a
    joint file. Equal features in `out` stay, so an interrupted or repeated command succeeds.

    Args:
        path: Dataset folder or feature file.
        out: Folder to write to.
        modalities: Modalities to convert; None for all.
        subsets: Annotated subsets to convert; None for every video.
        fps: Frames per second, for features that do not store their rate.
        stride: Frames per snippet, likewise.
        shards: Number of files of about equal size; None for one features.h5.
        arrangement: Arrangement of the arrays, see `open_features`.
        drop_inverted: Leave out annotated segments that end before they start.

    Raises:
        InputError: Nothing was written, because of unusable features or annotations, a missing or contradictory rate,
            a video name that HDF5 cannot store, other content in `out`, too little space, or too many shards.
    """
    source, out = open_features(path, modalities, arrangement).source, Path(out)
    folder = source.path if source.path.is_dir() else source.path.parent
    if out.exists() and out.samefile(folder):
        raise InputError(f"{out}: is the folder of the source, whose features would be hidden; choose another one")
    annotations = load_annotations(folder, drop_inverted)
    if subsets:
        videos = {video.video_id: video for name in subsets for video in annotations.subset(name)}
        in_order = {name: video for name, video in annotations.videos.items() if name in videos}
        annotations = replace(annotations, videos=in_order)
    selection = _Selection(source, modalities or source.modalities, annotations.videos if subsets else None)
    attributes = selection.attributes(fps, stride)
    content = annotations_to_json(annotations)
    if (out / ANNOTATIONS).exists():
        if annotations_to_json(load_annotations(out / ANNOTATIONS)) != content:
            raise InputError(f"{out / ANNOTATIONS}: contains other annotations; choose another folder")
        content = None
    files = {FEATURES: selection.video_ids} if shards is None else selection.shards(shards)
    existing = _existing_features(out, files)
    for name in existing:
        selection.check_equal(out / name, files[name], attributes)
    missing = [name for name in files if name not in existing]
    check_space(out, sum(selection.num_bytes(video_id) for name in missing for video_id in files[name]))
    arrays = {name: None if name in existing else selection.arrays(files[name], "converting") for name in files}
    write_files(out, arrays, attributes, content)
    return selection.conversions()


class _Selection:
    """Modalities and videos of a source that are converted."""

    def __init__(self, source: Source, modalities: Sequence[str], wanted: Container[str] | None):
        self.source = source
        self._stores = {modality: FeatureStore(source, (modality,)) for modality in modalities}
        self._store = FeatureStore(source, modalities)
        self._members: dict[str, list[str]] = {}  # videos by modality
        for modality, store in self._stores.items():
            self._members[modality] = [name for name in store.video_ids if wanted is None or name in wanted]
            if not self._members[modality]:
                raise InputError(f"{source.path}: no video has '{modality}'; choose other modalities or subsets")
            check_hdf5_names(self._members[modality])
        self._member_sets = {modality: frozenset(video_ids) for modality, video_ids in self._members.items()}
        self.video_ids = list(dict.fromkeys(name for video_ids in self._members.values() for name in video_ids))
        self.cut: set[str] = set()  # videos whose modalities differ in length
        for modality, store in self._stores.items():
            shapes = [store.shape(modality, video_id) for video_id in self._members[modality][:100]]
            if looks_transposed(shapes):
                raise InputError(f"{source.path}: {TRANSPOSED.format(modality)}")
        self._dtypes: dict[str, set[str]] = {modality: set() for modality in modalities}

    def num_bytes(self, video_id: str) -> int:
        """Return the approximate size of a video's features; InputError for an unusable shape."""
        return sum(length * self._row_bytes[modality] for modality, length in self._lengths(video_id).items())

    def _lengths(self, video_id: str) -> dict[str, int]:
        """Return the snippets to write of each modality; InputError for a shape unlike that of other videos."""
        lengths = {
            modality: store.num_snippets(video_id)
            for modality, store in self._stores.items()
            if video_id in self._member_sets[modality]
        }
        used = self._store.common_lengths(video_id, lengths)
        if used != lengths:
            self.cut.add(video_id)
        return used

    @cached_property
    def _row_bytes(self) -> dict[str, int]:
        """Bytes per snippet of each modality, by the dtype of its first video."""
        return {
            modality: store.modality_dims[0]
            * _target_dtype(store.stored_values(modality, self._members[modality][0])).itemsize
            for modality, store in self._stores.items()
        }

    def shards(self, count: int) -> dict[str, list[str]]:
        """Return the videos of each shard: in order, at least one, and about equally many bytes."""
        if not 0 < count <= len(self.video_ids):
            raise InputError(f"{self.source.path}: has {len(self.video_ids)} videos, which do not fill {count} shards")
        measured = tqdm(self.video_ids, "measuring", leave=False, unit="video", delay=2, disable=None)
        sizes = np.array([self.num_bytes(video_id) for video_id in measured])
        shards = np.arange(count)
        starts = np.searchsorted(np.cumsum(sizes) - sizes / 2, sizes.sum() / count * shards)
        starts = np.maximum.accumulate(starts - shards) + shards  # at least one video per shard
        starts = np.minimum(starts, len(sizes) - count + shards)
        borders = [*starts.tolist(), len(sizes)]
        return {shard_name(shard, count): self.video_ids[borders[shard] : borders[shard + 1]] for shard in range(count)}

    def attributes(self, fps: float | None, stride: float | None) -> dict[str, dict[str, object]]:
        """Return the rate of each modality, the mark of simulated features, and the recipe."""
        attributes = {modality: _rate(self.source, modality, fps, stride)._asdict() for modality in self._stores}
        marks = {"simulated": SIMULATED_SOURCE} if self.source.simulated else {}
        if self.source.recipe is not None:
            marks[RECIPE] = recipe_to_text(self.source.recipe)
        return attributes | ({"/": marks} if marks else {})

    def arrays(self, video_ids: Iterable[str], activity: str) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the arrays of the videos as float16 or float32; InputError for unusable features."""
        for video_id in tqdm(video_ids, activity, unit="video", leave=False, disable=None):
            lengths = self._lengths(video_id)
            for modality, store in self._stores.items():
                if video_id in self._member_sets[modality]:
                    values = store.stored_values(modality, video_id)[: lengths[modality]]
                    self._dtypes[modality].add(values.dtype.name)
                    yield f"{modality}/{video_id}", values.astype(_target_dtype(values), copy=False)

    def check_equal(self, path: Path, video_ids: Collection[str], attributes: Attributes) -> None:
        """Raise an InputError unless an existing file has exactly the features of these videos."""
        existing = HDF5Source(path)
        if set(existing.modalities) != set(self._stores) or existing.simulated != self.source.simulated:
            raise _other_features(path)
        if existing.recipe != self.source.recipe:
            raise _other_features(path)
        for modality, members in self._member_sets.items():
            if existing.rate(modality) != Rate(**attributes[modality]):
                raise _other_features(path)
            if set(existing.video_ids(modality)) != members.intersection(video_ids):
                raise _other_features(path)
        for name, values in self.arrays(video_ids, "comparing with existing features"):
            stored = existing.read(*name.split("/", maxsplit=1))
            if stored.dtype != values.dtype or not np.array_equal(stored, values):
                raise _other_features(path)

    def conversions(self) -> list[Conversion]:
        """Return the summary of each modality."""
        return [
            Conversion(
                name,
                len(self._members[name]),
                store.modality_dims[0],
                tuple(sorted(self._dtypes[name])),
                len(self.cut.intersection(self._members[name])),
            )
            for name, store in self._stores.items()
        ]


def check_hdf5_names(video_ids: Collection[str]) -> None:
    """Raise an InputError for a video name that HDF5 cannot store.

    HDF5 nests a group at each slash: 'a' cannot lie beside 'a/b', and 'a//b', 'a/./b' and '/a/b' all mean 'a/b'.
    """
    known = frozenset(video_ids)
    for video_id in video_ids:
        parts = video_id.split("/")
        is_inside_another = any("/".join(parts[:count]) in known for count in range(1, len(parts)))
        is_text = "\0" not in video_id and not any("\ud800" <= character <= "\udfff" for character in video_id)
        if is_inside_another or not is_text or "" in parts or "." in parts or len(parts) > MAX_LEVELS:
            raise InputError(f"HDF5 cannot store a video named {shorten(video_id)} (beside the others); rename it")


def find_features(folder: Path) -> Iterator[Path]:
    """Yield the feature files in a folder, in any format that utils/features/store.py reads."""
    for pattern in ("*.h5", "*.hdf5", f"*{JOINT_SUFFIX}"):
        yield from folder.glob(pattern)
    for files in array_files(folder).values():
        yield from (file for file in files if not file.name.endswith(JOINT_SUFFIX))


def check_space(out: Path, num_bytes: int) -> None:
    """Raise an InputError if the disk of a folder, which need not exist yet, has fewer free bytes."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file; choose a folder")
    if num_bytes > shutil.disk_usage(existing).free:
        raise InputError(f"{out}: {num_bytes / 1e9:.1f} GB of features do not fit on this disk")


def write_features(path: Path, arrays: Arrays, attributes: Attributes) -> None:
    """Write one HDF5 file of features, with checksums but not atomically."""
    with create_hdf5(path) as file:
        for group, pairs in attributes.items():
            set_attributes(file.require_group(group), pairs)
        for name, values in arrays:
            # An empty array supports neither chunks nor a checksum.
            options = {"chunks": _chunk_shape(values), "fletcher32": True} if values.size else {}
            file.create_dataset(name, data=values, **options)


def _chunk_shape(values: np.ndarray) -> tuple[int, int]:
    """Return chunks of about equal numbers of rows, so that the last one has little padding."""
    parts = math.ceil(values.nbytes / CHUNK_BYTES)
    return math.ceil(len(values) / parts), values.shape[1]


def _write_checksums(folder: Path, others: Mapping[str, str], lines: str = "") -> None:
    """Write SHA256SUMS with the entries of other files and new lines; remove it if both are empty."""
    lines = "".join(f"{value}  {name}\n" for name, value in others.items()) + lines
    if lines:
        write_text(folder / SUMS, lines)
    else:
        (folder / SUMS).unlink(missing_ok=True)


def _existing_features(out: Path, names: Container[str]) -> list[str]:
    """Return which of the files exist, as after an interruption; InputError for other features in the folder."""
    existing = list(find_features(out)) if out.is_dir() else []
    for path in existing:
        if path.parent != out or path.name not in names:
            raise _other_features(path)
    return [path.name for path in existing]


def _other_features(path: Path) -> InputError:
    return InputError(f"{path}: differs from the features to write; choose another folder, or move the file away")


def _rate(source: Source, modality: str, fps: float | None, stride: float | None) -> Rate:
    """Return the stored rate, else the given one; InputError if both are missing or differ."""
    stored = source.rate(modality)
    given = None if fps is None or stride is None else Rate(fps, stride)
    if given and not all(0 < value < math.inf for value in given):
        raise InputError(f"--fps and --stride must be positive numbers, such as 25 and 16; got {fps:g} and {stride:g}")
    if stored is None and given is None:
        raise InputError(
            f"{source.path}: the rate of '{modality}' is not stored; give --fps and --stride (frames per snippet)"
        )
    if stored and given and stored.snippet_rate != given.snippet_rate:
        raise InputError(
            f"{source.path}: '{modality}' has {stored.fps:g} fps and {stored.stride:g} frames per snippet, got "
            f"--fps {fps:g} --stride {stride:g}; leave both out"
        )
    return stored or given


def _target_dtype(values: np.ndarray) -> np.dtype:
    return np.dtype(np.float16 if values.dtype.itemsize == 2 else np.float32)
