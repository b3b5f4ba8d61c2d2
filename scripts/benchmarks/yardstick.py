"""FLOP counts, and the machine's best: a large matrix product and a convolution at one precision."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks.machine import read_cpuinfo

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SIDES = {"cpu": 4096, "cuda": 8192}  # of the square matrices
QUICK_SIDE = 128
NAMES = ("mm", "convolution")  # of the functions of a Yardstick

NOTES = (
    f"mm: torch.mm of two square matrices at this precision, {SIDES['cpu']:,} per side ({SIDES['cuda']:,} on a GPU), "
    "in turns with the code; best: the faster one of that and a 3-tap convolution (on AMD processors, MKL's float32 "
    "product reaches half the rate of oneDNN's convolution)",
)


def precisions(device: torch.device) -> tuple[list[str], list[str]]:
    """Return the precisions to measure, and the reason why bf16 is not among them, if so.

    A CPU without bfloat16 instructions emulates them, and one step then takes about 16 times as long as in float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Flags exist on Linux only. PyTorch may use AVX2 although the processor has more.
        native = "bf16" in read_cpuinfo("flags", "Features") and torch.backends.cpu.get_cpu_capability() != "AVX2"
    if native:
        return ["float32", "bf16"], []
    return ["float32"], [f"bf16: this {device.type.upper()} has no bfloat16 instructions, so bf16 is very slow on it"]


def count_flops(function: Callable[[], object]) -> int:
    """Return the floating-point operations of matrix products and convolutions in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class Yardstick:
    """Two functions to time in turns with the code that is measured.

    A float32 product runs in TF32 where convolutions may.
    """

    def __init__(self, device: torch.device, precision: str, quick: bool):
        side = QUICK_SIDE if quick else SIDES[device.type]
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        shapes = ((side, side), (side, side), (8, side // 2, side // 4), (side // 2, side // 2, 3))
        first, second, signal, taps = (torch.randn(shape, device=device).to(DTYPES[precision]) for shape in shapes)
        self.functions = (lambda: torch.mm(first, second), lambda: F.conv1d(signal, taps, padding=1))
        self._flops = [count_flops(function) for function in self.functions]

    def rates(self, flops: float, seconds: float, yardstick_seconds: Sequence[float]) -> dict:
        """Return the columns that compare a rate with the rates of both functions."""
        rates = [count / took for count, took in zip(self._flops, yardstick_seconds, strict=True)]
        (product, _), best, rate = rates, max(rates), flops / seconds
        return {
            "TFLOP/s": rate / 1e12,
            "mm TFLOP/s": product / 1e12,
            "share of mm": rate / product,
            "best TFLOP/s": best / 1e12,
            "best by": NAMES[rates.index(best)],
            "share of best": rate / best,
        }
