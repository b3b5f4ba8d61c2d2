"""Measure speed and memory, as ratios to plain code and as shares of the machine's best.

python scripts/benchmark.py [SUBJECT ...] [--quick] [--threads N] [--device cpu] [--json FILE] [--out FILE.md]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from scripts.benchmarks import data, evaluation, extract, infer, localization, memory, scaling, train
from scripts.benchmarks.machine import describe_machine, machine_line, usable_cores
from scripts.benchmarks.measure import Settings, device_name
from scripts.benchmarks.page import check_page, write_page
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.formats.files import write_json
from utils.run.devices import choose_device

SUBJECTS = {
    "train": train.measure,
    "infer": infer.measure,
    "evaluation": evaluation.measure,
    "localization": localization.measure,
    "data": data.measure,
    "extract": extract.measure,
    "memory": memory.measure,
    "scaling": scaling.measure,
}

EPILOG = """\
train         one training step at THUMOS14's size and at 512 + 512 channels, in float32 and, on a device with
              bfloat16 instructions, in bf16: rate, share of a large matrix product, peak memory, and the parts of
              the step; ratio to the network and losses as the paper states them (results compared)
infer         one pass over a test subset of THUMOS14's size: forward, localization, scores (results compared)
evaluation    mAP of 31,587 to 10 million synthetic detections, from arrays, on one thread: ratio to a plain matcher
              that takes one detection after another (results compared), and peak memory; then the whole command on
              files in JSON, CSV and Parquet: ratio to json.load and a loop over the rows (results compared)
localization  from T-CAM and attention of 100 to 5,000 snippets to detections: ratio to the paper's loops (results
              compared)
data          one batch of 10 x 500 snippets of 2048 channels: ratio to a loop over its videos (results compared), and
              share of the machine's copy bandwidth
extract       video to features: frames per second decoded, clips per second of I3D, and share of time in which the
              backbone waits for frames; needs PyAV
memory        main.py itself: peak memory and time until the first step, at THUMOS14's size and for 40,000 videos
scaling       growth of cost with videos, snippets and classes; torchrun with 1 and 2 processes

Seconds vary between machines and between hours. Compare ratios and shares: both sides are measured in turns in one
run. A row that is slower than plain code is an error, reported after all tables. All data are simulated. The whole
command takes about ten minutes on two cores, 4 GB of memory and 1 GB of a temporary folder. With --quick the sizes are
small; its figures mean nothing.

  python scripts/benchmark.py data
  python scripts/benchmark.py all --out docs/performance.md
  python scripts/benchmark.py extract --out docs/performance.md
  python scripts/benchmark.py evaluation --files annotations.json detections.json
"""


def main() -> None:
    """Run the command: print tables, and write a page and a JSON file on request."""
    args = _parse_args()
    if args.out:
        check_page(args.out)
    device = choose_device(args.device)
    machine = {**describe_machine(args.threads), "gpu": device_name(device) if device.type == "cuda" else None}
    print(machine_line(machine))
    chosen = [] if "all" in args.subjects else [name for name in SUBJECTS if name in args.subjects]
    names = chosen or list(SUBJECTS)
    settings = Settings(args.quick, args.threads, args.device, args.files)
    began, tables = time.monotonic(), []
    for number, name in enumerate(names, 1):
        results = SUBJECTS[name](settings)
        print("".join(f"\n{table.as_text()}\n" for table in results), end="", flush=True)
        tables += results
        # After each subject, so that a command that is stopped leaves those before.
        if args.json:
            write_json(args.json, {"machine": machine, **{table.name: table.rows for table in tables}}, indent=1)
        if args.out:
            minutes = (time.monotonic() - began) / 60
            write_page(args.out, tables, names[number:], machine, sys.argv[1:], minutes, chosen)
    slower = [line for table in tables for line in table.slower_rows()]
    if slower and not args.quick:
        raise InputError("slower than plain code: " + "; ".join(slower))


def _parse_args() -> argparse.Namespace:
    parser = OneLineParser(
        prog="scripts/benchmark.py",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "subjects",
        nargs="*",
        choices=[*SUBJECTS, "all"],
        default="all",
        metavar="SUBJECT",
        help="subjects to measure (see below; default: all)",
    )
    add("--quick", action="store_true", help="use small sizes: seconds instead of minutes, and figures without meaning")
    add("--threads", type=int, default=usable_cores(), metavar="N", help="threads of PyTorch (default: all cores)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="device of the network (default: auto)")
    add(
        "--files",
        nargs=2,
        metavar=("ANNOTATIONS", "DETECTIONS"),
        help="annotations and detections on THUMOS14 to measure as well (subject evaluation)",
    )
    add("--json", type=Path, metavar="FILE", help="file to write the figures to, not rounded")
    add(
        "--out",
        type=Path,
        metavar="FILE.md",
        help="page whose section of this kind of device and these subjects to write",
    )
    args = parser.parse_args()
    if args.threads < 1:
        parser.error(f"--threads {args.threads}: expected at least 1")
    for name, path in (("--json", args.json), ("--out", args.out)):  # before minutes of measuring
        if path and (path.is_dir() or not path.parent.is_dir()):
            parser.error(f"{name} {path}: expected a file in an existing folder")
    return args


if __name__ == "__main__":
    exit_on_input_error(main)
