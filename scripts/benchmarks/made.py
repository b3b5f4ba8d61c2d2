"""Made input that resembles the real one; every function gives the same for the same seed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from eval.tables import Table
from utils.annotations import Annotations, annotations_to_json, parse_annotations
from utils.datasets import DATASETS, RELEASE_RATE, SNIPPET_RATE, Rate
from utils.features.convert import FEATURES, require_space, write_dataset
from utils.features.sources import Source
from utils.formats.checksums import SUMS

HELD = 10  # snippets for which made features stay as they are, so that attention over time is about as smooth as real


@dataclass(frozen=True)
class Scale:
    """A test subset in numbers. Durations are lognormal: a median in seconds and the deviation of the logarithm."""

    dataset: str  # in utils.datasets.DATASETS, for its tIoU thresholds
    videos: int
    instances: int
    classes: int
    video_seconds: tuple[float, float]
    instance_seconds: tuple[float, float]


SCALES = {
    "thumos14": Scale("thumos14", 212, 3358, 20, (160.0, 0.8), (3.2, 0.8)),
    "activitynet12": Scale("activitynet12", 2383, 3582, 100, (110.0, 0.6), (26.0, 1.3)),
}


def made_durations(scale: Scale, seed: int = 0) -> np.ndarray:
    """Seconds of each video."""
    return _lognormal(np.random.default_rng([seed, 2]), scale.video_seconds, scale.videos)


def made_lengths(scale: Scale, seed: int = 0) -> np.ndarray:
    """Snippets of each video."""
    return np.maximum(10, made_durations(scale, seed) * SNIPPET_RATE).astype(int)


def made_ground_truth(scale: Scale, seed: int = 0) -> Table:
    """Instances in videos of one class each, or of two (one video in six); they may overlap, as real ones do."""
    generator = np.random.default_rng([seed, 0])
    duration = made_durations(scale, seed)
    share = _lognormal(generator, (1.0, 1.0), scale.videos)
    extra = generator.multinomial(scale.instances - scale.videos, share / share.sum())
    video = np.repeat(np.arange(scale.videos), extra + 1)
    own = generator.integers(scale.classes, size=(scale.videos, 2))
    own[generator.random(scale.videos) > 1 / 6, 1] = -1
    second = generator.random(len(video)) < 0.5
    label = np.where(second & (own[video, 1] >= 0), own[video, 1], own[video, 0])
    length = np.minimum(_lognormal(generator, scale.instance_seconds, len(video)), 0.9 * duration[video])
    start = generator.random(len(video)) * (duration[video] - length)
    return Table(
        videos=tuple(f"video_{number:04d}" for number in range(scale.videos)),
        classes=tuple(_class_names(scale.classes)),
        video=video,
        label=label,
        start=start,
        end=start + length,
    )


def made_detections(truth: Table, count: int, seed: int = 0) -> Table:
    """Half are instances with both ends moved by about a third of the length; half lie anywhere, one in ten of
    them with another video's class. The better half has the better scores, mostly; no two scores are equal."""
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


def made_outputs(snippets: int, num_classes: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """T-CAM (T, C + 1) and attention (T,) as smooth as a trained network's.

    The fused attention of a CO2-Net trained on THUMOS14 has, over 40 test videos, 0.29 runs above the ten thresholds
    for each snippet, a correlation of 0.94, 0.81, 0.54 and 0.29 between snippets 1, 2, 4 and 8 apart, a median of
    0.34, and a tenth of it below 0.04 and above 0.88. Here it is the logistic function of noise, 3 parts of it
    smoothed over 2.5 snippets and 1 part over 12: 0.31 runs, 0.97, 0.87, 0.61 and 0.27, 0.35, 0.04 and 0.87. One
    class follows the attention, and is the one localized.
    """
    generator = np.random.default_rng([seed, snippets])
    activity = np.sqrt(0.75) * _smooth_noise(generator, snippets, 2.5) + 0.5 * _smooth_noise(generator, snippets, 12)
    attention = 1 / (1 + np.exp(0.6 - 2 * activity))
    cas = np.stack([_smooth_noise(generator, snippets, 2.5) for _ in range(num_classes + 1)], axis=1)
    cas[:, 0] += 8 * attention
    return cas, attention


class MadeSource(Source):
    """Features of videos of the given lengths, in memory only; two modalities of equal width."""

    form, path, modalities, simulated = "made", Path("made"), ("rgb", "flow"), True

    def __init__(self, lengths: dict[str, int], dim: int):
        self.lengths, self.dim = lengths, dim

    def video_ids(self, modality: str) -> list[str]:
        return list(self.lengths)

    def rate(self, modality: str) -> Rate:
        return RELEASE_RATE

    def shape(self, modality: str, video_id: str) -> tuple[int, int]:
        return self.lengths[video_id], self.dim

    def read(self, modality: str, video_id: str) -> np.ndarray:
        generator = np.random.default_rng([self.lengths[video_id], self.modalities.index(modality)])
        snippets, dim = self.shape(modality, video_id)
        values = generator.random((-(-snippets // HELD), dim), dtype=np.float32)
        return values.repeat(HELD, axis=0)[:snippets]


def made_training_set(videos: int, num_classes: int = 20, dim: int = 1024) -> tuple[Annotations, MadeSource]:
    """Weakly labeled videos of THUMOS14's lengths."""
    lengths = made_lengths(replace(SCALES["thumos14"], videos=videos))
    names = _class_names(num_classes)
    database = {
        f"video_{number:04d}": {"subset": "train", "labels": [names[number % num_classes]], "annotations": []}
        for number in range(videos)
    }
    annotations = parse_annotations({"classes": names, "database": database}, "made videos")
    return annotations, MadeSource(dict(zip(database, lengths.tolist(), strict=True)), dim)


def made_test_set(scale: Scale, dim: int = 1024) -> tuple[Annotations, MadeSource]:
    """The videos and instances of `made_ground_truth`, as a test subset."""
    truth, seconds, spec = made_ground_truth(scale), made_durations(scale), DATASETS[scale.dataset]
    database = {
        name: {"subset": spec.test_subset, "duration": duration, "annotations": []}
        for name, duration in zip(truth.videos, seconds.tolist(), strict=True)
    }
    rows = zip(*(column.tolist() for column in (truth.video, truth.label, truth.start, truth.end)), strict=True)
    for video, label, start, end in rows:
        instance = {"label": truth.classes[label], "segment": [start, end]}
        database[truth.videos[video]]["annotations"].append(instance)
    annotations = parse_annotations({"classes": list(truth.classes), "database": database}, "made videos")
    return annotations, MadeSource(dict(zip(truth.videos, made_lengths(scale).tolist(), strict=True)), dim)


def write_made_set(
    out: Path,
    dataset: str,
    train: np.ndarray,
    test: np.ndarray,
    dim: int,
    num_classes: int = 20,
    dtype: str = "float16",
) -> int:
    """Write features.h5 (two modalities of this width) and annotations.json; bytes of the features.

    train, test: snippets of each video of the dataset's two subsets. InputError: too little space.
    """
    spec, names = DATASETS[dataset], _class_names(num_classes)
    database, lengths = {}, {}
    for subset, counts in ((spec.train_subset, train), (spec.test_subset, test)):
        for number, snippets in enumerate(counts.tolist()):
            seconds, label = snippets / SNIPPET_RATE, names[number % num_classes]
            instance = {"label": label, "segment": [seconds / 4, seconds / 2]}
            name = f"{subset}_{number:06d}"
            database[name] = {"subset": subset, "duration": seconds, "annotations": [instance]}
            lengths[name] = snippets
    annotations = parse_annotations({"classes": names, "database": database}, "made videos")
    require_space(out, 2 * dim * np.dtype(dtype).itemsize * sum(lengths.values()))
    attributes = {"/": {"simulated": "made by scripts/benchmark.py", **RELEASE_RATE._asdict()}}
    path = write_dataset(out, _made_arrays(lengths, dim, dtype), attributes, annotations_to_json(annotations))
    return path.stat().st_size


def store_plainly(folder: Path) -> None:
    """Store the features of a written set again, as h5py does unasked: each array in one piece, without checksums."""
    path, partial = folder / FEATURES, folder / "partial"
    with h5py.File(path) as old, h5py.File(partial, "w") as new:
        new.attrs.update(old.attrs)
        for modality in MadeSource.modalities:
            for video_id, values in old[modality].items():
                new.create_dataset(f"{modality}/{video_id}", data=values[()])
    (folder / SUMS).unlink()  # it accuses what is no longer as it was written
    partial.replace(path)


def _made_arrays(lengths: dict[str, int], dim: int, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Parts of one block of noise: to draw every value would take longer than all that is measured."""
    generator = np.random.default_rng(0)
    longest = max(lengths.values())
    noise = generator.random((2 * longest, dim), dtype=np.float32).astype(dtype)
    for video_id, snippets in lengths.items():
        for modality in MadeSource.modalities:
            start = generator.integers(longest)
            yield f"{modality}/{video_id}", noise[start : start + snippets]


def _class_names(count: int) -> list[str]:
    return [f"class_{number:02d}" for number in range(count)]


def _lognormal(generator: np.random.Generator, median_and_spread: tuple[float, float], count: int) -> np.ndarray:
    median, spread = median_and_spread
    return median * np.exp(spread * generator.standard_normal(count))


def _smooth_noise(generator: np.random.Generator, count: int, width: float) -> np.ndarray:
    """(count,) standard normal each, under a Gaussian window of this standard deviation."""
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    window = np.exp(-0.5 * (reach / width) ** 2)
    noise = generator.standard_normal(count + len(window) - 1)
    return np.convolve(noise, window / np.linalg.norm(window), "valid")
