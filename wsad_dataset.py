"""Weakly labeled videos, and the training batches drawn from them.

Nothing here reads when an action happens: of a `Video`, only its id and its weak labels are used.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.annotations import Annotations
from utils.errors import InputError, count_noun
from utils.features.store import FeatureStore
from utils.run.devices import is_out_of_memory, to_device
from utils.sampler import SAMPLINGS, PairSampler, ShardSampler, rank_rows


class WeakVideoDataset:
    """Videos of one subset with features: `dataset[i]` is (T, D) float32, `dataset.labels[i]` is (C,).

    Args:
        annotations: Videos and their weak labels.
        store: Features of the videos.
        subset: Name of the subset, or of several (`val+test`).
        missing_features: "error", or "skip" to leave out videos without features.
        min_snippets: Shorter videos are left out.
        video_ids: The videos to use, None for the whole subset.
        device: Device that stores all features; None to read them from the store each time.

    Attributes:
        video_ids: The N videos, in the order of `video_ids` or of the annotations.
        labels: (N, C) bool, multi-hot weak labels.
        lengths: (N,) snippets per video.
        skipped: Videos without features.
        too_short: Videos with fewer than min_snippets snippets.

    Raises:
        InputError: A video or its features are not found, no video is left, or the features do not fit into memory.
    """

    def __init__(
        self,
        annotations: Annotations,
        store: FeatureStore,
        subset: str,
        *,
        missing_features: str = "error",
        min_snippets: int = 1,
        video_ids: Sequence[str] | None = None,
        device: torch.device | str | None = "cpu",
    ):
        min_snippets = max(1, min_snippets)
        videos = annotations.subset_ids(subset)
        if video_ids is not None and video_ids != videos:
            if unknown := set(video_ids).difference(videos):
                raise InputError(f"subset '{subset}': video '{min(unknown)}' not found ({len(unknown)} such ids)")
            videos = video_ids
        if not videos:
            raise InputError(f"subset '{subset}': no video is left to use; lower --holdout")
        self.skipped = [video_id for video_id in videos if video_id not in store]
        if self.skipped and missing_features == "error":
            names = ", ".join(self.skipped[:3]) + (", ..." if len(self.skipped) > 3 else "")
            raise InputError(
                f"{len(self.skipped)} of the {len(videos)} videos of subset '{subset}' have no features ({names}); "
                "extract them, or leave them out with --missing-features skip"
            )
        present = [video_id for video_id in videos if video_id in store] if self.skipped else videos
        lengths = store.lengths(present)
        is_long = lengths >= min_snippets
        self.video_ids = list(itertools.compress(present, is_long))
        self.too_short = list(itertools.compress(present, ~is_long))
        if not self.video_ids:
            raise InputError(
                f"subset '{subset}': no video can be used; {len(self.skipped)} have no features, "
                f"{len(self.too_short)} have fewer than {min_snippets} snippets"
            )
        self.lengths = lengths[is_long]
        self.classes = annotations.classes
        self.labels = annotations.videos.label_matrix(self.video_ids, self.classes)
        self.store = store
        self.modality_dims = store.modality_dims
        self.snippet_rate = store.snippet_rate
        self._rows = None
        if device is not None:
            self._offsets = np.cumsum(self.lengths) - self.lengths  # of videos among all rows
            self._rows = self._load(torch.device(device))

    @property
    def device(self) -> torch.device:
        """Device on which batches are assembled."""
        return torch.device("cpu") if self._rows is None else self._rows.device

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitem__(self, index: int) -> np.ndarray:
        # A view of the features in memory; callers must not write to it.
        if self._rows is None:
            return self.store[self.video_ids[index]]
        start = self._offsets[index]
        return self._rows[start : start + self.lengths[index]].cpu().numpy()

    def __str__(self) -> str:
        left_out = [f"{len(self.skipped)} without features left out"] if self.skipped else []
        left_out += [f"{len(self.too_short)} too short"] if self.too_short else []
        notes = f" ({', '.join(left_out)})" if left_out else ""
        return f"{count_noun(len(self), 'video')}, {self.lengths.sum():,} snippets{notes}"

    def gather(self, indices: np.ndarray, snippets: np.ndarray, out: Tensor) -> None:
        """Copy snippets of several videos into one tensor.

        Args:
            indices: (B,) videos.
            snippets: (B, T) sorted snippets of each video.
            out: (B, T, D) float32, contiguous, on `device`.
        """
        if self._rows is None:
            for row, index, chosen in zip(out, indices, snippets, strict=True):
                video_id, parts = self.video_ids[index], row.split(self.modality_dims, dim=1)
                for part, values in zip(parts, self.store.parts(video_id, chosen), strict=True):
                    part.copy_(torch.from_numpy(values))  # converts float16 5 times as fast as NumPy
                self.store.multiply(row.numpy(), video_id)
            return
        rows = to_device(torch.from_numpy(self._offsets[indices][:, None] + snippets), self.device)  # (B, T)
        # Writing into memory that is already mapped is 7x faster than into a fresh tensor.
        torch.index_select(self._rows, 0, rows.view(-1), out=out.view(-1, out.shape[-1]))

    def _load(self, device: torch.device) -> Tensor:
        """Return the features of all videos one after another, (sum of T, D), on the device."""
        shape = int(self.lengths.sum()), sum(self.modality_dims)
        try:
            rows = torch.empty(shape, device=device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size, cache = 4 * shape[0] * shape[1] / 1e9, "none" if device.type == "cpu" else "host"
            raise InputError(
                f"{size:,.1f} GB of features do not fit into {device.type} memory; use --cache {cache}"
            ) from None
        videos = zip(self.video_ids, self._offsets, self.lengths, strict=True)
        for video_id, start, length in tqdm(
            videos, "loading features", len(self), leave=False, unit="video", disable=None
        ):
            rows[start : start + length] = torch.from_numpy(self.store[video_id])
        return rows


class Batch(NamedTuple):
    """One training batch of B videos, T snippets each."""

    features: Tensor  # (B, T, D) float32
    labels: Tensor  # (B, C) float32, multi-hot
    pairs: Tensor  # (P, 2) int64, rows of the batch that share a class


class PseudoLabeledBatch(NamedTuple):
    """One training batch with pseudo labels of its snippets."""

    features: Tensor
    labels: Tensor
    pairs: Tensor
    pseudo_labels: Tensor  # (B, T, C) float32 in [0, 1]


class BatchLoader:
    """Endless iterator of training batches; loaders with equal state return equal batches.

    The loader reuses its buffers: `features` of a batch are valid until the next but one is drawn.

    Prefetching changes neither the batches nor `state_dict()`, which always describes the next batch not yet returned.

    Args:
        dataset: Videos to draw from.
        batch_size: Videos per batch.
        num_pairs: Pairs of videos with a common class per batch.
        num_snippets: T, snippets drawn from each video.
        seed: Seed of the batches.
        pin_memory: Use page-locked buffers, for copies to a GPU.
        prefetch: Draw the next batch in a thread while the current one is used.
        open_shards: Number of feature shards to draw from at a time, 0 for all.
        rank: This process, of `num_ranks` that share each batch (see `rank_rows`).
        num_ranks: Number of processes. Every process draws whole batches, so together they see those of one process.
        sampling: Key of utils.sampler.SAMPLINGS, which draws the snippets of a video.
        pseudo_labels: (T, L) pseudo labels of each video, a column per weak label; None for batches without them.
    """

    def __init__(
        self,
        dataset: WeakVideoDataset,
        batch_size: int = 10,
        num_pairs: int = 3,
        num_snippets: int = 500,
        seed: int = 0,
        pin_memory: bool = False,
        prefetch: bool = False,
        open_shards: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        sampling: str = "stratified",
        pseudo_labels: Sequence[np.ndarray] | None = None,
    ):
        if num_snippets < 1:
            raise InputError(f"--num-snippets: expected at least 1 snippet per video, got {num_snippets}")
        self.dataset = dataset
        self.num_snippets = num_snippets
        self._draw_snippets = SAMPLINGS[sampling]
        self._pseudo_labels = pseudo_labels
        self.video_ids: list[str] = []  # of the batch returned last
        if open_shards:
            shards = dataset.store.shards(dataset.video_ids)
            self.sampler = ShardSampler(dataset.labels, shards, open_shards, batch_size, num_pairs, seed)
        else:
            self.sampler = PairSampler(dataset.labels, batch_size, num_pairs, seed)
        self._generator = np.random.default_rng([seed, 1])  # of snippets, independent of the sampler
        self._own_rows = rank_rows(batch_size, num_pairs, rank, num_ranks)
        self._pairs = torch.arange(2 * len(range(rank, num_pairs, num_ranks))).view(-1, 2)
        self._shape = len(self._own_rows), num_snippets, sum(dataset.modality_dims)  # (B, T, D) of this rank
        options = {"device": dataset.device, "pin_memory": pin_memory and dataset.device.type == "cpu"}
        count = 3 if prefetch else 2  # the batch in use, the one before it, and the prefetched one
        self._buffers = itertools.cycle([torch.empty(self._shape, **options) for _ in range(count)])
        self._state = self._generator_states()
        self._thread = ThreadPoolExecutor(1, "batches") if prefetch else None
        self._prefetched: Future | None = None

    def __iter__(self) -> Iterator[Batch | PseudoLabeledBatch]:
        return self

    def __next__(self) -> Batch | PseudoLabeledBatch:
        if self._thread is None:
            batch, self.video_ids, self._state = self._draw()
        else:
            self._prefetched = self._prefetched or self._thread.submit(self._draw)
            batch, self.video_ids, self._state = self._prefetched.result()  # raises errors of the thread
            self._prefetched = self._thread.submit(self._draw)
        return batch

    def _draw(self) -> tuple[Batch | PseudoLabeledBatch, list[str], dict]:
        """Return the next batch, its videos, and the state after it."""
        indices = self.sampler.draw()  # (B,)
        snippets = self._draw_snippets(self.dataset.lengths[indices], self.num_snippets, self._generator)  # (B, T)
        state = self._generator_states()
        indices, snippets = indices[self._own_rows], snippets[self._own_rows]
        features = next(self._buffers)
        self.dataset.gather(indices, snippets, features)
        labels = torch.from_numpy(self.dataset.labels[indices]).float()
        batch = self._batch(features, labels, self._pairs.clone())
        if self._pseudo_labels is not None:
            for row, index, chosen in zip(batch.pseudo_labels, indices, snippets, strict=True):
                row[:, self.dataset.labels[index]] = torch.from_numpy(self._pseudo_labels[index][chosen])
        batch = batch._make(to_device(part, features.device) for part in batch)
        return batch, [self.dataset.video_ids[index] for index in indices], state

    def _batch(self, features: Tensor, labels: Tensor, pairs: Tensor) -> Batch | PseudoLabeledBatch:
        """Return a batch; pseudo labels are 0."""
        if self._pseudo_labels is None:
            return Batch(features, labels, pairs)
        shape = *self._shape[:2], len(self.dataset.classes)
        return PseudoLabeledBatch(features, labels, pairs, torch.zeros(shape))

    def example(self, device: torch.device) -> Batch | PseudoLabeledBatch:
        """Return a batch of zeros with the shapes and dtypes of all batches."""
        labels = torch.zeros(len(self._own_rows), len(self.dataset.classes))
        batch = self._batch(torch.zeros(self._shape, device=device), labels, self._pairs)
        return batch._make(part.to(device) for part in batch)

    def close(self) -> None:
        """End the prefetching thread; no batch can be drawn any more."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)

    def state_dict(self) -> dict:
        """Return the states of both generators before the next batch, as plain Python values."""
        return self._state

    def load_state_dict(self, state: dict) -> None:
        """Continue with the batch that `state_dict` described."""
        if self._prefetched is not None:
            wait([self._prefetched])  # the thread uses the generators
            self._prefetched = None
        self.sampler.load_state_dict(state["sampler"])
        self._generator.bit_generator.state = state["snippets"]
        self._state = self._generator_states()

    def _generator_states(self) -> dict:
        return {"sampler": self.sampler.state_dict(), "snippets": self._generator.bit_generator.state}
