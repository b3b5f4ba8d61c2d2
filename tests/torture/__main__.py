"""Kill trainings, damage files and write hostile ones, at random: nothing may be lost, silently wrong, or run.

python -m tests.torture [--minutes N] [--seed S] [--only PART ...] [--markdown FILE] [--json FILE]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and PyTorch: all trainings are compared bit for bit

import argparse
import math
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.torture import page
from tests.torture.kills import run_kills
from tests.torture.names import run_names
from tests.torture.training_process import prepare_forks
from tests.torture.trials import Stage, run_controls, run_examples, run_inputs
from tests.torture.workspace import Budget, Workspace, make_workspace
from utils.errors import OneLineParser, exit_on_input_error
from utils.formats.files import write_json, write_text

SHARES = {"examples": 0.2, "inputs": 0.4, "kills": 0.4}  # of the time; a part that needs less leaves it to the next
ON_SCREEN = 40  # failures; the JSON file has all

EPILOG = """\
examples  hostile files written by hand, hostile names, and a control
inputs    files drawn by hypothesis: damaged, with a changed value, or hostile
kills     trainings killed at random moments and resumed until they end

All of it happens in a temporary folder, on a small SIMULATED dataset, under Linux. The seed and the number of a run, a
batch or an example decide everything but the moment of a kill. A failure keeps its files, and its number repeats it:

  python -m tests.torture --minutes 10 --seed 0 --markdown docs/reliability.md
  python -m tests.torture --only inputs --seed 0 --first 12 --inputs 100
"""


def main(argv: list[str] | None = None) -> None:
    """Run the parts, print the tables, write what was asked for; exit with status 1 for any failure."""
    args = _parse_args(argv)
    root, before = Path(tempfile.mkdtemp(prefix="torture-")), Path.cwd()
    workspace, start = Workspace(root, args.seed), time.monotonic()
    try:
        prepare_forks()
        workspace = make_workspace(root, args.seed)
        tables, counts = _run_parts(args, workspace, start)
        os.chdir(before)
        _report(args, workspace, tables, counts, (time.monotonic() - start) / 60)
    finally:
        os.chdir(before)
        for path in root.iterdir():
            if path != workspace.copies:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not workspace.failures:
            root.rmdir()
    if workspace.failures:
        raise SystemExit(1)


def _run_parts(args: argparse.Namespace, workspace: Workspace, start: float) -> tuple[list[str], dict]:
    """Run the parts in turn; return their tables and, for the JSON file, their counts."""
    tables, counts, end = {}, {}, start + 60 * args.minutes
    stage = Stage(workspace) if {"examples", "inputs"} & set(args.only) else None
    for number, part in enumerate(args.only):
        share = SHARES[part] / sum(SHARES[other] for other in args.only[number:])
        budget = Budget(time.monotonic() + share * (end - time.monotonic()), args.first, getattr(args, part))
        if part == "kills":
            counts[part] = run_kills(workspace, budget)
            rows = list(counts[part].items())
            tables[part] = [page.table("Kills", ("kills of a training", "count"), rows)]
        elif part == "inputs":
            counts[part] = run_inputs(workspace, stage, budget)
            tables[part] = [page.inputs_table("Drawn inputs", counts[part])]
        else:
            controls, names = run_controls(workspace), run_names(workspace, budget)
            counts |= {"names": names, "controls": dict(zip(("run", "all"), controls, strict=True))}
            counts[part] = run_examples(workspace, stage, budget)
            tables[part] = [page.inputs_table("Explicit inputs", counts[part]), page.names_table(names, controls)]
    return [table for part in reversed(SHARES) for table in tables.get(part, [])], counts


def _report(args: argparse.Namespace, workspace: Workspace, tables: list[str], counts: dict, minutes: float) -> None:
    """Print the tables and the failures, and write the files that were asked for."""
    text = page.as_page(tables, workspace.failures, args.words, minutes)
    print(text)
    for failure in workspace.failures[:ON_SCREEN]:
        last = (failure.message.strip().splitlines() or [""])[-1][:200]
        print(f"{failure.kind}, {failure.part} {failure.number}: {failure.what}: {last}")
    if workspace.failures:
        print(f"{len(workspace.failures)} failures; the files of the first ones of each part are in {workspace.copies}")
    if args.json:
        failures = [asdict(failure) for failure in workspace.failures]
        write_json(args.json, {"seed": args.seed, **counts, "failures": failures}, indent=1)
    if args.markdown:
        write_text(args.markdown, text)


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tests.torture",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, metavar="N", help="Time limit of the whole run (default: 10)")
    add("--seed", type=int, default=0, help="Seed of everything that is drawn (default: 0)")
    add("--only", nargs="+", choices=list(SHARES), default=list(SHARES), metavar="PART", help="Parts to run, see below")
    add("--kills", type=int, metavar="N", help="Largest number of kills")
    add("--inputs", type=int, metavar="N", help="Largest number of drawn inputs")
    add("--examples", type=int, metavar="N", help="Largest number of explicit inputs; skips trainings with bad names")
    add("--first", type=int, default=0, metavar="N", help="Number of the first run, batch or example (default: 0)")
    add("--markdown", type=Path, metavar="FILE", help="Page to write, such as docs/reliability.md")
    add("--json", type=Path, metavar="FILE", help="File for the counts and all failures")
    args = parser.parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    args.only = [part for part in SHARES if part in args.only]
    counts = [args.kills, args.inputs, args.examples, args.seed, args.first]
    if not 0 < args.minutes < math.inf or any(number is not None and number < 0 for number in counts):
        parser.error("expected --minutes above 0, and counts, --seed and --first of at least 0")
    return args


if __name__ == "__main__":
    exit_on_input_error(main)
