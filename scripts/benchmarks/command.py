"""Commands of the project in processes of their own, with duration and peak memory."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.machine import peak_memory
from utils.formats.files import read_json_lines

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.02
END_SECONDS = 20  # between SIGTERM and SIGKILL


def run_main(arguments: Sequence[str], run_dir: Path, threads: int, processes: int = 0) -> dict:
    """Run main.py with these arguments.

    Args:
        arguments: Arguments of main.py without `--run-dir`.
        run_dir: Folder of the run, which must not exist.
        threads: Threads per process.
        processes: Number of processes under torchrun; 0 runs main.py without torchrun.

    Returns:
        `ended`: "ok", or the exit status with the last error. After "ok" also `seconds`, `start seconds` (until the
        first step) and `snippets/s` (from the log of the run); without torchrun, on Linux, also `peak MB`.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [sys.executable, *(torchrun if processes else []), "main.py", *arguments, "--run-dir", str(run_dir)]
    peak, start_seconds, started = None, None, time.perf_counter()
    with tempfile.TemporaryFile() as output, _process(words, threads, output) as process:
        while process.poll() is None:
            peak = peak_memory(process.pid) or peak  # a high-water mark: only its last moments can be missed
            # main.py writes its options right before the first step.
            if start_seconds is None and (run_dir / "options.yaml").exists():
                start_seconds = time.perf_counter() - started
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        output.seek(0)
        lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    if process.returncode:
        # torchrun prints a report after the message of the process that failed.
        errors = [line[line.index("error: ") :] for line in lines if "error: " in line] or lines[-1:]
        return {"ended": f"status {process.returncode}: {' '.join(errors[-1:])[:200]}"}
    speed = read_json_lines(run_dir / "log.jsonl")[-1]["snippets_per_second"]
    memory = {} if processes or peak is None else {"peak MB": peak / 1e6}
    return {"start seconds": start_seconds, "seconds": seconds, **memory, "snippets/s": speed, "ended": "ok"}


class Finished(NamedTuple):
    """Python command that has succeeded."""

    seconds: float
    peak_mb: float | None  # on Linux
    output: str


def run_python(threads: int, *arguments: str) -> Finished:
    """Run Python with these arguments.

    Raises:
        RuntimeError: The command fails.
    """
    peak, started = None, time.perf_counter()
    with tempfile.TemporaryFile() as output, _process([sys.executable, *arguments], threads, output) as process:
        while process.poll() is None:
            peak = peak_memory(process.pid) or peak
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read().decode()
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)}: {text}")
    return Finished(seconds, peak and peak / 1e6, text)


@contextmanager
def _process(words: Sequence[str], threads: int, output) -> Iterator[subprocess.Popen]:
    """Start a process in the project's folder, and end it with the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun passes it on to its processes
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
