"""Execution of runs on this machine, or on a SLURM cluster through submitit."""

import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.benchmarks.machine import usable_cores
from scripts.reproduction.cost import format_duration, last_line
from scripts.reproduction.plan import PlannedRun
from utils.formats.files import read_json_lines
from utils.run.slurm import run_jobs

POLL = 0.2  # seconds
STOP_SECONDS = 10  # time for runs to save their state before the end of the budget
Environment = Mapping[str, str]
Record = Callable[[PlannedRun, float | None, int], None]  # run, seconds of an uninterrupted run, concurrent runs


def job_environments(jobs: int, runs_per_gpu: int, cpu_only: bool) -> list[Environment]:
    """Return one environment per concurrent run: `runs_per_gpu` per visible GPU, or `jobs` on the CPU.

    All of them share the CPU's threads.
    """
    count = 0 if cpu_only else torch.cuda.device_count()
    total = count * runs_per_gpu or jobs
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or usable_cores()) // total)
    common = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if not count:
        return [common] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    return [{**common, "CUDA_VISIBLE_DEVICES": name} for name in names * runs_per_gpu]


def print_with_time(text: str) -> None:
    """Print a line that begins with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@dataclass
class _Job:
    """One run in progress. Its output goes to logs/NAME.txt beside the run folders."""

    run: PlannedRun
    environment: Environment

    def __post_init__(self):
        self.start, self.is_fresh = time.monotonic(), not (self.run.folder / "checkpoints").exists()
        self.last_record = None
        self.log = self.run.folder.parent / "logs" / f"{self.run.name}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as file:
            # In its own process group, so that Ctrl-C does not reach it directly and a second time.
            self.process = subprocess.Popen(
                self.run.command, env={**self.environment}, stdout=file, stderr=file, start_new_session=True
            )

    def print_progress(self) -> None:
        """Print one line per new evaluation."""
        path = self.run.folder / "log.jsonl"
        records = read_json_lines(path) if path.exists() else []
        if records and records[-1] != self.last_record:
            self.last_record = record = records[-1]
            scores = record["scores"]
            accuracies = [value for name, value in scores.items() if name.endswith("/accuracy")]
            text = f"snippet accuracy {100 * accuracies[0]:.1f}, " if accuracies else ""
            text += f"mean mAP {100 * scores['snippet/mean_mAP']:.1f} (all tIoU)"
            print_with_time(f"  {self.run.name}: iteration {record['iteration']}, {text}")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def has_succeeded(self) -> bool:
        """Return True if the ended process succeeded; report it otherwise."""
        if self.process.returncode:
            print_with_time(f"  {self.run.name} FAILED: {last_line(self.log.read_text())} (full output: {self.log})")
        return not self.process.returncode

    def wait(self, deadline: float) -> None:
        """Wait for the end of a terminated run. Ctrl-C or the deadline kills it."""
        seconds = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
        try:
            self.process.wait(seconds)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def run_here(
    runs: Sequence[PlannedRun],
    environments: Sequence[Environment],
    record: Record,
    deadline: float = math.inf,
    expected_seconds: float = 0.0,
) -> list[PlannedRun]:
    """Execute runs on this machine, one per environment at a time, and return those that failed.

    On Ctrl-C each run in progress saves its state and the program ends. The same command continues.

    Args:
        runs: Runs in order.
        environments: One per concurrent run.
        record: Called with each finished run.
        deadline: End on the clock `time.monotonic`. A run that would not end in time does not start. A run still in
            progress saves its state.
        expected_seconds: Duration of a run, until one has finished.
    """
    waiting, active, failed, durations = list(enumerate(runs, 1)), {}, [], []
    ended, start, last_moment = 0, time.monotonic(), deadline - STOP_SECONDS
    try:
        while waiting or active:
            expected = statistics.median(durations) if durations else expected_seconds
            if waiting and time.monotonic() + expected > last_moment:
                print_with_time(
                    f"{len(waiting)} of {len(runs)} runs do not fit into the budget; the same command continues"
                )
                waiting.clear()
            for slot, environment in enumerate(environments):
                unfinished = [run for _, run in waiting] + [job.run for job in active.values()]
                ready = [pair for pair in waiting if not follows(pair[1], unfinished)]
                if slot not in active and ready:
                    number, run = ready[0]
                    waiting.remove(ready[0])
                    print_with_time(f"[{number}/{len(runs)}] {run.name} starts")
                    active[slot] = _Job(run, environment)
            time.sleep(POLL)
            for slot, job in list(active.items()):
                has_ended = job.process.poll() is not None
                job.print_progress()
                if has_ended:
                    del active[slot]
                    if job.has_succeeded():
                        durations.append(job.seconds)
                        record(job.run, job.seconds if job.is_fresh else None, len(environments))
                    else:
                        blocked = [pair for pair in waiting if follows(pair[1], [job.run])]
                        waiting = [pair for pair in waiting if pair not in blocked]
                        failed += [job.run, *(run for _, run in blocked)]
                        for _, run in blocked:
                            print_with_time(f"  {run.name} does not start, because it follows {job.run.name}")
                    ended, more = ended + 1, len(waiting) + len(active)
                    left = (time.monotonic() - start) / ended * more
                    print_with_time(
                        f"  {ended} of {len(runs)} ended, about {format_duration(left)} left for {more} more"
                    )
            if active and time.monotonic() > last_moment:
                print_with_time(f"the budget ends: {len(active)} runs save their state; the same command continues")
                _stop(active.values(), deadline)
                active.clear()
    except KeyboardInterrupt:
        print_with_time("stopping: each run in progress saves its state")
        _stop(active.values(), math.inf)
        raise SystemExit("stopped; the same command continues") from None
    return failed


def follows(run: PlannedRun, others: Iterable[PlannedRun]) -> bool:
    """Return True if a run follows one of the others, and so cannot start before it is finished."""
    return not {first.folder for first in run.after}.isdisjoint(other.folder for other in others)


def _stop(jobs: Iterable[_Job], deadline: float) -> None:
    for job in jobs:
        job.process.terminate()
    for job in jobs:
        job.wait(deadline)


def run_on_slurm(
    runs: Sequence[PlannedRun], record: Record, folder: Path, parameters: Mapping[str, str]
) -> list[PlannedRun]:
    """Submit runs as one job array, wait for them, and return those that failed.

    Runs that follow others of these runs are a second array, submitted after the first one.

    Args:
        runs: Runs to submit. Every node must see their folders.
        record: Called with each finished run.
        folder: See `run_jobs`.
        parameters: See `run_jobs`.

    Raises:
        InputError: See `run_jobs`.
    """
    failed = []
    advice = "the jobs continue; `reproduce.py results` shows the finished ones"
    later = [run for run in runs if follows(run, runs)]
    now = [run for run in runs if run not in later]
    ends = run_jobs([run.command for run in now], "reproduce", folder, parameters, advice)
    for ended, (number, error) in enumerate(ends, 1):
        run = now[number]
        print_with_time(f"[{ended}/{len(now)}] {run.name} {f'FAILED: {last_line(error)}' if error else 'is done'}")
        if error:
            failed.append(run)
        else:
            record(run, None, 1)
    possible = [run for run in later if not follows(run, failed)]
    failed += [run for run in later if run not in possible]
    return failed + (run_on_slurm(possible, record, folder, parameters) if possible else [])
