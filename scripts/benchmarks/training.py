"""One training step: seconds, and its arithmetic as a share of what the machine does at its best."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from benchmarks.measure import cpu_has_bfloat16, take_turns
from benchmarks.table import Column
from model import CO2Net
from utils.engine import Objective, choose_device, train_step
from utils.losses import CO2Loss
from wsad_dataset import Batch

SIZES = ((1024, 500), (512, 320))  # channels a modality, snippets a video
BATCH_SIZE, NUM_CLASSES = 10, 20
REPEATS = 4  # of what the step is compared with, in each of its turns

TITLE = f"training: one step of Adam, {BATCH_SIZE} videos, {NUM_CLASSES} classes"
COLUMNS = (
    Column("size", "size"),
    Column("device", "device"),
    Column("precision", "precision"),
    Column("parameters_m", "parameters M", ".1f"),
    Column("gflop", "GFLOP a step", ",.1f"),
    Column("seconds", "seconds", ".4f"),
    Column("snippets_s", "snippets/s", ",.0f"),
    Column("tflop_s", "TFLOP/s", ".3f"),
    Column("machine_tflop_s", "machine TFLOP/s", ".3f"),
    Column("machine_by", "by"),
    Column("share", "share", ".0%"),
)
NOTES = (
    "machine: the faster of a square matrix product and a 3-tap convolution at this precision, on as many threads, in",
    "  the same run (MKL's float32 product does on AMD processors half of what oneDNN's convolution does)",
    "GFLOP: the convolutions of forward and backward pass, counted from their sizes; losses and Adam are not in it",
    "a step begins with a batch in main memory: on a GPU, copying it there is part of the step",
)


def step_flops(net: CO2Net, batch_size: int, num_snippets: int) -> float:
    """Floating-point operations of one training step, counted from the sizes of its convolutions.

    A convolution forward is a product and a sum for each output position, output channel, input channel and tap:
    2 * B * T * out * in * taps. F^G sees one position a video, the mean over time. The backward pass costs that once
    for the gradient of the weights and once for that of the input; the first layers, those of the two consensus
    modules, see the features, which need none. Losses, activations and Adam, some percent of it, are not counted.
    """
    total = 0.0
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv1d):
            positions = batch_size * (1 if "global_context" in name else num_snippets)
            forward = 2.0 * positions * layer.weight.numel()
            total += forward * (2 if name.startswith("consensus") else 3)
    return total


def measure(quick: bool, threads: int, device: str, files: Sequence[str] | None) -> list[dict]:
    """A row a size and precision."""
    torch.set_num_threads(threads)
    place = choose_device(device)
    sizes, budget = (((16, 24),), 0.05) if quick else (SIZES, 20.0)
    return [_row(place, *size, precision, budget, quick) for size in sizes for precision in _precisions(place)]


def _precisions(device: torch.device) -> Iterator[str]:
    yield "float32"
    if torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16():
        yield "bf16"


def _row(device: torch.device, dim: int, snippets: int, precision: str, budget: float, quick: bool) -> dict:
    net = CO2Net(NUM_CLASSES, (dim, dim)).to(device).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-5, weight_decay=1e-3)
    objective, batch = Objective(net, CO2Loss(), precision), _batch(2 * dim, snippets)
    side = 128 if quick else 8192 if device.type == "cuda" else 2048

    def step() -> None:
        train_step(objective, optimiser, batch)
        _wait(device)

    yardsticks = _yardsticks(side, device, torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds, *yardstick_seconds = take_turns(step, *(run for run, _ in yardsticks.values()), budget=budget, rounds=20)
    rates = {name: flops / took for (name, (_, flops)), took in zip(yardsticks.items(), yardstick_seconds, strict=True)}
    by = max(rates, key=rates.get)
    flops = step_flops(net, BATCH_SIZE, snippets)
    return {
        "size": f"{dim}+{dim}, T {snippets}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": precision,
        "parameters_m": sum(parameter.numel() for parameter in net.parameters()) / 1e6,
        "gflop": flops / 1e9,
        "seconds": seconds,
        "snippets_s": BATCH_SIZE * snippets / seconds,
        "tflop_s": flops / seconds / 1e12,
        "machine_tflop_s": rates[by] / 1e12,
        "machine_by": by,
        "share": flops / seconds / rates[by],
    }


def _batch(channels: int, snippets: int) -> Batch:
    """Six videos in pairs that share a class, four more."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(BATCH_SIZE, snippets, channels, generator=generator)
    classes = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4, 5, 6])
    labels = nn.functional.one_hot(classes, NUM_CLASSES).float()
    return Batch(features, labels, torch.tensor([[0, 1], [2, 3], [4, 5]]))


def _yardsticks(side: int, device: torch.device, kind: torch.dtype) -> dict[str, tuple[Callable[[], None], float]]:
    """What a machine is good at: what to run, and its floating-point operations."""
    if device.type == "cuda":  # float32 convolutions run in TF32 where cuDNN may; then so shall the product
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    shapes = {"first": (side, side), "second": (side, side)}
    shapes |= {"signal": (8, side // 2, side // 4), "taps": (side // 2, side // 2, 3)}
    made = {name: torch.randn(shape, device=device).to(kind) for name, shape in shapes.items()}

    def multiply() -> None:
        for _ in range(REPEATS):
            torch.mm(made["first"], made["second"])
        _wait(device)

    def convolve() -> None:
        for _ in range(REPEATS):
            nn.functional.conv1d(made["signal"], made["taps"], padding=1)
        _wait(device)

    positions = 8 * (side // 4)
    return {
        "matmul": (multiply, REPEATS * 2.0 * side**3),
        "convolution": (convolve, REPEATS * 2.0 * positions * made["taps"].numel()),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
