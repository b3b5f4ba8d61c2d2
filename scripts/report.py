"""Write one self-contained HTML page of one or several finished runs.

python scripts/report.py runs/NAME [runs/OTHER ...] [--out FILE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from eval.html_report.finished_run import read_runs
from eval.html_report.page import render_report
from utils.errors import OneLineParser, exit_on_input_error
from utils.formats.files import write_text


def main() -> None:
    """Run the command."""
    parser = OneLineParser(
        prog="scripts/report.py",
        description="Write an HTML page of finished runs: results beside published ones, curves, classes, an error "
        "diagnosis, and every test video on a time axis. The page needs no network and no other file.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of main.py, all on one dataset")
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML file (default: report.html in the first RUN)")
    parser.add_argument(
        "--path-dataset", type=Path, metavar="DIR", help="folder with the annotations (default: as in the runs)"
    )
    args = parser.parse_args()
    page = render_report(read_runs(args.runs, args.path_dataset))
    out = args.out or args.runs[0] / "report.html"
    write_text(out, page)
    print(f"{out} ({len(page.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    exit_on_input_error(main)
