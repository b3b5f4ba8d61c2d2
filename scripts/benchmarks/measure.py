"""Settings, timing in turns, and processes of their own."""

import signal
import time
import timeit
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from torch.utils.benchmark import timer
from tqdm import tqdm

from scripts.benchmarks.machine import peak_memory
from utils.run.fast_cpu import set_malloc_policy

progress = partial(tqdm, leave=False, delay=2, disable=None)  # a bar, on a terminal only


@dataclass(frozen=True)
class Settings:
    """Options that hold for all subjects.

    Attributes:
        quick: Use small sizes, in this process; the figures then mean nothing.
        threads: Threads of PyTorch.
        device: Device of the network, as in `main.py --device`.
        files: Annotations and detections of the user, for `evaluation`.
    """

    quick: bool = False
    threads: int = 1
    device: str = "auto"
    files: tuple[str, str] | None = None

    def budget(self, seconds: float) -> float:
        """Return the seconds that a measurement may take."""
        return 0.0 if self.quick else seconds

    def run_apart(self, function: Callable, *arguments):
        """Call a function in a new process, so that its peak memory is its own."""
        return function(*arguments) if self.quick else in_new_process(function, *arguments)

    def apply(self) -> None:
        """Set the threads, and treat freed memory as main.py does."""
        torch.set_num_threads(self.threads)
        set_malloc_policy(reuse=True)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def device_peak_mb(device: torch.device) -> float:
    """Return the most memory that PyTorch allocated on a GPU, or the peak memory of this process."""
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()) / 1e6


def time_in_turns(*functions: Callable[[], object], budget: float, rounds: int = 30, calls: int = 1) -> list[float]:
    """Return the median seconds of one call of each function.

    The functions are called in turns. Other work on the machine then slows all of them alike, and their ratio stays.
    The first round warms up and counts only if it is the last. PyTorch's clock waits for the GPU, if there is one.

    Args:
        functions: Functions without arguments.
        budget: Seconds after which no further round begins.
        rounds: Rounds at most, after the first one.
        calls: Calls per function and round, without waiting for the GPU in between.
    """
    turns, end = [], time.monotonic() + budget
    while not turns or (len(turns) <= rounds and time.monotonic() < end):
        turns.append([timeit.timeit(function, timer=timer, number=calls) / calls for function in functions])
    return np.median(turns[1:] or turns, axis=0).tolist()


def in_new_process(function: Callable, *arguments):
    """Call a function in a new interpreter and return its result."""
    # Ctrl-C reaches both processes. This one reports it; the child ends silently.
    ending = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **ending) as pool:
        return pool.submit(function, *arguments).result()
