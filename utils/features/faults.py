"""Faults of a dataset folder: one short generator per kind of fault, each yields `Finding`s.

`find_faults` checks names, shapes, times and labels; `find_value_faults` reads every value; `find_checksum_faults`
compares files with SHA256SUMS. One damaged video does not hide the faults of others. utils/features/check.py reports
the findings.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.annotations import Annotations, Video
from utils.datasets import SNIPPET_RATE, DatasetSpec
from utils.errors import InputError, name_some
from utils.features.layouts import TRANSPOSED, looks_transposed
from utils.features.store import FeatureStore, is_finite
from utils.formats.ave import BACKGROUND
from utils.formats.checksums import SUMS, read_checksums, verify_checksum

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
MISSING = "missing features"  # in training, wsad_dataset.py handles this kind
FAR_SNIPPETS, FAR_SHARE = 2, 0.1  # a length is far from the annotated duration if it exceeds both tolerances
NO_RATE = (
    f"not stored, assuming the dataset's {SNIPPET_RATE}; to set it, give fps and stride in features.json "
    "(.npy folders) or as attributes (HDF5)"
)


@dataclass(frozen=True)
class Finding:
    """One fault: an error stops training, a warning needs a look, a note is for information."""

    severity: str
    kind: str
    where: str  # path of the file
    message: str  # one line: problem, expected, what to do
    video: str | None = None
    label: str | None = None  # class, for a fault of a class

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"

    @property
    def subject(self) -> str:
        """The video, class or file with the fault."""
        return self.video or self.label or Path(self.where).name


def find_faults(
    store: FeatureStore | None,
    annotations: Annotations | None,
    spec: DatasetSpec | None,
    missing: str = ERROR,
    where: str = "annotations",
) -> Iterator[Finding]:
    """Yield the faults that show without reading values; None skips the faults of that part.

    `missing` is the severity of annotated videos without features, `where` the path of the annotations.
    """
    layout = None if store is None else _Layout(store)
    if layout is not None:
        yield from layout.unreadable
        if layout.transposed:
            message = TRANSPOSED.format("' and '".join(layout.transposed))
            yield Finding(ERROR, "transposed", layout.path, message)
        yield from _rate_faults(store)
        yield from _shape_faults(layout)
    if annotations is not None:
        rate = (layout and layout.snippet_rate) or (spec.snippet_rate if spec else SNIPPET_RATE)
        yield from _subset_faults(annotations, spec, where)
        yield from _segment_faults(annotations, rate, where)
    if layout is not None and annotations is not None:
        yield from _missing_features(layout, annotations, spec, missing)
        yield from _extra_features(layout, annotations)
        yield from _similar_names(layout, annotations, where)
        yield from _duration_faults(layout, annotations, rate)
        if spec is not None:
            yield from _short_videos(layout, annotations, spec)
            yield from _training_faults(layout, annotations, spec, where)
            yield from _untested_classes(layout, annotations, spec, where)


def find_value_faults(store: FeatureStore) -> Iterator[Finding]:
    """Yield the faults of values, reading all of them: unreadable, wrong dtype, not finite or constant."""
    arrays = [(stored, video_id) for stored in store.stored_modalities for video_id in store.source.video_ids(stored)]
    for stored, video_id in tqdm(dict.fromkeys(arrays), "reading all values", unit="array", disable=None):
        yield from _value_faults(store, stored, video_id)


def find_checksum_faults(folder: Path) -> Iterator[Finding]:
    """Yield the files in a folder's SHA256SUMS that are missing or differ."""
    try:
        names = read_checksums(folder)
    except InputError as error:
        yield error_finding("damaged checksums", folder / SUMS, error)
        return
    for name in names:
        path = folder / name
        try:
            if not path.exists():
                raise InputError(f"{path}: listed in {SUMS}, but not found; restore it")
            verify_checksum(path)
        except InputError as error:
            yield error_finding("differs from its checksum", path, error)
        except OSError as error:
            yield error_finding("differs from its checksum", path, f"cannot be read ({error.strerror})")


class _Layout:
    """Names and shapes of the features in a store; values are not read."""

    def __init__(self, store: FeatureStore):
        self.store, self.path = store, str(store.source.path)
        self.members = {stored: frozenset(store.source.video_ids(stored)) for stored in store.stored_modalities}
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {stored: {} for stored in self.members}  # by video
        self.unreadable: list[Finding] = []
        listed = (video_id for stored in self.members for video_id in store.source.video_ids(stored))
        self.video_ids = list(dict.fromkeys(listed))
        for video_id in tqdm(self.video_ids, "checking shapes", unit="video", leave=False, delay=2, disable=None):
            for stored in self.members:
                if video_id in self.members[stored]:
                    try:
                        self.shapes[stored][video_id] = store.shape(stored, video_id)
                    except InputError as error:
                        path = store.source.path_of(stored, video_id)
                        self.unreadable.append(error_finding("unreadable features", path, error, video_id))

        # Further checks see the shapes as they will be once turned.
        self.transposed = [name for name, shapes in self.shapes.items() if looks_transposed(list(shapes.values()))]
        for stored in self.transposed:
            self.shapes[stored] = {video_id: shape[::-1] for video_id, shape in self.shapes[stored].items()}

    def missing(self, video_id: str) -> list[str]:
        """Return the requested modalities that a video does not have."""
        pairs = zip(self.store.modalities, self.store.stored_modalities, strict=True)
        return [modality for modality, stored in pairs if video_id not in self.members[stored]]

    def num_snippets(self, video_id: str) -> int:
        """Return T of the first modality with a usable shape, else 0."""
        shapes = (shapes.get(video_id, ()) for shapes in self.shapes.values())
        return next((shape[0] for shape in shapes if len(shape) == 2), 0)

    @cached_property
    def has_unusable_rate(self) -> bool:
        """True if a rate is stored that cannot be used."""
        try:
            self.store.snippet_rate  # noqa: B018 (reads the file)
        except InputError:
            return True
        return False

    @property
    def snippet_rate(self) -> float | None:
        """Snippets per second, None if not stored or unusable."""
        return None if self.has_unusable_rate else self.store.snippet_rate


def _rate_faults(store: FeatureStore) -> Iterator[Finding]:
    try:
        if store.snippet_rate is None:
            yield Finding(NOTE, "rate not given", str(store.source.path), f"the snippet rate is {NO_RATE}")
    except InputError as error:
        yield error_finding("unusable rate", store.source.path, error)


def _shape_faults(layout: _Layout) -> Iterator[Finding]:
    """Yield arrays of wrong shape or unusual width, without snippets, and modalities of different length."""
    for stored, shapes in layout.shapes.items():
        widths = Counter(shape[1] for shape in shapes.values() if len(shape) == 2 and shape[1])
        width, count = widths.most_common(1)[0] if widths else ("channels", 0)
        for video_id, shape in shapes.items():
            message = f"'{stored}' of video '{video_id}' has shape {shape}, expected (snippets, {width})"
            where = str(layout.store.source.path_of(stored, video_id))
            if len(shape) != 2 or not shape[1]:
                yield Finding(ERROR, "wrong shape", where, message, video_id)
            elif shape[1] != width:
                message = f"{message} as in {count} of {len(shapes)} videos"
                yield Finding(ERROR, "wrong width", where, message, video_id)
            elif not shape[0]:
                message = f"{message} with at least one snippet; training leaves the video out"
                yield Finding(WARNING, "no snippets", where, message, video_id)
    if layout.has_unusable_rate:  # `_rate_faults` reports it
        return
    for video_id in layout.video_ids:
        lengths = {stored: shapes[video_id][0] for stored, shapes in layout.shapes.items() if shapes.get(video_id)}
        try:
            used = layout.store.common_lengths(video_id, lengths)
        except InputError as error:
            yield error_finding("different lengths", layout.path, error, video_id)
            continue
        if used != lengths:
            message = f"the modalities of video '{video_id}' have {lengths} snippets; cut to the shorter, {used}"
            yield Finding(WARNING, "cut to the shorter", layout.path, message, video_id)


def _subset_faults(annotations: Annotations, spec: DatasetSpec | None, where: str) -> Iterator[Finding]:
    wanted = {"train": spec.train_subset, "test": spec.test_subset} if spec else {}
    for purpose, subset in wanted.items():
        if not any(video.is_in(subset) for video in annotations.videos.values()):
            present = name_some(map(repr, annotations.subsets), 8)
            message = (
                f"no video of subset '{subset}', on which {spec.name} {purpose}s; subsets present: {present}; choose "
                f"another --{purpose}-subset or --dataset"
            )
            yield Finding(ERROR, "wrong subsets", where, message)


def _segment_faults(annotations: Annotations, rate: float, where: str) -> Iterator[Finding]:
    """Yield segments that are empty or outside the video; its end may be exceeded by a snippet, by rounding."""
    for video in annotations.videos.values():
        for row, (start, end) in enumerate(video.segments.tolist()):
            segment = f"segment {row} of video '{video.video_id}' is [{start:g}, {end:g}] s"
            late = video.duration is not None and end > video.duration + 1 / rate
            if start < 0 or late:
                message = (
                    f"{segment}, expected within [0, {video.duration:g}]" if late else f"{segment}, expected start >= 0"
                )
                yield Finding(WARNING, "segment outside the video", where, message, video.video_id)
            if start == end:
                message = f"{segment}, expected start < end; it cannot be detected"
                yield Finding(WARNING, "segment of no length", where, message, video.video_id)


def _missing_features(
    layout: _Layout, annotations: Annotations, spec: DatasetSpec | None, severity: str
) -> Iterator[Finding]:
    for video in annotations.videos.values():
        if missing := layout.missing(video.video_id):
            message = (
                f"no {' and no '.join(map(repr, missing))} of video '{video.video_id}' (subset '{video.subset}'); "
                "extract it, or leave the video out with --missing-features skip"
            )
            level = severity if is_used(spec, video) else NOTE
            yield Finding(level, MISSING, layout.path, message, video.video_id)


def _extra_features(layout: _Layout, annotations: Annotations) -> Iterator[Finding]:
    for video_id in layout.video_ids:
        if video_id not in annotations.videos:
            message = f"video '{video_id}' has no usable annotation; its features are ignored"
            yield Finding(NOTE, "extra features", layout.path, message, video_id)


def _similar_names(layout: _Layout, annotations: Annotations, where: str) -> Iterator[Finding]:
    """Yield names that differ only in case, surrounding blanks, or ActivityNet's optional prefix v_."""
    similar = defaultdict(list)
    for video_id in dict.fromkeys((*annotations.videos, *layout.video_ids)):
        similar[video_id.strip().casefold().removeprefix("v_")].append(video_id)
    for names in similar.values():
        if len(names) > 1:
            message = f"{' and '.join(map(repr, names))} are similar names; if they are one video, use one name"
            yield Finding(WARNING, "suspicious names", where, message, names[0])


def _duration_faults(layout: _Layout, annotations: Annotations, rate: float) -> Iterator[Finding]:
    lengths = {video_id: layout.num_snippets(video_id) for video_id in layout.video_ids}
    lengths = {video_id: length for video_id, length in lengths.items() if length}
    gaps = duration_gaps(annotations.videos.values(), lengths, rate)
    durations = {video_id: annotations.videos[video_id].duration for video_id in gaps}
    far = {v: gap for v, gap in gaps.items() if gap > max(FAR_SNIPPETS, FAR_SHARE * durations[v] * rate)}
    if len({lengths[video_id] for video_id in gaps}) == 1 and len(far) > max(1, len(gaps) / 2):
        count, shortest, longest = lengths[next(iter(gaps))], min(durations.values()), max(durations.values())
        if longest > 1.1 * shortest:
            message = (
                f"every video has {count} snippets, with durations from {shortest:g} to {longest:g} s; if they were "
                'rescaled to a fixed length, write "rescaled": true in features.json, or convert the features with '
                "scripts/convert_features.py --rescaled"
            )
            yield Finding(ERROR, "rescaled to a fixed length", layout.path, message)
            return
    for video_id in far:
        duration = durations[video_id]
        message = (
            f"video '{video_id}' has {lengths[video_id]} snippets, expected {duration * rate:.1f} for "
            f"{duration:g} s at {rate:g} snippets per second; check its features, its duration and the rate"
        )
        yield Finding(WARNING, "far from its duration", layout.path, message, video_id)


def _short_videos(layout: _Layout, annotations: Annotations, spec: DatasetSpec) -> Iterator[Finding]:
    for video in annotations.videos.values():
        length = layout.num_snippets(video.video_id)
        if is_used(spec, video) and 0 < length < spec.min_snippets:
            message = (
                f"video '{video.video_id}' has {length} snippets; {spec.name} leaves out fewer than {spec.min_snippets}"
            )
            yield Finding(NOTE, "too short", layout.path, message, video.video_id)


def _training_faults(layout: _Layout, annotations: Annotations, spec: DatasetSpec, where: str) -> Iterator[Finding]:
    """Yield training videos without labels, and classes with fewer than the two videos of a pair."""
    videos = _usable_videos(layout, annotations, spec, spec.train_subset)
    for video in videos:
        if not video.labels and not video.is_in(BACKGROUND):
            message = f"training video '{video.video_id}' has no label, expected at least one"
            yield Finding(WARNING, "unlabeled training video", where, message, video.video_id)
    counts = Counter(label for video in videos for label in video.labels)
    for label in annotations.classes if videos else ():
        if counts[label] < 2:
            message = f"class '{label}' has {counts[label]} training videos with features, expected two for a pair"
            yield Finding(WARNING, "class without a pair", where, message, label=label)


def _untested_classes(layout: _Layout, annotations: Annotations, spec: DatasetSpec, where: str) -> Iterator[Finding]:
    videos = _usable_videos(layout, annotations, spec, spec.test_subset)
    tested = {label for video in videos for label in video.segment_labels}
    for label in annotations.classes if videos else ():
        if label not in tested:
            message = f"class '{label}' has no segment in the test videos with features, so it has no average precision"
            yield Finding(WARNING, "class without a test", where, message, label=label)


def _value_faults(store: FeatureStore, stored: str, video_id: str) -> Iterator[Finding]:
    where, name = str(store.source.path_of(stored, video_id)), f"'{stored}' of video '{video_id}'"
    try:
        values = np.atleast_1d(store.source.read(stored, video_id))
    except InputError as error:
        yield error_finding("unreadable features", where, error, video_id)
        return
    if values.dtype.kind != "f":
        message = f"{name} has dtype {values.dtype}, expected float16 or float32"
        yield Finding(ERROR, "wrong dtype", where, message, video_id)
        return
    if values.dtype.itemsize > 4:
        message = f"{name} has dtype {values.dtype}; it is read as float32, scripts/convert_features.py stores it so"
        yield Finding(NOTE, "wide dtype", where, message, video_id)
    bad = ~is_finite(values)
    if bad.any():
        row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
        message = f"{name} has {bad.sum()} NaN or infinite values of {bad.size}, the first in row {row}; expected none"
        yield Finding(ERROR, "NaN or infinity", where, message, video_id)
    elif values.size > 1 and (values == values.flat[0]).all():
        message = f"{name} is {values.flat[0]:g} everywhere; was it extracted?"
        yield Finding(WARNING, "constant values", where, message, video_id)


def _usable_videos(layout: _Layout, annotations: Annotations, spec: DatasetSpec, subset: str) -> list[Video]:
    """Return the videos of a subset with all modalities and enough snippets."""
    return [
        video
        for video in annotations.videos.values()
        if video.is_in(subset)
        and not layout.missing(video.video_id)
        and layout.num_snippets(video.video_id) >= max(1, spec.min_snippets)
    ]


def is_used(spec: DatasetSpec | None, video: Video) -> bool:
    """Return True if training or test reads the video's subset."""
    return spec is None or video.is_in(spec.train_subset) or video.is_in(spec.test_subset)


def duration_gaps(videos: Iterable[Video], lengths: dict[str, int], rate: float) -> dict[str, float]:
    """Return |T - duration * rate| in snippets, for each video with features and a duration."""
    return {
        video.video_id: abs(lengths[video.video_id] - video.duration * rate)
        for video in videos
        if video.video_id in lengths and video.duration is not None
    }


def error_finding(kind: str, path: str | Path, error: InputError | str, video: str | None = None) -> Finding:
    """Return an InputError as a finding of the file that it names (the path or one below it), else of the path."""
    named, _, rest = str(error).partition(": ")
    if not named.startswith(str(path)):
        named, rest = str(path), str(error)
    return Finding(ERROR, kind, named, rest, video)
