"""Device of a run: its choice, copies to it, and errors of its memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from utils.errors import InputError

# Compiled operations that oneDNN stores. A training step of any method needs at most about 60. An evaluation compiles
# more for each length of a video: with oneDNN's default of 1024, they take 260 MB on THUMOS14.
PRIMITIVES = 128


def choose_device(name: str) -> torch.device:
    """Return the device called `auto`, `cpu` or `cuda`; InputError if there is no GPU for `cuda`.

    The first call, before any computation, also bounds the memory of oneDNN on a CPU.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA GPU; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn PyTorch's out-of-memory errors into an InputError with this advice."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"out of memory ({str(error).splitlines()[0]}); {advice}") from None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; a copy to a GPU does not block."""
    if tensor.device == device or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # PyTorch keeps the pinned memory until the copy is done


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return True for the error that PyTorch raises when memory of a GPU or the CPU runs out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
