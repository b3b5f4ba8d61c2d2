"""Write one self-contained HTML page of one or several finished runs, or of detection files.

python scripts/report.py runs/NAME [runs/OTHER ...] [--out FILE]
python scripts/report.py DETECTIONS.json [...] [--ground-truth annotations.json] [--out FILE]
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from eval.command import add_evaluation_options, read_inputs
from eval.html_report.detection_files import annotations_of, detection_file, is_detection_file, open_detections
from eval.html_report.finished_run import read_runs
from eval.html_report.page import render_detections, render_report
from utils.datasets import find_dataset
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.formats.files import write_text


def main() -> None:
    """Run the command."""
    parser = OneLineParser(
        prog="scripts/report.py",
        description="Write an HTML page. Of finished runs: results beside published ones, curves, classes, an error "
        "diagnosis, and every test video on a time axis. Of detection files with --ground-truth: the same without the "
        "training. Without it, and of runs without scores: only the videos. The page needs no network and no other "
        "file.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders of main.py, all on one dataset; or detection files (ActivityNet JSON or CSV), or output "
        "folders of test.py and scripts/detect.py",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML file (default: report.html in the first RUN)")
    parser.add_argument(
        "--path-dataset", type=Path, metavar="DIR", help="folder with the annotations of runs (default: as in the runs)"
    )
    add_evaluation_options(parser.add_argument_group("detection files"), required=False)
    args = parser.parse_args()
    if all(map(is_detection_file, args.runs)):
        page, out = detections_page(args), detection_file(args.runs[0]).with_suffix(".html")
        out = args.runs[0] / "report.html" if args.runs[0].is_dir() else out
    elif any(map(is_detection_file, args.runs)):
        raise InputError(
            "runs with scores cannot share a page with detection files or runs without scores; make a report of each"
        )
    elif args.ground_truth:
        raise InputError("--ground-truth is for detection files; the annotations of runs are in --path-dataset")
    else:
        page, out = render_report(read_runs(args.runs, args.path_dataset)), args.runs[0] / "report.html"
    out = args.out or out
    write_text(out, page)
    print(f"{out} ({len(page.encode()) / 1e6:.1f} MB)")


def detections_page(args: argparse.Namespace) -> str:
    """Return the page of detection files."""
    spec, inputs = find_dataset(args.dataset), None
    if args.tiou_thresholds:
        bounds = min(args.tiou_thresholds), max(args.tiou_thresholds)
        spec = replace(spec, tiou_thresholds=tuple(args.tiou_thresholds), average_ranges=(bounds,), main_range=bounds)
    if args.ground_truth:
        args.protocol = "all"
        inputs = read_inputs(args, [str(detection_file(path)) for path in args.runs])
    facts = {"ground truth": args.ground_truth or "none"}
    runs = open_detections(args.runs, spec, inputs, facts)
    annotations = annotations_of(runs, inputs, args.ground_truth)
    return render_detections(runs, annotations, inputs and inputs.truth)


if __name__ == "__main__":
    exit_on_input_error(main)
