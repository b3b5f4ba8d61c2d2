"""Videos of a run: the training, test and holdout subsets, with checked and scaled features."""

import math
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from utils.annotations import Annotations
from utils.datasets import DatasetSpec
from utils.errors import InputError
from utils.features import FeatureStore
from utils.features.check import startup_warnings
from utils.run.ranks import SINGLE_PROCESS, Ranks
from wsad_dataset import WeakVideoDataset

AUTO_RMS = 0.2  # root mean square of the training features under `--feature-scale auto`; see docs/co2net.md


class Subsets(NamedTuple):
    """Videos of a run."""

    train: WeakVideoDataset
    test: WeakVideoDataset
    holdout: WeakVideoDataset | None  # training videos that only select a checkpoint; None for none


def open_subsets(
    store: FeatureStore,
    annotations: Annotations,
    spec: DatasetSpec,
    *,
    device: torch.device,
    cache: str = "host",
    feature_scale: float | str = 1.0,
    holdout: float = 0.0,
    seed: int = 0,
    missing_features: str = "error",
    config: str | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Subsets:
    """Open the videos of a run, and print a summary and a warning per kind of fault.

    Args:
        store: Features, not scaled.
        annotations: Videos and their weak labels.
        spec: Names of the subsets, and the length of the shortest video.
        device: Device of the training.
        cache: Memory of the features: `host`, `device` for those of training videos, or `none` to read them from disk.
        feature_scale: Factor of all features, or `auto`; see `auto_scale`.
        holdout: Fraction of the training videos to hold out.
        seed: Seed of the choice of holdout videos.
        missing_features: `error`, or `skip` to leave out videos without features.
        config: Config that defines the dataset, for messages.
        ranks: Processes that open the same videos; one of them looks for faults.

    Raises:
        InputError: The dataset has errors, or a subset cannot be opened.
    """
    for warning in ranks.on_rank_zero(startup_warnings, store, annotations, spec, missing_features, config):
        print(f"warning: {warning}")
    common = {"missing_features": missing_features, "min_snippets": spec.min_snippets}
    subset = spec.train_subset
    train_ids, holdout_ids = split_holdout(annotations, subset, holdout, seed)
    if feature_scale == "auto":
        unscaled = WeakVideoDataset(annotations, store, subset, video_ids=train_ids, device=None, **common)
        feature_scale = auto_scale(unscaled)
    store = store.scaled(feature_scale)
    host = None if cache == "none" else "cpu"
    train_device = device if cache == "device" else host
    train_set = WeakVideoDataset(annotations, store, subset, video_ids=train_ids, device=train_device, **common)
    test_set = WeakVideoDataset(annotations, store, spec.test_subset, device=host, **common)
    holdout_set = None
    if holdout_ids:
        holdout_set = WeakVideoDataset(annotations, store, subset, video_ids=holdout_ids, device=host, **common)
    print(f"{store.simulated_prefix}features {store.source.path}: {subset} {train_set}; {spec.test_subset} {test_set}")
    if store.scale != 1:
        print(f"the features are multiplied by {store.scale:g}")
    if store.snippet_rate is None:
        print(f"the features have no snippet rate; assuming {spec.snippet_rate:g} snippets per second")
    return Subsets(train_set, test_set, holdout_set)


def auto_scale(dataset: WeakVideoDataset) -> float:
    """Return the factor that gives the features of a dataset the root mean square AUTO_RMS, with four digits.

    Initial weights keep the root mean square of their input, so it sets the size of the logits (docs/co2net.md). Both
    modalities share one factor: their ratio stays.

    Raises:
        InputError: All features are 0, or the factor is not from 1e-6 to 1e6.
    """
    total, count = 0.0, 0
    videos = range(len(dataset))
    for index in tqdm(videos, "measuring features", leave=False, unit="video", disable=None):
        features = dataset[index]
        total += float(np.square(features, dtype=np.float64).sum())
        count += features.size
    scale = AUTO_RMS / math.sqrt(total / count) if total else math.inf
    if not 1e-6 <= scale <= 1e6:
        raise InputError(
            f"--feature-scale auto: the root mean square of the training features is {math.sqrt(total / count):g}, "
            "expected one from 2e-7 to 2e5; check them with python -m utils.features DIR --check"
        )
    return float(f"{scale:.4g}")  # the same number on every machine, whatever its order of summation


def split_holdout(annotations: Annotations, subset: str, fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Split the video ids of a subset at random into training and holdout videos, both in file order."""
    video_ids = annotations.subset_ids(subset)
    generator = np.random.default_rng([seed, 2])  # independent of the streams of the batches
    count = round(fraction * len(video_ids))
    if fraction and not 0 < count < len(video_ids):
        raise InputError(
            f"--holdout {fraction:g} of {len(video_ids)} videos gives {count} holdout videos; "
            "expected at least one, and at least one left to train on"
        )
    holdout = set(generator.permutation(len(video_ids))[:count].tolist())
    return (
        [video_id for index, video_id in enumerate(video_ids) if index not in holdout],
        [video_id for index, video_id in enumerate(video_ids) if index in holdout],
    )
