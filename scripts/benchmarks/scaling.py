"""Growth of cost with videos, snippets and classes, and the speed-up of several processes."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.detection import evaluate_detections
from eval.proposals import localize
from scripts.benchmarks import train
from scripts.benchmarks.command import run_main
from scripts.benchmarks.measure import Settings, progress, time_in_turns
from scripts.benchmarks.synthetic import (
    THUMOS14,
    equal_videos,
    make_detections,
    make_ground_truth,
    make_outputs,
    write_dataset_files,
)
from scripts.benchmarks.table import ResultTable
from utils.datasets import DATASETS
from utils.run.devices import choose_device

LINEAR = 1.1  # largest exponent that counts as linear growth
DETECTIONS, SEGMENTS = 150, 16  # per video, about as on THUMOS14
DIM, SNIPPETS, CLASSES = 512, 320, 20  # of a step, unless they grow
QUICK_DIM, QUICK_SNIPPETS = 8, 12
NARROW = 8  # channels per modality where only drawing a batch is timed
PROCESSES = (1, 2)
VIDEOS, ITERATIONS = 40, 10  # of the training under torchrun

NOTES = (
    "exponent: slope of log time over log size, fitted to all sizes, and to those without the smallest; linear growth: "
    f"at most {LINEAR}",
    f"step: 10 videos, {DIM} + {DIM} channels, T {SNIPPETS}, {CLASSES} classes unless they grow, float32",
    f"evaluation: 212 videos, {CLASSES} classes unless they grow, {DETECTIONS} detections and {SEGMENTS} segments "
    f"per video; batch: 10 videos of {SNIPPETS} snippets and {2 * NARROW} channels, from memory",
)
TORCHRUN_NOTES = (
    f"torchrun --nproc_per_node N main.py, {ITERATIONS} iterations over SIMULATED features, {DIM} + {DIM} channels, T "
    f"{SNIPPETS}, float32; the same 10 videos per step in all; steps/s without start and evaluation",
)


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row per cost, and one row per number of processes."""
    rows = settings.run_apart(measure_growth, settings)
    trainings = list(_trainings(settings))
    return [
        ResultTable("scaling", "growth of cost with videos, snippets and classes", rows, NOTES),
        ResultTable("scaling_torchrun", "one training in several processes", trainings, TORCHRUN_NOTES),
    ]


def measure_growth(settings: Settings) -> list[dict]:
    """Measure each cost at several sizes, in turns."""
    settings.apply()
    device = choose_device(settings.device)
    dim, snippets = (QUICK_DIM, QUICK_SNIPPETS) if settings.quick else (DIM, SNIPPETS)

    def step(snippets: int = snippets, classes: int = CLASSES) -> Callable[[], object]:
        batch = next(train.make_loader(dim, snippets, device, classes, videos=2 * classes))
        return partial(train.fast_trainee(dim, classes, "float32", device).step, batch)

    def batch(videos: int) -> Callable[[], object]:
        loader = train.make_loader(NARROW, SNIPPETS, torch.device("cpu"), videos=videos)
        return lambda: next(loader)

    def evaluation(videos: int = 212, classes: int = CLASSES) -> Callable[[], object]:
        truth = make_ground_truth(replace(THUMOS14, videos=videos, segments=SEGMENTS * videos, classes=classes))
        detections = make_detections(truth, DETECTIONS * videos)
        return partial(evaluate_detections, truth, detections, DATASETS["thumos14"].tiou_thresholds)

    def localization(snippets: int) -> Callable[[], object]:
        videos = [make_outputs(snippets, seed=seed) for seed in range(5)]
        return lambda: [localize(*video) for video in videos]

    costs = (
        ("evaluation", "videos", evaluation, (200, 1_000, 5_000, 10_000), (20, 40)),
        ("batch", "videos", batch, (200, 2_000, 20_000), (40, 80)),
        ("step", "snippets", step, (125, 250, 500, 1_000), (8, 16)),
        ("localization of 5 videos", "snippets", localization, (100, 300, 1_000, 5_000), (40, 80)),
        ("step", "classes", step, (20, 100, 200), (4, 8)),
        ("evaluation", "classes", evaluation, (20, 100, 200), (4, 8)),
    )
    rows = []
    for name, variable, prepare, sizes, quick_sizes in progress(costs, "scaling"):
        sizes = quick_sizes if settings.quick else sizes
        functions = [prepare(**{variable: size}) for size in sizes]
        ms = [1000 * seconds for seconds in time_in_turns(*functions, budget=settings.budget(10.0))]
        exponent = growth_exponent(sizes, ms)
        rows.append(
            {
                "cost of": name,
                "in": variable,
                "sizes": " / ".join(f"{size:,}" for size in sizes),
                "ms at each": " / ".join(f"{value:,.1f}" for value in ms),
                "exponent": exponent,
                "without the smallest": growth_exponent(sizes[1:], ms[1:]) if len(sizes) > 2 else None,
                "linear": "yes" if exponent <= LINEAR else "no",
            }
        )
    return rows


def growth_exponent(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Return the exponent p of the best fit cost = c * size ** p, in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _trainings(settings: Settings) -> Iterator[dict]:
    """Run main.py under torchrun with processes of one thread."""
    dim, snippets = (QUICK_DIM, QUICK_SNIPPETS) if settings.quick else (DIM, SNIPPETS)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        data, first = Path(folder) / "data", None
        write_dataset_files(data, equal_videos(VIDEOS, snippets, "train"), equal_videos(2, snippets, "test"), dim)
        options = ["--dataset", "demo", "--path-dataset", str(data), "--num-snippets", str(snippets)]
        options += ["--device", settings.device, "--max-iter", str(2 if settings.quick else ITERATIONS)]
        for processes in progress(PROCESSES[: 1 if settings.quick else None], "torchrun"):
            figures = run_main(options, Path(folder) / f"run_{processes}", threads=1, processes=processes)
            row = {"processes": processes, "threads each": 1}
            if figures["ended"] == "ok":
                speed = figures["snippets/s"] / (train.BATCH_SIZE * snippets)
                first = first or speed
                row |= {"steps/s": speed, "speed-up": speed / first}
            yield row | {"ended": figures["ended"]}
