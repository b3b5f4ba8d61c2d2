"""Peak memory and start of a training: main.py itself, on features in files."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.command import run_main
from scripts.benchmarks.measure import Settings, progress
from scripts.benchmarks.synthetic import THUMOS14, Scale, equal_videos, write_dataset_files
from scripts.benchmarks.table import ResultTable
from scripts.benchmarks.yardstick import precisions
from utils.run.devices import choose_device

TRAINING_VIDEOS = (400, 4_000, 40_000)  # of the narrow datasets
TEST_VIDEOS, SNIPPETS, DIM = 20, 60, 32  # of the narrow datasets: per subset, per video, per modality
ITERATIONS, WHOLE_TRAINING = 3, 5_000  # the whole training, with 25 evaluations, runs on a GPU only

NOTES = (
    "python main.py ... --max-iter ITERATIONS, with one evaluation and the files of a run, in a process of its own; "
    "peak: the most main memory of the process (VmHWM), interpreter and PyTorch included",
    "start: time until the first step, with imports, check of the dataset and, with a cache, reading all features",
    "SIMULATED features, float16, in chunks with checksums, as the project writes them; the narrow datasets have "
    f"{SNIPPETS} snippets per video and {TEST_VIDEOS} test videos each, and differ in training videos only",
)


class Dataset(NamedTuple):
    """A dataset to write, and the trainings on it."""

    name: str
    train: Scale
    test: Scale
    dim: int  # channels per modality
    options: tuple[str, ...]
    trainings: Sequence[tuple[str, str, int]]  # cache, precision and iterations


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row per training. The files are temporary."""
    device = choose_device(settings.device)
    names, missing = precisions(device)
    trainings = list(product(("host", "none"), names, (ITERATIONS,)))
    if device.type == "cuda":
        trainings.append(("device", "bf16", WHOLE_TRAINING))
    datasets = [
        Dataset(
            "THUMOS14's size",
            THUMOS14.resize(8 if settings.quick else 200, "validation"),
            THUMOS14.resize(4 if settings.quick else 212, "test"),
            16 if settings.quick else 1024,
            ("--config", "configs/thumos14.yaml", *(("--num-snippets", "24") if settings.quick else ())),
            trainings[-1:] if settings.quick else trainings,
        )
    ]
    for videos in () if settings.quick else TRAINING_VIDEOS:
        train, test = equal_videos(videos, SNIPPETS, "train"), equal_videos(TEST_VIDEOS, SNIPPETS, "test")
        options = ("--dataset", "demo", "--num-snippets", str(SNIPPETS))
        datasets.append(Dataset("narrow", train, test, DIM, options, [("none", "float32", ITERATIONS)]))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        rows = (row for dataset in datasets for row in _run_trainings(dataset, Path(folder), settings))
        total = sum(len(dataset.trainings) for dataset in datasets)
        rows = list(progress(rows, "memory", total, unit="training"))
    return [ResultTable("memory", "main.py, as a user runs it", rows, NOTES, missing)]


def _run_trainings(dataset: Dataset, folder: Path, settings: Settings) -> Iterator[dict]:
    data, run_dir = folder / "data", folder / "run"
    size = write_dataset_files(data, dataset.train, dataset.test, dataset.dim)
    for cache, precision, iterations in dataset.trainings:
        options = ["--path-dataset", str(data), "--cache", cache, "--precision", precision, "--device", settings.device]
        figures = run_main([*dataset.options, *options, "--max-iter", str(iterations)], run_dir, settings.threads)
        shutil.rmtree(run_dir, ignore_errors=True)
        figures.pop("snippets/s", None)  # three steps are too few to tell
        yield {
            "data": dataset.name,
            "training videos": dataset.train.videos,
            "channels": 2 * dataset.dim,
            "features MB": size / 1e6,
            "cache": cache,
            "precision": precision,
            "iterations": iterations,
            **figures,
        }
    shutil.rmtree(data)
