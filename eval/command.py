"""Options and inputs that the evaluation commands share."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.average_precision import named_means
from eval.detection_formats import read_detections
from eval.names import MOST_NAMES, NameRule, read_labels_as_indices, rename, require_matches
from eval.protocols import PROTOCOLS
from eval.tables import GroundTruth, Table, read_ground_truth
from utils.datasets import DATASETS, find_dataset
from utils.errors import InputError, count_noun


@dataclass(frozen=True, eq=False)
class Inputs:
    """One or several lists of detections, and the settings of their evaluation."""

    truth: GroundTruth
    detections: list[Table]
    tiou_thresholds: tuple[float, ...]
    means: dict[str, np.ndarray]  # see eval.average_precision.named_means
    snippet_rate: float  # Hz
    grid: str  # one line that states the snippet rate and its source; empty if no protocol needs it
    videos: tuple[str, ...] | None  # the only videos to evaluate on; None for all
    notes: tuple[str, ...] = ()  # on how the files are read

    def coverage_notes(self, evaluated: Table, detections: Table) -> list[str]:
        """Return a note if the detections do not cover all annotated videos.

        Args:
            evaluated: Ground truth that the protocol counts.
            detections: One of the lists, as it was read.
        """
        if self.videos is None:
            missing = _videos_with_segments(evaluated) - set(detections.videos)
            problem = "without an entry in the detections, all segments missed (--only-detected leaves them out)"
            return [f"{count_noun(len(missing), 'annotated video')} {problem}"] if missing else []
        chosen, annotated = set(self.videos), _videos_with_segments(self.truth.segments)
        note = f"{len(annotated & chosen)} of {len(annotated)} annotated videos are evaluated: those with an entry"
        is_dropped = np.array([name not in chosen for name in detections.videos], dtype=bool)
        dropped = int(is_dropped[detections.video].sum())
        return [f"{note}; dropped: {count_noun(dropped, 'detection')} of other videos" if dropped else note]


def _videos_with_segments(table: Table) -> set[str]:
    return {table.videos[number] for number in np.unique(table.video)}


def add_evaluation_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the options that `read_inputs` reads; the command itself adds its detections and --protocol.

    Args:
        parser: Parser, or a group of its options.
        required: The ground truth must be given.
    """
    add = parser.add_argument
    add("--ground-truth", required=required, help="annotations.json (ActivityNet's schema), a dataset folder, or CSV")
    add(
        "--dataset",
        default="thumos14",
        metavar="NAME",
        help=f"dataset ({', '.join(DATASETS)}), or a config file or options.yaml that defines one: the "
        "defaults of --subset, --snippet-rate and --tiou-thresholds, the averaged ranges of tIoU, and the bins of a "
        "diagnosis (default: thumos14)",
    )
    add("--subset", help="subset of the ground truth (default: the dataset's test subset)")
    add(
        "--snippet-rate",
        type=float,
        metavar="HZ",
        help="snippets per second of the grid of the snippet protocols (default: the detection file's "
        "'snippet_rate', else the dataset's)",
    )
    add("--tiou-thresholds", type=float, nargs="+", metavar="TIOU", help="tIoU thresholds (default: the dataset's)")
    add(
        "--only-detected",
        action="store_true",
        help="evaluate only on videos with an entry in the detections (in both files of a comparison), where an empty "
        "list is an entry (default: all videos of the subset)",
    )
    add(
        "--strip",
        action="extend",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="texts to remove from both ends of video ids and class names before they are compared, such as v_ .mp4",
    )
    add(
        "--loose-names",
        action="store_true",
        help="compare video ids and class names without case, blanks, '-', '_' and the form b'...'",
    )
    add(
        "--labels-are-indices",
        action="store_true",
        help="read the labels of the detections as class numbers: indices of the ground truth's 'classes', or the "
        "'label_id' of its annotations",
    )


def read_inputs(args: argparse.Namespace, paths: Sequence[str]) -> Inputs:
    """Read the ground truth and the detections of a command.

    Args:
        args: Parsed options, those of `add_evaluation_options` and --protocol.
        paths: Detection files.

    Raises:
        InputError: A file cannot be used, nothing in it matches, or the files state different snippet rates.
    """
    spec = find_dataset(args.dataset)
    truth = read_ground_truth(args.ground_truth, args.subset or spec.test_subset)
    detections = [read_detections(path) for path in paths]
    notes = []
    if args.labels_are_indices:
        detections = [read_labels_as_indices(table, truth.class_numbers) for table in detections]
        shown = [f"{number} {name}" for number, name in sorted(truth.class_numbers.items())]
        more = ", ..." if len(shown) > MOST_NAMES else ""
        notes.append(f"labels are read as class numbers: {', '.join(shown[:MOST_NAMES])}{more}")
    rule = NameRule(tuple(args.strip), args.loose_names)
    detections = [rename(table, truth, rule) for table in detections]
    for path, table in zip(paths, detections, strict=True):
        require_matches(table, truth, path)
    thresholds = tuple(args.tiou_thresholds or spec.tiou_thresholds)
    on_grid = args.protocol == "all" or PROTOCOLS[args.protocol].on_grid
    rate, source = _snippet_rate(args, dict(zip(paths, detections, strict=True)) if on_grid else {})
    videos = None
    if args.only_detected:
        listed = set.intersection(*(set(table.videos) for table in detections))
        videos = tuple(video for video in truth.segments.videos if video in listed)
    return Inputs(
        truth=truth,
        detections=detections,
        tiou_thresholds=thresholds,
        means=named_means(thresholds, spec.tiou_thresholds, spec.average_ranges),
        snippet_rate=rate,
        grid=f"grid of the snippet protocols: {rate:.10g} snippets per second ({source})" if on_grid else "",
        videos=videos,
        notes=tuple(notes),
    )


def _snippet_rate(args: argparse.Namespace, tables: Mapping[str, Table]) -> tuple[float, str]:
    """Return the snippet rate in Hz, and its source."""
    if args.snippet_rate is not None:
        return args.snippet_rate, "--snippet-rate"
    stored = {path: table.snippet_rate for path, table in tables.items() if table.snippet_rate is not None}
    if len(set(stored.values())) > 1:
        rates = ", ".join(f"{path} has {rate:.10g}" for path, rate in stored.items())
        raise InputError(f"the detection files have different snippet rates (Hz): {rates}; choose --snippet-rate")
    for path, rate in stored.items():
        return rate, f"from {path}"
    return find_dataset(args.dataset).snippet_rate, f"the default of --dataset {args.dataset}"
