"""Comparison of two values, leaf by leaf and bit by bit."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Difference:
    """Difference of two values.

    Attributes:
        structure: names, their order, counts, shapes, dtypes or types differ.
        leaves: number of numbers, texts and array elements that differ.
    """

    structure: bool
    leaves: int

    def __bool__(self) -> bool:
        return self.structure or self.leaves > 0

    def __str__(self) -> str:
        return f"structure differs: {self.structure}, {self.leaves} values differ"


def compare(first: object, second: object) -> Difference:
    """Compare dicts, sequences, arrays and tensors; NaN equals NaN of the same bits."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        first, second = first.numpy(), second.numpy()
    if type(first) is not type(second):
        return Difference(True, 1)
    if isinstance(first, dict):
        return _join([compare(first[name], second[name]) for name in first if name in second], [*first] != [*second])
    if isinstance(first, list | tuple):
        return _join([compare(*pair) for pair in zip(first, second, strict=False)], len(first) != len(second))
    if isinstance(first, np.ndarray):
        return _compare_arrays(first, second)
    return Difference(False, int(first != second and repr(first) != repr(second)))


def _join(parts: list[Difference], structure: bool) -> Difference:
    return Difference(structure or any(part.structure for part in parts), sum(part.leaves for part in parts))


def _compare_arrays(first: np.ndarray, second: np.ndarray) -> Difference:
    if first.dtype != second.dtype or first.shape != second.shape:
        return Difference(True, 1)
    if first.dtype.hasobject:
        return compare(first.tolist(), second.tolist())
    one, other = (np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8) for array in (first, second))
    return Difference(False, int((one != other).any(axis=1).sum()))
