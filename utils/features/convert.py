"""Datasets as this project writes them: features.h5 and annotations.json, each whole or not at all, and SHA256SUMS.

`write_dataset` is the one way to write them, and `convert_features` takes it with features of any form that
utils/features/store.py reads. A features.h5 of ours carries its own checks: fletcher32 over every array, and a format
whose names, shapes and attributes have checksums too, so that reading gives what was written or fails.
"""

import math
import shutil
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.annotations import RELEASE_SUFFIX, Annotations, annotations_to_json, load_annotations
from utils.datasets import Rate
from utils.errors import InputError, shorten
from utils.features.shards import shard_name
from utils.features.sources import JOINT_SUFFIX, HDF5Source, Source
from utils.features.store import FeatureStore, open_features
from utils.formats.checksums import SUMS, format_checksums, read_checksums
from utils.formats.files import atomic_write, write_json, write_text
from utils.formats.hdf5 import MAX_LEVELS, create_hdf5, set_attributes

FEATURES, ANNOTATIONS = "features.h5", "annotations.json"
CHUNK_BYTES = 2**19  # at most, before rounding up to rows: rows of a batch are read in half of the time that 4 MB take
SIMULATED_TOO = "converted from simulated features"


@dataclass(frozen=True)
class Conversion:
    """What became of the features of one modality."""

    modality: str
    videos: int
    channels: int
    dtypes: tuple[str, ...]  # of the source; float16 and float32 stay, what is wider became float32


def write_dataset(
    out: Path,
    arrays: Iterable[tuple[str, np.ndarray]],
    attributes: Mapping[str, Mapping[str, object]],
    annotations: object | None,
) -> Path:
    """Write features.h5, annotations.json and SHA256SUMS into the folder `out`; returns the features' path.

    Args as `write_files` has them, arrays of the one file; InputError likewise.
    """
    write_files(out, {FEATURES: arrays}, attributes, annotations)
    return out / FEATURES


def write_files(
    out: Path,
    files: Mapping[str, Iterable[tuple[str, np.ndarray]] | None],
    attributes: Mapping[str, Mapping[str, object]],
    annotations: object | None,
) -> None:
    """Write one file of features, or the shards of one, with annotations.json and SHA256SUMS.

    At no moment does SHA256SUMS accuse a good file; what it says of other files stays. An error that an array raises
    leaves all as it was. One array at a time is in memory.

    Args:
        files: by name their arrays, ("modality/video_id", (T, D)) one after another; None for a file that is there
            already and stays.
        attributes: numbers and texts by the name of their group, "/" for the file itself; in every file.
        annotations: the content of annotations.json; None leaves the one that is there.
    InputError: the system does not let us write (a full disk, no permission), a SHA256SUMS that is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    listed = read_checksums(out)
    with ExitStack() as replaced:  # all files take their names when the last one is whole
        for name, arrays in files.items():
            if arrays is not None:
                _write_features(replaced.enter_context(atomic_write(out / name)), arrays, attributes)
        _write_sums(out, listed, ours=files)
        if annotations is not None:
            write_json(out / ANNOTATIONS, annotations)
    _write_sums(out, listed, ours=files, written=True)


def convert_features(
    path: str | Path,
    out: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    subsets: Sequence[str] | None = None,
    fps: float | None = None,
    stride: float | None = None,
    shards: int | None = None,
) -> list[Conversion]:
    """The features at `path`, of any form, and their annotations -> `write_dataset` into the folder `out`.

    Values stay as they are, bit for bit; only what is wider than float32 becomes float32. Memory stays flat (but for
    a joint file, which is in memory as a whole). Features that are at `out` already stay if they are equal, so that a
    command that was stopped, or is repeated, ends well.

    Args:
        modalities: stored ones; None for all.
        subsets: only the videos annotated with these; None for every video that is stored.
        fps, stride: of features that do not say their rate (stride: frames a snippet).
        shards: write so many files, the videos in order and about equally many bytes in each; None for one features.h5.
    InputError, with nothing written: features or annotations that cannot be read or used, a rate that nobody says or
    that is said differently, names that HDF5 cannot hold, the features' own folder, other features or annotations at
    `out`, too little space, fewer videos than shards.
    """
    source, out = open_features(path, modalities).source, Path(out)
    folder = source.path if source.path.is_dir() else source.path.parent
    if out.exists() and out.samefile(folder):
        raise InputError(f"{out}: is where the features lie; others beside them would hide them; name another folder")
    annotations = load_annotations(folder)
    if subsets:
        annotations = _only(annotations, subsets)
    selection = _Selection(source, modalities or source.modalities, annotations.videos if subsets else None)
    attributes = selection.attributes(fps, stride)
    content = annotations_to_json(annotations)
    if _has_annotations(out / ANNOTATIONS, content):
        content = None
    files = {FEATURES: selection.every} if shards is None else selection.sharded(shards)
    present = _present_features(out, files)
    for name in present:
        selection.require_equal(out / name, files[name], attributes)
    missing = [name for name in files if name not in present]
    require_space(out, sum(selection.num_bytes(video_id) for name in missing for video_id in files[name]))
    arrays = {name: None if name in present else selection.arrays(files[name], "converting") for name in files}
    write_files(out, arrays, attributes, content)
    return selection.conversions()


class _Selection:
    """The modalities and videos of a source that are to be converted."""

    def __init__(self, source: Source, modalities: Sequence[str], wanted: Container[str] | None):
        """InputError: no such modality, no video that is wanted (None: all are), a name that HDF5 cannot hold."""
        self.source = source
        self.stores = {modality: FeatureStore(source, (modality,)) for modality in modalities}
        self.video_ids = {
            modality: [video_id for video_id in store.video_ids if wanted is None or video_id in wanted]
            for modality, store in self.stores.items()
        }
        for modality, video_ids in self.video_ids.items():
            if not video_ids:
                raise InputError(
                    f"{source.path}: '{modality}' has none of the videos; name other modalities or subsets"
                )
            require_hdf5_names(video_ids)
        self.every = list(dict.fromkeys(video_id for video_ids in self.video_ids.values() for video_id in video_ids))
        self._members = {modality: frozenset(video_ids) for modality, video_ids in self.video_ids.items()}
        self._dtypes: dict[str, set[str]] = {modality: set() for modality in modalities}

    def num_bytes(self, video_id: str) -> int:
        """About the size of a video's features; InputError for a shape that cannot be used."""
        stores = (store for modality, store in self.stores.items() if video_id in self._members[modality])
        return sum(store.num_snippets(video_id) * self._row_bytes[store.modalities[0]] for store in stores)

    @cached_property
    def _row_bytes(self) -> dict[str, int]:
        """Of a snippet of each modality, as its first video is stored."""
        return {
            modality: store.modality_dims[0] * _kept_dtype(store.stored_values(modality, video_ids[0])).itemsize
            for (modality, video_ids), store in zip(self.video_ids.items(), self.stores.values(), strict=True)
        }

    def sharded(self, count: int) -> dict[str, list[str]]:
        """The videos of each shard, in order, at least one each; InputError for more shards than videos."""
        if not 0 < count <= len(self.every):
            raise InputError(f"{self.source.path}: has {len(self.every)} videos, which do not fill {count} shards")
        measured = tqdm(self.every, "measuring", leave=False, unit="video", delay=2)
        sizes = np.array([self.num_bytes(video_id) for video_id in measured])
        shards = np.arange(count)
        starts = np.searchsorted(np.cumsum(sizes) - sizes / 2, sizes.sum() / count * shards)
        starts = np.maximum.accumulate(starts - shards) + shards  # one video further at least
        starts = np.minimum(starts, len(sizes) - count + shards)
        borders = [*starts.tolist(), len(sizes)]
        return {shard_name(shard, count): self.every[borders[shard] : borders[shard + 1]] for shard in range(count)}

    def attributes(self, fps: float | None, stride: float | None) -> dict[str, dict[str, object]]:
        """The rate of each modality, and whether all of it is simulated."""
        attributes = {modality: _rate(self.source, modality, fps, stride)._asdict() for modality in self.stores}
        return attributes | ({"/": {"simulated": SIMULATED_TOO}} if self.source.simulated else {})

    def arrays(self, video_ids: Iterable[str], doing: str) -> Iterator[tuple[str, np.ndarray]]:
        """("modality/video_id", (T, D) float16 or float32), video by video. InputError for what cannot be used."""
        for video_id in tqdm(video_ids, doing, unit="video", leave=False):
            for modality, store in self.stores.items():
                if video_id in self._members[modality]:
                    store.num_snippets(video_id)  # which holds the shape against the other videos'
                    values = store.stored_values(modality, video_id)
                    self._dtypes[modality].add(values.dtype.name)
                    yield f"{modality}/{video_id}", values.astype(_kept_dtype(values), copy=False)

    def require_equal(
        self, path: Path, video_ids: Collection[str], attributes: Mapping[str, Mapping[str, object]]
    ) -> None:
        """InputError if a file of features holds anything else than what would be written of these videos."""
        present = HDF5Source(path)
        if set(present.modalities) != set(self.stores) or present.simulated != self.source.simulated:
            raise _other_features(path)
        for modality, members in self._members.items():
            said = attributes[modality]
            same_rate = present.rate(modality) == Rate(said["fps"], said["stride"])
            if not same_rate or set(present.video_ids(modality)) != members.intersection(video_ids):
                raise _other_features(path)
        for name, values in self.arrays(video_ids, "comparing with what is there"):
            found = present.read(*name.split("/", maxsplit=1))
            if found.dtype != values.dtype or not np.array_equal(found, values):
                raise _other_features(path)

    def conversions(self) -> list[Conversion]:
        return [
            Conversion(name, len(self.video_ids[name]), store.modality_dims[0], tuple(sorted(self._dtypes[name])))
            for name, store in self.stores.items()
        ]


def require_hdf5_names(video_ids: Collection[str]) -> None:
    """HDF5 nests a group at each slash: 'a' cannot lie beside 'a/b', and 'a//b', 'a/./b' and '/a/b' are all 'a/b'.

    InputError names a video that would be lost, is nested too deep to be read back, or whose name is no text.
    """
    known = frozenset(video_ids)
    for video_id in video_ids:
        parts = video_id.split("/")
        inside_another = any("/".join(parts[:count]) in known for count in range(1, len(parts)))
        no_text = "\0" in video_id or any("\ud800" <= character <= "\udfff" for character in video_id)
        if inside_another or no_text or "" in parts or "." in parts or len(parts) > MAX_LEVELS:
            raise InputError(f"HDF5 cannot hold a video named {shorten(video_id)} (beside the others); rename it")


def features_in(folder: Path) -> Iterator[Path]:
    """The features in a folder, of any form that utils/features/store.py looks for."""
    for pattern in ("*.h5", f"*{JOINT_SUFFIX}", "*/*.npy"):
        yield from (path for path in folder.glob(pattern) if not path.parent.name.endswith(RELEASE_SUFFIX))


def require_space(out: Path, num_bytes: int) -> None:
    """InputError if the disk of a folder, which need not exist yet, has no room for so many bytes of features."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file; name a folder")
    if num_bytes > shutil.disk_usage(existing).free:
        raise InputError(f"{out}: {num_bytes / 1e9:.1f} GB of features do not fit on this disk")


def _write_features(path: Path, arrays: Iterable, attributes: Mapping[str, Mapping[str, object]]) -> None:
    with create_hdf5(path) as file:
        for group, pairs in attributes.items():
            set_attributes(file.require_group(group), pairs)
        for name, values in arrays:
            # An empty array can have neither chunks nor a checksum, and has nothing to check.
            checked = {"chunks": _chunk_shape(values), "fletcher32": True} if values.size else {}
            file.create_dataset(name, data=values, **checked)


def _chunk_shape(values: np.ndarray) -> tuple[int, int]:
    """Equal parts of the rows of (T, D), so that the last one carries hardly any padding."""
    parts = math.ceil(values.nbytes / CHUNK_BYTES)
    return math.ceil(len(values) / parts), values.shape[1]


def _write_sums(folder: Path, listed: Mapping[str, str], ours: Iterable[str], written: bool = False) -> None:
    """SHA256SUMS: what was listed of others' files and, once they are written, our features and annotations."""
    ours = [*ours, ANNOTATIONS]
    others = [f"{value}  {name}\n" for name, value in listed.items() if name not in ours]
    if written or others:
        write_text(folder / SUMS, "".join(others) + (format_checksums(folder, ours) if written else ""))
    else:
        (folder / SUMS).unlink(missing_ok=True)


def _only(annotations: Annotations, subsets: Sequence[str]) -> Annotations:
    videos = {video.video_id for name in subsets for video in annotations.subset(name)}
    return replace(annotations, videos={name: video for name, video in annotations.videos.items() if name in videos})


def _present_features(out: Path, names: Container[str]) -> list[str]:
    """Those of the files that `out` has, after a stop some of them; InputError if it has features beside them."""
    found = list(features_in(out)) if out.is_dir() else []
    for path in found:
        if path.parent != out or path.name not in names:
            raise _other_features(path)
    return [path.name for path in found]


def _has_annotations(path: Path, content: dict) -> bool:
    """Whether these annotations are there already, however written; InputError for others."""
    if not path.exists():
        return False
    if annotations_to_json(load_annotations(path)) != content:
        raise InputError(f"{path}: holds other annotations; name another folder")
    return True


def _other_features(path: Path) -> InputError:
    return InputError(f"{path}: other features lie there; name another folder, or move them away")


def _rate(source: Source, modality: str, fps: float | None, stride: float | None) -> Rate:
    """As the features say it, else as asked for."""
    said = source.rate(modality)
    asked = None if fps is None or stride is None else Rate(fps, stride)
    if asked and not all(0 < value < math.inf for value in asked):
        raise InputError(f"--fps and --stride must be positive numbers, as 25 and 16; found {fps:g} and {stride:g}")
    if said is None and asked is None:
        raise InputError(
            f"{source.path}: does not say at which rate '{modality}' was extracted; give --fps and --stride "
            "(frames a snippet)"
        )
    if said and asked and said.snippet_rate != asked.snippet_rate:
        raise InputError(
            f"{source.path}: '{modality}' says {said.fps:g} fps and {said.stride:g} frames a snippet, asked for "
            f"are {fps:g} and {stride:g}; leave --fps and --stride out"
        )
    return said or asked


def _kept_dtype(values: np.ndarray) -> np.dtype:
    return np.dtype(np.float16 if values.dtype.itemsize == 2 else np.float32)
