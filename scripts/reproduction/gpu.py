"""Stages of scripts/gpu.sh: everything that needs a GPU, within a given time."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from eval.tables import format_table
from scripts.benchmarks.machine import usable_cores
from scripts.reproduction.execute import print_with_time
from scripts.reproduction.ledger import LEDGER, read_ledger
from scripts.reproduction.plan import ROOT
from utils.annotations import find_annotations
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.formats.files import write_text
from utils.run.folder import REVISION

# Share of the time of each stage, in order. A stage may use what those before it leave.
STAGES = {"tests": 2, "benchmark": 4, "full": 2, "tables": 4}
FULL_EXPERIMENT, FULL_DATA = "table1", "thumos14_simulated"
SUMMARY_SECONDS = 5  # left for the summary
START_SECONDS = 10  # of a stage's time, for the start and the end of Python
KILL_SECONDS = 10  # from SIGTERM to SIGKILL
IN_MEMORY, IN_MEMORY_BYTES = Path("/dev/shm"), 20e9  # for run folders, so that checkpoints do not wait for the disk

EPILOG = """\
stages:
  tests       the tests that need a GPU
  benchmark   scripts/benchmark.py infer train: eager and compiled, float32 and bf16
  full        training at THUMOS14's full size on SIMULATED features: 5,000 iterations, 25 evaluations
  tables      runs of scripts/reproduce.py that the ledger lacks, several at a time, until the time is up

The folder --out DIR then has runs.csv, the ledger with the new runs; rivals.csv, their differences to CO2-Net;
performance.md with the benchmark's section; summary.txt and logs/. The differences need all runs of a table within the
time. python scripts/reproduce.py results --add DIR/runs.csv adds the new runs to docs/. Each stage has its share of the
time. A stage that hangs is stopped, a stage that fails is reported, and the next one runs. Options
that are not listed here are passed to main.py for the runs of the tables, for example --precision float32.
"""


@dataclass
class Stage:
    """One stage: its commands and its result."""

    name: str
    commands: Callable[[float], Sequence[list[str]]]  # from the seconds of the stage
    figures: Callable[[str], str]  # from the output
    text: str = "no time left"
    seconds: float = 0.0
    status: str = "not run"

    def run(self, log: Path, seconds: float) -> None:
        """Run the commands one after another, log their output to a file, and stop them after these seconds."""
        began, self.status = time.monotonic(), "ok"
        print_with_time(f"{self.name}: at most {seconds:.0f} s, log {log}")
        with log.open("w") as file:
            for command in self.commands(seconds):
                self.status = run_command(command, file, began + seconds - time.monotonic())
                if self.status != "ok":
                    break
        self.seconds, self.text = time.monotonic() - began, self.figures(log.read_text(errors="replace"))
        print_with_time(f"{self.name}: {self.status} after {self.seconds:.0f} s, {self.text}")


def run_command(command: list[str], file: TextIO, seconds: float) -> str:
    """Run one command, end its whole process group, and return `ok`, `timeout` or `failed`."""
    file.write(f"$ {' '.join(command)}\n")
    file.flush()
    process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return "failed" if process.wait(max(0.0, seconds)) else "ok"
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:  # also on Ctrl-C
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILL_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(argv: list[str] | None = None) -> None:
    """Run the stages of the command line, and write a summary."""
    began = time.monotonic()
    args, main_options = _parse_args(argv)
    if args.revision:
        os.environ[REVISION] = args.revision
    end = began + 60 * args.minutes - SUMMARY_SECONDS
    logs = args.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for source in (LEDGER, *([] if args.rehearse else [ROOT / "docs" / "performance.md"])):
        target = args.out / source.name
        if source.exists() and not target.exists():  # runs not to repeat; the benchmark's section of the CPU
            shutil.copyfile(source, target)
    in_memory = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > IN_MEMORY_BYTES
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if in_memory else None) as work:
        stages = [stage for stage in make_stages(args, main_options, Path(work)) if stage.name in args.stages]
        for number, stage in enumerate(stages):
            shares = [STAGES[later.name] for later in stages[number:]]
            seconds = (end - time.monotonic()) * shares[0] / sum(shares)
            if seconds > 0:
                stage.run(logs / f"{stage.name}.txt", seconds)
    (args.out / f".{LEDGER.name}.lock").unlink(missing_ok=True)
    device = "CPU" if args.rehearse else torch.cuda.get_device_name()
    rows = [[stage.name, stage.status, f"{stage.seconds:.0f}", stage.text] for stage in stages]
    table = format_table([["stage", "ended", "seconds", "figures"], *rows], left=4)
    minutes = (time.monotonic() - began) / 60
    summary = f"{device}, PyTorch {torch.__version__}, {minutes:.1f} of {args.minutes:g} minutes; results in {args.out}"
    write_text(args.out / "summary.txt", f"{summary}\n{table}\n")
    print(f"\n{summary}\n{table}")
    if wrong := [stage.name for stage in stages if stage.status != "ok"]:
        raise InputError(f"stages that did not finish: {', '.join(wrong)}; see {logs}")


def make_stages(args: argparse.Namespace, main_options: list[str], work: Path) -> list[Stage]:
    """Return all stages.

    Args:
        args: Options of this command.
        main_options: Options of main.py for the runs of the tables.
        work: Temporary folder for features and run folders.
    """
    ledger, python = args.out / "runs.csv", sys.executable
    before = len(read_ledger(ledger))
    simulated = work / FULL_DATA
    reproduce = [
        python,
        "scripts/reproduce.py",
        "--ledger",
        str(ledger),
        "--run-dir",
        str(work / "runs"),
        "--delete-runs",
    ]

    def budget(seconds: float) -> list[str]:
        return ["--budget", f"{max(1.0, seconds - START_SECONDS):.0f}s"]

    def tests(_: float) -> list[list[str]]:
        files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
        return [[python, "-m", "pytest", "-q", "-m", "gpu", *map(str, files)]]

    def benchmark(_: float) -> list[list[str]]:
        tiny = ["--quick", "--device", "cpu"] if args.rehearse else []
        return [[python, "scripts/benchmark.py", "infer", "train", "--out", str(args.out / "performance.md"), *tiny]]

    def full(seconds: float) -> list[list[str]]:
        command = [*reproduce, FULL_EXPERIMENT, "--path-dataset", str(simulated), "--seeds", "0", *budget(seconds)]
        if args.rehearse:
            features = ["--demo", "--dims", "32", "32"]
            command += ["--config", "configs/demo.yaml", "--max-iter", "4", "--eval-every", "2", "--device", "cpu"]
        else:
            features = ["--annotations", str(find_annotations(args.path_dataset))]
            command += ["--config", "configs/thumos14.yaml", "--precision", "bf16", "--cache", "device"]
        return [[python, "scripts/simulate_features.py", *features, "--out", str(simulated)], command]

    def full_figures(_: str) -> str:
        runs = read_ledger(ledger)
        runs = runs[(runs["data"] == FULL_DATA) & runs["experiment"].str.startswith(FULL_EXPERIMENT)]
        if runs.empty:
            return "no finished run"
        run = runs.sort_values("finished").iloc[-1]
        count = run["iterations"] // run["eval_every"]
        return (
            f"SIMULATED: {run['iterations']:,} iterations and {count} evaluations in {run['seconds']:.0f} s, "
            f"last {run['last/snippet/mean']:.1f}"
        )

    def tables(seconds: float) -> list[list[str]]:
        command = [*reproduce, *args.tables, *budget(seconds), "--seeds", *map(str, args.seeds)]
        if args.rehearse:
            command += ["--path-dataset", str(simulated), "--max-iter", "2", "--jobs", "3", "--device", "cpu"]
        else:
            command += ["--path-dataset", str(args.path_dataset), "--runs-per-gpu", str(args.runs_per_gpu)]
            command += ["--device", "cuda", "--cache", "device"]
        return [[*command, *(word for config in args.config for word in ("--config", config)), *main_options]]

    def tables_figures(output: str) -> str:
        counts = [line for line in output.splitlines() if line.endswith(f"runs in {ledger}")]
        return f"{len(read_ledger(ledger)) - before} runs added by all stages; {counts[-1] if counts else 'no table'}"

    return [
        Stage("tests", tests, _last_line),
        Stage("benchmark", benchmark, lambda _: f"see {args.out / 'performance.md'}"),
        Stage("full", full, full_figures),
        Stage("tables", tables, tables_figures),
    ]


def _last_line(output: str) -> str:
    return output.strip().splitlines()[-1].strip("= ")


def _parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this command, and those of main.py."""
    parser = OneLineParser(
        prog="scripts/gpu.sh",
        description="Run everything that needs a GPU, in stages, within the given minutes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("minutes", nargs="?", type=float, metavar="MINUTES", help="time for all stages (default with --rehearse: 10)")
    add("--rehearse", action="store_true", help="rehearse all stages with tiny data on the CPU")
    add("--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="folder of the results (default: runs/gpu)")
    add(
        "--path-dataset",
        type=Path,
        default=Path("data/thumos14"),
        metavar="DIR",
        help="dataset folder of the tables, with THUMOS14's annotations (default: data/thumos14)",
    )
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages to run (default: all)")
    add("--tables", nargs="+", default=["all"], metavar="TABLE", help="tables of scripts/reproduce.py (default: all)")
    add(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="config of the tables; may be given several times (default: both splits of THUMOS14, R(2+1)D-18 features)",
    )
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds of each row (default: 0 1 2)")
    add(
        "--runs-per-gpu",
        type=int,
        default=max(1, usable_cores() // 2),
        metavar="N",
        help="concurrent runs of the tables (default: one per two cores)",
    )
    add("--revision", metavar="REVISION", help="revision of the code, for a copy without git")
    args, main_options = parser.parse_known_args(argv)
    if args.rehearse:
        args.minutes = args.minutes or 10.0
        args.tables, args.seeds, args.config = ["table5"], [0], ["configs/demo.yaml"]
        return args, main_options
    if args.minutes is None or not args.minutes > 0:
        parser.error(f"MINUTES is {args.minutes}, expected a positive number, as in: bash scripts/gpu.sh 30")
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU; rehearse on the CPU with: bash scripts/gpu.sh --rehearse")
    if {"full", "tables"} & {*args.stages} and not find_annotations(args.path_dataset):
        parser.error(f"--path-dataset {args.path_dataset}: no annotations.json")
    if args.tables != ["all"] and not args.config:
        args.config = [f"configs/{name}.yaml" for name in ("thumos14_r2plus1d", "thumos14_swapped_r2plus1d")]
    return args, main_options


if __name__ == "__main__":
    exit_on_input_error(main)
