"""Trials in forked processes: one that hangs, crashes or takes all memory ends that process, not the program."""

import gc
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError

CPU_SECONDS, SECONDS = 20.0, 300.0  # of one trial; the second one is for a wait, whatever else the machine does
GROWTH = 500 * 2**20  # bytes by which one trial may raise the peak memory of its process
HEADROOM = 8 * 2**30  # bytes of address space on top of what is in use, so that no trial takes the machine's memory
OPEN_FILES = 20  # files that may be open after a process's trials on top of those before
TryOne = Callable[[dict, Callable[[], dict]], None]


def run_command(read: Callable[[], object]) -> tuple[str, object]:
    """Return what a command would make of an input: ("value", it), ("refused", message) or ("traceback", text).

    Refused is what utils.errors.exit_on_input_error reports in one line: InputError, OSError or a wrong option.
    """
    printed = StringIO()
    try:
        with redirect_stderr(printed), redirect_stdout(StringIO()):
            value = read()
    except (InputError, OSError) as error:
        return "refused", str(error)
    except SystemExit as end:
        lines = printed.getvalue().strip().splitlines()
        if end.code == 2 and lines and lines[-1].startswith("error: "):
            return "refused", lines[-1]
        return "traceback", f"SystemExit {end.code}: {printed.getvalue()}"
    except BaseException:
        return "traceback", traceback.format_exc()
    if "Traceback" in printed.getvalue():
        return "traceback", printed.getvalue()
    return "value", value


def run_forked(work: Callable[[TryOne], None], log: Path) -> Iterator[tuple[dict, dict]]:
    """Yield (description, result) of each trial that `work` makes in a forked process.

    `work` calls its argument with a description and a function that returns the result; both are dicts for JSON. The
    `outcome` of a trial that hangs, crashes or takes too much memory is "hang", "crash" or "memory", and is the
    process's last one. The process waits while the caller looks at a result, and ends when the caller stops.

    Args:
        log: file for what the trials print.
    """
    results, answers = os.pipe(), os.pipe()  # (read end, write end) each
    pid = os.fork()
    if pid == 0:
        os.close(results[0])
        os.close(answers[1])
        _run_child(work, _Child(results[1], answers[0], log))
    os.close(results[1])
    os.close(answers[0])
    description = None
    try:
        with os.fdopen(results[0]) as lines, os.fdopen(answers[1], "wb", buffering=0) as answer:
            for line in lines:
                message = json.loads(line)
                if "outcome" in message:
                    yield description, message
                    description = None
                    with suppress(BrokenPipeError):
                        answer.write(b"+")
                else:
                    description = message
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if description is not None:
        hangs = status in (-signal.SIGALRM, -signal.SIGPROF)
        text = "took too long" if hangs else f"its process ended with status {status}"
        yield description, {"outcome": "hang" if hangs else "crash", "message": text}
    elif status:
        raise RuntimeError(f"the process of the trials ended with status {status}; see {log}")


def _run_child(work: Callable[[TryOne], None], child: "_Child") -> None:
    status = 1
    try:
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)  # ends the process even where it hangs in a library
        tqdm.set_lock(threading.RLock())
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + HEADROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        gc.collect()
        gc.freeze()  # what exists already need not be looked through each time
        before = _open_files()
        work(child.try_one)
        if (after := _open_files()) > before + OPEN_FILES:
            entry = {"number": -1, "group": "open files", "name": "the last batch"}
            child.try_one(entry, lambda: _failed("other", f"{after} files stay open"))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class _Child:
    """Side of the process that runs the trials: one line before each trial, one with its result after it."""

    def __init__(self, results: int, answers: int, log: Path):
        self._results, self._answers = results, answers
        self._printed = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(self._printed, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))

    def try_one(self, description: dict, trial: Callable[[], dict]) -> None:
        self._send(description)
        result = self._watch(trial)
        self._send(result)
        # After a trial that took much memory, the next one could take as much unnoticed.
        if os.read(self._answers, 1) != b"+" or result["outcome"] == "memory":
            os._exit(0)

    def _send(self, message: dict) -> None:
        line = (json.dumps(message) + "\n").encode()
        while line:
            line = line[os.write(self._results, line) :]

    def _watch(self, trial: Callable[[], dict]) -> dict:
        """Run a trial under limits of time and memory, and look at what it prints."""
        before, size = _peak_memory(), os.fstat(self._printed).st_size
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        result = trial()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if (growth := _peak_memory() - before) > GROWTH:
            return _failed("memory", f"took {growth / 2**20:,.0f} MB")
        printed = os.pread(self._printed, 2**20, size).decode(errors="replace")
        return _failed("traceback", printed) if "Traceback" in printed else result


def _failed(outcome: str, message: str) -> dict:
    return {"outcome": outcome, "message": message}


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def _open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
