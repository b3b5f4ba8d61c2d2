"""Reproduce a table of the papers, or Figure 5: train the runs that are missing, then compare the results.

python scripts/reproduce.py TABLE [--seeds 0 1 2] [--path-dataset DIR] [--base FILE] [--max-iter N]
"""

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from scripts.reproduction import execute, render, results
from scripts.reproduction.cost import format_duration, measure_cost
from scripts.reproduction.figure5 import draw_figure5
from scripts.reproduction.plan import ROOT, PlannedRun, Setting, Table, planned_runs, read_tables
from utils.engine import TABLE_PROTOCOLS
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.features.convert import find_features
from utils.features.simulate import simulate_demo
from utils.formats.files import write_text

FIGURE5 = "figure5"  # drawn from the runs of Table 6, these rows from top to bottom
FIGURE5_ROWS = ("CCM", "SE", "SSMA", "Concat", "Add")
# Simulated datasets by config: the default folder, and the command that creates it.
SIMULATED = {
    "demo": ("data/demo", "python scripts/simulate_features.py --demo --out data/demo"),
    "ave": ("data/ave", "python scripts/simulate_features.py --ave RELEASE --out data/ave"),
}

EPILOG = """\
tables:
  table1 ... table6       tables of the CO2-Net paper
  release                 the paper's choices where the authors' code differs from it
  av-table1, 2, 5         tables of the audio-visual paper on AVE; the dataset is data/ave by default, created by
                          python scripts/simulate_features.py --ave RELEASE --out data/ave
  av-table1-activitynet, av-table2-activitynet, av-table4, av-table5-activitynet
                          tables of the audio-visual paper on ActivityNet1.2
  figure5                 Figure 5 of the CO2-Net paper, from the runs of table6 with the first seed
  results                 a page like docs/results.md of all tables with finished runs in --run-dir; trains nothing

Each run is a run folder of main.py, RUN_DIR/BASE/DATASET/ROW_sSEED. Tables that have a row in common share its runs.
Ctrl-C stops safely. The same command continues and skips finished runs. Options that are not listed here are passed
to main.py for all runs, for example --device cpu.

examples:
  python scripts/reproduce.py table3 --path-dataset DIR                                 the paper's features
  python scripts/reproduce.py table6 --config configs/demo.yaml --seeds 0 1             simulated features, minutes
  python scripts/reproduce.py table3 --path-dataset DIR --base configs/thumos14_r2plus1d.yaml --max-iter 1000
  python scripts/reproduce.py table6 --path-dataset DIR --slurm slurm_partition=gpu gpus_per_node=1 timeout_min=240
  python scripts/reproduce.py results --markdown docs/results.md
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args, main_options = _parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # a cluster stops jobs with SIGTERM; some shells ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    if args.table == "results":
        _write_results(args, ["python", "scripts/reproduce.py", *(sys.argv[1:] if argv is None else argv)])
        return
    table = read_tables()["table6" if args.table == FIGURE5 else args.table]
    setting = _setting(args, table, main_options)
    seeds = args.seeds[:1] if args.table == FIGURE5 else args.seeds
    runs = planned_runs(table, setting, seeds)
    environments = execute.job_environments(args.jobs, runs[0].options.device == "cpu")
    todo = [run for run in runs if not run.is_done()]
    _print_plan(table, setting, runs, todo)
    if todo and args.slurm is None:
        _print_cost(setting, todo, environments)
    if args.plan:
        return
    failed = []
    if todo and args.slurm is not None:
        parameters = dict(item.partition("=")[::2] for item in args.slurm)
        failed = execute.run_on_slurm(todo, setting.folder / "slurm", parameters)
    elif todo:
        failed = execute.run_here(todo, environments)
    if args.table != FIGURE5:
        _print_results(table, setting, runs, args)
    elif not failed:
        _draw_figure5(table, setting, seeds[0], args.videos)
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
    add("table", choices=[*read_tables(), FIGURE5, "results"], metavar="TABLE", help="name of a table; see below")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds of each row (default: 0 1 2)")
    add("--path-dataset", type=Path, metavar="DIR", help="dataset folder (default: data/demo or data/ave)")
    add("--base", "--config", type=Path, metavar="FILE", help="config that the rows start from (default: the paper's)")
    add("--max-iter", metavar="N", help="iterations per run (default: the config's)")
    add(
        "--run-dir",
        type=Path,
        default=Path("runs/reproduce"),
        metavar="DIR",
        help="parent of the run folders (default: runs/reproduce)",
    )
    add("--jobs", type=int, default=1, metavar="N", help="concurrent runs per visible GPU, or on the CPU (default: 1)")
    add(
        "--slurm",
        nargs="*",
        metavar="NAME=VALUE",
        help="submit the runs to a SLURM cluster, with these parameters of submitit's executor",
    )
    add("--plan", action="store_true", help="print the runs and their estimated time, and stop")
    add(
        "--protocol",
        choices=TABLE_PROTOCOLS,
        default=TABLE_PROTOCOLS[0],
        help=f"protocol of the table (default: {TABLE_PROTOCOLS[0]})",
    )
    add(
        "--markdown", type=Path, metavar="FILE", help="Markdown file (default: TABLE.md beside the runs; results: none)"
    )
    add(
        "--csv",
        type=Path,
        metavar="FILE",
        help="CSV file of every run, checkpoint and protocol (default: TABLE.csv beside the runs; results: none)",
    )
    add(
        "--videos",
        nargs="+",
        default=[],
        metavar="VIDEO",
        help="test videos of figure5 (default: three with many segments)",
    )
    args, main_options = parser.parse_known_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}, expected at least 1")
    if args.slurm and (wrong := [item for item in args.slurm if "=" not in item]):
        parser.error(f"--slurm: expected NAME=VALUE, got '{wrong[0]}'")
    if args.table == "results" and main_options:
        parser.error(f"unrecognized arguments: {' '.join(main_options)}")
    if args.max_iter:
        main_options += ["--max-iter", args.max_iter]
    return args, main_options


def _setting(args: argparse.Namespace, table: Table, main_options: list[str]) -> Setting:
    """Return the setting of the runs. Creates the demo dataset if it is missing, as scripts/train.sh does."""
    base = args.base or Path(os.path.relpath(table.base))
    dataset = args.path_dataset
    if dataset is None:
        if base.stem not in SIMULATED:
            raise InputError("--path-dataset is missing: the folder with annotations.json and the features")
        default, command = SIMULATED[base.stem]
        dataset = Path(os.path.relpath(ROOT / default))
        if base.stem == "demo" and not any(find_features(dataset)):
            simulate_demo(dataset)
        elif not dataset.is_dir():
            raise InputError(f"--path-dataset is missing and {dataset} does not exist; create it with: {command}")
    return Setting(base, dataset, args.run_dir, tuple(main_options))


def _print_plan(table: Table, setting: Setting, runs: list[PlannedRun], todo: list[PlannedRun]) -> None:
    """Print the runs that are done and those that are not."""
    options = runs[0].options
    count = f"{len(runs)} run{'s' * (len(runs) > 1)} of {options.max_iter} iterations"
    print(f"{table.title}: {count} in {setting.folder}, {len(todo)} to do")
    for row in (row for row in table.rows if row.only not in (None, options.dataset)):
        print(f"  left out: {row.name} (only on {row.only})")
    for run in runs:
        print(f"  {run.name}: {'to do' if run in todo else 'done'}")


def _print_cost(setting: Setting, todo: list[PlannedRun], environments: list[execute.Environment]) -> None:
    """Print the estimated time of the runs on this machine."""
    cost = measure_cost(setting.folder, todo[0], environments[0])
    total, one = (format_duration(seconds) for seconds in (cost.of(todo) / len(environments), cost.of(todo[:1])))
    concurrent = f", {len(environments)} at a time" if len(environments) > 1 else ""
    print(f"estimate: {total} ({one} per run{concurrent}; {cost.source})", flush=True)


def _print_results(table: Table, setting: Setting, runs: list[PlannedRun], args: argparse.Namespace) -> None:
    """Print the table of the finished runs, and write it as Markdown and CSV."""
    finished = results.read_results(run.folder for run in runs if run.is_done())
    if finished.empty:
        return
    markdown = args.markdown or setting.folder / f"{table.key}.md"
    csv = args.csv or setting.folder / f"{table.key}.csv"
    for path in (markdown, csv):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(markdown, render.table_markdown(table, [finished], args.protocol) + f"\n\n{render.HOW_CHOSEN}\n")
    results.write_csv(csv, [table], [finished])
    print(f"\n{render.table_text(table, finished, args.protocol)}")
    print(f"{len(finished)} of {len(runs)} runs. Every seed, protocol and tIoU: {csv}. Markdown: {markdown}")


def _draw_figure5(table: Table, setting: Setting, seed: int, videos: list[str]) -> None:
    runs = {row.name: setting.run(row, seed) for row in table.rows if row.name in FIGURE5_ROWS}
    folders = {name: runs[name].folder for name in FIGURE5_ROWS}
    finished = results.read_results(folders.values())
    title = f"{render.features_of(finished)}, {render.heading(finished)}, seed {seed}"
    paths = draw_figure5(folders, setting.path_dataset, videos, setting.folder / FIGURE5, title)
    print(" ".join(map(str, paths)))


def _write_results(args: argparse.Namespace, command: list[str]) -> None:
    """Write the page of every table with finished runs, or print it."""
    tables = list(read_tables().values())
    groups = results.by_setting(results.read_results(results.find_runs(args.run_dir)))
    for path in filter(None, (args.markdown, args.csv)):
        path.parent.mkdir(parents=True, exist_ok=True)
    page = render.results_page(tables, groups, args.protocol, command)
    if args.csv:
        results.write_csv(args.csv, tables, groups)
    if args.markdown:
        write_text(args.markdown, page)
        print(f"{args.markdown}: {sum(map(len, groups))} finished runs")
    else:
        print(page)


if __name__ == "__main__":
    exit_on_input_error(main)
