"""How far a part is: by its count if that is limited, else by its time."""

import time

from tqdm import tqdm

from tests.torture.setting import Budget, Setting

BY_TIME = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} of {remaining} more at most{postfix}"


class Progress:
    """A bar with the time that is left; a context manager.

    Args:
        total: what there is to do; None: the budget's limit, or without one as much as its time allows.
    """

    def __init__(self, setting: Setting, name: str, budget: Budget, total: int | None = None):
        self._setting, self._begun, self._done = setting, time.monotonic(), 0
        self._total = budget.limit if total is None else total
        seconds = max(0.0, budget.deadline - self._begun)
        whole = {"total": seconds, "bar_format": BY_TIME} if self._total is None else {"total": self._total}
        self._bar = tqdm(desc=name, dynamic_ncols=True, mininterval=1, **whole)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def update(self, done: int) -> None:
        """So many are done."""
        self._done = done
        at = done if self._total is not None else time.monotonic() - self._begun
        self._bar.set_postfix(done=done, failures=len(self._setting.failures), refresh=False)
        self._bar.update(min(at, self._bar.total) - self._bar.n)
