"""Extraction of features from videos: decoding, backbone, and both together."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scripts.benchmarks.measure import Settings, device_name, progress, time_in_turns
from scripts.benchmarks.table import ResultTable
from utils.errors import InputError
from utils.run.devices import choose_device
from utils.video.backbones import BACKBONES, CHANNELS
from utils.video.decode import Limits, require_av
from utils.video.extract import Extractor, extract_videos, read_chunks
from utils.video.i3d import I3D
from utils.video.recipe import Recipe

FPS, SIZE, SECONDS = 30, (320, 240), 5  # of the clip; width and height
QUICK_SIZE, QUICK_SECONDS = (64, 48), 1
BATCH_SIZE = 8  # clips, as in extract_features.py
RECIPE = replace(BACKBONES["i3d"].recipe, flow="none")
QUICK_RECIPE = replace(RECIPE, frames=8, stride=8, resize=(32,), crop=32)
TOLERANCE = 1e-4  # of a feature

TITLE = "videos to features, I3D on RGB"
NOTES = (
    f"SIMULATED video: H.264 at {FPS} Hz of a moving pattern with noise, written by PyAV; I3D has random weights",
    "decoded frames/s: decoding, choice by time and resize alone, in one process of one thread, of frames at the "
    "recipe's rate",
    "clips/s: the backbone alone, on a batch in main memory",
    "frames/s: the whole extraction, with so many processes that decode ahead of the backbone (0: in turns with it); "
    "waiting: share of this time in which the backbone waits for frames; starting the processes counts",
    f"results: the features are those of one video by itself, to {TOLERANCE:g}",
)


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row per number of decoding processes; none without PyAV."""
    try:
        require_av()
    except InputError as error:
        return [ResultTable("extract", TITLE, [], NOTES, [str(error)])]
    return [ResultTable("extract", TITLE, settings.run_apart(measure_extraction, settings), NOTES)]


def measure_extraction(settings: Settings) -> list[dict]:
    """Measure the parts once, and the whole extraction with each number of processes."""
    settings.apply()
    device = choose_device(settings.device)
    recipe, size, seconds = (QUICK_RECIPE, QUICK_SIZE, QUICK_SECONDS) if settings.quick else (RECIPE, SIZE, SECONDS)
    torch.manual_seed(0)
    extractor = Extractor(recipe, {"rgb": I3D(CHANNELS["rgb"])}, device, batch_size=BATCH_SIZE)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = write_clip(Path(folder) / "clip.mp4", size, seconds)
        # The slower part decides: on a CPU the backbone, on a GPU decoding.
        paths = {f"video_{number}": path for number in range(16 if device.type == "cuda" else 2)}
        shared = {
            "video": f"{size[0]} x {size[1]}, {seconds} s",
            "device": device_name(device),
            "decoded frames/s": decoding_rate(path, recipe, settings),
            "clips/s": backbone_rate(extractor, recipe, settings),
            "videos": len(paths),
        }
        expected = extractor(path)["rgb"]
        workers = (0,) if settings.quick else (0, *sorted({1, max(1, settings.threads - 1)}))
        return [
            {**shared, **extraction_row(extractor, paths, count, expected)} for count in progress(workers, "extract")
        ]


def decoding_rate(path: Path, recipe: Recipe, settings: Settings) -> float:
    """Return the frames per second that one process decodes and resizes, with one thread as the DataLoader's have."""
    counts: list[int] = []
    torch.set_num_threads(1)

    def decode() -> None:
        counts.append(sum(len(chunk.rgb) for chunk in read_chunks(path, recipe, Limits())))

    [seconds] = time_in_turns(decode, budget=settings.budget(3.0))
    settings.apply()
    return counts[0] / seconds


def backbone_rate(extractor: Extractor, recipe: Recipe, settings: Settings) -> float:
    """Return the clips per second of the backbone."""
    shape = BATCH_SIZE, recipe.frames, CHANNELS["rgb"], recipe.crop, recipe.crop
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    [seconds] = time_in_turns(lambda: extractor.features_of("rgb", clips), budget=settings.budget(20.0), rounds=10)
    return BATCH_SIZE / seconds


def extraction_row(extractor: Extractor, paths: Mapping[str, Path], workers: int, expected: np.ndarray) -> dict:
    """Measure the extraction of videos with a number of processes that decode; `expected` are features of each."""
    start = time.perf_counter()
    outcomes = list(extract_videos(extractor, paths, workers))
    elapsed = time.perf_counter() - start
    equal = all(
        outcome.error is None and np.allclose(outcome.features["rgb"], expected, rtol=0, atol=TOLERANCE)
        for outcome in outcomes
    )
    return {
        "processes": workers,
        "frames/s": sum(outcome.num_frames for outcome in outcomes) / elapsed,
        "share of time waiting": sum(outcome.waited for outcome in outcomes) / elapsed,
        "results": "equal" if equal else "DIFFERENT",
    }


def write_clip(path: Path, size: tuple[int, int], seconds: int) -> Path:
    """Write a simulated video: waves that move, with noise, so that each frame differs from the one before."""
    av, (width, height) = require_av(), size
    noise = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 4, width), np.linspace(0, 3, height))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(FPS * seconds):
            waves = [np.sin(x * (1 + color) + y + number / 10) for color in range(3)]
            image = 128 + 90 * np.stack(waves, axis=-1) + noise.normal(0, 8, (height, width, 1))
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path
