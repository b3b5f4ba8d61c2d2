"""One self-contained HTML page of one or several finished runs.

python scripts/report.py runs/NAME [runs/OTHER ...] [--out FILE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.html_report.finished_run import read_runs  # noqa: E402
from eval.html_report.page import render_report  # noqa: E402
from utils.errors import OneLineParser, exit_on_input_error  # noqa: E402
from utils.formats.files import write_text  # noqa: E402


def main() -> None:
    parser = OneLineParser(
        prog="scripts/report.py",
        description="A page to read and to look at: results beside the published ones, curves, classes, where the "
        "detections go wrong, and every test video on a time axis. It needs no network and no other file.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of main.py, one dataset")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the first run folder")
    parser.add_argument(
        "--path-dataset", type=Path, metavar="DIR", help="folder with annotations.json; default: as the run was told"
    )
    arguments = parser.parse_args()
    page = render_report(read_runs(arguments.runs, arguments.path_dataset))
    out = arguments.out or arguments.runs[0] / "report.html"
    write_text(out, page)
    print(f"{out} ({len(page.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    exit_on_input_error(main)
