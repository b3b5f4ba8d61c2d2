"""How fast the project is, as ratios measured in one run and as shares of what the machine can do.

python scripts/benchmark.py [SUBJECT] [--quick] [--threads N] [--device cpu] [--json FILE] [--out docs/performance.md]
"""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import Settings, describe_machine, machine_line, usable_cores  # noqa: E402
from benchmarks.table import Measured  # noqa: E402

from utils.errors import OneLineParser, exit_on_input_error  # noqa: E402
from utils.formats.files import write_json  # noqa: E402

SUBJECTS = ("train", "infer", "evaluation", "localization", "data", "memory", "scaling")

EPILOG = """\
train         a step at THUMOS14's size and at 512 + 512 channels, in float32 and, where the processor or the GPU has
              it, bfloat16: TFLOP/s, as a share of a large matrix product, peak memory, its parts, and the ratio to the
              paper's network and losses written as they read (results compared)
infer         a pass over a test subset of THUMOS14's size: forward, localization, scoring (results compared)
evaluation    mAP of 31,587 to 10 million made detections, from arrays, one thread: against a plain matcher that takes
              one detection after another (results compared), and peak memory, each size in a process of its own
localization  T-CAM and attention of 100 to 5,000 snippets -> detections, against the paper's loops (results compared)
data          a batch of 10 x 500 snippets of 2048 channels, against a loop over its videos (results compared), and as
              a share of the machine's copy bandwidth
memory        main.py itself: peak memory and time until the first step, at THUMOS14's size and for up to 40,000 videos
scaling       growth of cost with videos, snippets and classes; torchrun with 1 and 2 processes

A second varies from machine to machine and from hour to hour. Compare ratios and shares: both sides of each were
measured in turns in the same run. All data are simulated. All of it takes about ten minutes on two cores, 4 GB of
memory and 1 GB of a temporary folder; --quick runs every path on small sizes, for a look and for the tests: its
figures mean nothing.

  python scripts/benchmark.py data
  python scripts/benchmark.py all --out docs/performance.md
  python scripts/benchmark.py evaluation --files annotations.json detections.json
"""


def main() -> None:
    """The command line: tables on the screen; a page and a JSON file on request."""
    args = _parse_args()
    settings = Settings(args.quick, args.threads, args.device, args.files)
    machine = {**describe_machine(args.threads), "gpu": _gpu(args)}
    print(machine_line(machine))
    asked = SUBJECTS if args.subject == "all" else (args.subject,)
    if args.out:
        from benchmarks.page import require_own, write_page

        require_own(args.out)
    began, tables = time.monotonic(), []
    for name in asked:
        subject = import_module(f"benchmarks.{name}")  # here, so that evaluation does not wait for torch
        tables += _told(subject.measure(settings))
    if args.json:
        write_json(args.json, {"machine": machine, **{table.name: table.rows for table in tables}}, indent=1)
    if args.out:
        not_run = [name for name in SUBJECTS if name not in asked]
        write_page(args.out, tables, not_run, machine, sys.argv[1:], (time.monotonic() - began) / 60)


def _told(tables: list[Measured]) -> list[Measured]:
    for table in tables:
        print(f"\n{table.as_text()}", flush=True)
    return tables


def _gpu(args: argparse.Namespace) -> str | None:
    """The GPU's name where the network runs on one; evaluation and localization alone need no PyTorch to know."""
    if args.device == "cpu" or (args.subject in ("evaluation", "localization") and not args.out):
        return None
    import torch

    from utils.engine import choose_device

    device = choose_device(args.device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


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
    add("--threads", type=int, default=usable_cores(), metavar="N", help="PyTorch's threads; default: all cores")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="of the network; default: auto")
    add("--files", nargs=2, metavar=("ANNOTATIONS", "DETECTIONS"), help="evaluation: a THUMOS14 list of yours as well")
    add("--json", type=Path, metavar="FILE", help="write the figures here, unrounded")
    add(
        "--out",
        type=Path,
        metavar="FILE.md",
        help="write a page, as docs/performance.md, or its section of this device",
    )
    args = parser.parse_args()
    if args.threads < 1:
        parser.error(f"--threads {args.threads}: expected at least 1")
    for name, path in (("--json", args.json), ("--out", args.out)):  # now, and not after ten minutes
        if path and (path.is_dir() or not path.parent.is_dir()):
            parser.error(f"{name} {path}: expected a file in a folder that is there")
    return args


if __name__ == "__main__":
    exit_on_input_error(main)
