"""main.py in processes of its own, as a user runs it: how long it took, and the most memory it held."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import peak_memory
from utils.formats.files import read_json_lines

ROOT = Path(__file__).resolve().parent.parent.parent
LOOK_EVERY = 0.02  # seconds between two looks at a process
PATIENCE = 20  # seconds that a process has to end when it is asked to


def run_main(arguments: Sequence[str], run: Path, threads: int, processes: int = 0) -> dict:
    """Run main.py with these arguments and `--run-dir run`, which must not be there yet.

    threads: of each process. processes: under torchrun, that many; 0: by itself.

    Returns `ended`: "ok", or the status and the last error that it said; if it ended well, `seconds` in all,
    `start_seconds` until the first step (the run's options are written right before it) and `snippets_s`, as the
    run's own log has it; by itself also `peak_mb` (Linux).
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [sys.executable, *(torchrun if processes else []), "main.py", *arguments, "--run-dir", str(run)]
    peak, begun, started = None, None, time.perf_counter()
    with tempfile.TemporaryFile() as said, _process(words, threads, said) as process:
        while process.poll() is None:
            # The high-water mark itself, which only rises; so nothing but the last instant can be missed.
            peak = peak_memory(process.pid) or peak
            if begun is None and (run / "options.yaml").exists():
                begun = time.perf_counter() - started
            time.sleep(LOOK_EVERY)
        seconds = time.perf_counter() - started
        said.seek(0)
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    if process.returncode:
        # torchrun has much to say after the line of the process that failed.
        errors = [line[line.index("error: ") :] for line in lines if "error: " in line] or lines[-1:]
        return {"ended": f"status {process.returncode}: {' '.join(errors[-1:])[:200]}"}
    done = {"ended": "ok", "seconds": seconds, "start_seconds": begun, "snippets_s": _speed(run)}
    return done if processes or peak is None else {**done, "peak_mb": peak / 1e6}


@contextmanager
def _process(words: Sequence[str], threads: int, output) -> Iterator[subprocess.Popen]:
    """A process in the project's folder; it does not outlive the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # which torchrun passes on to its own
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _speed(run: Path) -> float:
    """Snippets a second of the last training steps, evaluations apart."""
    return read_json_lines(run / "log.jsonl")[-1]["snippets_per_second"]
