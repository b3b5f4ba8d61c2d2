"""Features of any readable form -> features.h5, or shards of it, with checksums, annotations.json and SHA256SUMS.

python scripts/convert_features.py SOURCE --out DIR [--modalities rgb flow] [--subsets test] [--fps 25 --stride 16]
                                   [--shards N]

SOURCE is a dataset folder or a feature file: a release's joint .npy beside its *-Annotations folder, one .npy a video
in folders by modality, or HDF5. Values and dtype stay as they are (float64 becomes float32).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from utils.annotations import load_annotations
from utils.errors import OneLineParser, exit_on_input_error
from utils.features.convert import convert_features, features_in
from utils.features.store import open_features
from utils.formats.checksums import SUMS


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a dataset folder or a feature file, with annotations beside it")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made, another than the source's")
    parser.add_argument("--modalities", nargs="+", help="which to convert (default: all that are stored)")
    parser.add_argument("--subsets", nargs="+", help="only these subsets' videos (default: all, annotated or not)")
    parser.add_argument("--fps", type=float, help="frames a second, where the features do not say it")
    parser.add_argument("--stride", type=float, help="frames a snippet, where the features do not say it")
    parser.add_argument("--shards", type=int, metavar="N", help="write N files of about equal size in place of one")
    arguments = parser.parse_args()
    if (arguments.fps is None) != (arguments.stride is None):
        parser.error("--fps and --stride go together: their quotient is the snippet rate")
    rate = {"fps": arguments.fps, "stride": arguments.stride}
    converted = convert_features(
        arguments.source,
        arguments.out,
        modalities=arguments.modalities,
        subsets=arguments.subsets,
        shards=arguments.shards,
        **rate,
    )
    source = open_features(arguments.out, None).source
    print(f"{'modality':12} {'videos':>7} {'channels':>9} {'snippets/s':>11}  dtype")
    for row in converted:
        per_second = source.rate(row.modality).snippet_rate
        print(f"{row.modality:12} {row.videos:7} {row.channels:9} {per_second:11g}  {', '.join(row.dtypes)}")
        if "float64" in row.dtypes:
            print(f"{'':12} float64 became float32")
    annotations = load_annotations(arguments.out)
    made = "SIMULATED features" if source.simulated else "features"
    size = sum(path.stat().st_size for path in features_in(arguments.out)) / 1e6
    print(f"{made}: {source.path} ({size:.1f} MB)")
    print(f"annotations: {arguments.out / 'annotations.json'} ({len(annotations.videos)} videos)")
    print(f"checksums: {arguments.out / SUMS}")


if __name__ == "__main__":
    exit_on_input_error(main)
