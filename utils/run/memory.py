"""How the C library hands out the large arrays of a step on the CPU: the same ones again, or each for its time only.

glibc maps a large array anew for each use and unmaps it, or keeps it in a heap that hardly shrinks, as it guesses by
their sizes. Either choice is better than the guess: to keep what is freed saves the system from clearing tens of
thousands of pages a step, which takes a fifth of a float32 step; to give all of it back bounds what a process holds.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 2**30  # bytes; arrays below that are kept
GIVEN_BACK = 2**22  # bytes; arrays above that are given back


def keep_freed_memory(keep: bool) -> None:
    """Keep what large arrays leave, for those that come; else give it back to the system. Only glibc is told."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return
    mallopt(M_MMAP_THRESHOLD, KEPT if keep else GIVEN_BACK)
    mallopt(M_TRIM_THRESHOLD, 2 * KEPT - 1 if keep else GIVEN_BACK)
