"""A network over whole videos: T-CAM, attention and detections of each.

Videos of about one length go through the network together, the shorter ones padded, which changes nothing at their
snippets (utils/run/fast_dropout.py): a GPU then has work of a useful size. While it works on one such bucket, the bucket before
is localized.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from eval.proposals import LOCALIZATIONS
from utils.annotations import Annotations
from utils.segments import seconds_to_snippets
from wsad_dataset import WeakVideoDataset, to_device

# Snippets of a bucket at most, padding included; a video with more is a bucket by itself. A CPU is busy with few.
BUCKET_SNIPPETS = {"cpu": 2048, "cuda": 16384}
SHORTEST = 7 / 8  # of the longest video of its bucket: so much work at most goes into padding
KEPT = ("cas", "attention", "modality_attention")  # outputs that leave the device


@dataclass(frozen=True)
class VideoResult:
    """What the network says of one video."""

    video_id: str
    cas: np.ndarray  # (T, C + 1) logits, or log probabilities
    modality_attention: np.ndarray  # (2, T); (0, T) where the network has none
    attention: np.ndarray  # (T,)
    detections: np.ndarray  # label, start, end (snippets), score; see eval.proposals


def run_test_set(
    net: nn.Module,
    dataset: WeakVideoDataset,
    annotations: Annotations,
    snippet_rate: float,
    localization: str = "outer_inner",
    indices: Sequence[int] | None = None,
) -> list[VideoResult]:
    """The network over all snippets of every video, without dropout and in float32, and the localization.

    Of the annotations only the ambiguous segments are used; `snippet_rate` is in snippets a second. `indices`: of
    the videos to run, all by default; the results come in their order.
    """
    indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, dtype=np.int64)
    localize = LOCALIZATIONS[localization].localize
    results = {}
    with tqdm(total=len(indices), desc="evaluating", leave=False, unit="video", disable=None) as bar:
        for index, outputs in network_outputs(net, dataset, indices):
            video_id = dataset.video_ids[index]
            ambiguous = seconds_to_snippets(annotations.videos[video_id].ambiguous, snippet_rate)
            outputs.setdefault("modality_attention", np.empty((0, len(outputs["attention"])), np.float32))
            detections = localize(outputs["cas"], outputs["attention"], ambiguous=ambiguous)
            results[index] = VideoResult(video_id=video_id, detections=detections, **outputs)
            bar.update()
    return [results[index] for index in indices.tolist()]


@torch.no_grad()
def network_outputs(
    net: nn.Module, dataset: WeakVideoDataset, indices: np.ndarray
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Index and outputs of each video, shortest first; the network is in evaluation mode meanwhile."""
    was_training = net.training
    net.eval()
    try:
        before = None
        for bucket in buckets(dataset.lengths[indices], BUCKET_SNIPPETS[next(net.parameters()).device.type]):
            # On a GPU this only queues the work; the host looks at the bucket before while it is done.
            running = _Running(net, dataset, indices[bucket])
            if before is not None:
                yield from before.outputs()
            before = running
        if before is not None:
            yield from before.outputs()
    finally:
        net.train(was_training)


def buckets(lengths: np.ndarray, at_most: int, shortest: float = SHORTEST) -> Iterator[np.ndarray]:
    """The positions of (N,) lengths in buckets, by rising length; each bucket's padded size is at most `at_most`."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    for last, position in enumerate(order):
        longest = lengths[position]
        if last > first and ((last - first + 1) * longest > at_most or lengths[order[first]] < shortest * longest):
            yield order[first:last]
            first = last
    if len(order):
        yield order[first:]


class _Running:
    """One bucket on its way through the network, and then back to the host."""

    def __init__(self, net: nn.Module, dataset: WeakVideoDataset, indices: np.ndarray):
        device = next(net.parameters()).device
        self._indices, self._lengths = indices, dataset.lengths[indices]
        features, valid = _padded([dataset[index] for index in indices], self._lengths)
        outputs = net(to_device(features, device), None if valid is None else to_device(valid, device))
        self._outputs = {name: outputs[name].to("cpu", non_blocking=True) for name in KEPT if name in outputs}
        self._done = None
        if device.type == "cuda":
            self._done = torch.cuda.Event()
            self._done.record()

    def outputs(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        if self._done is not None:
            self._done.synchronize()
        for row, (index, length) in enumerate(zip(self._indices.tolist(), self._lengths.tolist(), strict=True)):
            outputs = {name: value[row].numpy() for name, value in self._outputs.items()}
            cut = {"cas": np.s_[:length], "attention": np.s_[:length], "modality_attention": np.s_[:, :length]}
            yield index, {name: value[cut[name]].copy() for name, value in outputs.items()}


def _padded(videos: list[np.ndarray], lengths: np.ndarray) -> tuple[Tensor, Tensor | None]:
    """Videos (T, D) -> features (B, longest T, D) with zeros behind the shorter ones, and where snippets are (B, T)."""
    if len(videos) == 1:
        return torch.tensor(videos[0])[None], None
    features = torch.zeros(len(videos), int(lengths.max()), videos[0].shape[1])
    for row, video in enumerate(videos):
        features[row, : len(video)] = torch.from_numpy(video)
    valid = torch.arange(features.shape[1]) < torch.from_numpy(lengths)[:, None]
    return features, None if valid.all() else valid
