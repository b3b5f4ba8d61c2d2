"""Simulate two-stream features over real annotations, or a small synthetic dataset for the demo.

python scripts/simulate_features.py --annotations FILE --out DIR [--dims 1024 1024] [--seed 0]
python scripts/simulate_features.py --demo --out DIR
python scripts/simulate_features.py --ave RELEASE --out data/ave        (AVE's own files, about 2 GB)
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
    """Run the simulation and print what it wrote."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    timeline = parser.add_mutually_exclusive_group(required=True)
    timeline.add_argument("--annotations", type=Path, help="annotations.json, or a release's annotation folder")
    timeline.add_argument("--demo", action="store_true", help="simulate 100 synthetic videos of 8 classes")
    timeline.add_argument(
        "--ave", type=Path, metavar="RELEASE", help="folder of AVE's released labels, for audio and visual features"
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--dims", type=int, nargs=2, metavar=("RGB", "FLOW"), help="channels (default: 1024 1024; demo: 256 256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the simulation (default: 0)")
    args = parser.parse_args()
    if args.ave:
        annotations = simulate_ave(args.ave, args.out, args.seed)
        print(f"simulated audio and visual features of {len(annotations.videos)} clips: {args.out}")
        return
    if args.demo:
        annotations = simulate_demo(args.out, tuple(args.dims or (256, 256)), args.seed)
    else:
        annotations = load_annotations(args.annotations)
        simulate_features(annotations, args.out, tuple(args.dims or (1024, 1024)), args.seed)
    features = args.out / "features.h5"
    size = features.stat().st_size / 1e6
    print(f"simulated features of {len(annotations.videos)} videos: {features} ({size:.1f} MB)")
    print(f"annotations: {args.out / 'annotations.json'}")
    print(f"checksums: {args.out / SUMS}")


if __name__ == "__main__":
    exit_on_input_error(main)
