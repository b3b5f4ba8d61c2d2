"""What a training holds in memory and how soon it begins: main.py itself, on datasets of files, one after another."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.command import run_main
from benchmarks.made import SCALES, made_lengths, write_made_set
from benchmarks.measure import Settings
from benchmarks.table import Column, Measured
from benchmarks.yardstick import precisions
from utils.engine import choose_device

THUMOS14_VIDEOS = 200, 212  # to train on, to test on
TRAINING_VIDEOS = (400, 4_000, 40_000)
TEST_VIDEOS, SHORT, NARROW = 20, 60, 32  # of the sets that differ in training videos; snippets, channels a modality
ITERATIONS, WHOLE = 3, 5_000  # of a training; the whole of one, with 25 evaluations, only where a GPU does it

COLUMNS = (
    Column("data", "data"),
    Column("videos", "training videos", ","),
    Column("channels", "channels"),
    Column("file_mb", "features MB", ",.0f"),
    Column("cache", "cache"),
    Column("precision", "precision"),
    Column("iterations", "iterations", ","),
    Column("start_seconds", "start s", ".1f"),
    Column("seconds", "whole command s", ".1f"),
    Column("peak_mb", "peak MB", ",.0f"),
    Column("ended", "ended"),
)
NOTES = (
    "python main.py ... --max-iter ITERATIONS, with the evaluation and the files at its end, in a process of its "
    "own; peak: the most that it held in main memory (VmHWM), interpreter and PyTorch included",
    "start: until the first step, with imports, the check of the data and, with a cache, reading all of it",
    "SIMULATED features, float16, in chunks with checksums, as the project writes them; the narrow sets have "
    f"{SHORT} snippets a video and {TEST_VIDEOS} test videos each, so that they differ in training videos alone",
)


@dataclass(frozen=True)
class MadeSet:
    """A dataset to write, and the trainings on it: (cache, precision, iterations) each."""

    name: str
    dataset: str
    train: np.ndarray  # snippets of each video
    test: np.ndarray
    dim: int  # of each of the two modalities
    options: tuple[str, ...]
    trainings: tuple[tuple[str, str, int], ...]


def measure(settings: Settings) -> list[Measured]:
    """A row a training; what is written goes again, however this ends."""
    made_sets = _made_sets(settings)
    count = sum(len(made.trainings) for made in made_sets)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        rows = (row for made in made_sets for row in _trainings(made, Path(folder), settings))
        rows = list(tqdm(rows, "memory", count, leave=False, unit="training"))
    return [Measured("memory", "main.py, as a user runs it", COLUMNS, rows, NOTES)]


def _made_sets(settings: Settings) -> list[MadeSet]:
    device = choose_device(settings.device)
    trainings = tuple(product(("host", "none"), precisions(device), (ITERATIONS,)))
    if settings.quick:
        trainings = trainings[-1:]
    elif device.type == "cuda":
        trainings += (("device", "bf16", WHOLE),)
    counts, dim, sizes = ((8, 4), 16, (8,)) if settings.quick else (THUMOS14_VIDEOS, 1024, TRAINING_VIDEOS)
    train, test = (made_lengths(replace(SCALES["thumos14"], videos=count), seed) for seed, count in enumerate(counts))
    full = MadeSet("THUMOS14's size", "thumos14", train, test, dim, ("--config", "configs/thumos14.yaml"), trainings)
    options = ("--dataset", "demo", "--num-snippets", str(SHORT))
    few = np.full(2 if settings.quick else TEST_VIDEOS, SHORT)
    narrow = [
        MadeSet("narrow", "demo", np.full(count, SHORT), few, NARROW, options, (("none", "float32", ITERATIONS),))
        for count in sizes
    ]
    return [full, *narrow]


def _trainings(made: MadeSet, folder: Path, settings: Settings) -> Iterator[dict]:
    data = folder / "data"
    size = write_made_set(data, made.dataset, made.train, made.test, made.dim, num_classes=4 if settings.quick else 20)
    for cache, precision, iterations in made.trainings:
        options = ["--path-dataset", str(data), "--cache", cache, "--precision", precision, "--device", settings.device]
        done = run_main([*made.options, *options, "--max-iter", str(iterations)], folder / "run", settings.threads)
        shutil.rmtree(folder / "run", ignore_errors=True)
        yield {
            "data": made.name,
            "videos": len(made.train),
            "channels": 2 * made.dim,
            "file_mb": size / 1e6,
            "cache": cache,
            "precision": precision,
            "iterations": iterations,
            **done,
        }
    shutil.rmtree(data)
