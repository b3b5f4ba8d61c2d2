"""Is one list of detections better than another, or are these the videos of a lucky day?

    python -m eval.compare A.json B.json --ground-truth annotations.json
    python -m eval.compare A.json --ground-truth annotations.json

mAP of each with its 95 % interval, their difference with its own, and a p-value; see `eval.uncertainty`.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from tqdm import tqdm

from eval.command import add_evaluation_options, read_inputs
from eval.detection import DetectionResult, evaluate_inputs
from eval.protocols import PROTOCOLS
from eval.uncertainty import bootstrap_interval, bootstrap_maps, two_sided_p_value
from utils.errors import InputError, OneLineParser, exit_on_input_error


def compare(
    results: Sequence[DetectionResult],
    means: Mapping[str, Sequence[int]],
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[dict]:
    """mAP with its 95 % interval at each threshold and as each mean over thresholds, of one list or of two.

    results: one, or two that were evaluated on the same ground truth under the same protocol and thresholds; both
        are resampled with the same videos, so what is easy or hard for both cancels in the difference.
    means: {name: numbers of the thresholds}; see eval.average_precision.named_means.

    Returns a row a figure: `tiou`, `map` and `interval` (one of each a list of detections) and, of two lists, the
    second's `difference` from the first, `difference_interval` and `p_value`. Fractions.
    """
    samples = bootstrap_maps(results, resamples, seed, progress)
    rows = [(f"{threshold:g}", [index]) for index, threshold in enumerate(results[0].tiou_thresholds)]
    return [
        _row(
            name,
            [float(result.map[inside].mean()) for result in results],
            [sample[:, inside].mean(axis=1) for sample in samples],
        )
        for name, inside in (*rows, *means.items())
    ]


def _row(name: str, maps: list[float], samples: list[np.ndarray]) -> dict:
    intervals = [bootstrap_interval(*pair) for pair in zip(maps, samples, strict=True)]
    row = {"tiou": name, "map": maps, "interval": [np.clip(ends, 0, 1).tolist() for ends in intervals]}
    if len(maps) == 2:
        difference, differences = maps[1] - maps[0], samples[1] - samples[0]
        row["difference"] = difference
        row["difference_interval"] = bootstrap_interval(difference, differences).tolist()
        row["p_value"] = float(two_sided_p_value(difference, differences))
    return row


def comparison_table(rows: list[dict]) -> str:
    """A line a row, mAP and intervals in percent."""
    paired = "p_value" in rows[0]
    names = ("A", "B")[: len(rows[0]["map"])]
    lines = [f"{'tIoU':<8}" + "".join(f"{name:>7}{'95 %':>18}" for name in names)]
    if paired:
        lines[0] += f"{'B - A':>9}{'95 %':>20}{'p':>8}"
    for row in rows:
        line = f"{row['tiou']:<8}"
        for value, (low, high) in zip(row["map"], row["interval"], strict=True):
            line += f"{100 * value:7.2f}{f'[{100 * low:.2f}, {100 * high:.2f}]':>18}"
        if paired:
            low, high = row["difference_interval"]
            line += (
                f"{100 * row['difference']:+9.2f}{f'[{100 * low:+.2f}, {100 * high:+.2f}]':>20}{row['p_value']:8.3f}"
            )
        lines.append(line)
    return "\n".join(lines)


def _parse_args() -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m eval.compare",
        description="mAP with 95 % intervals by bootstrap over videos, of one detection file or of two, paired.",
    )
    add = parser.add_argument
    add("predictions", nargs="+", metavar="FILE", help="detections A, or A and B: ActivityNet JSON, or CSV")
    add_evaluation_options(parser)
    add("--protocol", choices=list(PROTOCOLS), default="seconds", help="default: seconds")
    add("--resamples", type=int, default=1000, help="how often the videos are drawn; default: 1000")
    add("--seed", type=int, default=0, help="of the draws; default: 0")
    return parser.parse_args()


def main() -> None:
    """The command line: one table on the screen."""
    args = _parse_args()
    if len(args.predictions) > 2:
        raise InputError(f"expected one or two detection files, got {len(args.predictions)}")
    inputs = read_inputs(args, args.predictions)
    results = evaluate_inputs(inputs, args.protocol)
    for name, path, result in zip("AB", args.predictions, results, strict=False):
        print(f"{name}: {path}")
        for note in result.notes:
            print(f"note: {note}")
    if inputs.grid:
        print(inputs.grid)
    print(f"mAP in percent, {args.protocol} protocol, {args.resamples} resamples of the videos, seed {args.seed}")
    progress = partial(tqdm, desc="resampling", unit="block", leave=False, delay=2)
    print(comparison_table(compare(results, inputs.means, args.resamples, args.seed, progress)))


if __name__ == "__main__":
    exit_on_input_error(main)
