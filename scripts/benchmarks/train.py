"""One training step: seconds, share of the machine's best, peak memory and parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import timer

from model import CO2Net
from scripts.benchmarks import plain_step, yardstick
from scripts.benchmarks.measure import Settings, device_name, device_peak_mb, progress, time_in_turns
from scripts.benchmarks.synthetic import THUMOS14, make_dataset
from scripts.benchmarks.table import ResultTable
from scripts.benchmarks.yardstick import Yardstick, count_flops, precisions
from utils.engine import BatchLoss, train_step
from utils.features.store import FeatureStore
from utils.losses import CO2Loss
from utils.optimizer import FusedAdam
from utils.run.devices import choose_device
from utils.run.fast_cpu import use_fast_layers
from wsad_dataset import Batch, BatchLoader, WeakVideoDataset

SIZES = ((1024, 500), (512, 320))  # channels per modality, snippets per video
QUICK_SIZES = ((16, 24),)
BATCH_SIZE, NUM_CLASSES, VIDEOS = 10, 20, 40
ADAM = {"lr": 5e-5, "weight_decay": 1e-3}
# Without and with --compile. On a CPU, compiling takes minutes and gains nothing.
MODES = {"cpu": ("eager",), "cuda": ("eager", "compiled")}
STEPS_PER_TURN = {"cpu": 1, "cuda": 10}
PARTS = ("data", "forward", "loss", "backward", "optimizer")

NOTES = (
    *yardstick.NOTES,
    "step: a batch drawn from features in memory, forward, losses, backward, Adam; on a GPU with the copy of the "
    f"batch, and {STEPS_PER_TURN['cuda']} steps before the host waits for the device",
    "GFLOP: operations of the convolutions, forward and backward, of a plain step (torch.utils.flop_counter); losses "
    "and Adam, a few percent, are not counted",
    "peak: a process that takes three such steps, interpreter and PyTorch included; on a GPU the most memory that "
    "PyTorch allocated there",
    "plain: network and losses as the paper states them (plain_step.py), in turns with the step; difference: the "
    "largest relative difference of a loss term between the two, float32, without dropout",
)
SPLIT_NOTES = (
    "each part is timed by itself, and the host waits for the device after it; the sum can exceed the whole step of "
    "the table above, especially on a GPU",
    "data: drawing the batch, and copying it to a GPU; backward: with the check of the gradients",
)


@dataclass(frozen=True)
class Trainee:
    """A network with its objective, its optimizer and its training step."""

    net: nn.Module
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[Batch], object]


def fast_trainee(dim: int, num_classes: int, precision: str, device: torch.device, compiled: bool = False) -> Trainee:
    """Build the step of main.py."""
    net, objective = CO2Net(num_classes, (dim, dim)).to(device).train(), CO2Loss()
    if device.type == "cpu":
        use_fast_layers(net, precision)
    optimizer = FusedAdam(net.parameters(), **ADAM)
    step = partial(train_step, BatchLoss(net, objective, precision, compiled), optimizer)
    return Trainee(net, objective, optimizer, step)


def plain_trainee(dim: int, num_classes: int, precision: str, device: torch.device) -> Trainee:
    """Build the step as the paper and the code of this field read."""
    net, objective = plain_step.PlainCO2Net(num_classes, (dim, dim)).to(device).train(), plain_step.PlainLoss()
    optimizer = plain_step.plain_adam(net, **ADAM)

    def step(batch: Batch) -> object:
        return plain_step.plain_train_step(net, objective, optimizer, batch, precision)

    return Trainee(net, objective, optimizer, step)


def make_loader(
    dim: int, snippets: int, device: torch.device, num_classes: int = NUM_CLASSES, videos: int = VIDEOS
) -> BatchLoader:
    """Return batches of synthetic videos in memory."""
    annotations, source = make_dataset(replace(THUMOS14.resize(videos, "train"), classes=num_classes), dim)
    dataset = WeakVideoDataset(annotations, FeatureStore(source, source.modalities), "train")
    return BatchLoader(dataset, BATCH_SIZE, num_snippets=snippets, pin_memory=device.type == "cuda")


def measure(settings: Settings) -> list[ResultTable]:
    """Return the table of whole steps and the table of their parts."""
    device = choose_device(settings.device)
    kinds, missing = precisions(device)
    sizes = QUICK_SIZES if settings.quick else SIZES
    jobs = [(*size, *way, settings) for size, way in product(sizes, product(kinds, MODES[device.type]))]
    results = [settings.run_apart(measure_step, *job) for job in progress(jobs, "train")]
    title = f"one step with Adam, {BATCH_SIZE} videos, {NUM_CLASSES} classes"
    return [
        ResultTable("train", title, [row for row, _ in results], NOTES, missing),
        ResultTable("train_split", "parts of the step", [row for _, rows in results for row in rows], SPLIT_NOTES),
    ]


def measure_step(dim: int, snippets: int, precision: str, mode: str, settings: Settings) -> tuple[dict, list[dict]]:
    """Measure one size and precision: the row of the step, and the rows of its parts."""
    settings.apply()
    device = choose_device(settings.device)
    loader = make_loader(dim, snippets, device)
    fast = fast_trainee(dim, NUM_CLASSES, precision, device, mode == "compiled")
    for _ in range(3):  # the state of Adam exists from the second step on
        fast.step(next(loader))
    peak_mb = device_peak_mb(device)
    plain = plain_trainee(dim, NUM_CLASSES, precision, device)
    difference = largest_difference(fast, plain, next(loader), device)

    best, calls = Yardstick(device, precision, settings.quick), STEPS_PER_TURN[device.type]
    functions = (lambda: fast.step(next(loader)), lambda: plain.step(next(loader)), *best.functions)
    times = time_in_turns(*functions, budget=settings.budget(25.0), rounds=20, calls=calls)
    seconds, plain_seconds, *best_seconds = times
    flops = count_flops(functions[1])
    key = {"size": format_size(dim, snippets), "precision": precision, "mode": mode}
    row = {
        **key,
        "device": device_name(device),
        "GFLOP": flops / 1e9,
        "seconds": seconds,
        "snippets/s": BATCH_SIZE * snippets / seconds,
        **best.rates(flops, seconds, best_seconds),
        "peak MB": peak_mb,
        "plain seconds": plain_seconds,
        "ratio": plain_seconds / seconds,
        "difference": difference,
    }
    parts = []
    # Hooks see the parts; a compiled step does not call hooks.
    for name, trainee, whole in (("fast", fast, seconds), ("plain", plain, plain_seconds)) if mode == "eager" else ():
        split = split_step(lambda: next(loader), trainee, rounds=2 if settings.quick else 3 * calls)
        ms = {f"{part} ms": 1000 * took for part, took in split.items()}
        parts.append({**key, "step": name, **ms, "sum ms": sum(ms.values()), "whole step ms": 1000 * whole})
    return row, parts


@torch.no_grad()
def largest_difference(first: Trainee, second: Trainee, batch: Batch, device: torch.device) -> float:
    """Return the largest relative difference of a loss term, with equal weights and without dropout."""
    second.net.load_state_dict(first.net.state_dict())
    features, labels, pairs = (x.to(device) for x in batch)
    one, two = (side.objective(side.net.eval()(features), labels, pairs) for side in (first, second))
    for side in (first, second):
        side.net.train()
    return max(abs(one[name] - two[name]).item() / max(abs(two[name]).item(), 1e-3) for name in two)


def split_step(draw: Callable[[], Batch], trainee: Trainee, rounds: int) -> dict[str, float]:
    """Return the median seconds of each part of a step; the parts follow one another without a gap.

    Data ends where the network begins, so it includes copies to the device. Backward ends where the optimizer begins.
    """
    times, marks = [], []

    def mark(*_) -> None:
        marks.append(timer())  # PyTorch's clock waits for the GPU

    hooks = [
        trainee.net.register_forward_pre_hook(mark),
        trainee.net.register_forward_hook(mark),
        trainee.objective.register_forward_hook(mark),
        trainee.optimizer.register_step_pre_hook(mark),
    ]
    try:
        for _ in range(rounds):
            marks.clear()
            mark()
            trainee.step(draw())
            mark()
            times.append(np.diff(marks))
    finally:
        for hook in hooks:
            hook.remove()
    return dict(zip(PARTS, np.median(times, axis=0).tolist(), strict=True))


def format_size(dim: int, snippets: int) -> str:
    """Format channels per modality and snippets per video."""
    return f"{dim}+{dim}, T {snippets}"
