"""How fast the project is, as ratios measured in one run and as shares of what the machine can do.

python scripts/benchmark.py [evaluation|localisation|sampling|training|all] [--quick] [--json FILE]
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import describe_machine, machine_line  # noqa: E402
from benchmarks.table import format_table  # noqa: E402

from utils.errors import OneLineParser, exit_on_input_error  # noqa: E402
from utils.files import write_json  # noqa: E402

SUBJECTS = ("evaluation", "localisation", "sampling", "training")

EPILOG = """\
evaluation    mAP of 31,587 to 10 million made detections, from arrays, one thread: against a plain matcher that takes
              one detection after another (results compared), and peak memory, each size in a process of its own
localisation  T-CAM and attention of 100 to 5,000 snippets -> detections, against the paper's loops (results compared)
sampling      a batch of 10 x 500 snippets of 2048 channels from memory, against a loop over its videos (results
              compared), and as a share of the machine's copy bandwidth
training      a step at THUMOS14's size and at 512 + 512 channels, in float32 and, where the processor or the GPU has
              it, bfloat16: TFLOP/s, as a share of the machine's own matrix product or convolution

A second varies from machine to machine and from hour to hour. Compare ratios and shares: both sides of each were
measured in turns in the same run. All of it takes some minutes and 3 GB of memory on one core; --quick runs every
path on small sizes, for a look and for the tests: its figures mean nothing.

  python scripts/benchmark.py sampling
  python scripts/benchmark.py all --json benchmark.json
  python scripts/benchmark.py evaluation --files annotations.json detections.json
"""


def main() -> None:
    """The command line: a table a subject, one JSON file on request."""
    args = _parse_args()
    report = {"machine": describe_machine(args.threads)}
    print(machine_line(report["machine"]))
    for name in SUBJECTS if args.subject == "all" else [args.subject]:
        subject = import_module(f"benchmarks.{name}")  # here, so that evaluation does not wait for torch
        rows = subject.measure(args.quick, args.threads, args.device, args.files)
        report[name] = rows
        print(f"\n{subject.TITLE}\n{format_table(subject.COLUMNS, rows)}")
        print("\n".join(f"  {note}" for note in subject.NOTES), flush=True)
    if args.json:
        write_json(args.json, report, indent=1)


def _parse_args() -> argparse.Namespace:
    parser = OneLineParser(
        prog="scripts/benchmark.py",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("subject", nargs="?", choices=[*SUBJECTS, "all"], default="all", help="see below; default: all")
    add("--quick", action="store_true", help="small sizes, seconds instead of minutes")
    add("--threads", type=int, default=1, metavar="N", help="PyTorch's threads; default: 1, to compare machines by")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="of training; default: auto")
    add("--files", nargs=2, metavar=("ANNOTATIONS", "DETECTIONS"), help="evaluation: a THUMOS14 list of yours as well")
    add("--json", type=Path, metavar="FILE", help="write the figures here, unrounded")
    args = parser.parse_args()
    if args.threads < 1:
        parser.error(f"--threads {args.threads}: expected at least 1")
    return args


if __name__ == "__main__":
    exit_on_input_error(main)
