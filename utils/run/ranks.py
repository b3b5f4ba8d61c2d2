"""The processes that train one network together, as torchrun starts them; docs/scaling.md says how they share the work.

Each is called a rank. All of them hold the same weights and take the same steps; rank 0 alone writes and prints.
Without torchrun there is one rank, every operation is the identity, and no process group is made.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from utils.errors import InputError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """One process among those of a run.

    What all of them must call together, in the same order, says so; one that never comes keeps the others waiting.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine
    nodes: int = 1  # machines
    restarts: int = 0  # by torchrun, each because a rank was lost

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """The device of this rank, where each has a GPU of its own; InputError if there are too few."""
        if device.type == "cpu" or self.size == 1:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {self.local_rank + 1} of this machine finds {torch.cuda.device_count()} GPUs, and each needs "
                "one of its own; lower --nproc_per_node, or use --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def share(self, objective: nn.Module, example: Sequence[Tensor]) -> nn.Module:
        """The objective with the weights of rank 0, and with gradients that are means over ranks; all together.

        Two passes over an example, whose gradients are thrown away, settle which parameters get a gradient at all (the
        attention's do not if L_mil^org is alone) and the order in which gradients are summed up, which would be another
        one in the first steps: so a resumed training is the one that was not stopped, to the last bit. Random states
        stay as they are.

        Args:
            objective: a module that gives loss terms, `total` among them.
            example: what it takes.
        """
        if self.size == 1:
            return objective
        shared = nn.parallel.DistributedDataParallel(objective, static_graph=True, gradient_as_bucket_view=True)
        with torch.random.fork_rng([x.device for x in example[:1] if x.is_cuda]):
            for _ in range(2):
                shared(*example)["total"].backward()
                shared.zero_grad()
        return shared

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ranks of a tensor, without gradient; all together."""
        if self.size == 1:
            return values.detach()
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def largest(self, number: int) -> int:
        """The largest number of any rank; all together."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def wait(self) -> None:
        """Until all ranks are here; all together."""
        self.largest(0)

    def gather(self, value: Value) -> list[Value]:
        """On rank 0 every rank's value, in their order; elsewhere this one's alone. All together."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        distributed.gather_object(value, values)
        return values if self.is_main else [value]

    def once(self, function: Callable[..., Value], *arguments: object) -> Value:
        """What the function gives on rank 0, which alone calls it, on every rank; all together."""
        values = [function(*arguments) if self.is_main else None]
        if self.size > 1:
            distributed.broadcast_object_list(values)
        return values[0]


ALONE = Ranks()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """This process among those that torchrun started; `ALONE` without it. The process ends with the block.

    Inside the block all but rank 0 are silent.

    Raises:
        InputError: in place of PyTorch's own words, where another rank is lost, which it says itself.
    """
    ranks = _ranks_from_environment()
    if ranks.size == 1:
        yield ranks
        return
    with _lost_ranks_in_one_line(), ExitStack() as stack:
        _join(ranks)
        if not ranks.is_main:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield ranks
        # All is written and closed. On a busy machine, taking down the group has now and then ended a process by
        # "terminate called without an active exception" in place of 0: so the processes leave together, as they are.
        ranks.wait()
        sys.__stdout__.flush()
        os._exit(0)


def _ranks_from_environment() -> Ranks:
    """LOCAL_RANK is torchrun's own; the other names are used by clusters as well, for what they start."""
    if "LOCAL_RANK" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    rank, size, local_rank, nodes, restarts = (int(os.environ.get(name, 0)) for name in names)
    return Ranks(rank, size, local_rank, nodes, restarts)


def _join(ranks: Ranks) -> None:
    store, *_ = next(distributed.rendezvous("env://"))
    # torchrun keeps its store over a restart, and the addresses in it of processes that are gone.
    store = distributed.PrefixStore(f"{ranks.restarts} restarts, {ranks.size} processes", store)
    # Small things that the processes tell each other go through gloo, which keeps no GPU waiting.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size)


@contextmanager
def _lost_ranks_in_one_line() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"another process of this run was lost, and says why itself ({str(error).split('. ')[0]}); "
            "the same command with --resume continues from the last evaluation"
        ) from None
