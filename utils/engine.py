"""What main.py and test.py share: the subsets and the evaluation of a network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eval.average_precision import mean_over_range, nan_to_none
from eval.classification import classification_map
from eval.detection import evaluate_detections
from eval.outputs import write_outputs
from eval.pictures import plot_videos
from eval.proposals import DETECTION, LOCALIZATIONS
from eval.snippet_accuracy import snippet_accuracy
from eval.tables import Table, localized_table, read_ground_truth, write_detections
from utils.annotations import Annotations
from utils.datasets import DatasetSpec
from utils.errors import InputError
from utils.features.store import FeatureStore
from utils.inference import VideoResult, run_test_set
from utils.run.ranks import SINGLE_PROCESS, Ranks
from wsad_dataset import WeakVideoDataset

PROTOCOLS = ("snippet", "seconds")  # in every table, side by side; the first one selects best.pt


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> device; InputError if there is no GPU to use."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA GPU; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def open_subset(
    store: FeatureStore,
    annotations: Annotations,
    spec: DatasetSpec,
    subset: str,
    missing_features: str,
    video_ids: Sequence[str] | None = None,
    device: torch.device | str | None = "cpu",
) -> WeakVideoDataset:
    """The videos of one subset (of these ids only), as the dataset's spec uses them, features kept on `device`."""
    return WeakVideoDataset(
        annotations,
        store,
        subset,
        missing_features=missing_features,
        min_snippets=spec.min_snippets,
        video_ids=video_ids,
        device=device,
    )


def split_holdout(annotations: Annotations, subset: str, fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """The subset's video ids, in file order, to train on and to hold out: a random `fraction`, rounded."""
    video_ids = [video.video_id for video in annotations.subset(subset)]
    generator = np.random.default_rng([seed, 2])  # apart from the batches' streams
    count = round(fraction * len(video_ids))
    if fraction and not 0 < count < len(video_ids):
        raise InputError(
            f"--holdout {fraction:g} of {len(video_ids)} videos holds out {count}; "
            "at least one must be held out and one be left to train on"
        )
    held_out = set(generator.permutation(len(video_ids))[:count].tolist())
    train = [video_id for index, video_id in enumerate(video_ids) if index not in held_out]
    return train, [video_id for index, video_id in enumerate(video_ids) if index in held_out]


@contextmanager
def advice_on_memory(advice: str) -> Iterator[None]:
    """InputError with this advice, in place of PyTorch's own words, where its memory does not suffice."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(f"out of memory ({str(error).splitlines()[0]}); {advice}") from None


class HoldOut:
    """Scores a network on held-out training videos by their video-level labels, all that weak supervision has."""

    def __init__(self, dataset: WeakVideoDataset, criterion: nn.Module, localization: str = "outer_inner"):
        self.dataset = dataset
        self._video_scores = LOCALIZATIONS[localization].video_scores
        # L_cas needs pairs; each video is its own batch here.
        self._criterion = copy(criterion)
        self._criterion.weights = {**criterion.weights, "cas": 0.0}

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> dict[str, float | None]:
        """Video-level classification mAP (None if no video has a label), and the mean loss without L_cas."""
        device = next(net.parameters()).device
        net.eval()
        scores, losses = [], []
        for index in range(len(self.dataset)):
            outputs = net(torch.tensor(self.dataset[index], device=device)[None])
            labels = torch.tensor(self.dataset.labels[index], dtype=torch.float32, device=device)[None]
            no_pairs = torch.zeros(0, 2, dtype=torch.long, device=device)
            losses.append(self._criterion(outputs, labels, no_pairs)["total"].item())
            cas, attention = (outputs[name][0].cpu().numpy() for name in ("cas", "attention"))
            scores.append(self._video_scores(cas, attention)[:-1])
        net.train()
        mean_ap = classification_map(np.stack(scores), self.dataset.labels)[1]
        return {"classification_mAP": nan_to_none(mean_ap), "loss": float(np.mean(losses))}


@dataclass(frozen=True)
class Evaluation:
    """One pass over the test subset, scored.

    `metrics` is what metrics.json holds: `classification_map`, and under the name of each protocol `classes`,
    `tiou_thresholds`, `ap` [threshold][class], `map` [threshold] and `average_map`, as fractions; where snippet
    accuracy is the data set's measure, `snippet_accuracy` too, as eval.snippet_accuracy gives it.
    """

    results: list[VideoResult]
    detections: Table | None  # seconds; None on a rank that did not score them
    metrics: dict
    selection: float  # what best.pt is chosen by: snippet accuracy, or mean mAP of the main range, first protocol


class Evaluator:
    """Runs a network over a test subset and scores it under every protocol.

    Ground truth counts for the dataset's videos and for those too short to be tested (release), not for videos
    that are left out because they have no features.

    Several ranks share the videos; rank 0 scores them, and the others get the scores alone, without results and
    detections.
    """

    def __init__(
        self,
        dataset: WeakVideoDataset,
        annotations: Annotations,
        spec: DatasetSpec,
        localization: str = "outer_inner",
        ranks: Ranks = SINGLE_PROCESS,
    ):
        self._ranks = ranks
        self.dataset, self.annotations, self.spec, self.localization = dataset, annotations, spec, localization
        self.snippet_rate = dataset.snippet_rate or spec.snippet_rate  # Hz
        self._ground_truth = read_ground_truth(annotations, spec.test_subset)
        self._video_ids = dataset.video_ids + dataset.too_short
        if not any(len(annotations.videos[video_id].segments) for video_id in self._video_ids):
            raise InputError(
                f"no video of subset '{spec.test_subset}' that can be tested has an annotated segment; "
                "without one there is nothing to evaluate on"
            )

    def __call__(self, net: nn.Module) -> Evaluation:
        longest_first = np.argsort(-self.dataset.lengths, kind="stable")
        own = np.sort(longest_first[self._ranks.rank :: self._ranks.size])  # about the same work for each
        results = run_test_set(net, self.dataset, self.annotations, self.snippet_rate, self.localization, own)
        shares = self._ranks.gather(dict(zip(own.tolist(), results, strict=True)))
        found = {index: result for share in shares for index, result in share.items()}
        evaluation = self._score([found[index] for index in sorted(found)]) if self._ranks.is_main else None
        scores = self._ranks.on_rank_zero(lambda: (evaluation.metrics, evaluation.selection))
        return evaluation or Evaluation([], None, *scores)

    def _score(self, results: list[VideoResult]) -> Evaluation:
        localized = {result.video_id: result.detections for result in results}
        # Videos too short to be tested are listed, without detections: their ground truth counts.
        localized |= {video_id: np.empty(0, DETECTION) for video_id in self.dataset.too_short}
        detections = localized_table(localized, self.annotations.classes, self.snippet_rate)
        video_scores = LOCALIZATIONS[self.localization].video_scores
        scores = np.stack([video_scores(result.cas, result.attention)[:-1] for result in results])
        metrics = {"classification_map": nan_to_none(classification_map(scores, self.dataset.labels)[1])}
        for protocol in PROTOCOLS:
            metrics[protocol] = evaluate_detections(
                self._ground_truth,
                detections,
                self.spec.tiou_thresholds,
                protocol=protocol,
                snippet_rate=self.snippet_rate,
                videos=self._video_ids,
            ).as_dict()
        scores = metrics[PROTOCOLS[0]]
        selection = mean_over_range(scores["tiou_thresholds"], scores["map"], *self.spec.main_range)
        if subsets := self.spec.accuracy_subsets:
            activations = {result.video_id: result.cas for result in results}
            scores = snippet_accuracy(activations, self.annotations, subsets, self.snippet_rate)
            metrics["snippet_accuracy"], selection = scores, scores[subsets[0]]["accuracy"]
        return Evaluation(results, detections, metrics, selection)


def write_results(
    folder: Path,
    evaluation: Evaluation,
    annotations: Annotations,
    snippet_rate: float,
    modalities: Sequence[str],
    title: str,
) -> None:
    """What an evaluation found, video by video: detections.json, outputs.h5 and the picture videos.png."""
    write_detections(folder / "detections.json", evaluation.detections, snippet_rate)
    write_outputs(folder / "outputs.h5", evaluation.results, annotations.classes, snippet_rate)
    plot_videos(folder / "videos.png", evaluation.results, annotations, snippet_rate, modalities, title)
