"""Proposals of whole subsets, and their pooled features.

Proposals come from a trained method or from a detection file. Nothing here reads when an action happens.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval.proposals import FRACTIONAL
from eval.tables import Table, localized_table
from utils.engine import network_outputs
from utils.errors import InputError
from utils.methods import Method
from utils.second_stage.pmil import pool_parts, roi_features
from wsad_dataset import WeakVideoDataset

SNIPPET_DECIMALS = 2  # of proposals in snippets (release)


def propose(method: Method, dataset: WeakVideoDataset, snippet_rate: float, known_labels: bool) -> Table:
    """Return the proposals of all videos, in seconds: detections of a method without NMS, exact duplicates included.

    Args:
        method: Trained network with its localization.
        dataset: Videos.
        snippet_rate: Snippets per second.
        known_labels: Localize the video-level labels, as for training videos, instead of the predicted classes.
    """
    indices, found = np.arange(len(dataset)), {}
    videos = network_outputs(method.network, dataset, indices, set(method.localization.outputs))
    for index, outputs in tqdm(videos, "proposals", len(dataset), leave=False, unit="video", disable=None):
        labels = np.flatnonzero(dataset.labels[index]) if known_labels else None
        found[index] = method.propose(outputs, labels=labels, snippet_rate=snippet_rate)
    localized = {dataset.video_ids[index]: found[index].astype(FRACTIONAL) for index in indices}
    return localized_table(localized, dataset.classes, snippet_rate)


def proposals_by_video(table: Table, snippet_rate: float, drop_duplicates: bool = False) -> dict[str, np.ndarray]:
    """Return the segments (M, 2) of each video in snippets, of videos with at least one.

    Args:
        table: Proposals in seconds. Their classes and scores are not used.
        snippet_rate: Snippets per second.
        drop_duplicates: Drop a segment that equals another one of its video. The release has them.
    """
    segments = np.round(np.stack([table.start, table.end], axis=1) * snippet_rate, SNIPPET_DECIMALS)
    by_video = {}
    for number in np.unique(table.video):
        rows = segments[table.video == number]
        by_video[table.videos[number]] = np.unique(rows, axis=0) if drop_duplicates else rows
    return by_video


class ProposalVideos:
    """Videos with proposals: `videos[i]` is the pooled features (M, 3, D) of the i-th one.

    Args:
        dataset: Videos and their features.
        proposals: Proposals in snippets by video; videos of other subsets are ignored.
        device: Device to pool on.
        cache: Memory of the pooled features: `host`, `device`, or `none` to pool anew each time.
        where: Source of the proposals, for messages.

    Attributes:
        indices: Positions in the dataset of the videos with proposals.
        segments: Proposals (M, 2) of each of them, float64 tensors on the device.

    Raises:
        InputError: No video has a proposal.
    """

    def __init__(
        self,
        dataset: WeakVideoDataset,
        proposals: Mapping[str, np.ndarray],
        device: torch.device,
        cache: str,
        where: str,
    ):
        self.dataset, self._device, self._cache = dataset, device, cache
        self.indices = [i for i, video_id in enumerate(dataset.video_ids) if video_id in proposals]
        if not self.indices:
            raise InputError(f"{where}: no proposal in any of the {len(dataset)} videos; expected segments of them")
        self.segments = [torch.from_numpy(proposals[dataset.video_ids[i]]).to(device) for i in self.indices]
        self._pooled: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Tensor:
        if number in self._pooled:
            return self._pooled[number].to(self._device)
        features = torch.from_numpy(self.dataset[self.indices[number]]).to(self._device)
        pooled = pool_parts(roi_features(features, self.segments[number]))
        if self._cache != "none":
            self._pooled[number] = pooled.cpu() if self._cache == "host" else pooled
        return pooled

    def __str__(self) -> str:
        return f"{sum(map(len, self.segments)):,} in {len(self)} of {len(self.dataset)} videos"

    def labels(self, numbers: Sequence[int]) -> Tensor:
        """Return the multi-hot labels (B, C) of videos, float32 on the device."""
        rows = self.dataset.labels[[self.indices[number] for number in numbers]]
        return torch.from_numpy(rows).float().to(self._device)

    def batches(self, batch_size: int, max_proposals: int, seed: int) -> Iterator[tuple[int, Tensor, list, Tensor]]:
        """Yield endless shuffled epochs: epoch from 1, pooled features (sum of M, 3, D), proposals, labels (B, C).

        The last incomplete batch of an epoch is dropped (release). A video with more than `max_proposals` takes part
        with a random choice of them, the same for features and segments.
        """
        generator, epoch = np.random.default_rng([seed, 3]), 0
        while True:
            epoch += 1
            order = generator.permutation(len(self))
            for first in range(0, len(self) - batch_size + 1, batch_size):
                numbers = order[first : first + batch_size].tolist()
                chosen = [generator.permutation(len(self.segments[n]))[:max_proposals] for n in numbers]
                chosen = [torch.from_numpy(np.sort(rows)).to(self._device) for rows in chosen]
                pooled = torch.cat([self[n][rows] for n, rows in zip(numbers, chosen, strict=True)])
                segments = [self.segments[n][rows].float() for n, rows in zip(numbers, chosen, strict=True)]
                yield epoch, pooled, segments, self.labels(numbers)
