"""Detections and ground truth -> mAP@tIoU: ActivityNet's evaluation, exactly, under every published protocol.

    python -m eval.detection --ground-truth annotations.json --predictions detections.json --protocol all

Where it departs from ActivityNet's code: ties have a stable order (among equal scores the later row of the
file ranks first; among equal tIoU see eval.matching.match); two zero-length segments do not match
(0 / 0 is a hit there); numbers that are not finite and inverted segments are refused; detections of a class
without any annotation are dropped and reported (a KeyError there).
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval.average_precision import average_precisions, nan_to_none, score_order
from eval.command import Inputs, add_evaluation_options, read_inputs
from eval.matching import match
from eval.protocols import PROTOCOLS, applicable_protocols, apply_protocol
from eval.tables import (
    DetectionSource,
    GroundTruth,
    GroundTruthSource,
    Table,
    format_table,
    read_detections,
    read_ground_truth,
)
from utils.datasets import SNIPPET_RATE
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.formats.files import write_json


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """mAP of one list of detections under one protocol; fractions, NaN where undefined.

    The last three say which detection is a hit, so that nothing that builds on it has to match again: the
    tables as the protocol left them (detections by falling score), and `matched[t, d]`, the ground-truth row
    that detection d takes at threshold t, or -1.
    """

    protocol: str
    classes: tuple[str, ...]
    tiou_thresholds: np.ndarray  # (T,)
    ap: np.ndarray  # (T, C); NaN for a class without ground truth
    map: np.ndarray  # (T,) mean over the defined classes
    average_map: float  # mean over the thresholds
    notes: tuple[str, ...]  # what was not counted as it stands, a line each
    ground_truth: Table = field(repr=False)
    detections: Table = field(repr=False)
    matched: np.ndarray = field(repr=False)  # (T, N) int32

    def as_dict(self) -> dict:
        """What is written to disk: fractions at full precision, None for what is undefined."""
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
    """Mean average precision at each tIoU threshold.

    ground_truth: annotations (a path or the dict of an ActivityNet-form file), a Table, or a structured array
        with the fields video, label, start, end; what `read_ground_truth` returned saves reading twice.
    detections: a path (.json, .csv), an ActivityNet-form dict, a Table, or a structured array with scores.
    tiou_thresholds: in (0, 1], used as given (0.3 and linspace's 0.30000000000000004 are two thresholds).
    subset: of the annotations; None for `test` where there is one, else the only one.
    protocol: a name in `eval.protocols.PROTOCOLS`. All input is in seconds; `snippet_rate` (Hz) is the grid.
    videos, classes: evaluate on these only. Classes are also the columns of `.ap`; by default the
        annotations' own list, else the classes of the subset in order of first appearance.

    Detections of videos that the subset lacks are false positives, those of unknown classes are dropped; both
    are reported in `.notes`. Raises InputError, one line, for whatever cannot be used.
    """
    thresholds = _checked_thresholds(tiou_thresholds)
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol '{protocol}'; choose one of {sorted(PROTOCOLS)}")
    if not (np.isfinite(snippet_rate) and snippet_rate > 0):
        raise InputError(f"snippet rate must be a positive number of snippets a second, got {snippet_rate}")
    truth, found = read_ground_truth(ground_truth, subset), read_detections(detections)
    truth, found, notes = _align(truth, found, videos, classes)
    segments, found = apply_protocol(PROTOCOLS[protocol], truth, found, snippet_rate)
    if len(segments) == 0:
        raise InputError("ground truth: no annotated segment to evaluate on")

    found = found.select(score_order(found.score))
    matched = match(segments, found, thresholds)
    positives = np.bincount(segments.label, minlength=len(segments.classes))
    ap = average_precisions(found.label, matched, positives)
    counted = ~np.isnan(ap[0])
    mean = np.ascontiguousarray(ap[:, counted]).mean(axis=1)
    return DetectionResult(
        protocol, segments.classes, thresholds, ap, mean, float(mean.mean()), notes, segments, found, matched
    )


def _align(
    truth: GroundTruth, found: Table, videos: Iterable[str] | None, classes: Iterable[str] | None
) -> tuple[GroundTruth, Table, tuple[str, ...]]:
    """The same numbering of videos and classes for all, checked, and notes on what had to be set aside."""
    segments, ambiguous = truth.segments, truth.ambiguous
    _check_rows(segments, "ground truth")
    _check_rows(found, "detections")
    names = segments.videos if videos is None else tuple(videos)
    columns = segments.classes if classes is None else tuple(classes)
    if unknown := sorted(set(names) - set(segments.videos)):
        raise InputError(f"videos: the ground truth lacks {_named(unknown)}")
    if videos is not None:
        kept = set(names)
        found = found.select(np.array([name in kept for name in found.videos], dtype=bool)[found.video])
    segments, aligned = segments.renumbered(names, columns), found.renumbered(names, columns)
    segments = segments.select((segments.video >= 0) & (segments.label >= 0))

    notes = []
    if (strangers := aligned.video < 0).any():
        lost = sorted({str(found.videos[number]) for number in np.unique(found.video[strangers])})
        notes.append(
            f"{strangers.sum()} detections of {len(lost)} videos that the ground truth lacks count as false "
            f"positives: {_named(lost)}"
        )
    if (strangers := aligned.label < 0).any():
        lost = sorted({str(found.classes[number]) for number in np.unique(found.label[strangers])})
        notes.append(
            f"{strangers.sum()} detections of {len(lost)} classes that the ground truth lacks are dropped: "
            f"{_named(lost)}"
        )
        aligned = aligned.select(~strangers)
    ambiguous = ambiguous.renumbered(names, ambiguous.classes)
    return replace(truth, segments=segments, ambiguous=ambiguous), aligned, tuple(notes)


def _check_rows(table: Table, where: str) -> None:
    """InputError naming the first row that is not finite or ends before it starts."""
    finite = np.isfinite(table.start) & np.isfinite(table.end)
    if table.score is not None:
        finite &= np.isfinite(table.score)
    bad = ~finite | (table.end < table.start)
    if bad.any():
        row = int(bad.argmax())
        problem = "ends before it starts" if finite[row] else "is not finite, or its score is not"
        segment = f"[{table.start[row]}, {table.end[row]}]"
        raise InputError(f"{where}: video '{table.videos[table.video[row]]}', row {row}: {segment} {problem}")


def _checked_thresholds(tiou_thresholds: Iterable[float]) -> np.ndarray:
    thresholds = np.array(list(tiou_thresholds), dtype=np.float64)
    if thresholds.ndim != 1 or len(thresholds) == 0 or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise InputError(f"tIoU thresholds must lie in (0, 1], got {thresholds.tolist()}")
    return thresholds


def _named(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def evaluate_inputs(inputs: Inputs, protocol: str) -> list[DetectionResult]:
    """What a command was asked to evaluate: a result for each list of detections, their coverage among its notes."""
    results = [
        evaluate_detections(
            inputs.truth,
            found,
            inputs.tiou_thresholds,
            protocol=protocol,
            snippet_rate=inputs.snippet_rate,
            videos=inputs.videos,
        )
        for found in inputs.detections
    ]
    return [
        replace(result, notes=(*result.notes, *inputs.coverage_notes(result.ground_truth, found)))
        for result, found in zip(results, inputs.detections, strict=True)
    ]


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
        description="mAP@tIoU of a detection file under the published protocols.",
        epilog=f"protocols and who uses them:\n{protocols}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--predictions", required=True, help="detections: ActivityNet JSON, or CSV")
    add_evaluation_options(parser)
    add(
        "--protocol",
        choices=[*PROTOCOLS, "all"],
        default="seconds",
        help="see below; all: every one that means something on this ground truth, a line each; default: seconds",
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write per-class AP and mAP here; with --protocol all a dict of them, by protocol",
    )
    return parser.parse_args()


def main() -> None:
    """The command line: one table on the screen, one JSON file on request."""
    args = _parse_args()
    inputs = read_inputs(args, [args.predictions])
    protocols = applicable_protocols(inputs.truth) if args.protocol == "all" else [args.protocol]
    results = [result for protocol in protocols for result in evaluate_inputs(inputs, protocol)]
    for note in results[0].notes:
        print(f"note: {note}")
    if inputs.grid:
        print(inputs.grid)
    print(map_table(results, inputs.means))
    if args.json:
        content = {result.protocol: result.as_dict() for result in results}
        write_json(args.json, content if args.protocol == "all" else content[args.protocol])


if __name__ == "__main__":
    exit_on_input_error(main)
