"""Layers that the networks of both papers are made of; all see (B, D, T): B videos, D channels, T snippets."""

from collections import deque

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16  # of a dropout probability on the CPU


class Dropout(nn.Dropout):
    """Dropout whose random numbers cost little on the CPU, where PyTorch's own take a sixth of a bf16 training step.

    PyTorch draws a number an element there, on one thread; here one draw of 64 bits decides over four elements. The
    probability is rounded to a multiple of 2^-16, and what is kept is scaled by the rounded one.
    """

    @property
    def kept(self) -> int:
        """Of LEVELS, how many are kept."""
        return round((1 - self.p) * LEVELS)

    def draws_here(self, x: Tensor) -> bool:
        """Whether it is this class that draws, and not PyTorch."""
        drawn_elsewhere = x.device.type != "cpu" or torch.compiler.is_compiling()
        return self.training and not drawn_elsewhere and 0 < self.kept < LEVELS

    def forward(self, x: Tensor) -> Tensor:
        if self.draws_here(x):
            return _Dropout.apply(x, self.kept)
        return F.dropout(x, 1 - self.kept / LEVELS, self.training)


class Layers(nn.Sequential):
    """Layers after one another that may be told where a video ends.

    valid (B, T) is True for snippets and False for the padding behind a shorter video of a batch. Before a layer that
    looks at neighboring snippets the padding becomes zeros, which is what lies behind a video that is alone; so
    padding changes nothing at the snippets. None: all are snippets.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        layers = deque(self)
        while layers:
            layer = layers.popleft()
            if isinstance(layer, nn.Conv1d) and layer.kernel_size[0] > 1:
                x = without_padding(x, valid)
            if (
                isinstance(layer, nn.LeakyReLU)
                and layers
                and isinstance(layers[0], Dropout)
                and layers[0].draws_here(x)
            ):
                x = _LeakyDropout.apply(x, layer.negative_slope, layers.popleft().kept)
            else:
                x = layer(x)
        return x


class _Dropout(torch.autograd.Function):
    """Dropout whose gradient needs nothing but what came out, which the next layer keeps anyway.

    What is 0 has been dropped: that it was 0 before is not told apart.
    """

    @staticmethod
    def forward(context, x: Tensor, kept: int) -> Tensor:
        y = random_mask(x, kept).mul_(x)
        context.kept = kept
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return _mask_of(*context.saved_tensors, context.kept).mul_(gradient), None


class _LeakyDropout(torch.autograd.Function):
    """LeakyReLU and then _Dropout, in the place of their input.

    Together one array is kept for the gradient in the place of three: activation, mask, product.
    """

    @staticmethod
    def forward(context, x: Tensor, slope: float, kept: int) -> Tensor:
        context.slope, context.kept = slope, kept
        context.mark_dirty(x)
        F.leaky_relu_(x, slope).mul_(random_mask(x, kept))
        context.save_for_backward(x)
        return x

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        (y,) = context.saved_tensors
        slopes = torch.ops.aten.leaky_relu_backward(gradient, y, context.slope, True)
        return slopes.mul_(_mask_of(y, context.kept)), None, None


def random_mask(x: Tensor, kept: int) -> Tensor:
    """LEVELS / kept with a probability of kept / LEVELS, else 0, for each element of x; from PyTorch's generator."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # every bit is random
    drawn = draws.view(torch.int16)[: x.numel()] < kept - LEVELS // 2
    return drawn.view(x.shape).to(x.dtype).mul_(LEVELS / kept)


def _mask_of(y: Tensor, kept: int) -> Tensor:
    """The random_mask that made y."""
    return y.sign().abs_().mul_(LEVELS / kept)


def without_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """x (B, D, T) with zeros where valid (B, T) is False."""
    return x if valid is None else x * valid.unsqueeze(1)


def mean_over_time(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """(B, D, T) -> (B, D, 1): the mean over the snippets of each video; valid: see Layers."""
    if valid is None:
        return x.mean(dim=2, keepdim=True)
    return without_padding(x, valid).sum(dim=2, keepdim=True) / valid.sum(dim=1)[:, None, None]
