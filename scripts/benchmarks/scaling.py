"""How cost grows with videos, snippets and classes, and what several processes bring."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import train
from benchmarks.command import run_main
from benchmarks.made import SCALES, Scale, made_detections, made_ground_truth, made_outputs, write_made_set
from benchmarks.measure import Settings, in_new_process, take_turns
from benchmarks.table import Column, Measured
from benchmarks.yardstick import as_main_runs, wait_for
from eval.detection import evaluate_detections
from eval.proposals import localize
from utils.datasets import DATASETS
from utils.engine import choose_device

LINEAR = 1.1  # the exponent up to which a cost counts as growing no faster than linearly
DETECTIONS, INSTANCES = 150, 16  # a video, about as on THUMOS14
DIM, SNIPPETS, CLASSES = 512, 320, 20  # of a step, where they are not what grows
NARROW = 8  # channels a modality where only drawing a batch is timed
QUICK_DIM, QUICK_SNIPPETS = 8, 12
PROCESSES = (1, 2)
VIDEOS, ITERATIONS = 40, 10  # of the training under torchrun

COLUMNS = (
    Column("cost", "cost of"),
    Column("grows_in", "in"),
    Column("sizes_text", "sizes"),
    Column("ms_text", "ms at each"),
    Column("exponent", "exponent", ".2f"),
    Column("linear", "no faster than linear"),
)
TORCHRUN_COLUMNS = (
    Column("processes", "processes"),
    Column("threads", "threads each"),
    Column("steps_s", "steps/s", ".3f"),
    Column("speedup", "speed-up", ".2f"),
    Column("ended", "ended"),
)
NOTES = (
    f"exponent: the slope of log time over log size, fitted; no faster than linear: at most {LINEAR}",
    f"step: 10 videos, {DIM} + {DIM} channels, T {SNIPPETS}, {CLASSES} classes but for what grows, float32",
    f"evaluation: 212 videos, {CLASSES} classes but for what grows, {DETECTIONS} made detections and {INSTANCES} made "
    f"instances a video; batch: 10 videos of {SNIPPETS} snippets and {2 * NARROW} channels, from memory",
)
TORCHRUN_NOTES = (
    f"torchrun --nproc_per_node N main.py, {ITERATIONS} iterations over SIMULATED features, {DIM} + {DIM} channels, T "
    f"{SNIPPETS}, float32; the same 10 videos a step in all; steps/s without start and evaluation",
)


@dataclass(frozen=True)
class Cost:
    """Something whose time grows: `made(size, settings)` gives what is timed."""

    name: str
    grows_in: str
    made: Callable[[int, Settings], Callable[[], object]]
    sizes: tuple[int, ...]
    quick_sizes: tuple[int, int]


def measure(settings: Settings) -> list[Measured]:
    """A row a cost, and one a number of processes."""
    rows = in_new_process(measured_growths, settings)
    done = list(_trainings(settings))
    return [
        Measured("scaling", "growth of cost with videos, snippets and classes", COLUMNS, rows, NOTES),
        Measured("scaling_torchrun", "one training in several processes", TORCHRUN_COLUMNS, done, TORCHRUN_NOTES),
    ]


def measured_growths(settings: Settings) -> list[dict]:
    """The rows of all costs; for a process of its own."""
    as_main_runs(settings)
    return [_growth_row(cost, settings) for cost in tqdm(COSTS, "scaling", leave=False)]


def _growth_row(cost: Cost, settings: Settings) -> dict:
    """All sizes in turns."""
    sizes = cost.quick_sizes if settings.quick else cost.sizes
    runs = [cost.made(size, settings) for size in sizes]
    ms = [1000 * seconds for seconds in take_turns(*runs, budget=0.05 if settings.quick else 10.0)]
    exponent = growth(sizes, ms)
    return {
        "cost": cost.name,
        "grows_in": cost.grows_in,
        "sizes": list(sizes),
        "sizes_text": " / ".join(f"{size:,}" for size in sizes),
        "ms": ms,
        "ms_text": " / ".join(f"{value:,.1f}" for value in ms),
        "exponent": exponent,
        "linear": "yes" if exponent <= LINEAR else "NO",
    }


def growth(sizes: tuple[int, ...], costs: list[float]) -> float:
    """The exponent p of cost = c * size ** p that fits best, in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def step_of_snippets(snippets: int, settings: Settings) -> Callable[[], object]:
    return _step(snippets, CLASSES, settings)


def step_of_classes(classes: int, settings: Settings) -> Callable[[], object]:
    return _step(QUICK_SNIPPETS if settings.quick else SNIPPETS, classes, settings)


def _step(snippets: int, classes: int, settings: Settings) -> Callable[[], object]:
    device, dim = choose_device(settings.device), QUICK_DIM if settings.quick else DIM
    batch = next(train.made_loader(dim, snippets, device, classes, videos=2 * classes))
    trainee = train.ours(dim, classes, "float32", device)

    def step() -> None:
        trainee.step(batch)
        wait_for(device)

    return step


def batch_of_videos(videos: int, settings: Settings) -> Callable[[], object]:
    loader = train.made_loader(NARROW, SNIPPETS, torch.device("cpu"), videos=videos)
    return lambda: next(loader)


def evaluation_of_videos(videos: int, settings: Settings) -> Callable[[], object]:
    return _evaluation(replace(SCALES["thumos14"], videos=videos, instances=INSTANCES * videos))


def evaluation_of_classes(classes: int, settings: Settings) -> Callable[[], object]:
    return _evaluation(replace(SCALES["thumos14"], classes=classes))


def _evaluation(scale: Scale) -> Callable[[], object]:
    truth = made_ground_truth(scale)
    found = made_detections(truth, DETECTIONS * scale.videos)
    return partial(evaluate_detections, truth, found, DATASETS[scale.dataset].tiou_thresholds)


def localization_of_snippets(snippets: int, settings: Settings) -> Callable[[], object]:
    videos = [made_outputs(snippets, seed=seed) for seed in range(5)]
    return lambda: [localize(*video) for video in videos]


COSTS = (
    Cost("evaluation", "videos", evaluation_of_videos, (200, 500, 1_000, 2_000), (20, 40)),
    Cost("batch", "videos", batch_of_videos, (200, 2_000, 20_000), (40, 80)),
    Cost("step", "snippets", step_of_snippets, (125, 250, 500, 1_000), (8, 16)),
    Cost("localization of 5 videos", "snippets", localization_of_snippets, (100, 300, 1_000, 5_000), (40, 80)),
    Cost("step", "classes", step_of_classes, (20, 100, 200), (4, 8)),
    Cost("evaluation", "classes", evaluation_of_classes, (20, 100, 200), (4, 8)),
)


def _trainings(settings: Settings) -> Iterator[dict]:
    """main.py under torchrun, with more and more processes of one thread."""
    dim, snippets = (QUICK_DIM, QUICK_SNIPPETS) if settings.quick else (DIM, SNIPPETS)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        data, first = Path(folder) / "data", None
        write_made_set(data, "demo", np.full(VIDEOS, snippets), np.full(2, snippets), dim)
        options = ["--dataset", "demo", "--path-dataset", str(data), "--num-snippets", str(snippets)]
        options += ["--device", settings.device, "--max-iter", str(2 if settings.quick else ITERATIONS)]
        for processes in tqdm(PROCESSES[-1:] if settings.quick else PROCESSES, "torchrun", leave=False):
            done = run_main(options, Path(folder) / f"run_{processes}", threads=1, processes=processes)
            row = {"processes": processes, "threads": 1, "ended": done["ended"]}
            if done["ended"] == "ok":
                speed = done["snippets_s"] / (train.BATCH_SIZE * snippets)
                first = first or speed
                row |= {"steps_s": speed, "speedup": speed / first}
            yield row
