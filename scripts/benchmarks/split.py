"""Where the time of a training step goes, seen from outside: hooks on the network, the losses and the optimizer."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from benchmarks.yardstick import wait_for

PARTS = ("data", "forward", "loss", "backward", "optimizer")


def split_step(
    draw: Callable[[], object],
    step: Callable[[object], object],
    net: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    rounds: int,
) -> dict[str, float]:
    """Median seconds of each part of `step(draw())`, one after another without a gap; the device is waited for.

    data: until the network begins, copies to the device included; backward: from the losses to the optimizer, checks of
    the gradients included; optimizer: to the end of the step.
    """
    marks = []

    def mark(*_) -> None:
        wait_for(device)
        marks.append(time.perf_counter())

    hooks = [
        net.register_forward_pre_hook(mark),
        net.register_forward_hook(mark),
        criterion.register_forward_hook(mark),
        optimizer.register_step_pre_hook(mark),
    ]
    times = []
    try:
        for _ in range(rounds):
            marks.clear()
            mark()
            step(draw())
            mark()
            times.append(np.diff(marks))
    finally:
        for hook in hooks:
            hook.remove()
    return dict(zip(PARTS, np.median(times, axis=0).tolist(), strict=True))
