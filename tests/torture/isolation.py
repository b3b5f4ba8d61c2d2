"""Trials in a forked process: one that hangs, crashes or swallows the memory ends that process and not the program."""

import gc
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

from tqdm import tqdm

from scripts.benchmarks.machine import peak_memory
from tests.torture.setting import Budget
from utils.errors import InputError

HANG = 20.0  # seconds that a trial may take
GROWTH = 500 * 2**20  # bytes by which a trial may raise the most memory that its process has held
HEADROOM = 8 * 2**30  # bytes of address space beyond what there is, so that no trial takes the machine's memory
OPEN_FILES = 20  # more than at the beginning: a reader does not close what it opens


def opened(read: Callable[[], object]) -> tuple[str, object]:
    """What a command would make of an input: ("value", what was read), ("refused", its line) or ("traceback", it).

    Refused is what utils.errors.exit_on_input_error says in one line: InputError, an error of the system, a wrong
    option. Whatever else is raised would be a traceback on the user's screen.
    """
    printed = StringIO()
    try:
        with redirect_stderr(printed), redirect_stdout(StringIO()):
            value = read()
    except (InputError, OSError) as error:
        return "refused", str(error)
    except SystemExit as end:
        said = printed.getvalue().strip().splitlines()
        if end.code == 2 and said and said[-1].startswith("error: "):
            return "refused", said[-1]
        return "traceback", f"SystemExit {end.code}: {printed.getvalue()}"
    except BaseException:
        return "traceback", traceback.format_exc()
    if "Traceback" in printed.getvalue():
        return "traceback", printed.getvalue()
    return "value", value


def run_trials(
    trial: Callable[[int], dict], total: int | None, budget: Budget, log: Path
) -> Iterator[tuple[int, dict]]:
    """(number, result) of trial(number) for the numbers from budget.first on, below `total`, within the budget.

    A result is a dict that JSON can hold, with its `outcome`; that of a trial which hung, crashed or swallowed the
    memory is "hang", "crash" or "memory".

    Args:
        log: a file for what the trials print.
    """
    number, done = budget.first, 0
    while (total is None or number < total) and budget.allows(done):
        stop = min((end for end in (total, budget.limit and budget.first + budget.limit) if end), default=None)
        for current, result in _one_process(trial, number, stop, budget, log):
            yield current, result
            number, done = current + 1, done + 1


def _one_process(
    trial: Callable[[int], dict], first: int, stop: int | None, budget: Budget, log: Path
) -> Iterator[tuple[int, dict]]:
    """The trials of one process, until it ends, well or not."""
    results, answers = os.pipe(), os.pipe()  # (to read from, to write to) each
    pid = os.fork()
    if pid == 0:
        os.close(results[0])
        os.close(answers[1])
        _work(_Line(trial, results[1], answers[0], log), first, stop, budget)
    os.close(results[1])
    os.close(answers[0])
    current = None
    with os.fdopen(results[0]) as lines, os.fdopen(answers[1], "wb", buffering=0) as answer:
        for line in lines:
            current, result = json.loads(line)
            if result is not None:
                yield current, result
                current = None
                with suppress(BrokenPipeError):
                    answer.write(b".")  # its files have been looked at: on with the next
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if current is not None:
        hung = status == -signal.SIGALRM
        message = f"no answer after {HANG:g} s" if hung else f"its process ended with status {status}"
        yield current, {"outcome": "hang" if hung else "crash", "message": message}
    elif status:
        raise RuntimeError(f"the process of the trials ended with status {status}; see {log}")


def _work(line: "_Line", first: int, stop: int | None, budget: Budget) -> None:
    """In the child: one trial after another, and the end without this program's."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even where it hangs in a library
        tqdm.set_lock(threading.RLock())
        limit = _address_space() + HEADROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        gc.collect()
        gc.freeze()  # what is there already need not be looked through each time
        files = _open_files()
        number, goes_on = first, True
        while goes_on and (stop is None or number < stop) and time.monotonic() < budget.deadline:
            goes_on = line.run(number, files + OPEN_FILES)
            number += 1
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class _Line:
    """Runs trials, and says so: a line before each, one with its result after it; then waits until that was read."""

    def __init__(self, trial: Callable[[int], dict], results: int, answers: int, log: Path):
        self._trial, self._results, self._answers = trial, results, answers
        self._printed = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(self._printed, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))

    def run(self, number: int, most_files: int) -> bool:
        """Whether the process is fit for another trial."""
        self._say(number, None)
        result = _guarded(self._trial, number, self._printed)
        if number % 100 == 99 and (files := _open_files()) > most_files:
            result = {"outcome": "other", "message": f"{files} files are open: a reader does not close them"}
        self._say(number, result)
        # After one that took memory, the next one would have room to hide in.
        return os.read(self._answers, 1) == b"." and result["outcome"] != "memory"

    def _say(self, number: int, result: dict | None) -> None:
        line = (json.dumps([number, result]) + "\n").encode()
        while line:
            line = line[os.write(self._results, line) :]


def _guarded(trial: Callable[[int], dict], number: int, printed: int) -> dict:
    """A trial under the clock, its memory and what it prints watched."""
    before, size, begun = peak_memory(), os.fstat(printed).st_size, time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, HANG)
    result = trial(number)
    signal.setitimer(signal.ITIMER_REAL, 0)
    result["seconds"] = time.monotonic() - begun
    if (grown := peak_memory() - before) > GROWTH:
        return {"outcome": "memory", "message": f"took {grown / 2**20:,.0f} MB"}
    new = os.pread(printed, 2**20, size).decode(errors="replace")
    if "Traceback" in new:
        return {"outcome": "traceback", "message": new}
    return result


def _open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
