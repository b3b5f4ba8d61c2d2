"""Training batches from memory and from files."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.benchmarks.measure import Settings, progress, time_in_turns
from scripts.benchmarks.synthetic import THUMOS14, make_dataset, store_contiguously, write_dataset_files
from scripts.benchmarks.table import ResultTable
from utils.features.index import open_dataset
from utils.features.store import FeatureStore
from utils.run.devices import choose_device
from utils.sampler import PairSampler, stratified_snippets
from wsad_dataset import BatchLoader, WeakVideoDataset

VIDEOS, FILE_VIDEOS = 200, 60
BUFFERS = 4  # read in turn by the copy, so that none of them is still in the processor's cache

TITLE = "one training batch, float32 on the device that trains"
NOTES = (
    "plain: whole videos, one after another, fancy indexing, one np.stack; the same draws, same run",
    "own HDF5: in chunks with checksums, as convert_features.py writes it; contiguous HDF5: as h5py writes it by "
    "default; both lie in the page cache of the system, so this is not the speed of a disk; no thread reads ahead",
    "copy: np.copyto of as many bytes into mapped memory; GB/s of bytes copied (as many are read as written)",
)


class PlainLoader:
    """Batches equal to those of BatchLoader, one video after another."""

    def __init__(self, dataset: WeakVideoDataset, batch_size: int, num_snippets: int, seed: int = 0):
        self.dataset, self.num_snippets = dataset, num_snippets
        self.sampler = PairSampler(dataset.labels, batch_size, seed=seed)
        self.generator = np.random.default_rng([seed, 1])

    def __next__(self) -> Tensor:
        indices = self.sampler.draw()
        snippets = stratified_snippets(self.dataset.lengths[indices], self.num_snippets, self.generator)
        videos = [self.dataset[index][chosen] for index, chosen in zip(indices, snippets, strict=True)]
        return torch.from_numpy(np.stack(videos))  # (B, T, D)


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row per place from which features come."""
    settings.apply()
    rows = [
        {"features in": place, "cache": cache, "stored as": dtype, **_row(dataset, settings)}
        for place, cache, dtype, dataset in progress(_datasets(settings), "data")
    ]
    return [ResultTable("data", TITLE, rows, NOTES)]


def _datasets(settings: Settings) -> Iterator[tuple[str, str, str, WeakVideoDataset]]:
    """Yield place, value of `main.py --cache`, stored dtype and dataset."""
    videos, file_videos, dim = (40, 20, 32) if settings.quick else (VIDEOS, FILE_VIDEOS, 1024)
    annotations, source = make_dataset(THUMOS14.resize(videos, "train"), dim)
    store, device = FeatureStore(source, source.modalities), choose_device(settings.device)
    yield "memory", "host", "float32", WeakVideoDataset(annotations, store, "train")
    if device.type == "cuda":
        yield "GPU", "device", "float32", WeakVideoDataset(annotations, store, "train", device=device)
    train, test = THUMOS14.resize(file_videos, "train"), THUMOS14.resize(1, "test")
    for dtype in ("float16", "float32"):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            write_dataset_files(Path(folder), train, test, dim, dtype)
            yield "own HDF5", "none", dtype, _uncached(folder)
            store_contiguously(Path(folder))
            yield "contiguous HDF5", "none", dtype, _uncached(folder)


def _uncached(folder: str) -> WeakVideoDataset:
    return WeakVideoDataset(*open_dataset(folder), "train", device=None)


def _row(dataset: WeakVideoDataset, settings: Settings) -> dict:
    batch_size, num_snippets = (6, 40) if settings.quick else (10, 500)
    channels = sum(dataset.modality_dims)
    fast, plain = BatchLoader(dataset, batch_size, 3, num_snippets), PlainLoader(dataset, batch_size, num_snippets)
    equal = all(torch.equal(next(fast).features.cpu(), next(plain)) for _ in range(3))
    target = np.zeros((batch_size, num_snippets, channels), dtype=np.float32)
    buffers = [np.ones_like(target) for _ in range(BUFFERS)]

    def copy() -> None:
        buffers.append(buffers.pop(0))
        np.copyto(target, buffers[-1])

    functions = (lambda: next(fast), lambda: next(plain), copy)
    ms, plain_ms, copy_ms = (1000 * s for s in time_in_turns(*functions, budget=settings.budget(5.0), rounds=100))
    return {
        "videos": batch_size,
        "snippets each": num_snippets,
        "channels": channels,
        "batch MB": target.nbytes / 1e6,
        "dataset MB": int(dataset.lengths.sum()) * 4 * channels / 1e6,
        "ms": ms,
        "plain ms": plain_ms,
        "ratio": plain_ms / ms,
        "results": "equal" if equal else "DIFFERENT",
        "copy ms": copy_ms,
        "copy GB/s": target.nbytes / copy_ms / 1e6,
        "share of copy": copy_ms / ms,
    }
