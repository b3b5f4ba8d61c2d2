"""Some rows of a large array in a file, without the others: what training without a cache reads.

Rows are wanted sorted and may repeat. Neighbors are read together, a block at a time, so that memory stays at one
block and a disk is not asked for every row.
"""

import os
from collections.abc import Iterator

import numpy as np

BLOCK_BYTES = 2**16  # more costs time where few rows of a long video are wanted, less where all of a short one are


def by_block(rows: np.ndarray, length: int) -> Iterator[tuple[slice, int, int]]:
    """Sorted rows in blocks of so many: the places in `rows`, the first row of the block that is wanted, and the last.

    Blocks without a wanted row do not appear.
    """
    borders = np.flatnonzero(np.diff(rows // length)) + 1
    for start, end in zip([0, *borders], [*borders, len(rows)], strict=True):
        if end > start:
            yield slice(start, end), int(rows[start]), int(rows[end - 1])


def read_rows(descriptor: int, offset: int, dtype: np.dtype, width: int, rows: np.ndarray) -> np.ndarray:
    """Sorted rows (N,) of an array (T, width) that lies from `offset` on in an open file -> (N, width), own dtype.

    ValueError: the file ends before a row does.
    """
    values = np.empty((len(rows), width), dtype)
    row_bytes = width * dtype.itemsize
    for places, first, last in by_block(rows, max(1, BLOCK_BYTES // max(1, row_bytes))):
        promised = (last - first + 1) * row_bytes
        content = os.pread(descriptor, promised, offset + first * row_bytes)
        if len(content) != promised:
            raise ValueError(
                f"row {last} promises bytes up to {offset + (last + 1) * row_bytes:,}, the file ends before"
            )
        values[places] = np.frombuffer(content, dtype).reshape(-1, width)[rows[places] - first]
    return values
