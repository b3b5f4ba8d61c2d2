"""A training in a forked process, which has PyTorch already: to begin one takes no time, so it can be killed often."""

import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import main as training
from utils.errors import exit_on_input_error

STOPS = (signal.SIGINT, signal.SIGTERM)


def prepare_forks() -> None:
    """What this process must do before it forks: one thread, and nothing for every training to import anew."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread would not survive a fork, but its lock would
    torch.optim.Adam([torch.zeros(1)])
    Figure().subplots()


class Attempt:
    """One `python main.py ARGV`, as a forked process.

    Args:
        argv: the words after main.py.
        max_file_bytes: no file may grow beyond it, as if the disk were full there.
        folder: to run in; None for this process's own.
    """

    def __init__(self, argv: Sequence[str], max_file_bytes: int | None = None, folder: Path | None = None):
        self._argv, self._limit, self._folder = list(argv), max_file_bytes, folder
        self.output = b""
        self._pipe, there = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until the child is where a command answers them
        self._begun = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            self._be_the_command(there)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        os.close(there)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begun

    def runs(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until `until` holds, at most so long; whether it still runs then."""
        end = time.monotonic() + seconds
        while not until() and (left := end - time.monotonic()) > 0:
            if select.select([self._pipe], [], [], min(left, 0.002))[0]:
                block = os.read(self._pipe, 2**16)
                if not block:
                    return False
                self.output += block
        return True

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, seconds: float) -> int | None:
        """Its exit status, the negative signal if that ended it; None, and it is killed, if it does not end."""
        hangs = self.runs(seconds)
        if hangs:
            self.send(signal.SIGKILL)
        os.close(self._pipe)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None if hangs else status

    @property
    def text(self) -> str:
        """What it printed, progress bars as lines."""
        return self.output.decode(errors="replace").replace("\r", "\n")

    def lines(self, words: str) -> list[str]:
        return [line.strip() for line in self.text.splitlines() if words in line]

    def _be_the_command(self, out: int) -> None:
        """In the child: what the interpreter would have set up, the command, and the end without this program's."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            for number in (1, 2):
                os.dup2(out, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            sys.argv = ["main.py", *self._argv]
            tqdm.set_lock(threading.RLock())  # the inherited one is shared: a kill would leave it locked for all
            tqdm.monitor_interval = 10
            if self._folder is not None:
                os.chdir(self._folder)
            if self._limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, self._limit))
            status = self._run()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _run(self) -> int:
        try:
            exit_on_input_error(self._open_to_signals)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        return 0

    def _open_to_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        training.main(self._argv)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
