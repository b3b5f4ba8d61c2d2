"""Simulated audio and visual features of AVE, in the release's own files, over its real labels and splits.

They replace the release's feature files of several gigabytes in rehearsals of the audio-visual experiments. They share
with real features what fusion depends on:

* The streams complement each other in class: each class sounds like one other class and looks like another one.
* The streams complement each other in time: in a second of the event, it may be inaudible or invisible, never both.
* Each stream has noise and its own unrelated nuisance activity.

Each clip has a random generator keyed by seed and video_id. Results on these features say nothing about real videos.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval.snippet_accuracy import snippet_classes
from utils.annotations import Annotations, Video, load_annotations
from utils.errors import InputError
from utils.features.convert import check_space
from utils.features.simulate import (
    MARK,
    NOISE,
    NUISANCES,
    is_simulated,
    keyed_generator,
    observe,
    prototypes,
    smooth_activity,
)
from utils.formats.ave import ANNOTATIONS, BACKGROUND, KEY, SECONDS, SUBSETS, is_ave
from utils.formats.files import atomic_write
from utils.formats.hdf5 import create_hdf5, set_attributes

SMALL_FILES = (
    ANNOTATIONS,
    *(f"{name}_order.h5" for name in SUBSETS),
    "labels_noisy.h5",
    "labels_closs.h5",
    "mil_labels.h5",
)
DIMS = (128, 512)  # audio, visual
SIDE, OBJECT = 7, 3  # side of a visual map and of the object in it, in cells
AUDIBLE_ONLY, VISIBLE_ONLY = 0.4, 0.4  # shares of an event's seconds; in the others it is both


def simulate_ave(release: Path, out: Path, seed: int = 0, dims: tuple[int, int] = DIMS) -> Annotations:
    """Write the four feature files beside copies of the release's small files, atomically, clip by clip.

    Args:
        release: Folder of the release.
        out: Output folder.
        seed: Random seed.
        dims: Channels of audio and visual features.

    Returns:
        The annotations of the release.

    Raises:
        InputError: Nothing was written, because the release was not found, is `out`, `out` has real features, or the
            space is too small.
    """
    if not is_ave(release):
        raise InputError(f"{release}: not an AVE release; expected a folder with {ANNOTATIONS} and *_order.h5")
    annotations = load_annotations(release)
    names = {True: "{}_feature_noisy.h5", False: "{}_feature.h5"}  # by is_background
    _check_target(release, out, 2 * len(annotations.videos) * SECONDS * (dims[0] + SIDE * SIDE * dims[1]))
    out.mkdir(parents=True, exist_ok=True)
    for name in SMALL_FILES:
        if (release / name).is_file():
            shutil.copyfile(release / name, out / name)
    for background, name in names.items():
        videos = [video for video in annotations.videos.values() if (video.subset == BACKGROUND) == background]
        paths = [out / name.format(stream) for stream in ("audio", "visual")]
        _write(paths, videos, annotations.classes, seed, dims)
    return annotations


def simulate_clip(
    video: Video, classes: tuple[str, ...], seed: int, dims: tuple[int, int] = DIMS
) -> tuple[np.ndarray, np.ndarray]:
    """Return audio (10, D1) and visual maps (10, 7, 7, D2) of one clip, float16."""
    generator = keyed_generator(seed, "clip", video.video_id)
    signals = []
    for stream, dim in zip(("audio", "visual"), dims, strict=True):
        nuisance = smooth_activity(generator, SECONDS, NUISANCES)  # (10, K)
        signals.append(nuisance @ prototypes(seed, f"nuisance {stream}", range(NUISANCES), dim))
    event = np.zeros((2, SECONDS, 1), dtype=np.float32)  # strength of its sound and of its image
    index = 0
    if video.labels:
        index = classes.index(video.labels[0])
        inside = snippet_classes(video, classes, SECONDS, rate=1.0) < len(classes)
        luck = generator.random(SECONDS)
        perceived = np.stack([luck < 1 - VISIBLE_ONLY, luck >= AUDIBLE_ONLY])  # (2, 10)
        event = (perceived * inside * generator.uniform(0.6, 1.4, (2, 1)))[..., None].astype(np.float32)
    sound, look = index // 2, (index + 1) % len(classes) // 2
    audio = signals[0] + event[0] * prototypes(seed, "sound", [sound], dims[0])
    visual = event[1] * prototypes(seed, "look", [look], dims[1])
    return observe(audio, generator), _spread_on_map(visual, signals[1], generator)


def _spread_on_map(foreground: np.ndarray, background: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return visual maps (10, 7, 7, D) whose mean over space is object plus background, (10, D) each."""
    mask = np.zeros((SIDE, SIDE, 1), dtype=np.float32)
    top, left = generator.integers(0, SIDE - OBJECT + 1, size=2)
    mask[top : top + OBJECT, left : left + OBJECT] = SIDE * SIDE / OBJECT**2
    common = background + NOISE * generator.standard_normal(background.shape, dtype=np.float32)
    maps = mask * foreground[:, None, None] + common[:, None, None]
    return observe(maps, generator)


def _write(
    paths: list[Path], videos: Sequence[Video], classes: tuple[str, ...], seed: int, dims: tuple[int, int]
) -> None:
    shapes = [(SECONDS, dims[0]), (SECONDS, SIDE, SIDE, dims[1])]
    with (
        atomic_write(paths[0]) as first,
        atomic_write(paths[1]) as second,
        create_hdf5(first) as audio,
        create_hdf5(second) as visual,
    ):
        for file, shape in zip((audio, visual), shapes, strict=True):
            set_attributes(file, {"simulated": MARK, "seed": seed})
            file.create_dataset(KEY, (len(videos), *shape), dtype=np.float16)
        for row, video in enumerate(tqdm(videos, desc="simulating", unit="clip", disable=None)):
            audio[KEY][row], visual[KEY][row] = simulate_clip(video, classes, seed, dims)


def _check_target(release: Path, out: Path, num_bytes: int) -> None:
    if out.resolve() == release.resolve():
        raise InputError(f"{out}: is the release itself; choose another folder")
    for path in out.glob("*_feature*.h5"):
        if not is_simulated(path):
            raise InputError(f"{out}: contains features that are not simulated ({path.name}); choose another folder")
    check_space(out, num_bytes)
