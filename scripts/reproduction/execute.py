"""Execution of runs on this machine, or on a SLURM cluster through submitit."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.reproduction.cost import COST_FILE, format_duration, last_line
from scripts.reproduction.plan import PlannedRun
from utils.errors import InputError
from utils.formats.files import read_json_lines, write_json

POLL = 0.2  # seconds
Environment = Mapping[str, str]


def job_environments(jobs: int, cpu_only: bool) -> list[Environment]:
    """Return one environment per concurrent run: `jobs` per visible GPU, or `jobs` that share the CPU's threads."""
    count = 0 if cpu_only else torch.cuda.device_count()
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
        return [{**os.environ, "CUDA_VISIBLE_DEVICES": name} for name in names * jobs]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or cores) // jobs)
    return [{**os.environ, "OMP_NUM_THREADS": str(threads)}] * jobs


def _say(text: str) -> None:
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
            _say(f"  {self.run.name}: iteration {record['iteration']}, {text}")

    def finish(self) -> bool:
        """Report how the ended process went, write its cost, and return True on success."""
        seconds = time.monotonic() - self.start
        if self.process.returncode:
            _say(f"  {self.run.name} FAILED: {last_line(self.log.read_text())} (full output: {self.log})")
            return False
        if self.is_fresh:
            cost = {"iterations": self.run.options.max_iter, "seconds": round(seconds, 1)}
            write_json(self.run.folder / COST_FILE, cost)
        return True


def run_here(runs: Sequence[PlannedRun], environments: Sequence[Environment]) -> list[PlannedRun]:
    """Execute runs on this machine, one per environment at a time, and return those that failed.

    On Ctrl-C each run in progress saves its state and the program ends. The same command continues.
    """
    waiting, active, failed, start = deque(enumerate(runs, 1)), {}, [], time.monotonic()
    try:
        while waiting or active:
            for slot, environment in enumerate(environments):
                if slot not in active and waiting:
                    number, run = waiting.popleft()
                    _say(f"[{number}/{len(runs)}] {run.name} starts")
                    active[slot] = _Job(run, environment)
            time.sleep(POLL)
            for slot, job in list(active.items()):
                has_ended = job.process.poll() is not None
                job.print_progress()
                if has_ended:
                    del active[slot]
                    failed += [] if job.finish() else [job.run]
                    done = len(runs) - len(waiting) - len(active)
                    left = (time.monotonic() - start) / done * (len(runs) - done)
                    _say(f"  {done} of {len(runs)} ended, about {format_duration(left)} left")
    except KeyboardInterrupt:
        _say("stopping: each run in progress saves its state")
        for job in active.values():
            job.process.terminate()
        try:
            for job in active.values():
                job.process.wait()
        except KeyboardInterrupt:
            for job in active.values():
                job.process.kill()
        raise SystemExit("stopped; the same command continues") from None
    return failed


def run_on_slurm(runs: Sequence[PlannedRun], folder: Path, parameters: Mapping[str, str]) -> list[PlannedRun]:
    """Submit runs as one job array, wait for them, and return those that failed.

    Args:
        runs: Runs to submit. Every node must see their folders.
        folder: Folder for submitit's files. Every node must see it.
        parameters: Parameters of submitit's AutoExecutor, for example slurm_partition=gpu. `cluster` selects
            submitit's executor ("slurm", "local", or "debug").

    Raises:
        InputError: Submitit is not installed, finds no cluster, or does not know a parameter.
    """
    try:
        import submitit
        from submitit.helpers import CommandFunction, as_completed
    except ImportError:
        raise InputError("--slurm needs submitit: pip install submitit") from None
    values = {name: int(value) if value.isdigit() else value for name, value in parameters.items()}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=values.pop("cluster", "slurm"))
        executor.update_parameters(name="reproduce", **values)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"--slurm: {' '.join(str(error).split())}") from None
    with executor.batch():
        jobs = [executor.submit(CommandFunction(list(run.command), verbose=False)) for run in runs]
    by_id = {job.job_id: run for job, run in zip(jobs, runs, strict=True)}
    _say(f"submitted {len(jobs)} jobs as an array, first id {jobs[0].job_id}; output in {folder}")
    failed = []
    try:
        for number, job in enumerate(as_completed(jobs, poll_frequency=1), 1):
            run, error = by_id[job.job_id], job.exception()
            _say(f"[{number}/{len(jobs)}] {run.name} {'FAILED: ' + last_line(str(error)) if error else 'is done'}")
            failed += [run] if error else []
    except KeyboardInterrupt:
        raise SystemExit("the jobs continue; `reproduce.py results` shows the finished ones") from None
    return failed
