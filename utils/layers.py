"""Layers that the networks of both papers are made of; all see (B, D, T): B videos, D channels, T snippets."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16  # of a dropout probability on the CPU


class Dropout(nn.Dropout):
    """Dropout whose random numbers cost little on the CPU, where PyTorch's own take a sixth of a bf16 training step.

    PyTorch draws a number an element there, on one thread; here one draw of 64 bits decides over four elements. The
    probability is rounded to a multiple of 2^-16, and what is kept is scaled by the rounded one, so the mean is exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p, self.training)
        kept = round((1 - self.p) * LEVELS)
        if kept in (0, LEVELS):
            return x * (kept / LEVELS)
        return x * random_mask(x, kept).to(x.dtype).mul_(LEVELS / kept)


def random_mask(x: Tensor, kept: int) -> Tensor:
    """Booleans of the shape of x, each True with probability kept / LEVELS; from PyTorch's global CPU generator."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # every bit is random
    return (draws.view(torch.int16)[: x.numel()] < kept - LEVELS // 2).view(x.shape)


class Layers(nn.Sequential):
    """Layers after one another that may be told where a video ends.

    valid (B, T) is True for snippets and False for the padding behind a shorter video of a batch. Before a layer that
    looks at neighbouring snippets the padding becomes zeros, which is what lies behind a video that is alone; so
    padding changes nothing at the snippets. None: all are snippets.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, nn.Conv1d) and layer.kernel_size[0] > 1:
                x = without_padding(x, valid)
            x = layer(x)
        return x


def without_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """x (B, D, T) with zeros where valid (B, T) is False."""
    return x if valid is None else x * valid.unsqueeze(1)


def mean_over_time(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """(B, D, T) -> (B, D, 1): the mean over the snippets of each video; valid: see Layers."""
    if valid is None:
        return x.mean(dim=2, keepdim=True)
    return without_padding(x, valid).sum(dim=2, keepdim=True) / valid.sum(dim=1)[:, None, None]
