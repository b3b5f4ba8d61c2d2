"""What the machine can do at its best: a large matrix product, and a convolution, at one precision."""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from utils.run.memory import keep_freed_memory

from benchmarks.measure import Settings, cpu_has_bfloat16
from benchmarks.table import Column

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SIDES = {"cpu": 4096, "cuda": 8192}  # of the square matrices
QUICK_SIDE = 128

# What `Yardstick.shares` gives.
SHARE_COLUMNS = (
    Column("tflop_s", "TFLOP/s", ".3f"),
    Column("mm_tflop_s", "mm TFLOP/s", ".3f"),
    Column("share_of_mm", "share of mm", ".0%"),
    Column("best_tflop_s", "best TFLOP/s", ".3f"),
    Column("best_by", "by"),
    Column("share_of_best", "share of best", ".0%"),
)
NOTES = (
    f"mm: torch.mm of two square matrices at this precision, {SIDES['cpu']:,} a side ({SIDES['cuda']:,} on a GPU), in "
    "turns with the step; best: the faster of that and a 3-tap convolution (MKL's float32 product does on AMD "
    "processors half of what oneDNN's convolution does)",
)


def as_main_runs(settings: Settings) -> None:
    """So many threads, and freed memory kept, as main.py has it."""
    torch.set_num_threads(settings.threads)
    keep_freed_memory(True)


def precisions(device: torch.device) -> list[str]:
    """Those that the device multiplies by itself."""
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
    return ["float32", "bf16"] if native else ["float32"]


class Yardstick:
    """Two things to run beside what is measured; a float32 product runs in TF32 where convolutions may."""

    def __init__(self, device: torch.device, precision: str, quick: bool):
        side = QUICK_SIDE if quick else SIDES[device.type]
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        shapes = ((side, side), (side, side), (8, side // 2, side // 4), (side // 2, side // 2, 3))
        first, second, signal, taps = (torch.randn(shape, device=device).to(DTYPES[precision]) for shape in shapes)
        repeats = 4 if device.type == "cuda" else 1  # one alone would hardly be longer than its launch
        positions = 8 * (side // 4)
        self._flops = {"mm": repeats * 2.0 * side**3, "convolution": repeats * 2.0 * positions * taps.numel()}
        self.runs = (
            _repeated(lambda: torch.mm(first, second), repeats, device),
            _repeated(lambda: F.conv1d(signal, taps, padding=1), repeats, device),
        )

    def shares(self, flops: float, seconds: float, yardstick_seconds: list[float]) -> dict:
        """Columns of a row: a rate of so many operations in so many seconds, beside the rates of both runs."""
        rates = {name: count / took for (name, count), took in zip(self._flops.items(), yardstick_seconds, strict=True)}
        by, rate = max(rates, key=rates.get), flops / seconds
        return {
            "tflop_s": rate / 1e12,
            "mm_tflop_s": rates["mm"] / 1e12,
            "share_of_mm": rate / rates["mm"],
            "best_tflop_s": rates[by] / 1e12,
            "best_by": by,
            "share_of_best": rate / rates[by],
        }


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _repeated(function: Callable[[], object], repeats: int, device: torch.device) -> Callable[[], None]:
    def run() -> None:
        for _ in range(repeats):
            function()
        wait_for(device)

    return run
