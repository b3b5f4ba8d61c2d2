"""Where detections go wrong, after DETAD (Alwassel et al., "Diagnosing Error in Temporal Action Detectors", ECCV 2018).

    python -m eval.diagnosis --ground-truth annotations.json --predictions detections.json --figure diagnosis.png

Everything starts from an evaluated list, so that nothing is matched twice. Where it departs from DETAD's code: of
equally overlapping instances of two classes a detection is judged by that of its own class (there: the first in the
file); a detection is set aside for another bin's instance at the threshold where it hits that instance (there: at
all thresholds); coverage above 1 counts as XL (there: left out).
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from eval.command import add_evaluation_options, read_inputs
from eval.detection import DetectionResult, evaluate_inputs
from eval.diagnosis_report import diagnosis_figure, diagnosis_table
from eval.protocols import PROTOCOLS
from utils.annotations import load_annotations
from utils.datasets import DATASETS
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.formats.files import write_json
from utils.segments import snippets_to_seconds, tiou

# In this order the code numbers them. The first is not an error.
KINDS = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
MIN_TIOU = 0.1  # a detection that overlaps every instance by less lies in the background
MIN_PRECISION = 0.05  # an instance counts as found only while the normalized precision is above this
NUM_SLICES = 10  # the profile's slices, from 1G to 10G

SIZES = ("XS", "S", "M", "L", "XL")
# Upper edges of the bins, which belong to them; DETAD's, for each of its datasets.
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
_AVE_BINS = {**_ACTIVITYNET_BINS, "length in s": (2, 4, 6, 8, np.inf)}  # clips of 10 s; ours, DETAD has no AVE
BINS = {
    "thumos14": _THUMOS14_BINS,
    "activitynet12": _ACTIVITYNET_BINS,
    "ave": _AVE_BINS,
    "demo": _THUMOS14_BINS,
}


def error_kinds(result: DetectionResult) -> np.ndarray:
    """What each detection is at each threshold, a number in KINDS: (T, N) int8.

    Of those without a match, the instance (of any class) that they overlap most decides. At the threshold or above:
    double detection if it is of their class, else wrong label. Below, but at least MIN_TIOU: localization if it is
    of their class, else confusion. Less: background.
    """
    own, other = _best_overlaps(result)
    top, right, thresholds = np.maximum(own, other), own >= other, result.tiou_thresholds[:, None]
    overlaps, touches = top >= thresholds, top >= MIN_TIOU
    cases = [result.matched >= 0, overlaps & right, overlaps, touches & right, np.broadcast_to(touches, overlaps.shape)]
    return np.select(cases, range(len(cases)), default=len(cases)).astype(np.int8)


def _best_overlaps(result: DetectionResult) -> tuple[np.ndarray, np.ndarray]:
    """The highest tIoU of each detection with an instance of its own class and of another one: (N,) each."""
    truth, found = result.ground_truth, result.detections
    own, other = np.zeros((2, len(found)))
    segments = np.stack([found.start, found.end], axis=1)
    instances = np.stack([truth.start, truth.end], axis=1)
    by_video = dict(zip(*_grouped(found.video), strict=True))
    for video, its_truth in zip(*_grouped(truth.video), strict=True):
        rows = by_video.get(video, its_truth[:0])
        overlap = tiou(instances[its_truth], segments[rows][:, None])  # (n, instances of the video)
        same = found.label[rows][:, None] == truth.label[its_truth]
        own[rows] = np.where(same, overlap, 0).max(axis=1, initial=0)
        other[rows] = np.where(same, 0, overlap).max(axis=1, initial=0)
    return own, other


def _grouped(numbers: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """The different numbers, and the rows (in order) that hold each."""
    order = np.argsort(numbers, kind="stable")
    names, first = np.unique(numbers[order], return_index=True)
    return names.tolist(), np.split(order, first)[1:]


class _Classes:
    """The evaluated list, class by class, to recompute AP without some of its detections.

    AP_N normalizes precision as DETAD does: as if every class had the mean number of instances.
    """

    def __init__(self, result: DetectionResult) -> None:
        self.hit = result.matched >= 0  # (T, N)
        self.label = result.detections.label
        self.positives = np.bincount(result.ground_truth.label, minlength=len(result.classes))  # (C,)
        self.mean_positives = self.positives.sum() / np.count_nonzero(self.positives)
        self.rows = {label: np.flatnonzero(self.label == label) for label in np.flatnonzero(self.positives)}

    def ranks(self) -> np.ndarray:
        """The place of each detection in its class (N,), from 0; those of a class without instances come last."""
        ranks = np.full(len(self.label), np.iinfo(np.int64).max)
        for rows in self.rows.values():
            ranks[rows] = np.arange(len(rows))
        return ranks

    def average_map(self, keep: np.ndarray, positives: np.ndarray | None = None, normalized: bool = True) -> float:
        """Mean of AP over thresholds and classes of the detections to `keep` (T, N) or (N,); a fraction.

        positives: instances of each class (C,) that can be found; default: all.
        """
        keep, positives = np.broadcast_to(keep, self.hit.shape), self.positives if positives is None else positives
        aps = []
        for label in np.flatnonzero(positives):
            kept = keep[:, self.rows[label]]
            hit = self.hit[:, self.rows[label]] & kept
            precision = _precision(hit, kept, self.mean_positives / positives[label] if normalized else 1.0)
            interpolated = np.maximum.accumulate(np.where(hit, precision, 0)[:, ::-1], axis=1)[:, ::-1]
            aps.append((interpolated * hit).sum(axis=1) / positives[label])
        return float(np.mean(aps))

    def found(self) -> np.ndarray:
        """Which hits count as found instances (T, N): those before the normalized precision falls too low."""
        found = self.hit.copy()
        for label, rows in self.rows.items():
            hit = self.hit[:, rows]
            precision = _precision(hit, np.ones_like(hit), self.mean_positives / self.positives[label])
            found[:, rows] &= precision > MIN_PRECISION
        return found


def _precision(hit: np.ndarray, kept: np.ndarray, weight: float) -> np.ndarray:
    """Precision (T, n) at each place of one class's list, where a hit counts `weight` times and a miss once."""
    hits = np.cumsum(hit, axis=1)
    misses = np.cumsum(kept, axis=1) - hits
    return hits * weight / np.maximum(hits * weight + misses, 1e-12)


def diagnose(
    result: DetectionResult,
    durations: Mapping[str, float] | None = None,
    dataset: str = "thumos14",
    snippet_rate: float | None = None,
) -> dict:
    """Error profile, what each kind of error costs, sensitivity to characteristics of the instances, AP by class.

    durations: {video_id: seconds}; without one for every annotated video, coverage is left out, with a note.
    dataset: whose bins are used, a name in BINS.
    snippet_rate: Hz, what `result` was evaluated with; default: the dataset's. Under a protocol on the snippet
        grid an instance is as long as its rounded borders say, divided by this rate: it can fall in the bin beside.

    Returns what json can write: fractions, None where undefined. `profile` counts the detections of each kind, [T]
    [slice k][KINDS]: slice k holds the places from (k - 1) G to k G of each class, G the number of its instances.
    `removal` is the gain in average mAP of the whole list, and in DETAD's average mAP_N of the top 10G, when the
    detections of one kind are taken out. `not_found` are shares of instances, [T].
    """
    if dataset not in BINS:
        raise InputError(f"no bins for the dataset '{dataset}'; choose one of {sorted(BINS)}")
    kinds, classes = error_kinds(result), _Classes(result)
    found = _found_instances(result, classes)
    bins, notes = _bins(result, durations, dataset, snippet_rate or DATASETS[dataset].snippet_rate)
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
    """Which detections (N,) are among the first 10G of their class."""
    return classes.ranks() < NUM_SLICES * classes.positives[classes.label]


def _profile(kinds: np.ndarray, classes: _Classes) -> np.ndarray:
    """Number of detections (T, slices, kinds)."""
    top = _in_top(classes)
    slices = classes.ranks()[top] // classes.positives[classes.label[top]]
    cells = slices * len(KINDS) + kinds[:, top]
    counts = [np.bincount(row, minlength=NUM_SLICES * len(KINDS)) for row in cells]
    return np.reshape(counts, (-1, NUM_SLICES, len(KINDS)))


def _removal(kinds: np.ndarray, classes: _Classes) -> dict:
    """Gain in average mAP and mAP_N without the detections of each kind of error."""
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
    """The bin of every instance (G,) and the upper edges, by characteristic; notes on what had to be left out."""
    truth, durations = result.ground_truth, durations or {}
    length = truth.end - truth.start
    if PROTOCOLS[result.protocol].on_grid:
        length = snippets_to_seconds(length, rate)
    group = truth.video * len(result.classes) + truth.label
    _, group, sizes = np.unique(group, return_inverse=True, return_counts=True)
    values, notes = {"length in s": length, "instances": sizes[group]}, []
    seconds = np.array([durations.get(video) or np.nan for video in truth.videos], dtype=float)[truth.video]
    if np.isnan(seconds).any():
        unknown = [truth.videos[number] for number in np.unique(truth.video[np.isnan(seconds)])]
        notes.append(f"coverage is left out: no duration is known of {len(unknown)} videos, such as {unknown[0]}")
    else:
        values["coverage"] = length / seconds
    edges = BINS[dataset]
    return {name: (np.searchsorted(edges[name], values[name]), edges[name]) for name in edges if name in values}, notes


def _by_bin(
    result: DetectionResult, classes: _Classes, found: np.ndarray, bins: np.ndarray, edges: tuple
) -> Iterator[dict]:
    """Instances, average mAP_N and shares not found of each bin. found (T, G), bins (G,)."""
    bin_of_match = np.append(bins, -1)[result.matched]  # (T, N); -1 for a false positive
    for number, upper in enumerate(edges):
        inside = bins == number
        positives = np.bincount(result.ground_truth.label[inside], minlength=len(result.classes))
        keep = (bin_of_match == number) | (bin_of_match == -1)  # hits of other bins are neither right nor wrong
        yield {
            "bin": SIZES[number],
            "above": 0 if number == 0 else edges[number - 1],
            "up_to": upper if np.isfinite(upper) else None,
            "instances": int(inside.sum()),
            "average_map_n": classes.average_map(keep, positives) if inside.any() else None,
            "not_found": (1 - found[:, inside].mean(axis=1)).tolist() if inside.any() else None,
        }


def _found_instances(result: DetectionResult, classes: _Classes) -> np.ndarray:
    """Which instances (T, G) are found; see MIN_PRECISION."""
    found = np.zeros((len(result.tiou_thresholds), len(result.ground_truth)), dtype=bool)
    threshold, row = np.nonzero(classes.found())
    found[threshold, result.matched[threshold, row]] = True
    return found


def _by_class(result: DetectionResult, classes: _Classes) -> list[dict]:
    """Instances, and AP at each threshold and on average, of every class that has any; best class first."""
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
    parser = OneLineParser(prog="python -m eval.diagnosis", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--predictions", required=True, help="detections: ActivityNet JSON, or CSV")
    add_evaluation_options(parser)
    add("--protocol", choices=list(PROTOCOLS), default="seconds", help="default: seconds")
    add("--json", type=Path, metavar="FILE", help="write everything here")
    add("--figure", type=Path, metavar="FILE", help="draw it here (.png, .pdf, .svg)")
    return parser.parse_args()


def main() -> None:
    """The command line: a table on the screen, a JSON file and a figure on request."""
    args = _parse_args()
    inputs = read_inputs(args, [args.predictions])
    (result,) = evaluate_inputs(inputs, args.protocol)
    videos = load_annotations(args.ground_truth).videos
    durations = {name: video.duration for name, video in videos.items()}
    diagnosis = diagnose(result, durations, args.dataset, inputs.snippet_rate)
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
        except ValueError as error:  # a kind of picture that matplotlib does not write
            raise InputError(f"{args.figure}: cannot be drawn ({error})") from None


if __name__ == "__main__":
    exit_on_input_error(main)
