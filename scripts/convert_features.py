"""Convert features in any format to features.h5 or shards of it, with checksums, annotations.json and SHA256SUMS.

python scripts/convert_features.py SOURCE --out DIR [--modalities rgb flow] [--subsets test] [--fps 25 --stride 16]
                                   [--shards N] [--split rgb:0:1024 flow:1024:2048] [--suffix rgb flow] [--transpose]
                                   [--rescaled] [--drop-inverted]

SOURCE is a dataset folder or a feature file in any layout of docs/data.md. Values stay as they are; float64 becomes
float32.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from utils.annotations import load_annotations
from utils.errors import InputError, OneLineParser, count_noun, exit_on_input_error
from utils.features.convert import convert_features, find_features
from utils.features.layouts import Arrangement, parse_split
from utils.features.store import open_features, read_durations, stored_arrangement
from utils.formats.checksums import SUMS


def main() -> None:
    """Run the converter and print what it wrote."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="dataset folder, or feature file with annotations beside it")
    parser.add_argument("--out", type=Path, required=True, help="output folder, other than the source's")
    parser.add_argument("--modalities", nargs="+", help="modalities to convert (default: all)")
    parser.add_argument("--subsets", nargs="+", help="annotated subsets to convert (default: every video)")
    parser.add_argument("--fps", type=float, help="frames per second, if the features do not store their rate")
    parser.add_argument("--stride", type=float, help="frames per snippet, if the features do not store their rate")
    parser.add_argument("--shards", type=int, metavar="N", help="number of output files of about equal size")
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="NAME:FIRST:LAST",
        help="modalities and their channels (LAST excluded), if one array per video has all of them",
    )
    parser.add_argument("--suffix", nargs="+", metavar="NAME", help="modalities, if files are <video_id>_NAME.npy")
    parser.add_argument("--transpose", action="store_true", help="read the arrays as (channels, snippets)")
    parser.add_argument(
        "--rescaled",
        action="store_true",
        help="bring features of a fixed number of snippets per video back to real time, by the annotated durations",
    )
    parser.add_argument(
        "--drop-inverted", action="store_true", help="leave out annotated segments that end before they start"
    )
    args = parser.parse_args()
    if (args.fps is None) != (args.stride is None):
        parser.error("--fps and --stride go together: their quotient is the snippet rate")
    stored = stored_arrangement(args.source)
    folder = args.source if args.source.is_dir() else args.source.parent
    arrangement = Arrangement(
        split=parse_split(_pairs(args.split), "--split") if args.split else stored.split,
        transpose=args.transpose,
        suffixes=tuple(args.suffix or ()),
        durations=read_durations(folder) if args.rescaled else stored.durations,
    )
    conversions = convert_features(
        args.source,
        args.out,
        modalities=args.modalities,
        subsets=args.subsets,
        fps=args.fps,
        stride=args.stride,
        shards=args.shards,
        arrangement=arrangement,
        drop_inverted=args.drop_inverted,
    )
    source = open_features(args.out, None).source
    print(f"{'modality':12} {'videos':>7} {'channels':>9} {'snippets/s':>11}  dtype")
    for row in conversions:
        rate = source.rate(row.modality).snippet_rate
        print(f"{row.modality:12} {row.videos:7} {row.channels:9} {rate:11g}  {', '.join(row.dtypes)}")
        if "float64" in row.dtypes:
            print(f"{'':12} float64 became float32")
    if cut := max(row.cut for row in conversions):
        print(f"{count_noun(cut, 'video')} with modalities of different length, which were cut to the shorter")
    annotations = load_annotations(args.out)
    if args.drop_inverted:
        dropped = load_annotations(folder, drop_inverted=True).num_dropped
        print(f"{count_noun(dropped, 'annotated segment')} with the end before the start, left out")
    kind = "SIMULATED features" if source.simulated else "features"
    size = sum(path.stat().st_size for path in find_features(args.out)) / 1e6
    print(f"{kind}: {source.path} ({size:.1f} MB)")
    print(f"annotations: {args.out / 'annotations.json'} ({count_noun(len(annotations.videos), 'video')})")
    print(f"checksums: {args.out / SUMS}")


def _pairs(words: list[str]) -> dict[str, list[int]]:
    """Return NAME:FIRST:LAST as {NAME: [FIRST, LAST]}."""
    parts = [word.split(":") for word in words]
    for word, part in zip(words, parts, strict=True):
        if len(part) != 3 or not all(bound.isdecimal() for bound in part[1:]):
            raise InputError(f"--split: expected NAME:FIRST:LAST such as rgb:0:1024, got '{word}'")
    return {name: [int(first), int(last)] for name, first, last in parts}


if __name__ == "__main__":
    exit_on_input_error(main)
