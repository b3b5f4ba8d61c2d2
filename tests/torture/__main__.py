"""Kills, damaged files and files of strangers, at random: nothing may be lost, wrong in silence, or run.

python -m tests.torture [--minutes N] [--seed S] [--only PART ...] [--markdown FILE] [--json FILE]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and PyTorch: all trainings are compared bit for bit

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.benchmarks.machine import describe_machine, machine_line
from tests.torture import page
from tests.torture.attempt import prepare_forks
from tests.torture.damage import run_damage
from tests.torture.kills import run_kills
from tests.torture.setting import Budget, Setting, make_setting
from tests.torture.strange_names import run_names
from tests.torture.strangers import all_cases, run_controls, run_strangers
from utils.errors import OneLineParser, exit_on_input_error
from utils.formats.files import write_json, write_text

SHARES = {"strangers": 0.3, "damage": 0.2, "kills": 0.5}  # of the time; a part that needs less leaves it to the next
SHOWN = 40  # failures on the screen; the JSON file has all

EPILOG = """\
strangers  hostile pickles, archives, HDF5, JSON, YAML and names, opened as the commands open them
damage     files that the project reads, one of them damaged at random: refused, the same, or a silent wrong number
kills      trainings killed at random moments and resumed until they end, compared with one that nobody disturbed

All of it in a temporary folder, on a small SIMULATED dataset, under Linux. Runs and inputs are numbered, and what is
done to each follows from --seed and its number; only the moment of a kill depends on the machine. A failure is
repeated by its number, and what it leaves is kept:

  python -m tests.torture --minutes 20 --seed 0 --markdown docs/reliability.md
  python -m tests.torture --only damage --seed 0 --first 1234 --damaged 1
"""


def main(argv: list[str] | None = None) -> None:
    """The command line: tables on the screen, a page and a JSON file on request; exit status 1 for any failure."""
    args = _parse_args(argv)
    machine = describe_machine(threads=1)
    print(machine_line(machine))
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    setting = None
    try:
        prepare_forks()
        began = time.monotonic()
        setting = make_setting(root, args.seed)
        tables, counts = _run_parts(args, setting, began)
        _tell(args, setting, tables, counts, machine, (time.monotonic() - began) / 60)
    finally:
        if setting is not None and setting.failures:
            _remove_all_but(setting.kept)
        else:
            shutil.rmtree(root, ignore_errors=True)
    if setting.failures:
        raise SystemExit(1)


def _run_parts(args: argparse.Namespace, setting: Setting, began: float) -> tuple[list[page.Table], dict]:
    """The asked parts after one another: their tables and, for the JSON file, their counts."""
    tables, counts = {}, {}
    end = began + 60 * args.minutes
    for part in args.only:
        share = SHARES[part] / sum(SHARES[other] for other in args.only[args.only.index(part) :])
        deadline = time.monotonic() + share * (end - time.monotonic())
        tables[part], counts[part] = _PARTS[part](setting, Budget(deadline, args.first, getattr(args, part)))
    return [table for part in ("kills", "damage", "strangers") for table in tables.get(part, [])], counts


def _kills(setting: Setting, budget: Budget) -> tuple[list[page.Table], dict]:
    counts = run_kills(setting, budget)
    return [page.kills_table(counts)], {name.strip(): count for name, count in counts.items()}


def _damage(setting: Setting, budget: Budget) -> tuple[list[page.Table], dict]:
    tally = run_damage(setting, budget)
    return page.damage_tables(tally), tally


def _strangers(setting: Setting, budget: Budget) -> tuple[list[page.Table], dict]:
    controls = run_controls(setting)
    names = run_names(setting, budget)
    tally = run_strangers(setting, budget)
    tables = [page.strangers_table(tally, len(all_cases(setting.seed))), page.names_table(names, controls)]
    return tables, {**tally, "names": names, "controls": {"ran": controls[0], "all": controls[1]}}


_PARTS = {"strangers": _strangers, "damage": _damage, "kills": _kills}


def _tell(
    args: argparse.Namespace,
    setting: Setting,
    tables: Sequence[page.Table],
    counts: dict,
    machine: dict,
    minutes: float,
) -> None:
    """The tables, where the failures lie, and the files that were asked for."""
    did = f"Seed {args.seed}, {minutes:.1f} minutes, on simulated features."
    for table in (*tables, page.failures_table(setting.failures)):
        print(f"\n{table.as_text()}")
    print()
    for failure in setting.failures[:SHOWN]:
        last = (failure.message.strip().splitlines() or [""])[-1][:200]
        print(f"{failure.kind}, {failure.part} {failure.number}: {failure.what}" + (f": {last}" if last else ""))
    print(f"\n{did}")
    if setting.failures:
        print(f"{len(setting.failures)} failures; the inputs of each part's first ones are in {setting.kept}")
    if args.json:
        failures = [asdict(failure) for failure in setting.failures]
        write_json(args.json, {"machine": machine, "seed": args.seed, **counts, "failures": failures}, indent=1)
    if args.markdown:
        command = ["python", "-m", "tests.torture", *args.words]
        write_text(args.markdown, page.as_page(tables, setting.failures, machine, command, did))
    written = [str(path) for path in (args.markdown, args.json) if path]
    print(f"written: {', '.join(written)}" if written else "nothing was written; see --markdown and --json")


def _remove_all_but(kept: Path) -> None:
    for path in kept.parent.iterdir():
        if path != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tests.torture",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=20.0, metavar="N", help="for all of it; default: 20")
    add("--seed", type=int, default=0, help="of everything that is drawn; default: 0")
    add("--only", nargs="+", choices=list(SHARES), default=list(SHARES), metavar="PART", help="see below; default: all")
    add("--kills", type=int, metavar="N", help="kills at most, however much time is left")
    add("--damaged", dest="damage", type=int, metavar="N", help="damaged inputs at most")
    add("--strangers", type=int, metavar="N", help="inputs of strangers at most, and one training")
    add("--first", type=int, default=0, metavar="N", help="number of the first run or input, to repeat one; default: 0")
    add("--markdown", type=Path, metavar="FILE", help="write a page of all this, as docs/reliability.md")
    add("--json", type=Path, metavar="FILE", help="write the counts and the failures")
    args = parser.parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    args.only = [part for part in SHARES if part in args.only]
    counts = [args.kills, args.damage, args.strangers]
    if (
        not 0 < args.minutes < float("inf")
        or args.seed < 0
        or args.first < 0
        or any(n is not None and n < 0 for n in counts)
    ):
        parser.error("--minutes must be above 0, and counts, --seed and --first at least 0")
    return args


if __name__ == "__main__":
    exit_on_input_error(main)
