"""Peak memory and start of a training: main.py itself, on features in files."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.command import run_main, run_python
from scripts.benchmarks.linked import write_linked_dataset
from scripts.benchmarks.measure import Settings, progress
from scripts.benchmarks.synthetic import THUMOS14, equal_videos, write_dataset_files
from scripts.benchmarks.table import ResultTable
from scripts.benchmarks.yardstick import precisions
from utils.features.index import INDEX
from utils.run.devices import choose_device

TRAINING_VIDEOS = (400, 4_000, 40_000)  # of the narrow datasets
LINKED_VIDEOS = 1_000_000  # of the narrow dataset with a simulated index
TEST_VIDEOS, SNIPPETS, DIM = 20, 60, 32  # of the narrow datasets: per subset, per video, per modality
ITERATIONS, WHOLE_TRAINING = 3, 5_000  # the whole training, with 25 evaluations, runs on a GPU only

NOTES = (
    "python main.py ... --max-iter ITERATIONS, with one evaluation and the files of a run, in a process of its own; "
    "peak: the most main memory of the process (VmHWM), interpreter and PyTorch included",
    "start: time until the first step, with imports, check of the dataset and, with a cache, reading all features; "
    "torch: `python -c 'import torch'` alone, right before; own: the difference",
    "SIMULATED features, float16, in chunks with checksums, as the project writes them; the narrow datasets have "
    f"{SNIPPETS} snippets per video and {TEST_VIDEOS} test videos each, and differ in training videos only",
    "index: made, before the first training on a dataset, with the check of all videos; there, at every later start",
    f"linked: a SIMULATED index of {LINKED_VIDEOS:,} videos with the result of the check; all are links to one array",
)


class Dataset(NamedTuple):
    """A dataset to write, and the trainings on it."""

    name: str
    write: Callable[[Path], int]  # writes it to a folder, and returns the bytes of features
    videos: int  # for training
    dim: int  # channels per modality
    options: tuple[str, ...]
    trainings: Sequence[tuple[str, str, int]]  # cache, precision and iterations
    keeps_index: bool = True  # False: the first training makes the index


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row per training. The files are temporary."""
    device = choose_device(settings.device)
    names, missing = precisions(device)
    trainings = list(product(("host", "none"), names, (ITERATIONS,)))
    if device.type == "cuda":
        trainings.append(("device", "bf16", WHOLE_TRAINING))
    videos, test_videos, dim = (8, 4, 16) if settings.quick else (200, 212, 1024)
    scales = THUMOS14.resize(videos, "validation"), THUMOS14.resize(test_videos, "test")
    options = ("--config", "configs/thumos14.yaml", *(("--num-snippets", "24") if settings.quick else ()))
    write = partial(write_dataset_files, train=scales[0], test=scales[1], dim=dim)
    datasets = [
        Dataset("THUMOS14's size", write, videos, dim, options, trainings[-1:] if settings.quick else trainings)
    ]
    options, narrow = ("--dataset", "demo", "--num-snippets", str(SNIPPETS)), [("none", "float32", ITERATIONS)]
    test = equal_videos(TEST_VIDEOS, SNIPPETS, "test")
    for videos in () if settings.quick else TRAINING_VIDEOS:
        write = partial(write_dataset_files, train=equal_videos(videos, SNIPPETS, "train"), test=test, dim=DIM)
        datasets.append(Dataset("narrow", write, videos, DIM, options, narrow * 2, keeps_index=False))
    if not settings.quick:
        write = partial(write_linked_dataset, videos=LINKED_VIDEOS, test_videos=TEST_VIDEOS, snippets=SNIPPETS, dim=DIM)
        datasets.append(Dataset("linked", write, LINKED_VIDEOS, DIM, options, narrow))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        rows = (row for dataset in datasets for row in _run_trainings(dataset, Path(folder), settings))
        total = sum(len(dataset.trainings) for dataset in datasets)
        rows = list(progress(rows, "memory", total, unit="training"))
    return [ResultTable("memory", "main.py, as a user runs it", rows, NOTES, missing)]


def _run_trainings(dataset: Dataset, folder: Path, settings: Settings) -> Iterator[dict]:
    data, run_dir = folder / "data", folder / "run"
    size = dataset.write(data)
    if not dataset.keeps_index:
        (data / INDEX).unlink()
    for cache, precision, iterations in dataset.trainings:
        options = ["--path-dataset", str(data), "--cache", cache, "--precision", precision, "--device", settings.device]
        index = "there" if (data / INDEX).exists() else "made"
        torch_seconds = run_python(settings.threads, "-c", "import torch").seconds
        figures = run_main([*dataset.options, *options, "--max-iter", str(iterations)], run_dir, settings.threads)
        shutil.rmtree(run_dir, ignore_errors=True)
        figures.pop("snippets/s", None)  # three steps are too few to tell
        if figures["ended"] == "ok":
            start = {"torch seconds": torch_seconds, "own start seconds": figures["start seconds"] - torch_seconds}
            figures = {"start seconds": figures["start seconds"], **start, **figures}
        yield {
            "data": dataset.name,
            "training videos": dataset.videos,
            "index": index,
            "channels": 2 * dataset.dim,
            "features MB": size / 1e6,
            "cache": cache,
            "precision": precision,
            "iterations": iterations,
            **figures,
        }
    shutil.rmtree(data)
