"""Synthetic input that resembles real input. Every function returns the same for the same seed."""

from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from eval.tables import Table
from utils.annotations import Annotations, annotations_to_json, parse_annotations
from utils.datasets import RELEASE_RATE, SNIPPET_RATE, Rate
from utils.features.convert import FEATURES, check_space, write_dataset
from utils.features.sources import Source
from utils.formats.checksums import SUMS

REPEATS = 10  # consecutive snippets with equal features, so that attention is about as smooth as on real features
MODALITIES = ("rgb", "flow")


@dataclass(frozen=True)
class Scale:
    """Size of a subset. Durations are lognormal: median in seconds, and deviation of the logarithm."""

    videos: int
    segments: int
    classes: int
    video_seconds: tuple[float, float]
    segment_seconds: tuple[float, float]
    subset: str = "test"

    def resize(self, videos: int, subset: str = "test") -> "Scale":
        """Return a scale with other videos and as many segments per video."""
        return replace(self, videos=videos, segments=round(self.segments * videos / self.videos), subset=subset)


THUMOS14 = Scale(212, 3358, 20, (160.0, 0.8), (3.2, 0.8))
ACTIVITYNET12 = Scale(2383, 3582, 100, (110.0, 0.6), (26.0, 1.3), "validation")


def equal_videos(videos: int, snippets: int, subset: str) -> Scale:
    """Return a scale of videos with equal numbers of snippets, and one segment per video."""
    return Scale(videos, videos, 20, ((snippets + 0.5) / SNIPPET_RATE, 0.0), (3.0, 0.0), subset)


def make_durations(scale: Scale, seed: int = 0) -> np.ndarray:
    """Return the seconds of each video."""
    return _lognormal(np.random.default_rng([seed, 2]), scale.video_seconds, scale.videos)


def make_ground_truth(scale: Scale, seed: int = 0) -> Table:
    """Return segments in videos of one class, or two (one video in six). They may overlap, as real ones do."""
    generator = np.random.default_rng([seed, 0])
    duration = make_durations(scale, seed)
    share = _lognormal(generator, (1.0, 1.0), scale.videos)
    extra = generator.multinomial(scale.segments - scale.videos, share / share.sum())
    video = np.repeat(np.arange(scale.videos), extra + 1)
    first, second = np.arange(scale.videos) % scale.classes, generator.integers(scale.classes, size=scale.videos)
    second = np.where(generator.random(scale.videos) < 1 / 6, second, first)
    label = np.where(generator.random(len(video)) < 0.5, second[video], first[video])
    length = np.minimum(_lognormal(generator, scale.segment_seconds, len(video)), 0.9 * duration[video])
    start = generator.random(len(video)) * (duration[video] - length)
    videos = tuple(f"{scale.subset}_{number:06d}" for number in range(scale.videos))
    return Table(videos, tuple(_class_names(scale.classes)), video, label, start, start + length)


def make_detections(truth: Table, count: int, seed: int = 0) -> Table:
    """Return detections, half of them near segments of the ground truth.

    Near ones have both ends moved by about a third of the length. The others lie anywhere, and one in ten of them has
    the class of another video. Near ones have the better scores, mostly. No two scores are equal.
    """
    generator = np.random.default_rng([seed, 1])
    source = generator.integers(len(truth), size=count)
    video, label, start, end = truth.video[source], truth.label[source], truth.start[source], truth.end[source]
    length, near = end - start, generator.random(count) < 0.5
    until = np.zeros(len(truth.videos))
    np.maximum.at(until, truth.video, truth.end)
    start = np.where(
        near, start + 0.3 * length * generator.standard_normal(count), generator.random(count) * until[video]
    )
    end = np.where(near, end + 0.3 * length * generator.standard_normal(count), start + length)
    stray = generator.random(count) < 0.05
    label = np.where(stray, generator.integers(len(truth.classes), size=count), label)
    score = generator.random(count) ** np.where(near & ~stray, 1.0, 3.0)
    return Table(truth.videos, truth.classes, video, label, np.minimum(start, end), np.maximum(start, end), score)


def make_outputs(snippets: int, num_classes: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return T-CAM (T, C + 1) and attention (T,) that are as smooth as those of a trained network.

    The model is the fused attention of a CO2-Net trained on THUMOS14, over 40 test videos. It has 0.29 runs above the
    ten thresholds per snippet. Snippets 1, 2, 4 and 8 apart correlate by 0.94, 0.81, 0.54 and 0.29. The median is 0.34,
    and a tenth lies below 0.04 and above 0.88. The synthetic attention is the logistic function of noise: 3 parts
    smoothed over 2.5 snippets, 1 part over 12. It has 0.31 runs, 0.97, 0.87, 0.61 and 0.27, 0.35, 0.04 and 0.87. One
    class follows the attention, and only this class is localized.
    """
    generator = np.random.default_rng([seed, snippets])
    activity = np.sqrt(0.75) * _smooth_noise(generator, snippets, 2.5) + 0.5 * _smooth_noise(generator, snippets, 12)
    attention = 1 / (1 + np.exp(0.6 - 2 * activity))
    cas = np.stack([_smooth_noise(generator, snippets, 2.5) for _ in range(num_classes + 1)], axis=1)
    cas[:, 0] += 8 * attention
    return cas, attention


def make_annotations(scale: Scale) -> dict:
    """Return the videos and segments of `make_ground_truth` as the content of an annotations.json."""
    return {"classes": _class_names(scale.classes), "database": _make_videos(scale)[0]}


class SyntheticSource(Source):
    """Features of two modalities of equal width, in memory."""

    form, path, modalities, simulated = "synthetic", Path("synthetic"), MODALITIES, True

    def __init__(self, lengths: dict[str, int], dim: int):
        self.lengths, self.dim = lengths, dim

    def video_ids(self, modality: str) -> list[str]:
        """Return all video ids."""
        return list(self.lengths)

    def rate(self, modality: str) -> Rate:
        """Return the rate of the released features."""
        return RELEASE_RATE

    def shape(self, modality: str, video_id: str) -> tuple[int, int]:
        """Return snippets and channels of one video."""
        return self.lengths[video_id], self.dim

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return the features (T, D) of one video."""
        snippets, dim = self.shape(modality, video_id)
        generator = np.random.default_rng([snippets, MODALITIES.index(modality)])
        values = generator.random((-(-snippets // REPEATS), dim), dtype=np.float32)
        return values.repeat(REPEATS, axis=0)[:snippets]


def make_dataset(scale: Scale, dim: int = 1024) -> tuple[Annotations, SyntheticSource]:
    """Return the videos and segments of `make_ground_truth`, with features in memory."""
    database, lengths = _make_videos(scale)
    annotations = parse_annotations({"classes": _class_names(scale.classes), "database": database}, "synthetic videos")
    return annotations, SyntheticSource(lengths, dim)


def write_dataset_files(out: Path, train: Scale, test: Scale, dim: int, dtype: str = "float16") -> int:
    """Write features.h5 and annotations.json of a training subset and a test subset, and return the bytes of features.

    Raises:
        InputError: If the disk has too little space.
    """
    database, lengths = {}, {}
    for scale, seed in ((train, 0), (test, 1)):
        videos, counts = _make_videos(scale, seed)
        database |= videos
        lengths |= counts
    annotations = parse_annotations({"classes": _class_names(train.classes), "database": database}, "synthetic videos")
    check_space(out, 2 * dim * np.dtype(dtype).itemsize * sum(lengths.values()))
    attributes = {"/": {"simulated": "random features of scripts/benchmark.py", **RELEASE_RATE._asdict()}}
    read = SyntheticSource(lengths, dim).read
    arrays = ((f"{kind}/{video}", read(kind, video).astype(dtype)) for video in lengths for kind in MODALITIES)
    path = write_dataset(out, arrays, attributes, annotations_to_json(annotations))
    return path.stat().st_size


def _make_videos(scale: Scale, seed: int = 0) -> tuple[dict[str, dict], dict[str, int]]:
    """Return annotations and number of snippets by video."""
    truth, durations = make_ground_truth(scale, seed), make_durations(scale, seed).tolist()
    entries = [{"subset": scale.subset, "duration": duration, "annotations": []} for duration in durations]
    for video, label, start, end in zip(
        truth.video, truth.label, truth.start.tolist(), truth.end.tolist(), strict=True
    ):
        entries[video]["annotations"].append({"label": truth.classes[label], "segment": [start, end]})
    lengths = [max(10, int(duration * SNIPPET_RATE)) for duration in durations]
    return dict(zip(truth.videos, entries, strict=True)), dict(zip(truth.videos, lengths, strict=True))


def store_contiguously(folder: Path) -> None:
    """Store the features of a folder again as h5py does by default: without chunks and checksums."""
    path, partial = folder / FEATURES, folder / "partial"
    with h5py.File(path) as old, h5py.File(partial, "w") as new:
        new.attrs.update(old.attrs)
        for modality in MODALITIES:
            for video_id, values in old[modality].items():
                new.create_dataset(f"{modality}/{video_id}", data=values[()])
    (folder / SUMS).unlink()  # its checksums are those of the old file
    partial.replace(path)


def _class_names(count: int) -> list[str]:
    return [f"class_{number:02d}" for number in range(count)]


def _lognormal(generator: np.random.Generator, median_and_spread: tuple[float, float], count: int) -> np.ndarray:
    median, spread = median_and_spread
    return median * np.exp(spread * generator.standard_normal(count))


def _smooth_noise(generator: np.random.Generator, count: int, width: float) -> np.ndarray:
    """Return standard normal noise (count,) under a Gaussian window of this deviation."""
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    window = np.exp(-0.5 * (reach / width) ** 2)
    noise = generator.standard_normal(count + len(window) - 1)
    return np.convolve(noise, window / np.linalg.norm(window), "valid")
