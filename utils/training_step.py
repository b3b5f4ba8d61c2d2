"""One training step after another, none of which makes the host wait for the device."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.errors import InputError
from wsad_dataset import Batch

PRECISIONS = ("float32", "bf16")


class StepOutcome(NamedTuple):
    """What a step says of itself, on the device: whoever looks at a value waits for the step."""

    terms: dict[str, Tensor]  # the loss terms and their total, detached scalars
    finite: Tensor  # bool: whether the weights took the step


class Objective(nn.Module):
    """Network and losses as one module: a batch -> loss terms. It is what is compiled.

    With ``bf16`` the network runs under autocast on features of that width, and the losses in float32 on its outputs.
    """

    def __init__(self, net: nn.Module, criterion: nn.Module, precision: str = "float32"):
        super().__init__()
        self.net, self.criterion, self.half = net, criterion, precision == "bf16"

    def forward(self, features: Tensor, labels: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        if self.half:
            features = features.bfloat16()
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.half):
            outputs = self.net(features)
        return self.criterion({name: value.float() for name, value in outputs.items()}, labels, pairs)


class TrainingStep:
    """Forward, losses, backward and optimiser on one batch.

    A step with a loss term or a gradient that is not finite changes neither the weights nor the optimiser's state.
    The device decides so by itself, as it does for gradient scaling: the host need not know before the next step.

    Args:
        net, criterion: see Objective; the parameters' device is where it runs.
        optimiser: as `build_optimiser` makes it.
        precision: one of PRECISIONS.
        compiled: through torch.compile, and on a GPU as one CUDA graph. The first step then takes a minute or so.
    """

    def __init__(
        self,
        net: nn.Module,
        criterion: nn.Module,
        optimiser: torch.optim.Optimizer,
        precision: str = "float32",
        compiled: bool = False,
    ):
        self.net, self.optimiser = net, optimiser
        self.device = next(net.parameters()).device
        self.objective = Objective(net, criterion, precision)
        self._compiled = _compile(self.objective, self.device) if compiled else self.objective

    def __call__(self, batch: Batch) -> StepOutcome:
        features, labels, pairs = (x.to(self.device, non_blocking=True) for x in batch)
        terms = self._compiled(features, labels, pairs)
        self.optimiser.zero_grad(set_to_none=True)
        terms["total"].backward()
        # A CUDA graph writes the next step's terms where these lie.
        terms = {name: value.detach().clone() for name, value in terms.items()}
        finite = self._finite(terms)
        self.optimiser.found_inf = (~finite).float()
        self.optimiser.step()
        return StepOutcome(terms, finite)

    def _finite(self, terms: dict[str, Tensor]) -> Tensor:
        gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        # The norm is not finite either where a square is not, and Adam squares them too.
        return torch.stack([*terms.values(), nn.utils.get_total_norm(gradients)]).isfinite().all()


def build_optimiser(net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam (Section 4.2) in one kernel, which can leave a step out without asking the host."""
    return torch.optim.Adam(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def _compile(objective: Objective, device: torch.device) -> nn.Module:
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise InputError("--compile: needs a C++ compiler, and there is none here; leave it out") from None
    return torch.compile(objective, mode="reduce-overhead" if device.type == "cuda" else "default", dynamic=False)
