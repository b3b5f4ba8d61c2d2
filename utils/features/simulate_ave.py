"""Simulated audio and visual features of AVE, in the release's own files, over its real labels and splits.

They stand in for the release's large files (gigabytes that are not ours to ship), to rehearse the audio-visual
experiments. What they share with real ones, and what fusion lives on:

* the streams complement each other in kind: each class sounds like one other class and looks like another one, so that
  only both together tell which it is;
* and in time: in a second of the event the sound may be drowned, or the object out of sight, never both;
* nuisance activity that goes with nothing, another one in each stream, and noise.

Each clip draws from a generator keyed by seed and video_id. These features say nothing of real videos.
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
SIDE, OBJECT = 7, 3  # cells of a visual map, and of the square in it where the object is
HEARD_ONLY, SEEN_ONLY = 0.4, 0.4  # shares of an event's seconds; in the rest it is both heard and seen


def simulate_ave(release: Path, out: Path, seed: int = 0, dims: tuple[int, int] = DIMS) -> Annotations:
    """Write `audio_feature.h5`, `visual_feature.h5` and both `..._noisy.h5` beside copies of the release's small files.

    Clip by clip, so memory stays flat; each file appears whole or not at all. Returns the release's annotations.
    InputError, before anything is written: no such release, `out` is the release itself or holds features that are not
    simulated, too little space.
    """
    if not is_ave(release):
        raise InputError(f"{release}: no AVE release; expected its folder with {ANNOTATIONS} and the *_order.h5")
    annotations = load_annotations(release)
    names = {True: "{}_feature_noisy.h5", False: "{}_feature.h5"}  # by whether the clips are background
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
    """One clip's audio (10, D1) and visual maps (10, 7, 7, D2), float16."""
    generator = keyed_generator(seed, "clip", video.video_id)
    signals = []
    for stream, dim in zip(("audio", "visual"), dims, strict=True):
        nuisance = smooth_activity(generator, SECONDS, NUISANCES)  # (10, K)
        signals.append(nuisance @ prototypes(seed, f"nuisance {stream}", range(NUISANCES), dim))
    event = np.zeros((2, SECONDS, 1), dtype=np.float32)  # how strongly it is heard, and seen
    index = 0
    if video.labels:
        index = classes.index(video.labels[0])
        inside = snippet_classes(video, classes, SECONDS, rate=1.0) < len(classes)
        luck = generator.random(SECONDS)
        perceived = np.stack([luck < 1 - SEEN_ONLY, luck >= HEARD_ONLY])  # (2, 10)
        event = (perceived * inside * generator.uniform(0.6, 1.4, (2, 1)))[..., None].astype(np.float32)
    sound, look = index // 2, (index + 1) % len(classes) // 2
    audio = signals[0] + event[0] * prototypes(seed, "sound", [sound], dims[0])
    visual = event[1] * prototypes(seed, "look", [look], dims[1])
    return observe(audio, generator), _on_a_map(visual, signals[1], generator)


def _on_a_map(thing: np.ndarray, around: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Visual signals (10, D) of the object and of all else -> maps (10, 7, 7, D) whose mean over space is their sum."""
    where = np.zeros((SIDE, SIDE, 1), dtype=np.float32)
    top, left = generator.integers(0, SIDE - OBJECT + 1, size=2)
    where[top : top + OBJECT, left : left + OBJECT] = SIDE * SIDE / OBJECT**2
    common = around + NOISE * generator.standard_normal(around.shape, dtype=np.float32)
    maps = where * thing[:, None, None] + common[:, None, None]
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
        for row, video in enumerate(tqdm(videos, desc="simulating", unit="clip")):
            audio[KEY][row], visual[KEY][row] = simulate_clip(video, classes, seed, dims)


def _check_target(release: Path, out: Path, num_bytes: int) -> None:
    if out.resolve() == release.resolve():
        raise InputError(f"{out}: is the release itself; name another folder")
    for path in out.glob("*_feature*.h5"):
        if not is_simulated(path):
            raise InputError(f"{out}: holds features that are not simulated ({path.name}); name another folder")
    check_space(out, num_bytes)
