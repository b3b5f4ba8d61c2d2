"""Reproduce tables of the papers, or Figure 5: train the runs that the ledger lacks, then compare the results.

python scripts/reproduce.py TABLE ... [--config FILE ...] [--path-dataset DIR] [--seeds 0 1 2] [--budget 90m]
"""

import argparse
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from scripts.reproduction import execute, render
from scripts.reproduction.cost import Cost, format_duration, known_cost, parse_duration, probe_cost
from scripts.reproduction.figure5 import draw_figure5
from scripts.reproduction.ledger import LEDGER, append_runs, contains, ledger_row, read_ledger
from scripts.reproduction.plan import ROOT, PlannedRun, Setting, Table, planned_runs, read_tables
from scripts.reproduction.results import SETTING, by_setting, rows_that_ran
from scripts.reproduction.rivals import add_comparisons, compare_methods, with_comparisons
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.features.convert import find_features
from utils.features.simulate import simulate_demo
from utils.run.slurm import slurm_parameter

Pairs = list[tuple[Table, Setting]]

ALL, FIGURE5, RESULTS = "all", "figure5", "results"
ALL_CONFIGS = [Path("configs") / f"{name}.yaml" for name in ("thumos14_r2plus1d", "thumos14_swapped_r2plus1d")]
FIGURE5_ROWS = ("CCM", "SE", "SSMA", "Concat", "Add")  # rows of Table 6, from top to bottom
# Simulated datasets by config: the default folder, and the command that creates it.
SIMULATED = {
    "demo": ("data/demo", "python scripts/simulate_features.py --demo --out data/demo"),
    "ave": ("data/ave", "python scripts/simulate_features.py --ave RELEASE --out data/ave"),
}

EPILOG = """\
tables:
  table1 ... table6       tables of the CO2-Net paper
  rivals, rivals-activitynet
                          other methods beside CO2-Net, on THUMOS14 and on ActivityNet1.2, each with its own settings;
                          also their difference to CO2-Net, size and cost
  beyond                  additions to CO2-Net, with their difference to it: feature scale, average of weights,
                          self-training, second stage, pool of seeds
  release                 the paper's choices where the authors' code differs from it
  release-code            the release's choices where this code differs from it
  scale                   Tables 5 and 6 with features multiplied by a number
  av-table1, 2, 5         tables of the audio-visual paper on AVE; the dataset is data/ave by default, created by
                          python scripts/simulate_features.py --ave RELEASE --out data/ave
  av-table1-activitynet, av-table2-activitynet, av-table4, av-table5-activitynet
                          tables of the audio-visual paper on ActivityNet1.2
  all                     every table about the method of --config (default: CO2-Net, both splits of THUMOS14)
  figure5                 Figure 5 of the CO2-Net paper, from the runs of table6 with the first seed
  results                 the pages docs/results.md and docs/results/TABLE.md, from the ledger; trains nothing

Every finished run becomes a row of the ledger, docs/results/runs.csv. A run that the ledger has is not repeated, not
even on another machine. Tables that have a row in common share its runs. All rows run with the first seed, then with
the next one. Ctrl-C and the end of the budget stop safely, and the same command continues. Options that are not listed
here are passed to main.py for all runs, for example --device cpu.

examples:
  python scripts/reproduce.py table3 --path-dataset DIR                                 the paper's features
  python scripts/reproduce.py table6 --config configs/demo.yaml --seeds 0 1             simulated features, minutes
  python scripts/reproduce.py all --path-dataset DIR --budget 90m --jobs 2              both splits of THUMOS14
  python scripts/reproduce.py table3 table5 --path-dataset DIR --config configs/thumos14_r2plus1d.yaml --max-iter 1000
  python scripts/reproduce.py table6 --path-dataset DIR --slurm slurm_partition=gpu gpus_per_node=1 timeout_min=240
  python scripts/reproduce.py results --add runs/gpu/runs.csv                           runs of another machine
"""


def main(argv: list[str] | None = None) -> None:
    """Reproduce the tables that the command line names."""
    began = time.monotonic()
    args, main_options = _parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # a cluster stops jobs with SIGTERM; some shells ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    if args.tables == [RESULTS]:
        _write_results(args)
        return
    pairs = _pairs(args, main_options)
    is_figure = args.tables == [FIGURE5]
    runs = planned_runs(pairs, args.seeds[:1] if is_figure else args.seeds)
    environments = execute.job_environments(args.jobs, args.runs_per_gpu, runs[0].options.device == "cpu")
    ledger = read_ledger(args.ledger)
    todo = [run for run in runs if is_figure or not contains(ledger, run)]
    finished = [run for run in todo if run.is_done()]  # folders that the ledger lacks
    if finished:
        append_runs(args.ledger, [ledger_row(run) for run in finished])
    todo = [run for run in todo if run not in finished]
    # Runs to follow, whose folders are missing although the ledger has them
    needed = {first.folder for run in todo for first in run.after if not first.is_done()}
    todo = [run for run in runs if run in todo or run.folder in needed]
    _print_plan(pairs, runs, todo)
    sample = next((first for run in todo for first in (*run.after, run)), None)
    cost = known_cost(ledger, sample) if sample else None
    if todo and args.slurm is None and not args.budget:
        cost = cost or probe_cost(sample, environments[0])
        _print_cost(cost, todo, len(environments))
    if args.plan:
        return
    deadline = began + args.budget if args.budget else math.inf

    compared = [pair for pair in pairs if pair[0].compares_methods]
    kept = {run.folder for run in planned_runs(compared, args.seeds)}  # their comparison needs the folders

    def record(run: PlannedRun, seconds: float | None, jobs: int) -> None:
        append_runs(args.ledger, [ledger_row(run, seconds, jobs)])
        if args.delete_runs and run.folder not in kept:
            shutil.rmtree(run.folder)

    failed = []
    if todo and args.slurm is not None:
        failed = execute.run_on_slurm(todo, record, pairs[0][1].folder / "slurm", dict(args.slurm))
    elif todo:
        expected = cost.of(todo[:1]) if cost else 0.0
        failed = execute.run_here(todo, environments, record, deadline, expected)
    if not is_figure:
        for table, setting in compared:
            if time.monotonic() < deadline:  # it takes minutes
                compare_methods(table, setting, args.seeds, args.ledger)
        if args.delete_runs and time.monotonic() < deadline:
            for folder in kept:
                shutil.rmtree(folder, ignore_errors=True)
        _print_results(pairs, runs, args.ledger)
    elif not failed:
        _draw_figure5(*pairs[0], args.seeds[0], args.videos)
    if failed:
        raise InputError(f"runs that failed: {', '.join(run.name for run in failed)}")


def _parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this command, and those of main.py."""
    parser = OneLineParser(
        prog="scripts/reproduce.py",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    names = [*read_tables(), ALL, FIGURE5, RESULTS]
    add("tables", nargs="+", choices=names, metavar="TABLE", help="names of tables; see below")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds of each row (default: 0 1 2)")
    add("--path-dataset", type=Path, metavar="DIR", help="dataset folder (default: data/demo or data/ave)")
    add(
        "--config",
        "--base",
        type=Path,
        action="append",
        metavar="FILE",
        help="config that the rows start from; may be given several times (default: the paper's)",
    )
    add("--max-iter", metavar="N", help="iterations per run (default: the config's)")
    add(
        "--run-dir",
        type=Path,
        default=Path("runs/reproduce"),
        metavar="DIR",
        help="parent of the run folders (default: runs/reproduce)",
    )
    add(
        "--ledger",
        type=Path,
        default=Path(os.path.relpath(LEDGER)),
        metavar="FILE",
        help="CSV file with one row per finished run (default: docs/results/runs.csv)",
    )
    add("--budget", type=_duration, metavar="TIME", help="time after which the command stops, such as 90m or 1.5h")
    add("--jobs", type=int, default=1, metavar="N", help="concurrent runs on the CPU (default: 1)")
    add("--runs-per-gpu", type=int, default=1, metavar="N", help="concurrent runs per visible GPU (default: 1)")
    add("--delete-runs", action="store_true", help="delete the folders of finished runs, to save disk space")
    add(
        "--slurm",
        type=slurm_parameter,
        nargs="*",
        metavar="NAME=VALUE",
        help="submit the runs to a SLURM cluster, with these parameters of submitit's executor",
    )
    add("--plan", action="store_true", help="print the runs and their estimated time, but train nothing")
    add(
        "--add",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="ledgers of other machines to add to the ledger, with `results`",
    )
    add("--docs", type=Path, default=Path("docs"), metavar="DIR", help="folder of the pages of results (default: docs)")
    add(
        "--videos",
        nargs="+",
        default=[],
        metavar="VIDEO",
        help="test videos of figure5 (default: three with many segments)",
    )
    args, main_options = parser.parse_known_args(argv)
    for name in ("jobs", "runs_per_gpu"):
        if (number := getattr(args, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} is {number}, expected at least 1")
    for name in (FIGURE5, RESULTS):
        if name in args.tables and len(args.tables) > 1:
            parser.error(f"{name} cannot be combined with other tables, got {' '.join(args.tables)}")
    if args.tables == [RESULTS] and main_options:
        parser.error(f"unrecognized arguments: {' '.join(main_options)}")
    if args.tables == [FIGURE5] and args.delete_runs:
        parser.error("figure5 needs the run folders; leave out --delete-runs")
    if args.max_iter:
        main_options += ["--max-iter", args.max_iter]
    return args, main_options


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _pairs(args: argparse.Namespace, main_options: list[str]) -> Pairs:
    """Return each table to run with each of its settings."""
    tables = read_tables()
    names = ["table6"] if args.tables == [FIGURE5] else args.tables
    if ALL in names:
        settings = [_setting(args, config, main_options) for config in args.config or ALL_CONFIGS]
        methods = [setting.base_options()["method"] for setting in settings]
        return [
            (table, setting)
            for setting, method in zip(settings, methods, strict=True)
            for table in tables.values()
            if table.method == method and table.is_about(setting.base_options()["dataset"])
        ]
    pairs = []
    for name in names:
        configs = args.config or [Path(os.path.relpath(tables[name].base))]
        pairs += [(tables[name], _setting(args, config, main_options)) for config in configs]
    return pairs


def _setting(args: argparse.Namespace, config: Path, main_options: list[str]) -> Setting:
    """Return the setting of one config. Creates the demo dataset if it is missing, as scripts/train.sh does."""
    dataset = args.path_dataset
    if dataset is None:
        if config.stem not in SIMULATED:
            raise InputError("--path-dataset is missing: the folder with annotations.json and the features")
        default, command = SIMULATED[config.stem]
        dataset = Path(os.path.relpath(ROOT / default))
        if config.stem == "demo" and not any(find_features(dataset)):
            simulate_demo(dataset)
        elif not dataset.is_dir():
            raise InputError(f"--path-dataset is missing and {dataset} does not exist; create it with: {command}")
    return Setting(config, dataset, args.run_dir, tuple(main_options))


def _print_plan(pairs: Pairs, runs: list[PlannedRun], todo: list[PlannedRun]) -> None:
    """Print the runs that are done and those that are not, one line per row and setting."""
    for table, setting in pairs:
        dataset = setting.base_options()["dataset"]
        print(f"{table.title}: {setting.base}, {setting.path_dataset}")
        for row in (row for row in table.rows if row.only not in (None, dataset)):
            print(f"  left out: {row.name} (only on {row.only})")
    iterations = sorted({run.options.max_iter for run in runs})
    count = f"{len(runs)} run{'s' * (len(runs) > 1)} of {' or '.join(map(str, iterations))} iterations"
    print(f"{count}, {len(todo)} to do")
    for place in dict.fromkeys((run.folder.parent, run.identity["key"]) for run in runs):
        states = {True: [], False: []}
        for run in runs:
            if (run.folder.parent, run.identity["key"]) == place:
                states[run in todo] += map(str, run.seeds)
        texts = [f"{word}: {' '.join(states[key])}" for key, word in ((False, "done"), (True, "to do")) if states[key]]
        print(f"  {place[0] / place[1]}, seeds {', '.join(texts)}")


def _print_cost(cost: Cost, todo: list[PlannedRun], concurrent: int) -> None:
    """Print the estimated time of the runs on this machine."""
    total, one = (format_duration(seconds) for seconds in (cost.of(todo) / concurrent, cost.of(todo[:1])))
    at_a_time = f", {concurrent} at a time" if concurrent > 1 else ""
    print(f"estimate: {total} ({one} per run{at_a_time}; {cost.source})", flush=True)


def _print_results(pairs: Pairs, runs: list[PlannedRun], path: Path) -> None:
    """Print the tables of the runs that the ledger has."""
    ledger = read_ledger(path)
    groups = {tuple(group.iloc[0][SETTING]): group for group in by_setting(ledger)}
    for table, setting in pairs:
        identity = setting.base_run().identity
        identity = {**identity, "base_iterations": identity["iterations"]}
        group = groups.get(tuple(identity[name] for name in SETTING))
        if group is not None and rows_that_ran(table, group):
            group = with_comparisons(group, path) if table.compares_methods else group
            print(f"\n{render.table_text(table, group)}")
    print(f"\n{sum(contains(ledger, run) for run in runs)} of {len(runs)} runs in {path}")


def _draw_figure5(table: Table, setting: Setting, seed: int, videos: list[str]) -> None:
    runs = {row.name: setting.run(row, seed) for row in table.rows if row.name in FIGURE5_ROWS}
    folders = {name: runs[name].folder for name in FIGURE5_ROWS}
    first = ledger_row(runs[FIGURE5_ROWS[0]])
    prefix = "SIMULATED " if first["simulated"] else ""
    title = f"{prefix}{first['base']} on {first['data']}, {first['iterations']} iterations, seed {seed}"
    paths = draw_figure5(folders, setting.path_dataset, videos, setting.folder / FIGURE5, title)
    print(" ".join(map(str, paths)))


def _write_results(args: argparse.Namespace) -> None:
    """Add the ledgers of other machines, and write the pages."""
    for path in args.add:
        if not path.is_file():
            raise InputError(f"--add {path}: not found")
        add_comparisons(args.ledger, path)
    append_runs(args.ledger, pd.concat(map(read_ledger, [args.ledger, *args.add])))
    ledger = read_ledger(args.ledger)
    paths = render.write_pages(args.docs, list(read_tables().values()), by_setting(ledger), args.ledger)
    print(f"{args.docs / 'results.md'}: {len(ledger)} runs, {len(paths)} files")


if __name__ == "__main__":
    exit_on_input_error(main)
