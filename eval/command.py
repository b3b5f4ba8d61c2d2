"""What the evaluation commands share: their options, and what is to be evaluated by them."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.average_precision import named_means
from eval.protocols import PROTOCOLS
from eval.tables import GroundTruth, Table, read_detections, read_ground_truth
from utils.datasets import DATASETS
from utils.errors import InputError, shorten
from utils.formats.files import read_json


@dataclass(frozen=True, eq=False)
class Inputs:
    """One or several lists of detections, and what they are to be evaluated on."""

    truth: GroundTruth
    detections: list[Table]
    tiou_thresholds: tuple[float, ...]
    means: dict[str, np.ndarray]  # see eval.average_precision.named_means
    snippet_rate: float  # Hz
    grid: str  # a line on that rate and where it comes from; empty where no protocol is on the grid
    videos: tuple[str, ...] | None  # evaluated on these only; None for all

    def coverage_notes(self, counted: Table, detections: Table) -> list[str]:
        """What a reader must know where detections do not cover the annotated videos that count."""
        if self.videos is None:
            missing = _with_instances(counted) - set(detections.videos)
            lost = "no entry in the detections; their instances count as missed (--only-detected leaves them out)"
            return [f"{len(missing)} annotated videos have {lost}"] if missing else []
        kept, annotated = set(self.videos), _with_instances(self.truth.segments)
        note = f"{len(annotated & kept)} of {len(annotated)} annotated videos are evaluated: those with an entry"
        dropped = sum(detections.videos[number] not in kept for number in detections.video)
        return [f"{note}; {dropped} detections of other videos are dropped" if dropped else note]


def _with_instances(table: Table) -> set[str]:
    return {table.videos[number] for number in np.unique(table.video)}


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """The options that `read_inputs` reads; the command itself adds its detections and --protocol."""
    add = parser.add_argument
    add("--ground-truth", required=True, help="annotations.json (ActivityNet's schema), or a folder")
    add(
        "--dataset",
        choices=sorted(DATASETS),
        default="thumos14",
        help="gives the defaults of --subset, --snippet-rate and --tiou-thresholds, the ranges of tIoU that are "
        "averaged, and the bins of a diagnosis; default: thumos14",
    )
    add("--subset", help="subset of the ground truth; default: the dataset's")
    add(
        "--snippet-rate",
        type=float,
        metavar="HZ",
        help="snippets a second, the grid of the snippet protocols; default: what the detections say "
        "('snippet_rate' beside 'results'), else the dataset's",
    )
    add("--tiou-thresholds", type=float, nargs="+", metavar="TIOU", help="those of mAP@tIoU; default: the dataset's")
    add(
        "--only-detected",
        action="store_true",
        help="evaluate only on videos with an entry in the detections (of both, where two are compared); an empty "
        "list is an entry. Default: on all videos of the subset",
    )


def read_inputs(args: argparse.Namespace, paths: Sequence[str]) -> Inputs:
    """What the options ask for, of the detections in `paths`. InputError, one line, for what cannot be used."""
    spec = DATASETS[args.dataset]
    truth = read_ground_truth(args.ground_truth, args.subset or spec.test_subset)
    detections = [read_detections(path) for path in paths]
    thresholds = tuple(args.tiou_thresholds or spec.tiou_thresholds)
    on_grid = args.protocol == "all" or PROTOCOLS[args.protocol].on_grid
    rate, source = _snippet_rate(args, paths if on_grid else ())
    return Inputs(
        truth=truth,
        detections=detections,
        tiou_thresholds=thresholds,
        means=named_means(thresholds, spec.tiou_thresholds, spec.average_ranges),
        snippet_rate=rate,
        grid=f"grid of the snippet protocols: {rate:.10g} snippets a second ({source})" if on_grid else "",
        videos=_listed_by_all(truth, detections) if args.only_detected else None,
    )


def _listed_by_all(truth: GroundTruth, detections: Sequence[Table]) -> tuple[str, ...]:
    listed = set.intersection(*(set(table.videos) for table in detections))
    return tuple(video for video in truth.segments.videos if video in listed)


def _snippet_rate(args: argparse.Namespace, paths: Sequence[str]) -> tuple[float, str]:
    """The rate in Hz, and who says so."""
    if args.snippet_rate is not None:
        return args.snippet_rate, "--snippet-rate"
    told = {path: rate for path in paths if (rate := told_snippet_rate(path)) is not None}
    if len(set(told.values())) > 1:
        rates = ", ".join(f"{path} has {rate:.10g}" for path, rate in told.items())
        raise InputError(f"the detections are on different grids, in snippets a second: {rates}; choose --snippet-rate")
    if told:
        path, rate = next(iter(told.items()))
        return rate, f"as {path} says"
    return DATASETS[args.dataset].snippet_rate, f"the default of {args.dataset}"


def told_snippet_rate(path: str | Path) -> float | None:
    """The snippets a second that a file of detections says they were made with; None if it does not say."""
    content = read_json(Path(path)) if Path(path).suffix.lower() == ".json" else {}
    told = content.get("snippet_rate") if isinstance(content, dict) else None
    if told is None:
        return None
    try:
        rate = float(told)
    except (TypeError, ValueError, OverflowError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise InputError(f"{path}: 'snippet_rate' is {shorten(told)}, expected a positive number of snippets a second")
    return rate
