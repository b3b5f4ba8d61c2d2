"""Partial reads of large arrays: selected rows of a file, block by block.

Rows are sorted and may repeat. Close rows are read in one call, so memory stays at one block and the number of calls
stays small.
"""

import os
from collections.abc import Iterator

import numpy as np

BLOCK_BYTES = 2**18  # larger wastes reads on sparse rows, smaller wastes calls on dense ones


def iter_blocks(rows: np.ndarray, length: int) -> Iterator[tuple[slice, int, int]]:
    """Group sorted rows by blocks of `length` rows.

    Yields:
        The positions in `rows` that fall into one block, and the first and last row wanted there.
    """
    borders = np.flatnonzero(np.diff(rows // length)) + 1
    for start, end in zip([0, *borders], [*borders, len(rows)], strict=True):
        if end > start:
            yield slice(start, end), int(rows[start]), int(rows[end - 1])


def read_rows(descriptor: int, offset: int, rows: np.ndarray, out: np.ndarray) -> None:
    """Read sorted rows of an array that starts at `offset` of an open file, each row once.

    Args:
        descriptor: The open file.
        offset: Bytes before the array, which is (T, D) in the dtype of `out`.
        rows: (N,) sorted rows, which may repeat.
        out: (N, D) array to fill.

    Raises:
        ValueError: The file ends before the last row.
    """
    row_bytes = out.shape[1] * out.itemsize
    for positions, first, last in iter_blocks(rows, max(1, BLOCK_BYTES // max(1, row_bytes))):
        count = (last - first + 1) * row_bytes
        content = _read_at(descriptor, count, offset + first * row_bytes)
        if len(content) != count:
            raise ValueError(f"row {last} ends at byte {offset + (last + 1) * row_bytes:,}, after the end of the file")
        block = np.frombuffer(content, out.dtype).reshape(-1, out.shape[1])
        np.take(block, rows[positions] - first, axis=0, out=out[positions], mode="clip")  # "raise" would copy twice


def _read_at(descriptor: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows
    return os.read(descriptor, count)
