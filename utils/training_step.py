"""One training step after another, none of which makes the host wait for the device."""

import os
import shutil
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from utils.errors import InputError
from utils.run.ranks import SINGLE_PROCESS, Ranks
from utils.training import StepOutcome
from wsad_dataset import Batch, to_device


class Objective(nn.Module):
    """Network and losses as one: a batch -> its loss terms. It is what is compiled, and what ranks share.

    Args:
        net, criterion: of one method (utils/methods/__init__.py).
        precision: with `bf16` the network runs under autocast on features of that width, and the losses in float32
            on its outputs.
        compiled: through torch.compile, on a GPU as CUDA graphs; the first step then takes a minute or so.

    Raises:
        InputError: to be compiled for a CPU where there is no C++ compiler.
    """

    def __init__(self, net: nn.Module, criterion: nn.Module, precision: str = "float32", compiled: bool = False):
        super().__init__()
        self.net, self.criterion, self.half = net, criterion, precision == "bf16"
        if compiled:
            on_gpu = next(net.parameters()).is_cuda
            if not on_gpu and shutil.which(os.environ.get("CXX", "g++")) is None:
                raise InputError("--compile: needs a C++ compiler (g++, or that which CXX names); leave it out")
            self.compile(mode="reduce-overhead" if on_gpu else "default", dynamic=False)

    def forward(self, features: Tensor, labels: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        if self.half:
            features = features.bfloat16()
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.half):
            outputs = self.net(features)
        return self.criterion({name: value.float() for name, value in outputs.items()}, labels, pairs)


class TrainingStep:
    """Forward, losses, backward and optimizer on one batch.

    A step with a loss term or a gradient that is not finite changes neither the weights nor the optimizer's state, on
    any rank. The device decides so by itself, as for gradient scaling: the host need not know before the next step.

    Args:
        objective: an Objective, or what ranks made of it; it runs where its parameters are.
        optimizer: as `build_optimizer` makes it.
        ranks: those that take the step together. Their terms become means, and so are the gradients that they share.
    """

    def __init__(self, objective: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks = SINGLE_PROCESS):
        self.objective, self.optimizer, self.ranks = objective, optimizer, ranks
        self.device = next(objective.parameters()).device

    def __call__(self, batch: Batch) -> StepOutcome:
        self.optimizer.zero_grad(set_to_none=True)  # first, so that they are gone when the activations are there
        terms = self.objective(*(to_device(part, self.device) for part in batch))
        terms["total"].backward()
        gradients = [parameter.grad for parameter in self.objective.parameters() if parameter.grad is not None]
        # The norm is not finite either where a square is not, and Adam squares them too.
        sizes = self.ranks.mean(torch.stack([*terms.values(), nn.utils.get_total_norm(gradients)]))
        finite = sizes.isfinite().all()
        self.optimizer.found_inf = (~finite).float()
        self.optimizer.step()
        return StepOutcome(dict(zip(terms, sizes, strict=False)), finite)


def build_optimizer(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam (Section 4.2) in one kernel, which can leave a step out without asking the host."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
