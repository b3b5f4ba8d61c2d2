"""Training batches from memory and from files."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from scripts.benchmarks.measure import Settings, progress, time_in_turns
from scripts.benchmarks.synthetic import MODALITIES, THUMOS14, make_dataset, store_contiguously, write_dataset_files
from scripts.benchmarks.table import ResultTable
from utils.features.convert import FEATURES
from utils.features.index import open_dataset
from utils.features.store import FeatureStore
from utils.run.devices import choose_device
from utils.sampler import PairSampler, stratified_snippets
from wsad_dataset import BatchLoader, WeakVideoDataset

VIDEOS, FILE_VIDEOS = 200, 60
BUFFERS = 4  # read in turn by the copy, so that none of them is still in the processor's cache

TITLE = "one training batch, float32 on the device that trains"
NOTES = (
    "plain: whole videos, one after another, fancy indexing, one np.stack; the same draws, same run; from HDF5, h5py "
    "reads them without the checks of the fast code, and NumPy converts them to float32",
    "own HDF5: in chunks with checksums, as convert_features.py writes it; contiguous HDF5: as h5py writes it by "
    "default; both lie in the page cache of the system, so this is not the speed of a disk; no thread reads ahead",
    "first read of a video: all of it, with checks and conversion; batches are timed after it",
    "copy: np.copyto of as many bytes into mapped memory; GB/s of bytes copied (as many are read as written)",
)


def _read_plainly(file: h5py.File, video_ids: Sequence[str], index: int) -> np.ndarray:
    """Return the features (T, D) float32 of a video in HDF5."""
    parts = [file[f"{modality}/{video_ids[index]}"][()] for modality in MODALITIES]
    return np.concatenate(parts, axis=1).astype(np.float32, copy=False)


class PlainLoader:
    """Batches equal to those of BatchLoader, one video after another.

    `read` returns the features of a video by its number in the dataset.
    """

    def __init__(
        self,
        dataset: WeakVideoDataset,
        read: Callable[[int], np.ndarray],
        batch_size: int,
        num_snippets: int,
        seed: int = 0,
    ):
        self.dataset, self.read, self.num_snippets = dataset, read, num_snippets
        self.sampler = PairSampler(dataset.labels, batch_size, seed=seed)
        self.generator = np.random.default_rng([seed, 1])

    def __next__(self) -> Tensor:
        indices = self.sampler.draw()
        snippets = stratified_snippets(self.dataset.lengths[indices], self.num_snippets, self.generator)
        videos = [self.read(index)[chosen] for index, chosen in zip(indices, snippets, strict=True)]
        return torch.from_numpy(np.stack(videos))  # (B, T, D)


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row per place from which features come."""
    settings.apply()
    rows = [
        {"features in": place, "cache": cache, "stored as": dtype, **_row(dataset, read, settings)}
        for place, cache, dtype, dataset, read in progress(_datasets(settings), "data")
    ]
    return [ResultTable("data", TITLE, rows, NOTES)]


def _datasets(settings: Settings) -> Iterator[tuple[str, str, str, WeakVideoDataset, Callable[[int], np.ndarray]]]:
    """Yield place, value of `main.py --cache`, stored dtype, dataset, and a plain function that reads a video."""
    videos, file_videos, dim = (40, 20, 32) if settings.quick else (VIDEOS, FILE_VIDEOS, 1024)
    annotations, source = make_dataset(THUMOS14.resize(videos, "train"), dim)
    store, device = FeatureStore(source, source.modalities), choose_device(settings.device)
    places = {"memory": ("host", "cpu")} | ({"GPU": ("device", device)} if device.type == "cuda" else {})
    for place, (cache, device) in places.items():
        dataset = WeakVideoDataset(annotations, store, "train", device=device)
        yield place, cache, "float32", dataset, dataset.__getitem__
    train, test = THUMOS14.resize(file_videos, "train"), THUMOS14.resize(1, "test")
    for dtype in ("float16", "float32"):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            write_dataset_files(Path(folder), train, test, dim, dtype)
            for place in ("own HDF5", "contiguous HDF5"):
                if place == "contiguous HDF5":
                    store_contiguously(Path(folder))
                dataset = WeakVideoDataset(*open_dataset(folder), "train", device=None)
                with h5py.File(Path(folder) / FEATURES) as file:
                    yield place, "none", dtype, dataset, partial(_read_plainly, file, dataset.video_ids)


def _row(dataset: WeakVideoDataset, read: Callable[[int], np.ndarray], settings: Settings) -> dict:
    batch_size, num_snippets = (6, 40) if settings.quick else (10, 500)
    channels = sum(dataset.modality_dims)
    fast = BatchLoader(dataset, batch_size, 3, num_snippets)
    plain = PlainLoader(dataset, read, batch_size, num_snippets)
    began = time.perf_counter()
    for index in range(len(dataset)):
        dataset[index]
    first_ms = 1000 * (time.perf_counter() - began) / len(dataset)
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
        "first read of a video ms": first_ms,
        "results": "equal" if equal else "DIFFERENT",
        "copy ms": copy_ms,
        "copy GB/s": target.nbytes / copy_ms / 1e6,
        "share of copy": copy_ms / ms,
    }
