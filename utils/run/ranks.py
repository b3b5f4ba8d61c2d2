"""Processes that train one network together, as started by torchrun; docs/scaling.md explains how they share work.

Each process is a rank. All ranks have the same weights and take the same steps; only rank 0 writes files and prints.
Without torchrun there is a single rank: every operation is the identity, and no process group exists.
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

    A method marked "Collective" must be called by every rank, in the same order. A missing call blocks the others.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        local_rank: Number of this process on its machine.
        nodes: Number of machines.
        restarts: Number of restarts by torchrun, each after the loss of a rank.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    nodes: int = 1
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this rank: its own GPU, or the given device if it is the CPU or there is one rank.

        Raises:
            InputError: If this machine has fewer GPUs than ranks.
        """
        if device.type == "cpu" or self.size == 1:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {self.local_rank + 1} of this machine needs a GPU of its own, but only "
                f"{torch.cuda.device_count()} GPUs are visible; lower --nproc_per_node, or use --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def share(self, batch_loss: nn.Module, example: Sequence[Tensor]) -> nn.Module:
        """Wrap a BatchLoss so that ranks share the weights of rank 0 and average their gradients. Collective.

        Two passes over an example batch come first, and their gradients are discarded. They settle two things:

        * which parameters get a gradient at all (with L_mil^org alone, those of the attention get none);
        * the order in which DistributedDataParallel sums gradients, which differs in its first steps.

        Without them a resumed run would sum its first gradients in another order than an uninterrupted run. The last
        bits would then differ. Random states are unchanged.

        Args:
            batch_loss: Module that returns loss terms, `total` among them.
            example: Inputs of the module.
        """
        if self.size == 1:
            return batch_loss
        shared = nn.parallel.DistributedDataParallel(batch_loss, static_graph=True, gradient_as_bucket_view=True)
        with torch.random.fork_rng([x.device for x in example[:1] if x.is_cuda]):
            for _ in range(2):
                shared(*example)["total"].backward()
                shared.zero_grad()
        return shared

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over ranks, detached. Collective."""
        if self.size == 1:
            return values.detach()
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def max(self, number: int) -> int:
        """Return the largest number over ranks. Collective."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        self.max(0)

    def gather(self, value: Value) -> list[Value]:
        """Gather the values of all ranks on rank 0, in order; other ranks get a list of their own value. Collective."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        distributed.gather_object(value, values)
        return values if self.is_main else [value]

    def on_rank_zero(self, function: Callable[..., Value], *arguments: object) -> Value:
        """Call the function on rank 0 and return its result on every rank. Collective."""
        values = [function(*arguments) if self.is_main else None]
        if self.size > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def rank_zero_first(self, function: Callable[..., Value], *arguments: object) -> Value:
        """Call the function on rank 0, which may write a file, and then on the other ranks. Collective."""
        if self.is_main:
            value = function(*arguments)
        self.barrier()
        return value if self.is_main else function(*arguments)


SINGLE_PROCESS = Ranks()


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes started by torchrun; yield `SINGLE_PROCESS` without it.

    Inside the block only rank 0 prints. With several ranks the process ends with the block.

    Raises:
        InputError: If another rank is lost; replaces PyTorch's own message.
    """
    ranks = ranks_from_environment()
    if ranks.size == 1:
        yield ranks
        return
    with _lost_rank_as_input_error(), ExitStack() as stack:
        _init_process_group(ranks)
        if not ranks.is_main:
            devnull = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(devnull))
            stack.enter_context(redirect_stderr(devnull))
        yield ranks
        # Every file is written and closed here. Destroying the process group on a busy machine sometimes aborts a
        # process with "terminate called without an active exception" (gloo). So all ranks leave together without
        # destroying it, and os._exit skips the destructors that would.
        ranks.barrier()
        sys.__stdout__.flush()
        os._exit(0)


def ranks_from_environment() -> Ranks:
    """Return this process among those of torchrun, without joining the others."""
    # Only LOCAL_RANK is specific to torchrun: clusters set the other names for their own jobs.
    if "LOCAL_RANK" not in os.environ:
        return SINGLE_PROCESS
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    rank, size, local_rank, nodes, restarts = (int(os.environ.get(name, 0)) for name in names)
    return Ranks(rank, size, local_rank, nodes, restarts)


def _init_process_group(ranks: Ranks) -> None:
    store, *_ = next(distributed.rendezvous("env://"))
    # torchrun reuses its store after a restart, with the addresses of processes that no longer exist.
    store = distributed.PrefixStore(f"{ranks.restarts} restarts, {ranks.size} processes", store)
    # gloo carries small Python objects, so that no GPU waits for them.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size)


@contextmanager
def _lost_rank_as_input_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"another process of this run was lost and reports the reason itself ({str(error).split('. ')[0]}); "
            "run the same command with --resume to continue from the last evaluation"
        ) from None
