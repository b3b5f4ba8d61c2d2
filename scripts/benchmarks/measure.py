"""Clocks, memory, processes, and which machine it was."""

import os
import platform
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Settings:
    """What every subject is measured with."""

    quick: bool = False  # small sizes: every path runs, and no figure means anything
    threads: int = 1  # of PyTorch
    device: str = "auto"  # of the network
    files: tuple[str, str] | None = None  # annotations and detections of the user's own


def take_turns(*functions: Callable[[], object], budget: float = 4.0, rounds: int = 30) -> list[float]:
    """Median seconds of each function.

    They are called in turns, so that other work on the machine slows all of them alike and their ratio stands:
    round after round, until `budget` seconds are over. The first round warms up, and counts only if it is the last.
    """
    times, started = [], time.perf_counter()
    while not times or (len(times) <= rounds and time.perf_counter() - started < budget):
        times.append([_seconds(function) for function in functions])
    return np.median(times[1:] or times, axis=0).tolist()


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def in_new_process(function: Callable, *arguments):
    """The same call in a new interpreter, so that its peak memory is its own and goes with it."""
    # Ctrl-C reaches both processes; this one says so, the other one just ends.
    ending = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **ending) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(process: int | str = "self") -> int | None:
    """The most memory, in bytes, that a process has held since it started; None of another one that has ended."""
    try:
        # Unlike getrusage's, this figure is not inherited from the parent process.
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1])
    except (OSError, TypeError):
        if process != "self":
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def describe_machine(threads: int) -> dict:
    """What the figures depend on, and how busy the machine was before they were taken."""
    return {
        "cpu": _from_cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch")},
    }


def machine_line(machine: dict) -> str:
    """The same in one line."""
    busy = f" (load {machine['load']} before the run: shared with other work)" if machine["load"] > 0.5 else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "numpy", "torch"))
    return f"{machine['cpu']}, {machine['cores']} cores{busy}; threads used: {machine['threads']}; {versions}"


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself (avx512_bf16, amx_bf16, ARM's bf16); Linux only."""
    return "bf16" in (_from_cpuinfo("flags") or _from_cpuinfo("Features"))


def _from_cpuinfo(key: str) -> str:
    try:
        found = re.search(rf"^{key}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""
