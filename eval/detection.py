"""Mean average precision of detections: ActivityNet's evaluation, exactly, under every published protocol.

    python -m eval.detection --ground-truth annotations.json --predictions detections.json --protocol all

It departs from ActivityNet's code in three points:

* Ties have a stable order. Among equal scores the later row ranks first; for equal tIoU see `eval.matching.match`.
* Numbers that are not finite and inverted segments are refused.
* Detections of a class without any annotation are dropped and reported (there, a KeyError).
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval.average_precision import average_precisions, nan_to_none
from eval.average_recall import average_recall, recall_table
from eval.command import Inputs, add_evaluation_options, read_inputs
from eval.detection_formats import DetectionSource, read_detections
from eval.matching import match
from eval.names import list_names
from eval.notes import undetected_note, unit_notes, unmatched_note, zero_length_note
from eval.protocols import PROTOCOLS, applicable_protocols, apply_protocol
from eval.sorting import score_order
from eval.tables import GroundTruth, GroundTruthSource, Table, format_table, read_ground_truth
from utils.datasets import SNIPPET_RATE
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.formats.files import write_json


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """mAP of one list of detections under one protocol, as fractions; NaN where undefined.

    The last three attributes tell which detections are hits, so that other analyses need not match again.
    """

    protocol: str
    classes: tuple[str, ...]
    tiou_thresholds: np.ndarray  # (T,)
    ap: np.ndarray  # (T, C); NaN for a class without ground truth
    map: np.ndarray  # (T,) mean over the classes with ground truth
    average_map: float  # mean over the thresholds
    notes: tuple[str, ...]  # one line for each kind of detection or video that is not counted as given
    ground_truth: Table = field(repr=False)  # as the protocol changed it
    detections: Table = field(repr=False)  # likewise, by falling score
    matched: np.ndarray = field(repr=False)  # (T, N) int32; ground-truth row of each detection, or -1

    def as_dict(self) -> dict:
        """Return the scores as JSON stores them: fractions at full precision, None where undefined."""
        return {
            "protocol": self.protocol,
            "classes": list(self.classes),
            "tiou_thresholds": self.tiou_thresholds.tolist(),
            "ap": [[nan_to_none(value) for value in row] for row in self.ap.tolist()],
            "map": [nan_to_none(value) for value in self.map.tolist()],
            "average_map": nan_to_none(self.average_map),
            "notes": list(self.notes),
        }


def evaluate_detections(
    ground_truth: GroundTruthSource,
    detections: DetectionSource,
    tiou_thresholds: Iterable[float],
    *,
    subset: str | None = None,
    protocol: str = "seconds",
    snippet_rate: float = SNIPPET_RATE,
    videos: Iterable[str] | None = None,
    classes: Iterable[str] | None = None,
) -> DetectionResult:
    """Compute average precision per class and mAP at each tIoU threshold.

    Detections of videos that the subset lacks count as false positives. Detections of unknown classes are dropped.
    Both are reported in the result's `notes`.

    Args:
        ground_truth: Annotations in any form that `eval.tables.read_ground_truth` takes, in seconds.
        detections: Detections in any form that `eval.detection_formats.read_detections` takes, in seconds.
        tiou_thresholds: Thresholds in (0, 1], used exactly as given: 0.3 and 0.30000000000000004 differ.
        subset: Subset of the annotations; None for `test` if it exists, else for the only subset.
        protocol: Name in `eval.protocols.PROTOCOLS`.
        snippet_rate: Snippets per second of the grid that some protocols round to.
        videos: Evaluate on these videos only.
        classes: Evaluate on these classes only, in this order. Default: the annotations' own list, else the classes
            of the subset in order of first appearance.

    Raises:
        InputError: An argument cannot be used, or no annotated segment is left to evaluate on.
    """
    thresholds = np.array(list(tiou_thresholds), dtype=np.float64)
    if thresholds.ndim != 1 or len(thresholds) == 0 or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise InputError(f"tIoU thresholds must lie in (0, 1], got {thresholds.tolist()}")
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol '{protocol}'; choose one of {sorted(PROTOCOLS)}")
    if not (np.isfinite(snippet_rate) and snippet_rate > 0):
        raise InputError(f"snippet rate: expected a positive number of snippets per second, got {snippet_rate}")
    truth, detections = read_ground_truth(ground_truth, subset), read_detections(detections)
    truth, detections, notes = _align(truth, detections, videos, classes)
    segments, detections = apply_protocol(PROTOCOLS[protocol], truth, detections, snippet_rate)
    if len(segments) == 0:
        raise InputError("ground truth: no annotated segment to evaluate on")
    known, numbers = segments.videos, detections.video[detections.video >= len(segments.videos)]
    notes += unmatched_note("false positives", "video", detections.videos, numbers, known)
    notes += undetected_note(segments, detections)
    detections = detections.renumber(known, segments.classes)

    detections = detections.select(score_order(detections.score))
    matched = match(segments, detections, thresholds)  # (T, N)
    positives = np.bincount(segments.label, minlength=len(segments.classes))  # (C,)
    ap = average_precisions(detections.label, matched, positives)  # (T, C)
    # Contiguous rows make the sum's order, and so its last bit, ActivityNet's.
    mean_ap = np.ascontiguousarray(ap[:, positives > 0]).mean(axis=1)
    return DetectionResult(
        protocol=protocol,
        classes=segments.classes,
        tiou_thresholds=thresholds,
        ap=ap,
        map=mean_ap,
        average_map=float(mean_ap.mean()),
        notes=tuple(notes),
        ground_truth=segments,
        detections=detections,
        matched=matched,
    )


def _align(
    truth: GroundTruth, detections: Table, videos: Iterable[str] | None, classes: Iterable[str] | None
) -> tuple[GroundTruth, Table, list[str]]:
    """Check all rows, drop detections of unknown classes, and number videos and classes alike; return notes too.

    Videos that the ground truth lacks are numbered after its own.
    """
    segments, ambiguous = truth.segments, truth.ambiguous
    _check_rows(segments, "ground truth")
    _check_rows(detections, "detections")
    video_names = segments.videos if videos is None else tuple(videos)
    class_names = segments.classes if classes is None else tuple(classes)
    if unknown := sorted(set(video_names) - set(segments.videos)):
        raise InputError(f"videos: the ground truth lacks {list_names(unknown)}")
    if videos is not None:
        chosen = set(video_names)
        is_chosen = np.array([name in chosen for name in detections.videos], dtype=bool)
        detections = detections.select(is_chosen[detections.video])
    all_names = tuple(dict.fromkeys((*video_names, *detections.videos)))
    segments, aligned = segments.renumber(video_names, class_names), detections.renumber(all_names, class_names)
    segments = segments.select((segments.video >= 0) & (segments.label >= 0))
    unknown = aligned.label < 0
    notes = unmatched_note("dropped", "class", detections.classes, detections.label[unknown], class_names)
    aligned = aligned.select(~unknown)
    notes += zero_length_note(segments) + unit_notes(segments, aligned, truth.durations)
    return (
        replace(truth, segments=segments, ambiguous=ambiguous.renumber(video_names, ambiguous.classes)),
        aligned,
        notes,
    )


def _check_rows(table: Table, where: str) -> None:
    """Raise an InputError that names the first row that is not finite or ends before it starts."""
    finite = np.isfinite(table.start) & np.isfinite(table.end)
    if table.score is not None:
        finite &= np.isfinite(table.score)
    bad = ~finite | (table.end < table.start)
    if bad.any():
        row = int(bad.argmax())
        problem = "ends before it starts" if finite[row] else "is not finite, or its score is not"
        segment = f"[{table.start[row]}, {table.end[row]}]"
        raise InputError(f"{where}: video '{table.videos[table.video[row]]}', row {row}: {segment} {problem}")


def evaluate_inputs(inputs: Inputs, protocol: str) -> list[DetectionResult]:
    """Evaluate each list of detections of a command; notes on videos without detections are added to the result."""
    results = []
    for detections in inputs.detections:
        result = evaluate_detections(
            inputs.truth,
            detections,
            inputs.tiou_thresholds,
            protocol=protocol,
            snippet_rate=inputs.snippet_rate,
            videos=inputs.videos,
        )
        coverage = inputs.coverage_notes(result.ground_truth, detections)
        results.append(replace(result, notes=(*inputs.notes, *result.notes, *coverage)))
    return results


def shared_notes(results: Sequence[DetectionResult]) -> list[str]:
    """Return the notes of all results once each; a note of some protocols only names the first of them."""
    notes = dict.fromkeys(note for result in results for note in result.notes)
    lines = []
    for note in notes:
        protocols = [result.protocol for result in results if note in result.notes]
        lines.append(note if len(protocols) == len(results) else f"{protocols[0]}: {note}")
    return lines


def map_table(results: Sequence[DetectionResult], means: Mapping[str, Sequence[int]]) -> str:
    """Return mAP in percent as text, one row per result.

    Args:
        results: Results at the same tIoU thresholds.
        means: Means over thresholds, {name: indices of the thresholds}; see `eval.average_precision.named_means`.
    """
    rows = [["mAP@tIoU", *(f"{threshold:g}" for threshold in results[0].tiou_thresholds), *means]]
    for result in results:
        values = [*result.map, *(result.map[inside].mean() for inside in means.values())]
        rows.append([result.protocol, *(f"{100 * value:.2f}" for value in values)])
    return format_table(rows)


def _parse_args() -> argparse.Namespace:
    protocols = "\n".join(f"  {name:<18} {protocol.papers}" for name, protocol in PROTOCOLS.items())
    parser = OneLineParser(
        prog="python -m eval.detection",
        description="Compute mAP@tIoU of a detection file under the published protocols.",
        epilog=f"protocols and the papers that use them:\n{protocols}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--predictions", required=True, help="detection file: ActivityNet's JSON, CSV or Parquet")
    add_evaluation_options(parser)
    add(
        "--protocol",
        choices=[*PROTOCOLS, "all"],
        default="seconds",
        help="evaluation protocol, see below; all: one row per protocol that applies to this ground truth "
        "(default: seconds)",
    )
    add(
        "--ar",
        action="store_true",
        help="also print average recall at N detections per video, and the area under its curve (ActivityNet's AR@AN)",
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="JSON file to write with AP per class and mAP; with --protocol all, these for each protocol",
    )
    return parser.parse_args()


def main() -> None:
    """Print mAP as a table and write it to a JSON file on request."""
    args = _parse_args()
    inputs = read_inputs(args, [args.predictions])
    protocols = applicable_protocols(inputs.truth) if args.protocol == "all" else [args.protocol]
    results = [result for protocol in protocols for result in evaluate_inputs(inputs, protocol)]
    for note in shared_notes(results):
        print(f"note: {note}")
    if inputs.grid:
        print(inputs.grid)
    print(map_table(results, inputs.means))
    content = {result.protocol: result.as_dict() for result in results}
    if args.ar:
        recalls = {result.protocol: average_recall(result.ground_truth, result.detections) for result in results}
        print(recall_table(recalls))
        for protocol, recall in recalls.items():
            content[protocol]["average_recall"] = recall.as_dict()
    if args.json:
        write_json(args.json, content if args.protocol == "all" else content[args.protocol])


if __name__ == "__main__":
    exit_on_input_error(main)
