"""Facts about the machine: processor, cores, load, and the memory of a process. Imports no PyTorch."""

import os
import platform
import re
import resource
import sys
from importlib.metadata import version
from pathlib import Path


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(process: int | str = "self") -> int | None:
    """Return the peak memory of a process in bytes, or None if another process has ended."""
    try:
        # A child does not inherit this value; it does inherit that of getrusage.
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1])
    except (OSError, TypeError):
        if process != "self":
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_machine(threads: int) -> dict:
    """Return the facts on which figures depend: processor, cores, threads, load and versions."""
    return {
        "cpu": read_cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch")},
    }


def machine_line(machine: dict) -> str:
    """Format the result of `describe_machine` as one line."""
    busy = f" (load {machine['load']} before the run: other programs were running)" if machine["load"] > 0.5 else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "numpy", "torch"))
    return f"{machine['cpu']}, {machine['cores']} cores{busy}; threads used: {machine['threads']}; {versions}"


def read_cpuinfo(*keys: str) -> str:
    """Return the first value of one of these keys in /proc/cpuinfo, or an empty string."""
    try:
        entry = re.search(rf"^(?:{'|'.join(keys)})\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return entry[1].strip() if entry else ""
