"""What can be wrong with a dataset folder: one short function a kind of fault, which yields `Finding`s.

`cheap_findings` looks at names, shapes, times and labels, `value_findings` at every value, `sum_findings` at the
checksums. One bad video does not stop the search for others. utils/features/check.py makes a report of them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.annotations import Annotations, Video, subset_names
from utils.datasets import SNIPPET_RATE, DatasetSpec
from utils.errors import InputError
from utils.features.sources import Source
from utils.features.store import FeatureStore, is_finite
from utils.formats.ave import BACKGROUND
from utils.formats.checksums import SUMS, read_checksums, verify_checksum

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
MISSING = "missing features"  # the one kind that training has words of its own for (wsad_dataset.py)
FAR_SNIPPETS, FAR_SHARE = 2, 0.1  # off by more than both: far from the annotated duration
RATE_NOT_GIVEN = (
    f"not given: the dataset's {SNIPPET_RATE} is assumed; say otherwise in features.json (of .npy folders) or in "
    "the attributes (of HDF5): fps and stride"
)


@dataclass(frozen=True)
class Finding:
    """A fault. An error stops training, a warning does not but should be looked at, a note is only worth knowing."""

    severity: str
    kind: str
    where: str  # the file
    message: str  # one line: what was found, what was expected, what to do
    video: str | None = None
    label: str | None = None  # the class, where the fault is one's

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"

    @property
    def subject(self) -> str:
        return self.video or self.label or Path(self.where).name


def cheap_findings(
    store: FeatureStore | None,
    annotations: Annotations | None,
    spec: DatasetSpec | None,
    missing: str = ERROR,
    where: str = "annotations",
) -> Iterator[Finding]:
    """Faults that show without reading a value; what is None is not looked at.

    missing: the severity of annotated videos without features. where: the annotations' file, for messages.
    """
    layout = None if store is None else _Layout(store)
    if layout is not None:
        yield from layout.unreadable
        yield from _rate_faults(store)
        yield from _shape_faults(layout)
    if annotations is not None:
        rate = (layout and layout.rate) or (spec.snippet_rate if spec else SNIPPET_RATE)
        yield from _subset_faults(annotations, spec, where)
        yield from _segment_faults(annotations, rate, where)
    if layout is not None and annotations is not None:
        yield from _missing_features(layout, annotations, spec, missing)
        yield from _extra_features(layout, annotations)
        yield from _alike_names(layout, annotations, where)
        yield from _far_durations(layout, annotations, rate)
        if spec is not None:
            yield from _short_videos(layout, annotations, spec)
            yield from _training_faults(layout, annotations, spec, where)
            yield from _untested_classes(layout, annotations, spec, where)


def value_findings(store: FeatureStore) -> Iterator[Finding]:
    """Faults of the values, all of which are read: unreadable, of a wrong dtype, not finite, all the same."""
    listed = {stored: store.source.video_ids(stored) for stored in store.stored_modalities}
    places = [(stored, video_id) for stored, video_ids in listed.items() for video_id in video_ids]
    for stored, video_id in tqdm(places, "reading all values", unit="array"):
        yield from _value_faults(store.source, stored, video_id)


def sum_findings(folder: Path) -> Iterator[Finding]:
    """Files that a folder's SHA256SUMS lists and that are not there or differ."""
    try:
        listed = read_checksums(folder)
    except InputError as error:
        yield file_error("damaged checksums", folder / SUMS, error)
        return
    for name in listed:
        path = folder / name
        try:
            if not path.exists():
                raise InputError(f"{path}: is listed in {SUMS}, but is not there; restore it")
            verify_checksum(path)
        except InputError as error:
            yield file_error("differs from its checksum", path, error)
        except OSError as error:
            yield file_error("differs from its checksum", path, f"cannot be read ({error.strerror})")


class _Layout:
    """Names and shapes of the features in a store; no value is read."""

    def __init__(self, store: FeatureStore):
        self.store, self.source = store, store.source
        listed = {stored: self.source.video_ids(stored) for stored in store.stored_modalities}
        self.video_ids = list(dict.fromkeys(video_id for video_ids in listed.values() for video_id in video_ids))
        self._listed = {stored: frozenset(video_ids) for stored, video_ids in listed.items()}
        self.unreadable: list[Finding] = []
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {stored: {} for stored in listed}  # by video
        for video_id in tqdm(self.video_ids, "checking shapes", unit="video", leave=False, delay=2):
            for stored in self.stored(video_id):
                try:
                    self.shapes[stored][video_id] = self.source.shape(stored, video_id)
                except InputError as error:
                    self.unreadable.append(_unreadable(self.source, stored, video_id, error))

    def stored(self, video_id: str) -> list[str]:
        """The stored modalities that a video has."""
        return [stored for stored, video_ids in self._listed.items() if video_id in video_ids]

    def lacking(self, video_id: str) -> list[str]:
        """The modalities that a video lacks, by the names they were asked for."""
        pairs = zip(self.store.modalities, self.store.stored_modalities, strict=True)
        return [modality for modality, stored in pairs if video_id not in self._listed[stored]]

    def num_snippets(self, video_id: str) -> int:
        """T of the first modality that has one, else 0."""
        shapes = (shapes.get(video_id, ()) for shapes in self.shapes.values())
        return next((shape[0] for shape in shapes if len(shape) == 2), 0)

    def length_fault(self, video_id: str, lengths: dict[str, int]) -> str | None:
        """`FeatureStore.length_fault`, as far as the rates can be understood."""
        try:
            return self.store.length_fault(video_id, lengths)
        except InputError:  # which `_rate_faults` says
            return None

    @cached_property
    def rate(self) -> float | None:
        """Snippets a second, None where the features do not say it in one way that can be understood."""
        try:
            return self.store.snippet_rate
        except InputError:  # which `_rate_faults` says
            return None


def _rate_faults(store: FeatureStore) -> Iterator[Finding]:
    try:
        if store.snippet_rate is None:
            yield Finding(NOTE, "rate not given", str(store.source.path), f"the snippet rate is {RATE_NOT_GIVEN}")
    except InputError as error:
        yield file_error("unusable rate", store.source.path, error)


def _shape_faults(layout: _Layout) -> Iterator[Finding]:
    """Arrays that are not (snippets, channels), of another width than most, without snippets; unequal modalities."""
    for stored, shapes in layout.shapes.items():
        widths = Counter(shape[1] for shape in shapes.values() if len(shape) == 2 and shape[1])
        width, count = widths.most_common(1)[0] if widths else ("channels", 0)
        for video_id, shape in shapes.items():
            found = f"'{stored}' of video '{video_id}' has shape {shape}, expected (snippets, {width})"
            where = _place(layout.source, stored, video_id)
            if len(shape) != 2 or not shape[1]:
                yield Finding(ERROR, "wrong shape", where, found, video=video_id)
            elif shape[1] != width:
                message = f"{found} as {count} of {len(shapes)} videos have"
                yield Finding(ERROR, "wrong width", where, message, video=video_id)
            elif not shape[0]:
                message = f"{found} and one snippet at least; training leaves it out"
                yield Finding(WARNING, "no snippets", where, message, video=video_id)
    for video_id in layout.video_ids:
        lengths = {name: shapes[video_id][0] for name, shapes in layout.shapes.items() if shapes.get(video_id)}
        if message := layout.length_fault(video_id, lengths):
            yield Finding(ERROR, "different lengths", str(layout.source.path), message, video=video_id)


def _subset_faults(annotations: Annotations, spec: DatasetSpec | None, where: str) -> Iterator[Finding]:
    present = subsets_of(annotations)
    wanted = {"train": spec.train_subset, "test": spec.test_subset} if spec else {}
    for purpose, subset in wanted.items():
        if not subset_names(subset).intersection(present):
            message = f"no video of subset '{subset}', with which {spec.name} {purpose}s; subsets present: {present}"
            yield Finding(ERROR, "wrong subsets", where, message)


def _segment_faults(annotations: Annotations, rate: float, where: str) -> Iterator[Finding]:
    """Segments of no length, or outside the video (at its end by more than a snippet, which rounding explains)."""
    for video in annotations.videos.values():
        for row, (start, end) in enumerate(video.segments.tolist()):
            found = f"segment {row} of video '{video.video_id}' is [{start:g}, {end:g}] s"
            late = video.duration is not None and end > video.duration + 1 / rate
            if start < 0 or late:
                length = f", expected within [0, {video.duration:g}]" if late else ", expected none before 0"
                yield Finding(WARNING, "segment outside the video", where, found + length, video=video.video_id)
            if start == end:
                message = f"{found}, expected start < end; nothing can be detected there"
                yield Finding(WARNING, "segment of no length", where, message, video=video.video_id)


def _missing_features(
    layout: _Layout, annotations: Annotations, spec: DatasetSpec | None, severity: str
) -> Iterator[Finding]:
    for video in annotations.videos.values():
        if lacking := layout.lacking(video.video_id):
            message = (
                f"no {' and no '.join(map(repr, lacking))} of video '{video.video_id}' (subset '{video.subset}'); "
                "extract it, or leave the video out with --missing-features skip"
            )
            yield Finding(
                severity if is_used(spec, video) else NOTE, MISSING, str(layout.source.path), message, video.video_id
            )


def _extra_features(layout: _Layout, annotations: Annotations) -> Iterator[Finding]:
    for video_id in layout.video_ids:
        if video_id not in annotations.videos:
            message = f"video '{video_id}' has no annotation that can be used; nothing will read it"
            yield Finding(NOTE, "extra features", str(layout.source.path), message, video=video_id)


def _alike_names(layout: _Layout, annotations: Annotations, where: str) -> Iterator[Finding]:
    """Names that may be one video's: equal but for case, blanks around them, or the v_ that ActivityNet has or not."""
    alike = defaultdict(list)
    for video_id in dict.fromkeys((*annotations.videos, *layout.video_ids)):
        alike[video_id.strip().casefold().removeprefix("v_")].append(video_id)
    for first, *others in alike.values():
        if others:
            names = " and ".join(repr(name) for name in (first, *others))
            message = f"{names} are nearly one name; if they are one video, give it one name in both files"
            yield Finding(WARNING, "suspicious names", where, message, video=first)


def _far_durations(layout: _Layout, annotations: Annotations, rate: float) -> Iterator[Finding]:
    lengths = {video_id: layout.num_snippets(video_id) for video_id in layout.video_ids}
    gaps = duration_gaps(
        annotations.videos.values(), {name: length for name, length in lengths.items() if length}, rate
    )
    for video_id, gap in gaps.items():
        duration = annotations.videos[video_id].duration
        if gap > max(FAR_SNIPPETS, FAR_SHARE * duration * rate):
            message = (
                f"video '{video_id}' has {lengths[video_id]} snippets, expected {duration * rate:.1f} of its "
                f"{duration:g} s at {rate:g} snippets a second; its features, duration or the rate must be another's"
            )
            yield Finding(WARNING, "far from its duration", str(layout.source.path), message, video=video_id)


def _short_videos(layout: _Layout, annotations: Annotations, spec: DatasetSpec) -> Iterator[Finding]:
    for video in annotations.videos.values():
        length = layout.num_snippets(video.video_id)
        if is_used(spec, video) and 0 < length < spec.min_snippets:
            message = (
                f"video '{video.video_id}' has {length} snippets; {spec.name} leaves out fewer than {spec.min_snippets}"
            )
            yield Finding(NOTE, "too short", str(layout.source.path), message, video=video.video_id)


def _training_faults(layout: _Layout, annotations: Annotations, spec: DatasetSpec, where: str) -> Iterator[Finding]:
    """Training videos without labels, and classes without a pair of videos that share them."""
    videos = _usable(layout, annotations, spec, spec.train_subset)
    for video in videos:
        if not video.labels and video.subset != BACKGROUND:
            message = f"training video '{video.video_id}' has no label, expected one at least"
            yield Finding(WARNING, "unlabeled training video", where, message, video=video.video_id)
    counts = Counter(label for video in videos for label in video.labels)
    for label in annotations.classes if videos else ():
        if counts[label] < 2:
            message = f"class '{label}' has {counts[label]} training videos with features, expected two, to be paired"
            yield Finding(WARNING, "class without a pair", where, message, label=label)


def _untested_classes(layout: _Layout, annotations: Annotations, spec: DatasetSpec, where: str) -> Iterator[Finding]:
    videos = _usable(layout, annotations, spec, spec.test_subset)
    tested = {label for video in videos for label in video.segment_labels}
    for label in annotations.classes if videos else ():
        if label not in tested:
            message = f"class '{label}' has no segment in the test videos with features, so it has no average precision"
            yield Finding(WARNING, "class without a test", where, message, label=label)


def _value_faults(source: Source, stored: str, video_id: str) -> Iterator[Finding]:
    where, name = _place(source, stored, video_id), f"'{stored}' of video '{video_id}'"
    try:
        values = np.atleast_1d(source.read(stored, video_id))
    except InputError as error:
        yield _unreadable(source, stored, video_id, error)
        return
    if values.dtype.kind != "f":
        message = f"{name} has dtype {values.dtype}, expected float16 or float32"
        yield Finding(ERROR, "wrong dtype", where, message, video=video_id)
        return
    if values.dtype.itemsize > 4:
        message = f"{name} has dtype {values.dtype}; float32 is read of it, scripts/convert_features.py halves it"
        yield Finding(NOTE, "wide dtype", where, message, video=video_id)
    bad = ~is_finite(values)
    if bad.any():
        row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
        message = f"{name} has {bad.sum()} NaN or infinite values of {bad.size}, the first in row {row}; expected none"
        yield Finding(ERROR, "NaN or infinity", where, message, video=video_id)
    elif values.size > 1 and (values == values.flat[0]).all():
        message = f"{name} is {values.flat[0]:g} everywhere; was it extracted?"
        yield Finding(WARNING, "constant values", where, message, video=video_id)


def _unreadable(source: Source, stored: str, video_id: str, error: InputError) -> Finding:
    return file_error("unreadable features", _place(source, stored, video_id), error, video=video_id)


def _place(source: Source, stored: str, video_id: str) -> str:
    """The file in which one modality of a video lies."""
    return str(source.path_of(stored, video_id))


def _usable(layout: _Layout, annotations: Annotations, spec: DatasetSpec, subset: str) -> list[Video]:
    """The videos of a subset that have features enough."""
    return [
        video
        for video in annotations.videos.values()
        if video.subset in subset_names(subset)
        and not layout.lacking(video.video_id)
        and layout.num_snippets(video.video_id) >= max(1, spec.min_snippets)
    ]


def is_used(spec: DatasetSpec | None, video: Video) -> bool:
    """Whether training or test reads the video's subset."""
    return spec is None or video.subset in subset_names(spec.train_subset) | subset_names(spec.test_subset)


def subsets_of(annotations: Annotations) -> list[str]:
    return sorted({video.subset for video in annotations.videos.values()})


def duration_gaps(videos: Iterable[Video], lengths: dict[str, int], rate: float) -> dict[str, float]:
    """abs(T - duration * rate) of each video that has features and a duration, in snippets."""
    return {
        video.video_id: abs(lengths[video.video_id] - video.duration * rate)
        for video in videos
        if video.video_id in lengths and video.duration is not None
    }


def file_error(kind: str, path: str | Path, error: InputError | str, video: str | None = None) -> Finding:
    """An InputError as a finding, of the file that it names if that is the path or lies in it."""
    named, _, rest = str(error).partition(": ")
    if not named.startswith(str(path)):
        named, rest = str(path), str(error)
    return Finding(ERROR, kind, named, rest, video=video)
