"""Simulated two-stream features over a real or an invented timeline.

They stand in for features that are absent: to rehearse a full-size experiment, and for the demo. What they
share with real ones is the structure that weakly supervised localization lives on:

* flow follows the action: a class's motion prototype, between its boundaries, of another strength each time;
* appearance follows the scene: a class's scene prototype over a wide window around the action and, weaker,
  the whole video, so that RGB tells what happens but not when; in passing, another class's scene;
* nuisance activity that goes with nothing, and noise, in both.

Everything is non-negative as after a ReLU. Each video draws from a generator keyed by seed and video_id, each
prototype from one keyed by seed and name, so that neither order nor company changes them.
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
RATE = FPS / STRIDE  # snippets a second
DEMO = Path("data/demo")  # as configs/demo.yaml has it
MARK = "simulated by utils/features/simulate.py"  # what this module wrote, and may therefore write again

BASELINE, NOISE = 0.2, 0.35
ACTIVE_CHANNELS = 0.15  # share of the channels that a prototype uses
APPEARANCE = 0.25  # of the action itself in RGB, against 1 for its scene
SCENE_OF_VIDEO = 0.4  # the scene's strength far from the action, against 1 near it
SCENE_MARGIN = 6.0  # seconds around an action in which its scene is at full strength
NUISANCES = 6
ACTIONS = ("Clap", "Dive", "Jump", "Kick", "Lift", "Spin", "Swing", "Throw")


def simulate_features(annotations: Annotations, out: str | Path, dims: tuple[int, int], seed: int = 0) -> Path:
    """Write out/features.h5 (`rgb` and `flow`, (T, dims) float16, 25/16 Hz), annotations.json and SHA256SUMS.

    Video by video, so memory stays flat; each file appears whole or not at all. Returns the features' path.
    InputError, before anything is written: a width below 1, a seed out of [0, 2**63), a video without a time or
    whose name HDF5 cannot hold, too little space, or other features or annotations at `out`.
    """
    out = Path(out)
    if len(dims) != 2 or min(dims) < 1:
        raise InputError(f"dims must be two widths of at least 1, found {tuple(dims)}")
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed must be 0 or more, and less than 2**63, found {seed}")
    lengths = {video.video_id: _num_snippets(video) for video in annotations.videos.values()}
    check_hdf5_names(lengths)
    content = annotations_to_json(annotations)
    _check_target(out, content)
    check_space(out, 2 * sum(lengths.values()) * sum(dims))
    attributes = {"/": {"simulated": MARK, "seed": seed, "fps": FPS, "stride": STRIDE}}
    own_timeline = not (out / "annotations.json").exists() or _marked(out / "annotations.json")
    timeline = {"version": MARK, **content} if own_timeline else None
    return write_dataset(out, _simulate(annotations, lengths, dims, seed), attributes, timeline)


def simulate_demo(out: str | Path, dims: tuple[int, int] = (256, 256), seed: int = 0) -> Annotations:
    """The demo's data set: 100 invented videos of 8 classes; written as simulate_features does."""
    annotations = parse_annotations(invent_timeline(100, 8, seed), "the invented timeline")
    simulate_features(annotations, out, dims, seed)
    return annotations


def provide_demo(path: str | Path) -> None:
    """Simulate the demo's data set if it is the one that is asked for, in its own place, and it is not there yet."""
    path = Path(path)
    if path.absolute() == DEMO.absolute() and not any(find_features(path)):
        print(f"{path} is not there: simulating it (once)")
        simulate_demo(path)


def simulate_video(
    video: Video, classes: tuple[str, ...], num_snippets: int, dims: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """One video's RGB (T, D1) and flow (T, D2), float16."""
    generator = keyed_generator(seed, "video", video.video_id)
    names = list(dict.fromkeys((*video.labels, *video.segment_labels)))
    nuisance = smooth_activity(generator, num_snippets, NUISANCES)  # (T, K), the same in both streams
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
    """The content of an annotations.json for invented videos, subsets `train` and `test`.

    60 to 160 s long, with instances of 1 to 30 s whose typical length is the class's own; one video in five
    has two classes; some gaps of the test videos are ambiguous.
    """
    if num_videos < 1 or num_classes < 1:
        raise InputError(f"a timeline needs videos and classes, not {num_videos} and {num_classes}")
    classes = [*ACTIONS[:num_classes], *(f"Action{index}" for index in range(len(ACTIONS), num_classes))]
    generator = keyed_generator(seed, "timeline")
    typical = dict(zip(classes, np.geomspace(3, 12, num_classes), strict=True))  # seconds
    num_train = round(num_videos * train_fraction)
    database = {}
    for index in range(num_videos):
        subset = "train" if index < num_train else "test"
        own = [classes[index % num_classes]]  # in turn, so that no class is left out
        if num_classes > 1 and generator.random() < 0.2:
            own.append(classes[(index + generator.integers(1, num_classes)) % num_classes])
        database[f"{subset}_{index:04d}"] = {
            "subset": subset,
            **_invent_video(generator, own, typical, subset),
        }
    return {"classes": classes, "database": database}


def _invent_video(generator: np.random.Generator, classes: list[str], typical: dict[str, float], subset: str) -> dict:
    """Instances one after another with gaps between them; the first ones show each class once."""
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
    """How strongly each class acts, and how much of its scene is seen, by snippet: (T, len(names)) each."""
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
    """The share of each snippet that each segment (N, 2) covers: (N, T) in [0, 1]."""
    starts, ends = segments[:, :1] * RATE, segments[:, 1:] * RATE  # in snippets
    first = np.arange(num_snippets)
    return np.clip(np.minimum(ends, first + 1) - np.maximum(starts, first), 0, 1)


def _fade(activity: np.ndarray) -> np.ndarray:
    """(T,) -> (T,): a transition takes about three snippets, since an extractor's receptive field is wide."""
    padded = np.pad(activity, 1, mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def smooth_activity(generator: np.random.Generator, num_snippets: int, count: int) -> np.ndarray:
    """(T, count) float32: bouts of activity some ten seconds long, about half of the time silent."""
    knots = np.arange(0, num_snippets + 16, 8)
    values = generator.standard_normal((count, len(knots)))
    time = np.arange(num_snippets)
    return np.stack([np.interp(time, knots, row).clip(0) for row in values], axis=1).astype(np.float32)


def observe(signal: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(T, D) -> (T, D) float16: baseline, noise, rectified."""
    noise = generator.standard_normal(signal.shape, dtype=np.float32)
    return np.maximum(signal + BASELINE + NOISE * noise, 0).astype(np.float16)


def prototypes(seed: int, kind: str, names: Iterable, dim: int) -> np.ndarray:
    """(len(names), dim) float32, sparse and non-negative, each keyed by its own name."""
    return np.stack([_prototype(seed, kind, str(name), dim) for name in names])


def _prototype(seed: int, kind: str, name: str, dim: int) -> np.ndarray:
    generator = keyed_generator(seed, kind, name)
    active = generator.random(dim) < ACTIVE_CHANNELS
    active[generator.integers(dim)] = True  # never empty, however narrow
    return (active * generator.gamma(4.0, 0.25, size=dim)).astype(np.float32)


def keyed_generator(seed: int, *key: str) -> np.random.Generator:
    return np.random.default_rng([seed, *"/".join(key).encode()])


def _num_snippets(video: Video) -> int:
    """T of a video: its duration, or where nothing gives it the end of its last segment, at 25/16 Hz."""
    seconds = video.duration if video.duration is not None else video.segments[:, 1].max(initial=0)
    if seconds <= 0:
        raise InputError(f"video '{video.video_id}' has neither a duration nor a segment; give its 'duration'")
    return max(1, int(seconds * RATE))


def _check_target(out: Path, content: dict) -> None:
    """Refuse to write over what is not ours, or to hide it."""
    for path in find_features(out):
        if not is_simulated(path):
            raise InputError(f"{out}: holds features that are not simulated ({path.name}); name another folder")
    timeline = out / "annotations.json"
    if timeline.exists() and not _marked(timeline) and _other(timeline, content):
        raise InputError(f"{timeline}: holds other annotations; name another folder")


def _other(timeline: Path, content: dict) -> bool:
    return annotations_to_json(load_annotations(timeline)) != content


def is_simulated(features: Path) -> bool:
    """Whether a file of features was made here, and may therefore be replaced."""
    try:
        with h5py.File(features, "r") as file:
            return file.attrs.get("simulated") in (MARK, MARK.encode())  # text in files made before they had checksums
    except (OSError, KeyError, RuntimeError, TypeError, ValueError):  # damaged, or another's attribute of this name
        return False


def _marked(timeline: Path) -> bool:
    try:
        return read_json(timeline).get("version") == MARK
    except (InputError, AttributeError):
        return False


def _simulate(
    annotations: Annotations, lengths: dict[str, int], dims: tuple[int, int], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    for video_id, video in tqdm(annotations.videos.items(), desc="simulating", unit="video"):
        rgb, flow = simulate_video(video, annotations.classes, lengths[video_id], dims, seed)
        yield f"rgb/{video_id}", rgb
        yield f"flow/{video_id}", flow
