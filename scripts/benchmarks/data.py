"""Training batches from features in memory: milliseconds, and share of what the machine can copy."""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.made import made_training_set
from benchmarks.measure import Settings, take_turns
from benchmarks.table import Column, Measured
from utils.features import FeatureStore
from utils.sampler import PairSampler, stratified_snippets
from wsad_dataset import BatchLoader, WeakVideoDataset

SOURCES = 4  # buffers that the copy reads in turn, so that none of them is still in the cache

TITLE = "one training batch from features in memory, float32"
COLUMNS = (
    Column("source", "features in"),
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
    "plain: video by video, fancy indexing, one np.stack; the same draws, same run",
    "copy: np.copyto of as many bytes into mapped memory; GB/s of bytes copied (as many are read as written)",
)


class PlainLoader:
    """The batches of BatchLoader, put together video by video."""

    def __init__(self, dataset: WeakVideoDataset, batch_size: int, num_snippets: int, seed: int = 0):
        self.dataset, self.num_snippets = dataset, num_snippets
        self.sampler = PairSampler(dataset.labels, batch_size, seed=seed)
        self.generator = np.random.default_rng([seed, 1])

    def __next__(self) -> Tensor:
        indices, _ = self.sampler.draw()
        snippets = stratified_snippets(self.dataset.lengths[indices], self.num_snippets, self.generator)
        videos = [self.dataset[index][chosen] for index, chosen in zip(indices, snippets, strict=True)]
        return torch.from_numpy(np.stack(videos))  # (B, T, D)


def measure(settings: Settings) -> list[Measured]:
    """One row: THUMOS14's training set in memory, 10 videos of 500 snippets."""
    torch.set_num_threads(settings.threads)
    jobs = [(40, 6, 40, 32, 0.05)] if settings.quick else [(200, 10, 500, 1024, 5.0)]
    return [Measured("data", TITLE, COLUMNS, [_row(*job) for job in tqdm(jobs, "data", leave=False, delay=2)], NOTES)]


def _row(videos: int, batch_size: int, num_snippets: int, dim: int, budget: float) -> dict:
    annotations, source = made_training_set(videos, dim=dim)
    dataset = WeakVideoDataset(annotations, FeatureStore(source, source.modalities), "train")
    fast, plain = BatchLoader(dataset, batch_size, 3, num_snippets), PlainLoader(dataset, batch_size, num_snippets)
    same = all(torch.equal(next(fast).features, next(plain)) for _ in range(3))
    target = np.zeros((batch_size, num_snippets, 2 * dim), dtype=np.float32)
    buffers = [np.ones_like(target) for _ in range(SOURCES)]

    def copy() -> None:
        buffers.append(buffers.pop(0))
        np.copyto(target, buffers[-1])

    ms, plain_ms, copy_ms = (
        1000 * seconds
        for seconds in take_turns(lambda: next(fast), lambda: next(plain), copy, budget=budget, rounds=100)
    )
    return {
        "source": "memory",
        "batch_size": batch_size,
        "snippets": num_snippets,
        "channels": 2 * dim,
        "batch_mb": target.nbytes / 1e6,
        "set_mb": dataset.lengths.sum() * 8 * dim / 1e6,
        "ms": ms,
        "plain_ms": plain_ms,
        "ratio": plain_ms / ms,
        "results": "equal" if same else "DIFFERENT",
        "copy_ms": copy_ms,
        "copy_gb_s": target.nbytes / copy_ms / 1e6,
        "share": copy_ms / ms,
    }
