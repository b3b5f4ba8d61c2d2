"""Simulated two-stream features over real or synthetic annotations.

They replace missing features in the demo and in rehearsals of full-size experiments. They share with real features
what weakly supervised localization depends on:

* Flow follows the action: the motion prototype of a class between the action's boundaries, with varying strength.
* Appearance follows the scene: the scene prototype of a class in a wide window around the action and, weaker, in the
  whole video. RGB therefore shows what happens, but not when. Another class's scene appears in passing.
* Both streams have noise and unrelated nuisance activity.

Values are non-negative, as after a ReLU. Each video has a random generator keyed by seed and video_id, each prototype
one keyed by seed and name. So a video depends neither on the order of videos nor on the other videos.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from utils.annotations import Annotations, Video, annotations_to_json, load_annotations, parse_annotations
from utils.errors import InputError
from utils.features.convert import check_hdf5_names, check_space, find_features, write_dataset
from utils.formats.files import read_json

FPS, STRIDE = 25, 16
RATE = FPS / STRIDE  # snippets per second
DEMO = Path("data/demo")  # as in configs/demo.yaml
MARK = "simulated by utils/features/simulate.py"  # only files with this mark are replaced

BASELINE, NOISE = 0.2, 0.35
ACTIVE_CHANNELS = 0.15  # share of channels in a prototype
APPEARANCE = 0.25  # strength of the action in RGB, relative to its scene
SCENE_OF_VIDEO = 0.4  # strength of the scene far from the action, relative to near it
SCENE_MARGIN = 6.0  # seconds around an action with its scene at full strength
NUISANCES = 6
ACTIONS = ("Clap", "Dive", "Jump", "Kick", "Lift", "Spin", "Swing", "Throw")


def simulate_features(annotations: Annotations, out: str | Path, dims: tuple[int, int], seed: int = 0) -> Path:
    """Write features.h5 (`rgb` and `flow` at 25/16 Hz), annotations.json and SHA256SUMS, atomically, video by video.

    Args:
        annotations: Videos, classes and segments to simulate.
        out: Output folder.
        dims: Channels of RGB and flow.
        seed: Random seed in [0, 2**63).

    Returns:
        The path of features.h5.

    Raises:
        InputError: Nothing was written, because of an invalid argument, a video without a duration or with a name that
            HDF5 cannot store, too little space, or real features or other annotations in `out`.

    Shape:
        Each video has (T, dims[0]) and (T, dims[1]) float16.
    """
    out = Path(out)
    if len(dims) != 2 or min(dims) < 1:
        raise InputError(f"expected two widths of at least 1, got {tuple(dims)}")
    if not 0 <= seed < 2**63:
        raise InputError(f"expected a seed from 0 to 2**63 - 1, got {seed}")
    lengths = {video.video_id: _num_snippets(video) for video in annotations.videos.values()}
    check_hdf5_names(lengths)
    content = annotations_to_json(annotations)
    _check_target(out, content)
    check_space(out, 2 * sum(lengths.values()) * sum(dims))
    attributes = {"/": {"simulated": MARK, "seed": seed, "fps": FPS, "stride": STRIDE}}
    replaceable = not (out / "annotations.json").exists() or _is_marked(out / "annotations.json")
    timeline = {"version": MARK, **content} if replaceable else None
    return write_dataset(out, _simulate(annotations, lengths, dims, seed), attributes, timeline)


def simulate_demo(out: str | Path, dims: tuple[int, int] = (256, 256), seed: int = 0) -> Annotations:
    """Write the demo dataset, 100 synthetic videos of 8 classes, with `simulate_features`."""
    annotations = parse_annotations(invent_timeline(100, 8, seed), "the synthetic timeline")
    simulate_features(annotations, out, dims, seed)
    return annotations


def provide_demo(path: str | Path) -> None:
    """Write the demo dataset if `path` is its default folder and has no features."""
    path = Path(path)
    if path.absolute() == DEMO.absolute() and not any(find_features(path)):
        print(f"{path} not found: simulating the demo dataset (once)")
        simulate_demo(path)


def simulate_video(
    video: Video, classes: tuple[str, ...], num_snippets: int, dims: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return RGB (T, D1) and flow (T, D2) of one video, float16."""
    generator = keyed_generator(seed, "video", video.video_id)
    names = list(dict.fromkeys((*video.labels, *video.segment_labels)))
    nuisance = smooth_activity(generator, num_snippets, NUISANCES)  # (T, K), shared by both streams
    rgb = nuisance @ prototypes(seed, "nuisance rgb", range(NUISANCES), dims[0])
    flow = nuisance @ prototypes(seed, "nuisance flow", range(NUISANCES), dims[1])
    strengths = generator.uniform(0.6, 1.4, size=len(video.segments))
    if names:
        action, scene = _activities(video, names, strengths, num_snippets)  # (T, len(names)) each
        rgb += scene @ prototypes(seed, "scene", names, dims[0])
        rgb += APPEARANCE * action @ prototypes(seed, "appearance", names, dims[0])
        flow += action @ prototypes(seed, "motion", names, dims[1])
    passing = [name for name in classes if name not in names]
    if passing:
        other = passing[generator.integers(len(passing))]
        rgb += smooth_activity(generator, num_snippets, 1) @ prototypes(seed, "scene", [other], dims[0])
    return tuple(observe(stream, generator) for stream in (rgb, flow))


def invent_timeline(num_videos: int, num_classes: int, seed: int = 0, train_fraction: float = 0.6) -> dict:
    """Return the content of an annotations.json for synthetic videos in the subsets `train` and `test`.

    Videos last 60 to 160 s, segments 1 to 30 s around a typical length per class. One video in five has two classes.
    Some gaps in test videos are ambiguous.
    """
    if num_videos < 1 or num_classes < 1:
        raise InputError(f"expected at least one video and one class, got {num_videos} and {num_classes}")
    classes = [*ACTIONS[:num_classes], *(f"Action{index}" for index in range(len(ACTIONS), num_classes))]
    generator = keyed_generator(seed, "timeline")
    typical = dict(zip(classes, np.geomspace(3, 12, num_classes), strict=True))  # seconds
    num_train = round(num_videos * train_fraction)
    database = {}
    for index in range(num_videos):
        subset = "train" if index < num_train else "test"
        own = [classes[index % num_classes]]  # in turn, so that every class occurs
        if num_classes > 1 and generator.random() < 0.2:
            own.append(classes[(index + generator.integers(1, num_classes)) % num_classes])
        database[f"{subset}_{index:04d}"] = {
            "subset": subset,
            **_synthetic_video(generator, own, typical, subset),
        }
    return {"classes": classes, "database": database}


def _synthetic_video(
    generator: np.random.Generator, classes: list[str], typical: dict[str, float], subset: str
) -> dict:
    """Return a video of segments separated by gaps; the first segments show each class once."""
    duration = round(float(generator.uniform(60, 160)), 2)
    annotations, ambiguous, time = [], [], float(generator.uniform(1, 15))
    while True:
        index = len(annotations)
        label = classes[index if index < len(classes) else generator.integers(len(classes))]
        length = float(np.clip(typical[label] * generator.lognormal(0, 0.4), 1, 30))
        if time + length > duration - 1:
            break
        annotations.append({"label": label, "segment": [round(time, 2), round(time + length, 2)]})
        gap = float(generator.uniform(3, 25))
        if subset == "test" and gap > 10 and generator.random() < 0.1 and time + length + gap < duration:
            ambiguous.append([round(time + length + gap / 3, 2), round(time + length + gap / 2, 2)])
        time += length + gap
    labels = sorted({row["label"] for row in annotations})
    return {"duration": duration, "labels": labels, "annotations": annotations, "ambiguous": ambiguous}


def _activities(
    video: Video, names: list[str], strengths: np.ndarray, num_snippets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the strength of each class's action and of its scene per snippet, (T, len(names)) each."""
    inside = _coverage(video.segments, num_snippets)  # (N, T)
    length = video.segments[:, 1:] - video.segments[:, :1]  # (N, 1) seconds
    margin = (SCENE_MARGIN + length / 2) * [[-1, 1]]
    around = _coverage(video.segments + margin, num_snippets)  # (N, T)
    action = np.zeros((num_snippets, len(names)), dtype=np.float32)
    scene = np.full_like(action, SCENE_OF_VIDEO)
    for column, name in enumerate(names):
        rows = np.flatnonzero([label == name for label in video.segment_labels])
        if len(rows):
            action[:, column] = _fade((strengths[rows, None] * inside[rows]).max(axis=0))
            scene[:, column] += (1 - SCENE_OF_VIDEO) * _fade(around[rows].max(axis=0))
    return action, scene


def _coverage(segments: np.ndarray, num_snippets: int) -> np.ndarray:
    """Return the share of each snippet that each segment (N, 2) covers, (N, T) in [0, 1]."""
    starts, ends = segments[:, :1] * RATE, segments[:, 1:] * RATE  # in snippets
    first = np.arange(num_snippets)
    return np.clip(np.minimum(ends, first + 1) - np.maximum(starts, first), 0, 1)


def _fade(activity: np.ndarray) -> np.ndarray:
    """Smooth transitions over three snippets, as the receptive field of an extractor does; (T,) -> (T,)."""
    padded = np.pad(activity, 1, mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def smooth_activity(generator: np.random.Generator, num_snippets: int, count: int) -> np.ndarray:
    """Return random activity (T, count) float32: periods of about ten seconds, half of the time zero."""
    knots = np.arange(0, num_snippets + 16, 8)
    values = generator.standard_normal((count, len(knots)))
    time = np.arange(num_snippets)
    return np.stack([np.interp(time, knots, row).clip(0) for row in values], axis=1).astype(np.float32)


def observe(signal: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Add baseline and noise, and rectify; (T, D) -> (T, D) float16."""
    noise = generator.standard_normal(signal.shape, dtype=np.float32)
    return np.maximum(signal + BASELINE + NOISE * noise, 0).astype(np.float16)


def prototypes(seed: int, kind: str, names: Iterable, dim: int) -> np.ndarray:
    """Return sparse non-negative prototypes (len(names), dim) float32, each keyed by its name."""
    return np.stack([_prototype(seed, kind, str(name), dim) for name in names])


def _prototype(seed: int, kind: str, name: str, dim: int) -> np.ndarray:
    generator = keyed_generator(seed, kind, name)
    active = generator.random(dim) < ACTIVE_CHANNELS
    active[generator.integers(dim)] = True  # at least one channel
    return (active * generator.gamma(4.0, 0.25, size=dim)).astype(np.float32)


def keyed_generator(seed: int, *key: str) -> np.random.Generator:
    """Return a random generator that depends on the seed and the key alone."""
    return np.random.default_rng([seed, *"/".join(key).encode()])


def _num_snippets(video: Video) -> int:
    """Return T of a video from its duration, or else from the end of its last segment."""
    seconds = video.duration if video.duration is not None else video.segments[:, 1].max(initial=0)
    if seconds <= 0:
        raise InputError(f"video '{video.video_id}' has neither a duration nor a segment; add its 'duration'")
    return max(1, int(seconds * RATE))


def _check_target(out: Path, content: dict) -> None:
    """Raise an InputError for real features or other annotations, which would be hidden or replaced."""
    for path in find_features(out):
        if not is_simulated(path):
            raise InputError(f"{out}: contains features that are not simulated ({path.name}); choose another folder")
    timeline = out / "annotations.json"
    if timeline.exists() and not _is_marked(timeline) and annotations_to_json(load_annotations(timeline)) != content:
        raise InputError(f"{timeline}: contains other annotations; choose another folder")


def is_simulated(features: Path) -> bool:
    """Return True if a feature file has the mark of this module and may be replaced."""
    try:
        with h5py.File(features, "r") as file:
            return file.attrs.get("simulated") in (MARK, MARK.encode())  # text in files of older versions
    except (OSError, KeyError, RuntimeError, TypeError, ValueError):  # damaged, or another attribute of this name
        return False


def _is_marked(timeline: Path) -> bool:
    try:
        return read_json(timeline).get("version") == MARK
    except (InputError, AttributeError):
        return False


def _simulate(
    annotations: Annotations, lengths: dict[str, int], dims: tuple[int, int], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    for video_id, video in tqdm(annotations.videos.items(), desc="simulating", unit="video", disable=None):
        rgb, flow = simulate_video(video, annotations.classes, lengths[video_id], dims, seed)
        yield f"rgb/{video_id}", rgb
        yield f"flow/{video_id}", flow
