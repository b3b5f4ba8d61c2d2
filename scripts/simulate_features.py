"""Simulated two-stream features over a real timeline, or a small invented data set for the demo.

python scripts/simulate_features.py --annotations FILE --out DIR [--dims 1024 1024] [--seed 0]
python scripts/simulate_features.py --demo --out DIR
python scripts/simulate_features.py --ave RELEASE --out data/ave        (about 2 GB: AVE's files, in their own layout)
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from utils.annotations import load_annotations
from utils.errors import OneLineParser, exit_on_input_error
from utils.features.simulate import simulate_demo, simulate_features
from utils.features.simulate_ave import simulate_ave
from utils.formats.checksums import SUMS


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    timeline = parser.add_mutually_exclusive_group(required=True)
    timeline.add_argument("--annotations", type=Path, help="annotations.json, or a release's annotation folder")
    timeline.add_argument("--demo", action="store_true", help="invent 100 videos of 8 classes")
    timeline.add_argument(
        "--ave",
        type=Path,
        metavar="RELEASE",
        help="AVE's released labels; audio and visual features",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for features.h5, annotations.json, SHA256SUMS")
    parser.add_argument("--dims", type=int, nargs=2, metavar=("RGB", "FLOW"), help="widths (1024 1024; demo: 256 256)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    if arguments.ave:
        annotations = simulate_ave(arguments.ave, arguments.out, arguments.seed)
        print(f"simulated audio and visual features of {len(annotations.videos)} clips: {arguments.out}")
        return
    if arguments.demo:
        annotations = simulate_demo(arguments.out, tuple(arguments.dims or (256, 256)), arguments.seed)
    else:
        annotations = load_annotations(arguments.annotations)
        simulate_features(annotations, arguments.out, tuple(arguments.dims or (1024, 1024)), arguments.seed)
    features = arguments.out / "features.h5"
    size = features.stat().st_size / 1e6
    print(f"simulated features of {len(annotations.videos)} videos: {features} ({size:.1f} MB)")
    print(f"their annotations: {arguments.out / 'annotations.json'}, checksums of both: {arguments.out / SUMS}")


if __name__ == "__main__":
    exit_on_input_error(main)
