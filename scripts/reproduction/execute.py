"""Runs of main.py, done: on this machine, one a GPU, or on a SLURM cluster through submitit."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.reproduction.cost import COST, as_time, last_line
from scripts.reproduction.plan import PlannedRun
from utils.errors import InputError
from utils.formats.files import read_json_lines, write_json

POLL = 0.2  # seconds
Environment = Mapping[str, str]


def slots(jobs: int, cpu_only: bool) -> list[Environment]:
    """An environment for each run that may go on at a time: `jobs` on each visible GPU, or on the CPU, divided."""
    count = 0 if cpu_only else torch.cuda.device_count()
    if count:
        told = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = told.split(",")[:count] if told else [str(number) for number in range(count)]
        return [{**os.environ, "CUDA_VISIBLE_DEVICES": name} for name in names * jobs]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or cores) // jobs)
    return [{**os.environ, "OMP_NUM_THREADS": str(threads)}] * jobs


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@dataclass
class _Job:
    """One run in progress; its output goes to a log beside the run folders."""

    run: PlannedRun
    environment: Environment

    def __post_init__(self):
        self.start, self.fresh, self._told = time.monotonic(), not (self.run.folder / "checkpoints").exists(), None
        self.log = self.run.folder.parent / "logs" / f"{self.run.name}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as file:
            # In a process group of its own: Ctrl-C reaches it through `stop` only, once.
            self.process = subprocess.Popen(
                self.run.command, env={**self.environment}, stdout=file, stderr=file, start_new_session=True
            )

    def tell_progress(self) -> None:
        """A line for each new evaluation."""
        path = self.run.folder / "log.jsonl"
        records = read_json_lines(path) if path.exists() else []
        if records and records[-1] != self._told:
            self._told = record = records[-1]
            scores = record["scores"]
            accuracies = [value for name, value in scores.items() if name.endswith("/accuracy")]
            told = f"snippet accuracy {100 * accuracies[0]:.1f}, " if accuracies else ""
            told += f"mean mAP {100 * scores['snippet/mean_mAP']:.1f} (all tIoU)"
            say(f"  {self.run.name}: iteration {record['iteration']}, {told}")

    def finish(self) -> bool:
        """After the process has ended: whether it went well, said and written down."""
        seconds = time.monotonic() - self.start
        if self.process.returncode:
            say(f"  {self.run.name} FAILED: {last_line(self.log.read_text())} (all of it: {self.log})")
            return False
        if self.fresh:
            cost = {"iterations": self.run.options.max_iter, "seconds": round(seconds, 1)}
            write_json(self.run.folder / COST, cost)
        return True

    def stop(self) -> None:
        """Ask it to save and end; a run that is being started has nothing to save."""
        if self.process.poll() is None:
            self.process.terminate()


def run_here(runs: Sequence[PlannedRun], places: Sequence[Environment]) -> list[PlannedRun]:
    """Do the runs, as many at a time as there are places; returns those that failed.

    On Ctrl-C each run in progress saves itself, and the program ends; the same command continues.
    """
    waiting, active, failed, begin = deque(enumerate(runs, 1)), {}, [], time.monotonic()
    try:
        while waiting or active:
            for place, environment in enumerate(places):
                if place not in active and waiting:
                    number, run = waiting.popleft()
                    say(f"[{number}/{len(runs)}] {run.name} starts")
                    active[place] = _Job(run, environment)
            time.sleep(POLL)
            for place, job in list(active.items()):
                ended = job.process.poll() is not None
                job.tell_progress()
                if ended:
                    del active[place]
                    if not job.finish():
                        failed.append(job.run)
                    done = len(runs) - len(waiting) - len(active)
                    left = (time.monotonic() - begin) / done * (len(runs) - done)
                    say(f"  {done} of {len(runs)} ended, about {as_time(left)} left")
    except KeyboardInterrupt:
        say("stopping: each run in progress saves itself")
        for job in active.values():
            job.stop()
        try:
            for job in active.values():
                job.process.wait()
        except KeyboardInterrupt:
            for job in active.values():
                job.process.kill()
        raise SystemExit("stopped; the same command continues") from None
    return failed


def run_on_slurm(runs: Sequence[PlannedRun], folder: Path, parameters: Mapping[str, str]) -> list[PlannedRun]:
    """Send the runs out as one job array and wait for them; returns those that failed.

    Args:
        folder: for submitit's files; the nodes must see it, and the run folders, too.
        parameters: of submitit's AutoExecutor, as in slurm_partition=gpu; `cluster` is its own ("local", "debug").

    Raises:
        InputError: if submitit is absent, finds no cluster, or does not know a parameter.
    """
    try:
        import submitit
        from submitit.helpers import CommandFunction, as_completed
    except ImportError:
        raise InputError("--slurm needs submitit: pip install submitit") from None
    own = {name: int(value) if value.isdigit() else value for name, value in parameters.items()}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=own.pop("cluster", "slurm"))
        executor.update_parameters(name="reproduce", **own)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"--slurm: {' '.join(str(error).split())}") from None
    with executor.batch():
        jobs = [executor.submit(CommandFunction(list(run.command), verbose=False)) for run in runs]
    by_id = {job.job_id: run for job, run in zip(jobs, runs, strict=True)}
    say(f"submitted {len(jobs)} jobs as an array, from {jobs[0].job_id} on; their output is in {folder}")
    failed = []
    try:
        for number, job in enumerate(as_completed(jobs, poll_frequency=1), 1):
            run, error = by_id[job.job_id], job.exception()
            say(f"[{number}/{len(jobs)}] {run.name} {'FAILED: ' + last_line(str(error)) if error else 'is done'}")
            failed += [run] if error else []
    except KeyboardInterrupt:
        raise SystemExit("the jobs go on; `reproduce.py results` shows those that are done") from None
    return failed
