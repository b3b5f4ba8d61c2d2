"""One training step, predictions over a dataset, and their evaluation, for main.py and test.py."""

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from eval.average_precision import mean_over_range, nan_to_none
from eval.classification import classification_map
from eval.detection import evaluate_detections
from eval.outputs import CURVES
from eval.proposals import DETECTION
from eval.snippet_accuracy import snippet_accuracy
from eval.tables import Table, localized_table, read_ground_truth
from utils.annotations import Annotations
from utils.datasets import DatasetSpec
from utils.errors import InputError
from utils.methods import Method
from utils.pseudo_labels import pseudo_label_loss, ramp_up
from utils.run.devices import to_device
from utils.run.ranks import SINGLE_PROCESS, Ranks
from utils.segments import seconds_to_snippets
from utils.training import StepOutcome
from wsad_dataset import Batch, PseudoLabeledBatch, WeakVideoDataset

TABLE_PROTOCOLS = ("snippet", "seconds")  # side by side in every table; the first one selects best.pt
COLLAPSED_SHARE = 0.95  # a network counts as collapsed if this share of the test videos has no proposal
BATCH_SNIPPETS = {"cpu": 2048, "cuda": 16384}  # per evaluation batch; small batches saturate a CPU


class BatchLoss(nn.Module):
    """Network and objective in one module, from a batch to loss terms. It is compiled and shared between ranks.

    Args:
        network: Network of a method.
        objective: Objective of the same method.
        precision: `float32`, or `bf16` to run the network under autocast. The losses are always float32.
        compiled: Use torch.compile, with CUDA graphs on a GPU. The first step then takes about a minute.
        pseudo_weight: Weight of the loss of pseudo labels.

    Raises:
        InputError: If `compiled` is set on a CPU and no C++ compiler is installed.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: nn.Module,
        precision: str = "float32",
        compiled: bool = False,
        pseudo_weight: float = 1.0,
    ):
        super().__init__()
        self.pseudo_weight = pseudo_weight
        self.network, self.objective, self.bf16 = network, objective, precision == "bf16"
        if compiled:
            on_gpu = next(network.parameters()).is_cuda
            if not on_gpu and shutil.which(os.environ.get("CXX", "g++")) is None:
                raise InputError(
                    "--compile: no C++ compiler found (g++ or the one in CXX); install one or leave it out"
                )
            self.compile(mode="reduce-overhead" if on_gpu else "default", dynamic=False)

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        pairs: Tensor,
        progress: float | Tensor = 0.0,
        pseudo_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss terms of a batch: features (B, T, D), labels (B, C), pairs (P, 2).

        Pseudo labels (B, T, C) add the term `pseudo` to those of the objective.

        A changing `progress` must be a tensor: torch.compile compiles anew for each float.
        """
        if self.bf16:
            features = features.bfloat16()
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.network(features)
        outputs = {name: value.float() for name, value in outputs.items()}
        terms = self.objective(outputs, labels, pairs, progress=progress)
        if pseudo_labels is None:
            return terms
        pseudo = pseudo_label_loss(outputs["cas"], outputs["attention"], pseudo_labels)
        return {**terms, "pseudo": pseudo, "total": terms["total"] + self.pseudo_weight * ramp_up(progress) * pseudo}


def loss_inputs(batch: Batch | PseudoLabeledBatch, progress: float, device: torch.device) -> tuple[Tensor, ...]:
    """Return the arguments of BatchLoss.forward on the device."""
    features, labels, pairs, *pseudo_labels = (to_device(part, device) for part in batch)
    return features, labels, pairs, torch.full((), progress, device=device), *pseudo_labels


def train_step(
    batch_loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch | PseudoLabeledBatch,
    ranks: Ranks = SINGLE_PROCESS,
    progress: float = 0.0,
) -> StepOutcome:
    """Take one training step: forward, losses, backward, optimizer.

    If a loss term or a gradient is not finite, weights and optimizer stay unchanged, on every rank. The device decides
    this by itself, as in gradient scaling, so the host does not wait.

    Args:
        batch_loss: A BatchLoss, or the shared one of `Ranks.share`.
        optimizer: A fused optimizer, which understands `found_inf`.
        batch: A batch, on any device.
        ranks: Processes that take the step together. Loss terms and gradients are means over them.
        progress: Share of training that has passed, in [0, 1).
    """
    optimizer.zero_grad(set_to_none=True)  # frees the gradients before the activations need memory
    device = next(batch_loss.parameters()).device
    terms = batch_loss(*loss_inputs(batch, progress, device))
    terms["total"].backward()
    gradients = [parameter.grad for parameter in batch_loss.parameters() if parameter.grad is not None]
    # The norm is infinite if the square of a gradient overflows, and Adam would store that square.
    values = ranks.mean(torch.stack([*terms.values(), nn.utils.get_total_norm(gradients)]))
    finite = values.isfinite().all()
    optimizer.found_inf = (~finite).float()
    optimizer.step()
    return StepOutcome(dict(zip(terms, values, strict=False)), finite)


@dataclass(frozen=True)
class VideoResult:
    """Outputs and detections of one video."""

    video_id: str
    cas: np.ndarray  # (T, C + 1) logits, or log probabilities; (T, C) for a network without background class
    modality_attention: np.ndarray  # (2, T), or (0, T) for a network without it
    attention: np.ndarray  # (T,)
    detections: np.ndarray  # label, start, end (snippets), score; see eval.proposals
    scores: np.ndarray  # (C,) video-level class scores


@dataclass(frozen=True)
class ScoredVideo:
    """Part of a VideoResult that metrics need; ranks send no more than this to rank 0."""

    video_id: str
    detections: np.ndarray  # label, start, end (snippets), score; see eval.proposals
    scores: np.ndarray  # (C,) video-level class scores
    peak: float  # highest attention
    cas: np.ndarray | None  # (T, C + 1) for snippet accuracy; None for a dataset without it


def predict(
    method: Method,
    dataset: WeakVideoDataset,
    annotations: Annotations,
    snippet_rate: float,
    indices: Sequence[int] | None = None,
) -> list[VideoResult]:
    """Run a network and its localization over all snippets of each video, in float32 and without dropout.

    Args:
        method: Network and localization.
        dataset: Videos.
        annotations: Only their ambiguous segments are used; detections that touch one are dropped.
        snippet_rate: Snippets per second.
        indices: Videos to run; all by default.

    Returns:
        Results in the order of the dataset.
    """
    indices = np.arange(len(dataset)) if indices is None else np.sort(indices)
    videos = localized_videos(method, dataset, annotations, snippet_rate, indices)
    results = dict(tqdm(videos, "evaluating", len(indices), leave=False, unit="video", disable=None))
    return [results[index] for index in indices.tolist()]


def localized_videos(
    method: Method, dataset: WeakVideoDataset, annotations: Annotations, snippet_rate: float, indices: np.ndarray
) -> Iterator[tuple[int, VideoResult]]:
    """Yield index and result of each video, shortest videos first; see `predict`."""
    names = {*CURVES, *method.localization.outputs}
    for index, outputs in network_outputs(method.network, dataset, indices, names):
        video_id = dataset.video_ids[index]
        ambiguous = seconds_to_snippets(annotations.videos[video_id].ambiguous, snippet_rate)
        outputs.setdefault("modality_attention", np.empty((0, len(outputs["attention"])), np.float32))
        detections = method.localize(outputs, ambiguous=ambiguous, snippet_rate=snippet_rate)
        scores = method.video_scores(outputs)[: len(annotations.classes)]
        curves = {name: outputs[name] for name in CURVES}
        yield index, VideoResult(video_id=video_id, detections=detections, scores=scores, **curves)


@torch.no_grad()
def network_outputs(
    network: nn.Module, dataset: WeakVideoDataset, indices: np.ndarray, names: Collection[str] | None = None
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield index and outputs of each video, shortest videos first, with the network in evaluation mode.

    Args:
        network: Network of a method.
        dataset: Videos.
        indices: Videos to run.
        names: Outputs to copy from the device, all by default. Names that the network lacks are ignored.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        for batch in equal_length_batches(dataset.lengths[indices], BATCH_SNIPPETS[device.type]):
            features = torch.from_numpy(np.stack([dataset[index] for index in indices[batch]]))  # (B, T, D)
            outputs = network(to_device(features, device))
            outputs = {name: x.cpu().numpy() for name, x in outputs.items() if names is None or name in names}
            for row, index in enumerate(indices[batch].tolist()):
                yield index, {name: value[row] for name, value in outputs.items()}
    finally:
        network.train(was_training)


def equal_length_batches(lengths: np.ndarray, max_snippets: int) -> Iterator[np.ndarray]:
    """Yield positions in `lengths` (N,) in batches of equal length, of at most `max_snippets` or of one video."""
    for length in np.unique(lengths):
        positions = np.flatnonzero(lengths == length)
        size = max(1, max_snippets // length)
        for first in range(0, len(positions), size):
            yield positions[first : first + size]


@dataclass(frozen=True)
class Evaluation:
    """Scored predictions over the test subset.

    Attributes:
        results: Results of the videos of this rank, in the order of the dataset.
        detections: All detections, in seconds; None on ranks other than 0.
        metrics: Content of metrics.json, as fractions: `classification_map`, and per protocol `classes`,
            `tiou_thresholds`, `ap` [threshold][class], `map` [threshold] and `average_map`. Datasets that measure
            snippet accuracy also have `snippet_accuracy`. `collapsed` is present only for a collapsed network; see
            `collapse`. Without ground truth it is empty.
        selection: Score that selects best.pt: snippet accuracy, or the mean mAP of the main range, first protocol.
    """

    results: list[VideoResult]
    detections: Table | None
    metrics: dict
    selection: float


class Evaluator:
    """Scores a method on a test subset under every protocol, if it has annotated segments.

    The ground truth counts for the videos of the dataset and for those too short to be tested (release). It does not
    count for videos without features. Ranks share the videos and send their detections to rank 0, which scores them.

    Attributes:
        has_ground_truth: True if a video that can be tested has an annotated segment. Otherwise an evaluation has
            detections, but no metrics.
    """

    def __init__(
        self, dataset: WeakVideoDataset, annotations: Annotations, spec: DatasetSpec, ranks: Ranks = SINGLE_PROCESS
    ):
        self.dataset, self.annotations, self.spec, self.ranks = dataset, annotations, spec, ranks
        self.snippet_rate = dataset.snippet_rate or spec.snippet_rate  # Hz
        self._ground_truth = read_ground_truth(annotations, spec.test_subset)
        self._video_ids = dataset.video_ids + dataset.too_short
        self.has_ground_truth = any(len(annotations.videos[video_id].segments) for video_id in self._video_ids)

    def __call__(self, method: Method) -> Evaluation:
        """Predict and score. Collective: all ranks must call this."""
        longest_first = np.argsort(-self.dataset.lengths, kind="stable")
        own = longest_first[self.ranks.rank :: self.ranks.size]  # about the same work for each rank
        results = predict(method, self.dataset, self.annotations, self.snippet_rate, own)
        return self.score(results, method.lowest_threshold)

    def score(self, results: list[VideoResult], lowest_threshold: float | None = None) -> Evaluation:
        """Score the results of this rank with those of the others. Collective.

        Args:
            results: Results of all test videos that no other rank has, in the order of the dataset.
            lowest_threshold: See `collapse`.
        """
        own = [
            ScoredVideo(
                video_id=result.video_id,
                detections=result.detections,
                scores=result.scores,
                peak=float(result.attention.max()),
                cas=result.cas if self.spec.accuracy_subsets else None,
            )
            for result in results
        ]
        videos = self._in_order([video for share in self.ranks.gather(own) for video in share])
        detections = None
        if self.ranks.is_main:
            localized = {video.video_id: video.detections for video in videos}
            # Videos too short to be tested have no detections, but their ground truth counts.
            localized |= {video_id: np.empty(0, DETECTION) for video_id in self.dataset.too_short}
            detections = localized_table(localized, self.annotations.classes, self.snippet_rate)
        scores = self.ranks.on_rank_zero(self._metrics, videos, detections, lowest_threshold)
        return Evaluation(results, detections, *scores)

    def gather_outputs(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with the results of all ranks on rank 0, their curves in float16. Collective."""
        if self.ranks.size == 1:
            return evaluation
        own = [
            replace(result, **{name: getattr(result, name).astype(np.float16) for name in CURVES})
            for result in evaluation.results
        ]
        shares = self.ranks.gather(own)
        return replace(evaluation, results=self._in_order([result for share in shares for result in share]))

    def _in_order(self, videos: list) -> list:
        """Return videos in the order of the dataset."""
        order = {video_id: index for index, video_id in enumerate(self.dataset.video_ids)}
        return sorted(videos, key=lambda video: order[video.video_id])

    def _metrics(
        self, videos: list[ScoredVideo], detections: Table, lowest_threshold: float | None
    ) -> tuple[dict, float]:
        """Return the metrics and the selection of an Evaluation."""
        if not self.has_ground_truth:
            return {}, float("nan")
        scores = np.stack([video.scores for video in videos])
        metrics = {"classification_map": nan_to_none(classification_map(scores, self.dataset.labels)[1])}
        for protocol in TABLE_PROTOCOLS:
            metrics[protocol] = evaluate_detections(
                self._ground_truth,
                detections,
                self.spec.tiou_thresholds,
                protocol=protocol,
                snippet_rate=self.snippet_rate,
                videos=self._video_ids,
            ).as_dict()
        selecting = metrics[TABLE_PROTOCOLS[0]]
        selection = mean_over_range(selecting["tiou_thresholds"], selecting["map"], *self.spec.main_range)
        if subsets := self.spec.accuracy_subsets:
            activations = {video.video_id: video.cas for video in videos}
            accuracies = snippet_accuracy(activations, self.annotations, subsets, self.snippet_rate)
            metrics["snippet_accuracy"], selection = accuracies, accuracies[subsets[0]]["accuracy"]
        if collapsed := collapse([video.peak for video in videos], lowest_threshold):
            metrics["collapsed"] = collapsed
        return metrics, selection


def collapse(peaks: Sequence[float], lowest_threshold: float | None) -> str | None:
    """Describe a collapsed network: without a proposal in at least COLLAPSED_SHARE of the videos.

    Args:
        peaks: Highest attention of each video.
        lowest_threshold: `Method.lowest_threshold`. With None a network cannot collapse.

    Returns:
        A sentence for tables, or None if the network has not collapsed.
    """
    if lowest_threshold is None:
        return None
    empty = sum(peak <= lowest_threshold for peak in peaks)
    if empty < COLLAPSED_SHARE * len(peaks):
        return None
    return f"attention below every threshold in {empty} of {len(peaks)} videos"


def holdout_scores(method: Method, dataset: WeakVideoDataset) -> dict[str, float | None]:
    """Score a network on holdout videos by their video-level labels, all that weak supervision has.

    Returns:
        Video-level `classification_mAP` (None if no video has a label) and the mean `loss` without L_cas (0 if
        L_cas is the only term).
    """
    # L_cas needs pairs of videos, and each batch here is one video.
    objective = copy(method.objective)
    objective.weights = {**objective.weights, "cas": 0.0}
    no_pairs = torch.zeros(0, 2, dtype=torch.long)
    scores, losses = [], []
    for index, outputs in network_outputs(method.network, dataset, np.arange(len(dataset))):
        one_video = {name: torch.from_numpy(value)[None] for name, value in outputs.items()}  # a batch of one
        labels = torch.from_numpy(dataset.labels[index]).float()[None]
        losses.append(objective(one_video, labels, no_pairs)["total"].item())
        scores.append((index, method.video_scores(outputs)[: len(dataset.classes)]))
    ordered = np.stack([score for _, score in sorted(scores, key=lambda item: item[0])])
    mean_ap = classification_map(ordered, dataset.labels)[1]
    return {"classification_mAP": nan_to_none(mean_ap), "loss": float(np.mean(losses))}


def selection_scores(evaluation: Evaluation, holdout: dict[str, float | None]) -> dict[str, list[float]]:
    """Return the score that selects each checkpoint; scores are compared from the left.

    Without ground truth no checkpoint is the best one.
    """
    scores = {"best": [evaluation.selection]} if evaluation.metrics else {}
    if holdout:
        scores["selected"] = [holdout["classification_mAP"] or 0.0, -holdout["loss"]]
    return scores
