"""Weakly labeled videos: features and video-level labels, and the training batches drawn from them.

Nothing here reads when an action happens: of a `Video`, only its id and its weak labels are used.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.annotations import Annotations, Video
from utils.errors import InputError
from utils.features.store import FeatureStore
from utils.sampler import PairSampler, ShardSampler, rank_rows, stratified_snippets


class WeakVideoDataset:
    """The videos of one subset that have features: `dataset[i]` is (T, D) float32, `dataset.labels[i]` (C,).

    Attributes:
        video_ids: the N videos used, in annotation order or that of the choice.
        labels: (N, C) bool, multi-hot weak labels.
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
        device: torch.device | str | None = "cpu",
    ):
        """
        Args:
            video_ids: use only these of the subset.
            device: where all features are kept; None for nowhere: they are read whenever they are asked for.

        InputError: no such subset or video, a video without features, no video left, unusable features, features
        that do not fit the device.
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
        self.store = store
        self._offsets = np.cumsum(self.lengths) - self.lengths
        self._rows = None if device is None else self._load(torch.device(device))

    @property
    def device(self) -> torch.device:
        """Where batches are put together."""
        return torch.device("cpu") if self._rows is None else self._rows.device

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """(T, D) float32; where the features are in main memory a view of them, not to be written to."""
        if self._rows is None:
            return self.store[self.video_ids[index]]
        start = self._offsets[index]
        return self._rows[start : start + self.lengths[index]].cpu().numpy()

    def __str__(self) -> str:
        left_out = [f"{len(self.skipped)} without features left out"] if self.skipped else []
        left_out += [f"{len(self.too_short)} too short"] if self.too_short else []
        notes = f" ({', '.join(left_out)})" if left_out else ""
        return f"{len(self)} videos, {self.lengths.sum():,} snippets{notes}"

    def gather(self, indices: np.ndarray, snippets: np.ndarray, out: Tensor) -> None:
        """Sorted snippets (B, T) of the videos (B,) -> out (B, T, D) float32, contiguous, on `device`."""
        if self._rows is None:
            for row, (index, chosen) in enumerate(zip(indices, snippets, strict=True)):
                out[row] = torch.from_numpy(self.store.rows(self.video_ids[index], chosen))
            return
        rows = sent(torch.from_numpy(self._offsets[indices][:, None] + snippets), self.device)
        # Writing into memory that is already mapped is what makes this fast (7x over a fresh tensor).
        torch.index_select(self._rows, 0, rows.view(-1), out=out.view(-1, out.shape[-1]))

    def _load(self, device: torch.device) -> Tensor:
        """All videos after one another: (sum of lengths, D) float32."""
        rows = self._empty_rows(device)
        videos = zip(self.video_ids, self._offsets, self.lengths, strict=True)
        for video_id, start, length in tqdm(videos, "loading features", len(self), leave=False, unit="video"):
            rows[start : start + length] = torch.from_numpy(self.store[video_id])
        return rows

    def _empty_rows(self, device: torch.device) -> Tensor:
        shape = int(self.lengths.sum()), sum(self.modality_dims)
        try:
            return torch.empty(shape, device=device)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            other = "none" if device.type == "cpu" else "host"
            size = f"{4 * shape[0] * shape[1] / 1e9:,.1f} GB of features"
            raise InputError(f"{size} do not fit into the memory of the {device.type}; use --cache {other}") from None


class Batch(NamedTuple):
    features: Tensor  # (B, T, D) float32
    labels: Tensor  # (B, C) float32, multi-hot
    pairs: Tensor  # (P, 2) int64, rows of the batch that share a class


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for a GPU: PyTorch keeps page-locked memory until its copy is done."""
    if tensor.device == device or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class _Made(NamedTuple):
    """A batch, its videos, and the state from which the one after it is drawn."""

    batch: Batch
    video_ids: list[str]
    state: dict


class BatchLoader:
    """An endless iterator of training batches; two loaders with equal state give equal batches.

    `features` lie in one of a few buffers in turn: a batch stays valid while the next one is drawn and used, and is
    overwritten when the one after that is drawn. So whoever copies it to a GPU without waiting for the copy
    (`non_blocking=True`) has time until then; who keeps it for longer needs a copy of their own.

    With `prefetch` the next batch is made by a thread while this one is used. Which batches come does not change,
    nor does the state, which always is the one before the next batch that has not been drawn.
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
    ):
        """num_snippets: T, drawn from each video. pin_memory: page-locked buffers, for copies to a GPU.

        open_shards: how many shards of the features the batches are drawn from at a time; 0 for all.
        rank, num_ranks: which part to take of batches that several processes share; see rank_rows. All of them draw
        the whole batch, so that together they see the batches that one process alone sees.
        """
        if num_snippets < 1:
            raise InputError(f"a batch needs at least 1 snippet a video, not {num_snippets}")
        self.dataset = dataset
        self.num_snippets = num_snippets
        self.video_ids: list[str] = []  # of the batch drawn last
        self.sampler = _sampler(dataset, batch_size, num_pairs, seed, open_shards)
        self._generator = np.random.default_rng([seed, 1])  # a stream apart from the sampler's
        self._own = rank_rows(batch_size, num_pairs, rank, num_ranks)
        self._pairs = torch.arange(2 * len(range(rank, num_pairs, num_ranks))).view(-1, 2)
        shape = (len(self._own), num_snippets, sum(dataset.modality_dims))
        pin_memory = pin_memory and dataset.device.type == "cpu"
        count = 3 if prefetch else 2  # the one that is used, the one before it, and the one that is made ahead
        self._buffers = [torch.empty(shape, device=dataset.device, pin_memory=pin_memory) for _ in range(count)]
        self._state = self._drawing_state()
        self._thread = ThreadPoolExecutor(1, "batches") if prefetch else None
        self._ahead: Future[_Made] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, self.video_ids, self._state = self._make_ahead() if self._thread else self._make()
        return batch

    def _make(self) -> _Made:
        indices, _ = self.sampler.draw()
        snippets = stratified_snippets(self.dataset.lengths[indices], self.num_snippets, self._generator)
        state = self._drawing_state()
        indices, snippets = indices[self._own], snippets[self._own]
        features = self._buffers.pop(0)
        self._buffers.append(features)
        self.dataset.gather(indices, snippets, features)
        labels = torch.from_numpy(self.dataset.labels[indices]).float()
        batch = Batch(features, *(sent(part, features.device) for part in (labels, self._pairs.clone())))
        return _Made(batch, [self.dataset.video_ids[index] for index in indices], state)

    def _make_ahead(self) -> _Made:
        """The batch that was made meanwhile; the one after it is begun. An error in the making is raised here."""
        if self._ahead is None:
            self._ahead = self._thread.submit(self._make)
        made = self._ahead.result()  # an error stays in its place, so that no batch is left out after it
        self._ahead = self._thread.submit(self._make)
        return made

    def example(self, device: torch.device) -> Batch:
        """A batch of the size and kinds of all others, of zeros."""
        labels = torch.zeros(len(self._own), len(self.dataset.classes))
        return Batch(*(part.to(device) for part in (torch.zeros_like(self._buffers[0]), labels, self._pairs)))

    def close(self) -> None:
        """Wait for the batch in the making, if any, and end the thread; no batch can be drawn any more."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)

    def state_dict(self) -> dict:
        """Both generators' states before the next batch, in plain Python values."""
        return self._state

    def load_state_dict(self, state: dict) -> None:
        if self._ahead is not None:
            wait([self._ahead])
            self._ahead = None
        self.sampler.load_state_dict(state["sampler"])
        self._generator.bit_generator.state = state["snippets"]
        self._state = self._drawing_state()

    def _drawing_state(self) -> dict:
        return {"sampler": self.sampler.state_dict(), "snippets": self._generator.bit_generator.state}


def _sampler(
    dataset: WeakVideoDataset, batch_size: int, num_pairs: int, seed: int, open_shards: int
) -> PairSampler | ShardSampler:
    if not open_shards:
        return PairSampler(dataset.labels, batch_size, num_pairs, seed)
    shards = dataset.store.shards(dataset.video_ids)
    return ShardSampler(dataset.labels, shards, open_shards, batch_size, num_pairs, seed)


def _choose(videos: list[Video], video_ids: Sequence[str] | None, subset: str) -> list[Video]:
    if video_ids is None:
        return videos
    known = {video.video_id: video for video in videos}
    if unknown := [video_id for video_id in video_ids if video_id not in known]:
        raise InputError(f"subset '{subset}' has no video '{unknown[0]}' ({len(unknown)} such ids)")
    return [known[video_id] for video_id in dict.fromkeys(video_ids)]


def _multi_hot(videos: list[Video], classes: tuple[str, ...]) -> np.ndarray:
    """(N, C) bool: whether the video has the weak label. A byte each, since it grows with both."""
    order = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(videos), len(classes)), dtype=bool)
    for row, video in enumerate(videos):
        labels[row, [order[label] for label in video.labels]] = True
    return labels


def _missing_message(missing: list[str], total: int, subset: str) -> str:
    names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return (
        f"{len(missing)} of the {total} videos of subset '{subset}' have no features ({names}); "
        "extract them, or leave them out with missing_features: skip"
    )
