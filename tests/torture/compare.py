"""Two values that were read, leaf by leaf and bit by bit."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Difference:
    """How two values differ.

    Attributes:
        structure: names, their order, counts, shapes, dtypes or types are others.
        leaves: numbers, texts and array elements that are others, where the structure is the same.
    """

    structure: bool
    leaves: int

    def __bool__(self) -> bool:
        return self.structure or self.leaves > 0

    @property
    def kind(self) -> str:
        if self.structure:
            return "structure"
        return {0: "same", 1: "one value"}.get(self.leaves, "several values")


def compare(first: object, second: object) -> Difference:
    """Through dicts, sequences, arrays and tensors; NaN equals NaN of the same bits."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        first, second = first.numpy(), second.numpy()
    if type(first) is not type(second):
        return Difference(True, 1)
    if isinstance(first, dict):
        shared = [compare(first[name], second[name]) for name in first if name in second]
        return _joined(shared, list(first) != list(second))
    if isinstance(first, list | tuple):
        return _joined([compare(*pair) for pair in zip(first, second, strict=False)], len(first) != len(second))
    if isinstance(first, np.ndarray):
        return _compare_arrays(first, second)
    return Difference(False, int(first != second and repr(first) != repr(second)))


def _joined(parts: list[Difference], structure: bool) -> Difference:
    return Difference(structure or any(part.structure for part in parts), sum(part.leaves for part in parts))


def _compare_arrays(first: np.ndarray, second: np.ndarray) -> Difference:
    if first.dtype != second.dtype or first.shape != second.shape:
        return Difference(True, 1)
    if first.dtype.hasobject:
        return compare(first.tolist(), second.tolist())
    one, other = (np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8) for array in (first, second))
    return Difference(False, int((one != other).any(axis=1).sum()))
