"""Speedups for training on a CPU, applied to a finished network. Parameters and their names do not change."""

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16  # dropout probabilities are multiples of 1 / LEVELS
BLOCK = 2**17  # elements; a multiple of 4, because one draw decides four
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def speed_up_cpu(net: nn.Module, precision: str, reuse_memory: bool) -> None:
    """Prepare this process and a network for fast training on a CPU.

    Args:
        net: Network; some of its layers are replaced.
        precision: Precision of the step. Prints a warning for `bf16` on a CPU that can only emulate it.
        reuse_memory: See `set_malloc_policy`.
    """
    set_malloc_policy(reuse_memory)
    use_fast_layers(net, precision)
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print("warning: this CPU has no bfloat16 instructions, so steps are slow; use --precision float32")


def use_fast_layers(net: nn.Module, precision: str) -> None:
    """Replace the dropout layers of a network, and for `bf16` its convolutions."""
    use_fast_dropout(net)
    if precision == "bf16":
        use_channels_last(net)


def use_channels_last(net: nn.Module) -> None:
    """Keep the features of a network in the memory order (B, T, D) in training.

    In bf16 with AMX instructions, convolutions of 3 taps are then 1.2 to 1.5 times as fast, those of 1 tap 1.8 times.
    With AVX512-BF16 both orders take the same time. In float32 the order (B, D, T) is faster.
    """
    for module in list(net.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv1d:
                setattr(module, name, ChannelsLastConv1d(child).train(child.training))
        if isinstance(module, nn.LeakyReLU):
            module.inplace = False  # autograd copies the output of a channels-last convolution that changes in place
        if hasattr(module, "channels_last"):
            module.channels_last = True


class ChannelsLastConv1d(nn.Conv1d):
    """Convolution over time (B, D, T) that writes its output in the memory order (B, T, D) in training.

    Args:
        conv: Convolution to replace; its parameters are shared.
    """

    def __init__(self, conv: nn.Conv1d):
        options = conv.stride, conv.padding, conv.dilation, conv.groups, conv.bias is not None
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, *options, device="meta")
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (B, D_out, T)."""
        if not self.training:
            return super().forward(x)
        # Only 2D convolutions have a channels-last order in PyTorch.
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        padding, dilation = (0, *self.padding), (1, *self.dilation)
        y = F.conv2d(x.unsqueeze(2), weight, self.bias, 1, padding, dilation, self.groups)
        return y.squeeze(2)


def use_fast_dropout(net: nn.Module) -> None:
    """Replace the dropout layers of a network, and fuse each with the LeakyReLU before it.

    PyTorch's own dropout takes a sixth of a bf16 training step on a CPU.
    """
    for sequential in [module for module in net.modules() if isinstance(module, nn.Sequential)]:
        layers = list(sequential.named_children())
        for (name, layer), (next_name, next_layer) in zip(layers, layers[1:], strict=False):
            if isinstance(layer, nn.LeakyReLU) and type(next_layer) is nn.Dropout:
                sequential[int(name)] = nn.Identity()
                fast = FastDropout(next_layer.p, layer.negative_slope)
                sequential[int(next_name)] = fast.train(next_layer.training)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))


class FastDropout(nn.Dropout):
    """Dropout with cheap random numbers on a CPU, optionally after a LeakyReLU.

    PyTorch draws one number per element, on one thread. Here one draw of 64 bits decides four elements. The keep
    probability is rounded to a multiple of 1/LEVELS, and kept elements are scaled by the rounded one.

    Args:
        p: Dropout probability.
        slope: Negative slope of the LeakyReLU before the dropout; 1 for none.
    """

    def __init__(self, p: float, slope: float = 1.0):
        super().__init__(p)
        self.slope = slope
        self.keep_level = round((1 - p) * LEVELS)  # keep probability in units of 1/LEVELS

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation (B, D, T), dropped out in training."""
        custom = x.device.type == "cpu" and not torch.compiler.is_compiling() and 0 < self.keep_level < LEVELS
        if self.training and custom:
            return _LeakyDropout.apply(x, self.slope, self.keep_level)
        x = x if self.slope == 1 else F.leaky_relu(x, self.slope, inplace=True)
        return F.dropout(x, 1 - self.keep_level / LEVELS, self.training)


class _LeakyDropout(torch.autograd.Function):
    """LeakyReLU, then dropout. The backward needs only the output, which the next layer stores too.

    Both work on one block after another, which stays in the cache of the processor between two operations.
    """

    @staticmethod
    def forward(context, x: Tensor, slope: float, keep_level: int) -> Tensor:
        context.slope, context.keep_level = slope, keep_level
        y = torch.empty_like(x)
        for x_block, y_block in zip(blocks(x, y), blocks(y, y), strict=True):
            random_mask(keep_level, out=y_block)
            y_block.mul_(x_block if slope == 1 else F.leaky_relu(x_block, slope))
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        (y,) = context.saved_tensors
        result = torch.empty_like(y)
        scale = torch.tensor(LEVELS / context.keep_level, dtype=y.dtype).item()  # rounded as the mask was
        for g, y_block, out in zip(blocks(gradient, y), blocks(y, y), blocks(result, y), strict=True):
            # Its gradient is that of dropout: an element that is 0 counts as dropped, even if it was 0 before.
            torch.ops.aten.hardshrink_backward.grad_input(g, y_block, 0.0, grad_input=out)
            if context.slope != 1:
                torch.ops.aten.leaky_relu_backward.grad_input(out, y_block, context.slope, True, grad_input=out)
            out.mul_(scale)
        return result, None, None


def blocks(x: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Return the elements of x in blocks of BLOCK, in the memory order of a dense tensor of its shape."""
    x = x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)
    return x.as_strided((x.numel(),), (1,)).split(BLOCK)


def random_mask(keep_level: int, out: Tensor) -> None:
    """Set each element of `out` (N,) to LEVELS / keep_level with probability keep_level / LEVELS, else to 0."""
    draws = torch.empty(-(-len(out) // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits are random
    # Written as numbers at once: conversion from bool takes four times as long.
    torch.lt(draws.view(torch.int16)[: len(out)], keep_level - LEVELS // 2, out=out).mul_(LEVELS / keep_level)


def set_malloc_policy(reuse: bool) -> None:
    """Make glibc reuse freed large arrays, or return them to the system; other C libraries are left alone.

    Reuse saves the system from clearing tens of thousands of pages per step, a fifth of a float32 step. Returning
    bounds the memory of the process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**30 if reuse else 2**22)  # bytes
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1 if reuse else 2**22)
