"""Training batches from memory and from files: milliseconds, and share of what the machine can copy."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.made import SCALES, made_lengths, made_training_set, store_plainly, write_made_set
from benchmarks.measure import Settings, take_turns
from benchmarks.table import Column, Measured
from benchmarks.yardstick import as_main_runs, wait_for
from utils.annotations import load_annotations
from utils.engine import choose_device
from utils.features.store import FeatureStore, open_features
from utils.sampler import PairSampler, stratified_snippets
from wsad_dataset import BatchLoader, WeakVideoDataset

VIDEOS, FILE_VIDEOS = 200, 60
SOURCES = 4  # buffers that the copy reads in turn, so that none of them is still in the cache

TITLE = "one training batch, float32 on the device that trains"
COLUMNS = (
    Column("source", "features in"),
    Column("cache", "cache"),
    Column("dtype", "stored as"),
    Column("batch_size", "videos"),
    Column("snippets", "snippets each"),
    Column("channels", "channels"),
    Column("batch_mb", "batch MB", ".1f"),
    Column("set_mb", "data set MB", ",.0f"),
    Column("ms", "ms", ".2f"),
    Column("plain_ms", "plain ms", ".1f"),
    Column("ratio", "ratio", ".1f"),
    Column("results", "results"),
    Column("copy_ms", "copy ms", ".2f"),
    Column("copy_gb_s", "copy GB/s", ".1f"),
    Column("share", "share of copy", ".0%"),
)
NOTES = (
    "plain: whole videos, one after another, fancy indexing, one np.stack; the same draws, same run",
    "own HDF5: in chunks with checksums, as convert_features.py writes it; contiguous: as h5py does unasked; both as "
    "the system has them in its page cache, so that this is not the speed of a disk; no thread makes batches ahead",
    "copy: np.copyto of as many bytes into mapped memory; GB/s of bytes copied (as many are read as written)",
)


class PlainLoader:
    """The batches of BatchLoader, put together video by video."""

    def __init__(self, dataset: WeakVideoDataset, batch_size: int, num_snippets: int, seed: int = 0):
        self.dataset, self.num_snippets = dataset, num_snippets
        self.sampler = PairSampler(dataset.labels, batch_size, seed=seed)
        self.generator = np.random.default_rng([seed, 1])

    def __next__(self) -> Tensor:
        indices = self.sampler.draw()
        snippets = stratified_snippets(self.dataset.lengths[indices], self.num_snippets, self.generator)
        videos = [self.dataset[index][chosen] for index, chosen in zip(indices, snippets, strict=True)]
        return torch.from_numpy(np.stack(videos))  # (B, T, D)


def measure(settings: Settings) -> list[Measured]:
    """A row a place that features are in."""
    as_main_runs(settings)
    rows = [
        {"source": source, "cache": cache, "dtype": dtype, **_row(dataset, settings)}
        for source, cache, dtype, dataset in tqdm(_places(settings), "data", leave=False, delay=2)
    ]
    return [Measured("data", TITLE, COLUMNS, rows, NOTES)]


def _places(settings: Settings) -> Iterator[tuple[str, str, str, WeakVideoDataset]]:
    """Where features are, the option of main.py that keeps them there, how they are stored, and the dataset."""
    videos, dim = (40, 32) if settings.quick else (VIDEOS, 1024)
    annotations, source = made_training_set(videos, dim=dim)
    store, device = FeatureStore(source, source.modalities), choose_device(settings.device)
    yield "memory", "host", "float32", WeakVideoDataset(annotations, store, "train")
    if device.type == "cuda":
        yield "GPU", "device", "float32", WeakVideoDataset(annotations, store, "train", device=device)
    lengths = made_lengths(replace(SCALES["thumos14"], videos=40 if settings.quick else FILE_VIDEOS))
    for dtype in ("float16", "float32"):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            write_made_set(Path(folder), "demo", lengths, lengths[:1], dim, dtype=dtype)
            yield "own HDF5", "none", dtype, _uncached(folder)
            store_plainly(Path(folder))
            yield "contiguous HDF5", "none", dtype, _uncached(folder)


def _uncached(folder: str) -> WeakVideoDataset:
    return WeakVideoDataset(load_annotations(folder), open_features(folder), "train", device=None)


def _row(dataset: WeakVideoDataset, settings: Settings) -> dict:
    batch_size, num_snippets = (6, 40) if settings.quick else (10, 500)
    channels = sum(dataset.modality_dims)
    fast, plain = BatchLoader(dataset, batch_size, 3, num_snippets), PlainLoader(dataset, batch_size, num_snippets)
    same = all(torch.equal(next(fast).features.cpu(), next(plain)) for _ in range(3))
    target = np.zeros((batch_size, num_snippets, channels), dtype=np.float32)
    buffers = [np.ones_like(target) for _ in range(SOURCES)]

    def copy() -> None:
        buffers.append(buffers.pop(0))
        np.copyto(target, buffers[-1])

    def draw() -> None:
        next(fast)
        wait_for(dataset.device)

    ms, plain_ms, copy_ms = (
        1000 * seconds
        for seconds in take_turns(draw, lambda: next(plain), copy, budget=0.05 if settings.quick else 5.0, rounds=100)
    )
    return {
        "batch_size": batch_size,
        "snippets": num_snippets,
        "channels": channels,
        "batch_mb": target.nbytes / 1e6,
        "set_mb": dataset.lengths.sum() * 4 * channels / 1e6,
        "ms": ms,
        "plain_ms": plain_ms,
        "ratio": plain_ms / ms,
        "results": "equal" if same else "DIFFERENT",
        "copy_ms": copy_ms,
        "copy_gb_s": target.nbytes / copy_ms / 1e6,
        "share": copy_ms / ms,
    }
