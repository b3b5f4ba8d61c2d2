"""Speedups for training on a CPU, applied to a finished network. Parameters and their names do not change."""

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16  # dropout probabilities are multiples of 1 / LEVELS
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
    """LeakyReLU, then dropout. The backward needs only the output, which the next layer stores too."""

    @staticmethod
    def forward(context, x: Tensor, slope: float, keep_level: int) -> Tensor:
        context.slope, context.keep_level = slope, keep_level
        mask = random_mask(x, keep_level)
        y = mask.mul_(x if slope == 1 else F.leaky_relu(x, slope))
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        (y,) = context.saved_tensors
        # An element that is 0 counts as dropped, even if it was 0 before.
        mask = y.sign().abs_().mul_(LEVELS / context.keep_level)
        if context.slope != 1:
            gradient = torch.ops.aten.leaky_relu_backward(gradient, y, context.slope, True)
        return mask.mul_(gradient), None, None


def random_mask(x: Tensor, keep_level: int) -> Tensor:
    """Return LEVELS / keep_level with probability keep_level / LEVELS, else 0, for each element of x."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits are random
    draws, mask = draws.view(torch.int16)[: x.numel()], torch.empty_like(x)
    # In the memory order of x. Written as numbers at once: conversion from bool takes four times as long.
    torch.lt(draws, keep_level - LEVELS // 2, out=mask.as_strided((x.numel(),), (1,)))
    return mask.mul_(LEVELS / keep_level)


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
