"""The paper's tables and Figure 5, each by one command: what is not done yet is trained, then compared.

python scripts/reproduce.py TABLE [--seeds 0 1 2] [--path-dataset DIR] [--base FILE] [--max-iter N]
"""

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.reproduction import execute, render, results  # noqa: E402
from scripts.reproduction.cost import as_time, measure_cost  # noqa: E402
from scripts.reproduction.figure5 import draw_figure5  # noqa: E402
from scripts.reproduction.plan import ROOT, PlannedRun, Setting, Table, planned_runs, read_tables  # noqa: E402
from utils.engine import PROTOCOLS  # noqa: E402
from utils.errors import InputError, OneLineParser, exit_on_input_error  # noqa: E402
from utils.features.convert import features_in  # noqa: E402
from utils.features.simulate import simulate_demo  # noqa: E402

FIGURE5 = "figure5"  # drawn from the runs of Table 6, from top to bottom:
FIGURE5_ROWS = ("CCM", "SE", "SSMA", "Concat", "Add")
# By dataset, where a data set is looked for that was not named, and how it is made.
MADE = {
    "demo": (Path("data/demo"), "python scripts/simulate_features.py --demo --out data/demo"),
    "ave": (Path("data/ave"), "python scripts/simulate_features.py --ave RELEASE --out data/ave"),
}

EPILOG = """\
TABLE    table1 to table6: the paper's; release: the paper's choices where the release differs from it
         av-table1, 2 and 5: the audio-visual paper's on AVE, in data/ave unless --path-dataset says otherwise; features
         for it are simulated by python scripts/simulate_features.py --ave RELEASE --out data/ave
         av-table1-activitynet, 2 and 5, av-table4: the same paper's on ActivityNet1.2
         figure5: the picture, from the runs of table6 with the first seed
         results: a page of every table that has finished runs in --run-dir, as docs/results.md; trains nothing

Each run is a folder of main.py, RUN_DIR/BASE/DATASET/ROW_sSEED; tables that share a row share its runs. Ctrl-C stops
safely, the same command continues and repeats nothing. Other options are main.py's, for all runs (--device cpu).

  python scripts/reproduce.py table3 --path-dataset DIR                                 the paper's features
  python scripts/reproduce.py table6 --config configs/demo.yaml --seeds 0 1             simulated, minutes
  python scripts/reproduce.py table3 --path-dataset DIR --base configs/thumos14_r2plus1d.yaml --max-iter 1000
  python scripts/reproduce.py table6 --path-dataset DIR --slurm slurm_partition=gpu gpus_per_node=1 timeout_min=240
  python scripts/reproduce.py results --markdown docs/results.md
"""


def main(argv: list[str] | None = None) -> None:
    arguments, more = _parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # a cluster's stop is a Ctrl-C, also where a shell ignores that
        signal.signal(number, signal.default_int_handler)
    if arguments.table == "results":
        return _write_results(arguments)
    table = read_tables()["table6" if arguments.table == FIGURE5 else arguments.table]
    setting = _setting(arguments, table, more)
    seeds = arguments.seeds[:1] if arguments.table == FIGURE5 else arguments.seeds
    runs = planned_runs(table, setting, seeds)
    places = execute.slots(arguments.jobs, runs[0].options.device == "cpu")
    todo = _tell_plan(table, setting, runs, places, arguments.slurm is not None)
    if arguments.plan:
        return None
    failed = []
    if todo and arguments.slurm is not None:
        parameters = dict(item.partition("=")[::2] for item in arguments.slurm)
        failed = execute.run_on_slurm(todo, setting.folder / "slurm", parameters)
    elif todo:
        failed = execute.run_here(todo, places)
    if arguments.table == FIGURE5 and not failed:
        _draw(table, setting, seeds[0], arguments.videos)
    elif arguments.table != FIGURE5:
        _tell_results(table, setting, runs, arguments)
    if failed:
        raise InputError(f"runs that failed: {', '.join(run.name for run in failed)}")
    return None


def _parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = OneLineParser(
        prog="scripts/reproduce.py",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("table", choices=[*read_tables(), FIGURE5, "results"], metavar="TABLE", help="see below")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    add("--path-dataset", type=Path, metavar="DIR", help="folder of the data set; default: data/demo or data/ave")
    add("--base", "--config", type=Path, metavar="FILE", help="config that the rows start from; default: the paper's")
    add("--max-iter", metavar="N", help="iterations of each run; default: the config's")
    add("--run-dir", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="default: runs/reproduce")
    add(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time on each visible GPU, or on the CPU; default: 1"
    )
    add(
        "--slurm", nargs="*", metavar="NAME=VALUE", help="send the runs to a cluster; parameters of submitit's executor"
    )
    add("--plan", action="store_true", help="only print the runs and what they would cost")
    add("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help=f"of the table; default: {PROTOCOLS[0]}")
    add("--markdown", type=Path, metavar="FILE", help="default: TABLE.md beside the runs; results: the screen")
    add("--csv", type=Path, metavar="FILE", help="every seed; default: TABLE.csv beside the runs; results: none")
    add("--videos", nargs="+", default=[], metavar="VIDEO", help="of figure5; default: three full of instances")
    arguments, more = parser.parse_known_args(argv)
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}, expected at least 1")
    if arguments.slurm and (wrong := [item for item in arguments.slurm if "=" not in item]):
        parser.error(f"--slurm: '{wrong[0]}' is not NAME=VALUE")
    return arguments, more


def _setting(arguments: argparse.Namespace, table: Table, more: list[str]) -> Setting:
    """Where the runs start from; makes the demo's data, as scripts/train.sh does."""
    base = arguments.base or Path(os.path.relpath(table.base))
    data = arguments.path_dataset
    if data is None:
        if base.stem not in MADE:
            raise InputError("--path-dataset is missing: the folder with annotations.json and the features")
        place, command = MADE[base.stem]
        data = Path(os.path.relpath(ROOT / place))
        if base.stem == "demo" and not any(features_in(data)):
            simulate_demo(data)
        elif not data.is_dir():
            raise InputError(f"--path-dataset is missing, and so is {data}; make it: {command}")
    if arguments.max_iter:
        more = [*more, "--max-iter", arguments.max_iter]
    return Setting(base, data, arguments.run_dir, tuple(more))


def _tell_plan(
    table: Table, setting: Setting, runs: list[PlannedRun], places: list, elsewhere: bool
) -> list[PlannedRun]:
    """Print what is done, what is to do and what it costs here; returns what is to do."""
    todo = [run for run in runs if not run.is_done()]
    iterations = runs[0].options.max_iter
    count = f"{len(runs)} run{'s' * (len(runs) > 1)} of {iterations} iterations"
    print(f"{table.title}: {count} in {setting.folder}, {len(todo)} to do")
    for row in (row for row in table.rows if row.only not in (None, runs[0].options.dataset)):
        print(f"  left out: {row.name} (only on {row.only})")
    for run in runs:
        print(f"  {run.name}: {'to do' if run in todo else 'done'}")
    if todo and not elsewhere:
        cost = measure_cost(setting.folder, todo[0], places[0])
        total, one = cost.of(todo) / len(places), cost.of(todo[:1])
        at_once = f", {len(places)} at a time" if len(places) > 1 else ""
        print(f"estimate: {as_time(total)} ({as_time(one)} a run{at_once}; {cost.source})", flush=True)
    return todo


def _tell_results(table: Table, setting: Setting, runs: list[PlannedRun], arguments: argparse.Namespace) -> None:
    """Print the table of the runs that are done, and write its Markdown and CSV."""
    columns = results.columns_of(results.results_of(runs))
    if not columns:
        return
    (column,) = columns
    markdown = arguments.markdown or setting.folder / f"{table.key}.md"
    csv = arguments.csv or setting.folder / f"{table.key}.csv"
    render.write(markdown, render.as_markdown(table, [column], arguments.protocol) + f"\n{render.HOW_CHOSEN}\n")
    results.write_csv(csv, [table], [column])
    print(f"\n{render.as_text(table, column, arguments.protocol)}")
    print(
        f"{len(column.results)} of {len(runs)} runs; both protocols, every tIoU and seed: {csv}; Markdown: {markdown}"
    )


def _draw(table: Table, setting: Setting, seed: int, videos: list[str]) -> None:
    rows = {row.name: row for row in table.rows}
    runs = {name: setting.run(rows[name], seed) for name in FIGURE5_ROWS}
    (column,) = results.columns_of(results.results_of(list(runs.values())))
    title = f"{column.features}, config {column.base}, {column.iterations} iterations, seed {seed}"
    folders = {name: run.folder for name, run in runs.items()}
    paths = draw_figure5(folders, setting.path_dataset, videos, setting.folder / FIGURE5, title)
    print(" ".join(map(str, paths)))


def _write_results(arguments: argparse.Namespace) -> None:
    tables, columns = list(read_tables().values()), results.columns_of(results.find_results(arguments.run_dir))
    command = ["python", "scripts/reproduce.py", "results"]
    if arguments.run_dir != Path("runs/reproduce"):
        command += ["--run-dir", str(arguments.run_dir)]
    for name in ("markdown", "csv"):
        if path := getattr(arguments, name):
            command += [f"--{name}", str(path)]
    page = render.results_page(tables, columns, arguments.protocol, command)
    if arguments.markdown:
        render.write(arguments.markdown, page)
        print(f"{arguments.markdown}: {sum(len(column.results) for column in columns)} finished runs")
    else:
        print(page)
    if arguments.csv:
        results.write_csv(arguments.csv, tables, columns)


if __name__ == "__main__":
    try:
        exit_on_input_error(main)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command continues") from None
