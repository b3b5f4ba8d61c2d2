"""Stop requests: Ctrl-C and SIGTERM end a run after the current step, with its state saved."""

import os
import signal
import sys
from typing import NoReturn

from utils.run.ranks import SINGLE_PROCESS, Ranks


class StopSignal:
    """Ctrl-C or a cluster's SIGTERM, recorded so that the current step can finish; a context manager.

    A second signal ends the process at once. Progress since the last evaluation is then lost.

    Args:
        ranks: Processes that stop together. Rank 0 prints the messages.
    """

    def __init__(self, ranks: Ranks = SINGLE_PROCESS):
        self._ranks = ranks
        self._number = 0  # of the signal received; 0 before there is one

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return True if any rank received a signal, so that all ranks stop after the same step. Collective."""
        number = self._ranks.max(self._number)
        if number:  # never assign 0: a signal may have arrived meanwhile
            self._number = number
        return number > 0

    def end(self, message: str) -> NoReturn:
        """Print a message and exit with the signal's usual status: 130 after Ctrl-C, 143 after SIGTERM."""
        # torchrun sends SIGTERM to the ranks that exit a moment later than the first one.
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)
        self._print(message)
        raise SystemExit(128 + self._number)

    def _receive(self, number: int, frame: object) -> None:
        if self._number:
            self.end("stopped at once; --resume continues the run from the last evaluation")
        self._number = number
        self._print("\nstopping after the current step or evaluation; a second signal stops at once")

    def _print(self, message: str) -> None:
        # Bypasses Python's buffer: the signal may have interrupted a print in the middle of its own write.
        if self._ranks.is_main:
            os.write(sys.__stderr__.fileno(), f"{message}\n".encode())
