"""Diagnosis of errors after DETAD (Alwassel et al., "Diagnosing Error in Temporal Action Detectors", ECCV 2018).

    python -m eval.diagnosis --ground-truth annotations.json --predictions detections.json --figure diagnosis.png

It starts from an evaluated list, so nothing is matched twice. As in DETAD, annotated segments are called instances.
It departs from DETAD's code in three points:

* If instances of two classes overlap a detection equally, the one of its own class decides (there, the first row).
* A hit of another bin's instance is set aside at the threshold of the hit only (there, at all thresholds).
* Coverage above 1 counts as XL (there, it is left out).
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from eval.command import add_evaluation_options, read_inputs
from eval.detection import DetectionResult, evaluate_inputs
from eval.diagnosis_report import diagnosis_figure, diagnosis_table
from eval.protocols import PROTOCOLS
from utils.datasets import find_dataset
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.formats.files import write_json
from utils.segments import snippets_to_seconds, tiou

# In the order of their numbers. The first is not an error.
KINDS = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
MIN_TIOU = 0.1  # a detection with less overlap is background
MIN_PRECISION = 0.05  # instances hit at a lower normalized precision count as not found
NUM_SLICES = 10  # of the profile, 1G to 10G

SIZES = ("XS", "S", "M", "L", "XL")
# Upper edges of the bins, included in them; DETAD's values for its datasets.
_THUMOS14_BINS = {
    "length in s": (3, 6, 12, 18, np.inf),
    "coverage": (0.02, 0.04, 0.06, 0.08, np.inf),  # length / duration of the video
    "instances": (1, 40, 80, np.inf),  # of the class in the video
}
_ACTIVITYNET_BINS = {
    "length in s": (30, 60, 120, 180, np.inf),
    "coverage": (0.2, 0.4, 0.6, 0.8, np.inf),
    "instances": (1, 4, 8, np.inf),
}
_AVE_BINS = {**_ACTIVITYNET_BINS, "length in s": (2, 4, 6, 8, np.inf)}  # clips of 10 s; DETAD has no AVE
BINS = {
    "activitynet12": _ACTIVITYNET_BINS,
    "activitynet13": _ACTIVITYNET_BINS,
    "ave": _AVE_BINS,
}  # other datasets have THUMOS14's


def error_kinds(result: DetectionResult) -> np.ndarray:
    """Classify each detection at each threshold.

    For a detection without a match, the instance of any class that it overlaps most decides:

    * tIoU at or above the threshold: double detection if the classes agree, else wrong label.
    * tIoU below, but at least MIN_TIOU: localization if the classes agree, else confusion.
    * Less: background.

    Args:
        result: Evaluated detections.

    Returns:
        (T, N) int8 indices of KINDS.
    """
    own, other = _best_overlaps(result)
    highest, own_class = np.maximum(own, other), own >= other  # (N,) each
    overlaps = highest >= result.tiou_thresholds[:, None]  # (T, N)
    touches = np.broadcast_to(highest >= MIN_TIOU, overlaps.shape)
    cases = [result.matched >= 0, overlaps & own_class, overlaps, touches & own_class, touches]
    return np.select(cases, range(len(cases)), default=len(cases)).astype(np.int8)


def _best_overlaps(result: DetectionResult) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's highest tIoU with instances of its own class and of other classes, (N,) each."""
    truth, detections = result.ground_truth, result.detections
    own, other = np.zeros((2, len(detections)))
    segments = np.stack([detections.start, detections.end], axis=1)
    instances = np.stack([truth.start, truth.end], axis=1)
    by_video = dict(zip(*_grouped(detections.video), strict=True))
    for video, truth_rows in zip(*_grouped(truth.video), strict=True):
        rows = by_video.get(video, truth_rows[:0])
        overlap = tiou(instances[truth_rows], segments[rows][:, None])  # (n, instances of the video)
        same = detections.label[rows][:, None] == truth.label[truth_rows]
        own[rows] = np.where(same, overlap, 0).max(axis=1, initial=0)
        other[rows] = np.where(same, 0, overlap).max(axis=1, initial=0)
    return own, other


def _grouped(numbers: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Return the distinct numbers and, for each, its rows in order."""
    order = np.argsort(numbers, kind="stable")
    names, first = np.unique(numbers[order], return_index=True)
    return names.tolist(), np.split(order, first)[1:]


class _Classes:
    """Evaluated list grouped by class, to recompute AP without some of the detections.

    AP_N normalizes precision as DETAD does: as if every class had the mean number of instances.
    """

    def __init__(self, result: DetectionResult) -> None:
        self.hit = result.matched >= 0  # (T, N)
        self.label = result.detections.label
        self.positives = np.bincount(result.ground_truth.label, minlength=len(result.classes))  # (C,)
        self.mean_positives = self.positives.sum() / np.count_nonzero(self.positives)
        self.rows = {label: np.flatnonzero(self.label == label) for label in np.flatnonzero(self.positives)}

    def ranks(self) -> np.ndarray:
        """Return the rank of each detection in its class (N,), from 0; in a class without instances it is huge."""
        ranks = np.full(len(self.label), np.iinfo(np.int64).max)
        for rows in self.rows.values():
            ranks[rows] = np.arange(len(rows))
        return ranks

    def average_map(self, keep: np.ndarray, positives: np.ndarray | None = None, normalized: bool = True) -> float:
        """Return the mean of AP over thresholds and classes for the detections in the mask `keep`, (T, N) or (N,).

        `positives` (C,) counts the instances per class that can be hit; default: all.
        """
        keep, positives = np.broadcast_to(keep, self.hit.shape), self.positives if positives is None else positives
        aps = []
        for label in np.flatnonzero(positives):
            counted = keep[:, self.rows[label]]
            hit = self.hit[:, self.rows[label]] & counted
            precision = _precision(hit, counted, self.mean_positives / positives[label] if normalized else 1.0)
            interpolated = np.maximum.accumulate(np.where(hit, precision, 0)[:, ::-1], axis=1)[:, ::-1]
            aps.append((interpolated * hit).sum(axis=1) / positives[label])
        return float(np.mean(aps))

    def early_hits(self) -> np.ndarray:
        """Mark the hits (T, N) at a normalized precision above MIN_PRECISION."""
        early = self.hit.copy()
        for label, rows in self.rows.items():
            hit = self.hit[:, rows]
            precision = _precision(hit, np.ones_like(hit), self.mean_positives / self.positives[label])
            early[:, rows] &= precision > MIN_PRECISION
        return early


def _precision(hit: np.ndarray, counted: np.ndarray, weight: float) -> np.ndarray:
    """Return precision (T, n) at each rank of one class, counting a hit `weight` times and a miss once."""
    hits = np.cumsum(hit, axis=1)
    misses = np.cumsum(counted, axis=1) - hits
    return hits * weight / np.maximum(hits * weight + misses, 1e-12)


def diagnose(
    result: DetectionResult,
    durations: Mapping[str, float] | None = None,
    dataset: str = "thumos14",
    snippet_rate: float | None = None,
) -> dict:
    """Compute error profile, cost of each kind of error, sensitivity to instance characteristics, and AP by class.

    Args:
        result: Evaluated detections.
        durations: {video_id: seconds}. If an annotated video has no duration, coverage is left out with a note.
        dataset: Dataset whose bins are used; one without bins of its own has those of THUMOS14.
        snippet_rate: Snippets per second that `result` was evaluated with; default: the dataset's. Under a protocol on
            the snippet grid, an instance's length is that of its rounded borders and may fall into a neighboring bin.

    Returns:
        Content for JSON: fractions, None where undefined. Among its entries:

        * `profile` [T][slice k][KINDS]: number of detections of each kind. Slice k has the ranks from (k - 1) G to k G
          of each class, where G is the number of its instances.
        * `removal`: gain in average mAP of the whole list, and in DETAD's average mAP_N of the top 10G, if the
          detections of one kind are removed.
        * `not_found` [T]: share of instances.
    """
    kinds, classes = error_kinds(result), _Classes(result)
    found = _found_instances(result, classes)
    bins, notes = _bins(result, durations, dataset, snippet_rate or find_dataset(dataset).snippet_rate)
    return {
        "protocol": result.protocol,
        "tiou_thresholds": result.tiou_thresholds.tolist(),
        "detections": len(result.detections),
        "instances": len(result.ground_truth),
        "kinds": list(KINDS),
        "profile": _profile(kinds, classes).tolist(),
        "average_map": classes.average_map(np.True_, normalized=False),
        "average_map_n": classes.average_map(np.True_),
        "average_map_n_top": classes.average_map(_in_top(classes)),
        "removal": _removal(kinds, classes),
        "characteristics": {name: list(_by_bin(result, classes, found, *parts)) for name, parts in bins.items()},
        "not_found": (1 - found.mean(axis=1)).tolist(),
        "classes": _by_class(result, classes),
        "notes": [*result.notes, *notes],
    }


def _in_top(classes: _Classes) -> np.ndarray:
    """Mark the detections (N,) among the first 10G of their class."""
    return classes.ranks() < NUM_SLICES * classes.positives[classes.label]


def _profile(kinds: np.ndarray, classes: _Classes) -> np.ndarray:
    """Count the detections per threshold, slice and kind, (T, slices, kinds)."""
    top = _in_top(classes)
    slices = classes.ranks()[top] // classes.positives[classes.label[top]]
    cells = slices * len(KINDS) + kinds[:, top]
    counts = [np.bincount(row, minlength=NUM_SLICES * len(KINDS)) for row in cells]
    return np.reshape(counts, (-1, NUM_SLICES, len(KINDS)))


def _removal(kinds: np.ndarray, classes: _Classes) -> dict:
    """Return the gain in average mAP and mAP_N without the detections of each kind of error."""
    top = _in_top(classes)
    base, base_top = classes.average_map(np.True_, normalized=False), classes.average_map(top)
    return {
        name: {
            "average_map": classes.average_map(kinds != kind, normalized=False) - base,
            "average_map_n": classes.average_map(top & (kinds != kind)) - base_top,
        }
        for kind, name in enumerate(KINDS)
        if kind > 0
    }


def _bins(result: DetectionResult, durations: Mapping | None, dataset: str, rate: float) -> tuple[dict, list[str]]:
    """Return the bin of every instance (G,) and the upper edges per characteristic, and notes on omissions."""
    truth, durations = result.ground_truth, durations or {}
    length = truth.end - truth.start
    if PROTOCOLS[result.protocol].on_grid:
        length = snippets_to_seconds(length, rate)
    values, notes = {"length in s": length, "instances": truth.group_sizes()}, []
    seconds = np.array([durations.get(video) or np.nan for video in truth.videos], dtype=float)[truth.video]
    if np.isnan(seconds).any():
        unknown = [truth.videos[number] for number in np.unique(truth.video[np.isnan(seconds)])]
        notes.append(f"coverage is left out: the duration of {len(unknown)} videos is unknown, such as {unknown[0]}")
    else:
        values["coverage"] = length / seconds
    edges = BINS.get(dataset, _THUMOS14_BINS)
    return {name: (np.searchsorted(edges[name], values[name]), edges[name]) for name in edges if name in values}, notes


def _by_bin(
    result: DetectionResult, classes: _Classes, found: np.ndarray, bins: np.ndarray, edges: tuple
) -> Iterator[dict]:
    """Yield the scores of each bin. found (T, G) marks instances; bins (G,)."""
    bin_of_match = np.append(bins, -1)[result.matched]  # (T, N); -1 for a false positive
    for number, upper in enumerate(edges):
        inside = bins == number
        positives = np.bincount(result.ground_truth.label[inside], minlength=len(result.classes))
        keep = (bin_of_match == number) | (bin_of_match == -1)  # hits of other bins do not count
        yield {
            "bin": SIZES[number],
            "above": 0 if number == 0 else edges[number - 1],
            "up_to": upper if np.isfinite(upper) else None,
            "instances": int(inside.sum()),
            "average_map_n": classes.average_map(keep, positives) if inside.any() else None,
            "not_found": (1 - found[:, inside].mean(axis=1)).tolist() if inside.any() else None,
        }


def _found_instances(result: DetectionResult, classes: _Classes) -> np.ndarray:
    """Mark the instances (T, G) that are found; see MIN_PRECISION."""
    found = np.zeros((len(result.tiou_thresholds), len(result.ground_truth)), dtype=bool)
    threshold, row = np.nonzero(classes.early_hits())
    found[threshold, result.matched[threshold, row]] = True
    return found


def _by_class(result: DetectionResult, classes: _Classes) -> list[dict]:
    """Return the number of instances and AP of every class with instances, best class first."""
    return [
        {
            "class": result.classes[label],
            "instances": int(classes.positives[label]),
            "ap": result.ap[:, label].tolist(),
            "average_ap": float(result.ap[:, label].mean()),
        }
        for label in sorted(classes.rows, key=lambda label: -result.ap[:, label].mean())
    ]


def _parse_args() -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m eval.diagnosis",
        description="Diagnose the errors of a detection file, after DETAD (Alwassel et al., ECCV 2018).",
    )
    add = parser.add_argument
    add("--predictions", required=True, help="detection file: ActivityNet JSON or CSV")
    add_evaluation_options(parser)
    add("--protocol", choices=list(PROTOCOLS), default="seconds", help="evaluation protocol (default: seconds)")
    add("--json", type=Path, metavar="FILE", help="JSON file to write with the whole diagnosis")
    add("--figure", type=Path, metavar="FILE", help="figure to draw (.png, .pdf, .svg)")
    return parser.parse_args()


def main() -> None:
    """Print the diagnosis as tables; write a JSON file and draw a figure on request."""
    args = _parse_args()
    inputs = read_inputs(args, [args.predictions])
    (result,) = evaluate_inputs(inputs, args.protocol)
    diagnosis = diagnose(result, inputs.truth.durations, find_dataset(args.dataset).name, inputs.snippet_rate)
    if inputs.grid:
        print(inputs.grid)
    print(diagnosis_table(diagnosis))
    if args.json:
        write_json(args.json, diagnosis)
    if args.figure:
        try:
            diagnosis_figure(diagnosis, args.figure)
        except InputError:
            raise
        except ValueError as error:  # a file type that matplotlib does not support
            raise InputError(f"{args.figure}: cannot be drawn ({error})") from None


if __name__ == "__main__":
    exit_on_input_error(main)
