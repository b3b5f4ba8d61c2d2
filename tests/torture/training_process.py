"""Training in a forked process that has PyTorch loaded: it starts in no time, so it can be killed often."""

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
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm import tqdm

import main as training
from utils.errors import exit_on_input_error

STOPS = (signal.SIGINT, signal.SIGTERM)


def prepare_forks() -> None:
    """Reduce this process to one thread and import what every training would import again."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread would not survive a fork, but its lock would
    torch.optim.Adam([torch.zeros(1)])
    Figure().subplots()


class TrainingProcess:
    """One `python main.py ARGV` as a forked process.

    Args:
        argv: the words after main.py.
        max_file_bytes: largest file that it may write, as on a full disk.
        folder: working directory; None for this process's own.
    """

    def __init__(self, argv: Sequence[str], max_file_bytes: int | None = None, folder: Path | None = None):
        self._argv, self._max_file_bytes, self._folder = list(argv), max_file_bytes, folder
        self.output, self.steps = b"", 0  # steps: optimizer steps so far
        self._output_pipe, output = os.pipe()
        self._step_pipe, steps = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until the child can answer them as a command does
        self._start = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._output_pipe)
            os.close(self._step_pipe)
            self._run_child(output, steps)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        os.close(output)
        os.close(steps)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def text(self) -> str:
        """Everything that it printed, progress bars as lines."""
        return self.output.decode(errors="replace").replace("\r", "\n")

    def lines(self, words: str) -> list[str]:
        """Return the printed lines that contain these words."""
        return [line.strip() for line in self.text.splitlines() if words in line]

    def runs_for(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the condition holds or the time is over; return whether the process still runs."""
        end, pipes = time.monotonic() + seconds, [self._output_pipe, self._step_pipe]
        while not until() and (left := end - time.monotonic()) > 0:
            for pipe in select.select(pipes, [], [], min(left, 0.002))[0]:
                block = os.read(pipe, 2**16)
                if pipe == self._step_pipe:
                    self.steps += len(block)
                    pipes = pipes if block else [self._output_pipe]
                elif block:
                    self.output += block
                else:
                    return False
        return True

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, negative for a signal; kill the process and return None if it does not end."""
        hangs = self.runs_for(seconds)
        if hangs:
            self.send(signal.SIGKILL)
        os.close(self._output_pipe)
        os.close(self._step_pipe)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None if hangs else status

    def _run_child(self, output: int, steps: int) -> None:
        """Set up what the interpreter would, run the command, and end without this program's clean-up."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            for number in (1, 2):
                os.dup2(output, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            sys.argv = ["main.py", *self._argv]
            tqdm.set_lock(threading.RLock())  # the inherited one is shared: a kill would leave it locked for all
            tqdm.monitor_interval = 10
            register_optimizer_step_post_hook(lambda *_: os.write(steps, b".") and None)
            if self._folder is not None:
                os.chdir(self._folder)
            if self._max_file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self._max_file_bytes,) * 2)
            exit_on_input_error(self._train)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _train(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        training.main(self._argv)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
