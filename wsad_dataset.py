"""Weakly labelled videos: features and video-level labels, and the training batches drawn from them.

Nothing here reads when an action happens: of a `Video`, only its id and its weak labels are used.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.annotations import Annotations, Video
from utils.errors import InputError
from utils.features import FeatureStore
from utils.sampler import PairSampler, rank_rows, stratified_snippets


class WeakVideoDataset:
    """The videos of one subset that have features: `dataset[i]` is (T, D) float32, `dataset.labels[i]` (C,).

    Attributes:
        video_ids: the N videos used, in annotation order or that of the choice.
        labels: (N, C) float32, multi-hot weak labels.
        lengths: (N,) snippets a video.
        skipped: videos without features (only with missing_features="skip").
        too_short: videos with fewer than min_snippets snippets.
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
    ):
        """All features are read into memory. video_ids: use only these of the subset.

        InputError: no such subset or video, a video without features, no video left, unusable features.
        """
        videos = _choose(annotations.subset(subset), video_ids, subset)
        if not videos:
            raise InputError(
                f"no video of subset '{subset}' is left to use: the choice of videos is empty; hold out fewer"
            )
        self.classes = annotations.classes
        self.modality_dims = store.modality_dims
        self.snippet_rate = store.snippet_rate
        self.skipped = [video.video_id for video in videos if video.video_id not in store]
        if self.skipped and missing_features == "error":
            raise InputError(_missing_message(self.skipped, len(videos), subset))
        lengths = {v.video_id: store.num_snippets(v.video_id) for v in videos if v.video_id in store}
        self.too_short = [video_id for video_id, length in lengths.items() if length < max(1, min_snippets)]
        used = [video for video in videos if lengths.get(video.video_id, 0) >= max(1, min_snippets)]
        if not used:
            raise InputError(
                f"no video of subset '{subset}' can be used: {len(self.skipped)} have no features, "
                f"{len(self.too_short)} have fewer than {min_snippets} snippets"
            )
        self.video_ids = [video.video_id for video in used]
        self.labels = _multi_hot(used, self.classes)
        self.lengths = np.array([lengths[video_id] for video_id in self.video_ids])
        self._offsets = np.cumsum(self.lengths) - self.lengths
        self._rows = self._load(store)

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """(T, D) float32; a view of what is in memory, not to be written to."""
        start = self._offsets[index]
        return self._rows[start : start + self.lengths[index]].numpy()

    def __str__(self) -> str:
        left_out = [f"{len(self.skipped)} without features left out"] if self.skipped else []
        left_out += [f"{len(self.too_short)} too short"] if self.too_short else []
        notes = f" ({', '.join(left_out)})" if left_out else ""
        return f"{len(self)} videos, {self.lengths.sum():,} snippets{notes}"

    def gather(self, indices: np.ndarray, snippets: np.ndarray, out: Tensor) -> None:
        """Snippets (B, T) of the videos (B,) -> out (B, T, D) float32, contiguous."""
        rows = torch.from_numpy(self._offsets[indices][:, None] + snippets)
        # Writing into memory that is already mapped is what makes this fast (7x over a fresh tensor).
        torch.index_select(self._rows, 0, rows.view(-1), out=out.view(-1, out.shape[-1]))

    def _load(self, store: FeatureStore) -> Tensor:
        """All videos after one another: (sum of lengths, D) float32."""
        rows = torch.empty(int(self.lengths.sum()), sum(self.modality_dims))
        videos = zip(self.video_ids, self._offsets, self.lengths, strict=True)
        for video_id, start, length in tqdm(videos, "loading features", len(self), leave=False, unit="video"):
            rows.numpy()[start : start + length] = store[video_id]
        return rows


class Batch(NamedTuple):
    features: Tensor  # (B, T, D) float32
    labels: Tensor  # (B, C) float32, multi-hot
    pairs: Tensor  # (P, 2) int64, rows of the batch that share a class


class BatchLoader:
    """An endless iterator of training batches; two loaders with equal state give equal batches.

    `features` lie in one of two buffers in turn, so a batch stays valid while the next one is drawn and is
    overwritten by the one after that. Whoever keeps a batch for longer, or copies it to a GPU without waiting
    for the copy (`non_blocking=True`) for two batches, needs a copy of their own.
    """

    def __init__(
        self,
        dataset: WeakVideoDataset,
        batch_size: int = 10,
        num_pairs: int = 3,
        num_snippets: int = 500,
        seed: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        """num_snippets: T, drawn from each video. pin_memory: page-locked buffers, for copies to a GPU.

        rank, num_ranks: which part to take of batches that several processes share; see rank_rows. All of them draw
        the whole batch, so that together they see the batches that one process alone sees.
        """
        if num_snippets < 1:
            raise InputError(f"a batch needs at least 1 snippet a video, not {num_snippets}")
        self.dataset = dataset
        self.num_snippets = num_snippets
        self.video_ids: list[str] = []  # of the batch drawn last
        self.sampler = PairSampler(dataset.labels, batch_size, num_pairs, seed)
        self._generator = np.random.default_rng([seed, 1])  # a stream apart from the sampler's
        self._rows = rank_rows(batch_size, num_pairs, rank, num_ranks)
        self._pairs = self.sampler.pairs[: len(self.sampler.pairs[rank::num_ranks])]
        shape = (len(self._rows), num_snippets, sum(dataset.modality_dims))
        self._buffers = [torch.empty(shape, pin_memory=pin_memory) for _ in range(2)]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        indices, _ = self.sampler.draw()
        snippets = stratified_snippets(self.dataset.lengths[indices], self.num_snippets, self._generator)
        indices, snippets = indices[self._rows], snippets[self._rows]
        self.video_ids = [self.dataset.video_ids[index] for index in indices]
        self._buffers.reverse()
        features = self._buffers[0]
        self.dataset.gather(indices, snippets, features)
        return Batch(features, torch.from_numpy(self.dataset.labels[indices]), torch.tensor(self._pairs))

    def example(self, device: torch.device) -> Batch:
        """A batch of the size and kinds of all others, of zeros."""
        labels = torch.zeros(len(self._rows), len(self.dataset.classes))
        return Batch(*(x.to(device) for x in (torch.zeros_like(self._buffers[0]), labels, torch.tensor(self._pairs))))

    def state_dict(self) -> dict:
        """Both generators' states, in plain Python values."""
        return {"sampler": self.sampler.state_dict(), "snippets": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self._generator.bit_generator.state = state["snippets"]


def _choose(videos: list[Video], video_ids: Sequence[str] | None, subset: str) -> list[Video]:
    if video_ids is None:
        return videos
    known = {video.video_id: video for video in videos}
    if unknown := [video_id for video_id in video_ids if video_id not in known]:
        raise InputError(f"subset '{subset}' has no video '{unknown[0]}' ({len(unknown)} such ids)")
    return [known[video_id] for video_id in dict.fromkeys(video_ids)]


def _multi_hot(videos: list[Video], classes: tuple[str, ...]) -> np.ndarray:
    """(N, C) float32: 1 where the video has the weak label."""
    order = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(videos), len(classes)), dtype=np.float32)
    for row, video in enumerate(videos):
        labels[row, [order[label] for label in video.labels]] = 1
    return labels


def _missing_message(missing: list[str], total: int, subset: str) -> str:
    names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return (
        f"{len(missing)} of the {total} videos of subset '{subset}' have no features ({names}); "
        "extract them, or leave them out with missing_features: skip"
    )
