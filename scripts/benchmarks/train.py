"""One training step: seconds, its arithmetic as a share of what the machine does at its best, and its parts."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn
from tqdm import tqdm
from utils.training_step import Objective, TrainingStep, build_optimizer

from benchmarks import plain_step, yardstick
from benchmarks.made import made_training_set
from benchmarks.measure import Settings, in_new_process, peak_memory, take_turns
from benchmarks.split import PARTS, split_step
from benchmarks.table import Column, Measured
from benchmarks.yardstick import Yardstick, as_main_runs, wait_for
from model import CO2Net
from utils.engine import choose_device
from utils.features.store import FeatureStore
from utils.losses import CO2Loss
from wsad_dataset import Batch, BatchLoader, WeakVideoDataset

SIZES = ((1024, 500), (512, 320))  # channels a modality, snippets a video
QUICK_SIZES = ((16, 24),)
BATCH_SIZE, NUM_CLASSES, VIDEOS = 10, 20, 40
ADAM = {"lr": 5e-5, "weight_decay": 1e-3}
# With --compile or without; on a CPU compiling takes minutes and brings nothing.
MODES = {"cpu": ("eager",), "cuda": ("eager", "compiled")}
STEPS_A_TURN = {"cpu": 1, "cuda": 10}

COLUMNS = (
    Column("size", "size"),
    Column("device", "device"),
    Column("precision", "precision"),
    Column("mode", "mode"),
    Column("gflop", "GFLOP", ",.1f"),
    Column("seconds", "seconds", ".4f"),
    Column("snippets_s", "snippets/s", ",.0f"),
    *yardstick.SHARE_COLUMNS,
    Column("peak_mb", "peak MB", ",.0f"),
    Column("plain_seconds", "plain", ".4f"),
    Column("ratio", "ratio", ".2f"),
    Column("results", "results"),
)
SPLIT_COLUMNS = (
    Column("size", "size"),
    Column("precision", "precision"),
    Column("step", "step"),
    *(Column(part, f"{part} ms", ",.2f") for part in PARTS),
    Column("sum", "sum ms", ",.1f"),
    Column("whole", "whole step ms", ",.1f"),
)
NOTES = (
    *yardstick.NOTES,
    "a step: a batch drawn from features in memory, forward, losses, backward, Adam; on a GPU with the "
    f"batch's copy, and {STEPS_A_TURN['cuda']} steps before the device is waited for",
    "GFLOP: the convolutions of forward and backward pass, counted from their sizes, without the gradient of the "
    "features, which nobody needs; three times the forward pass, as step times are often quoted, is {rule} at "
    "{size}. Losses and Adam are not in it",
    "peak: of a process that does nothing but three such steps, interpreter and PyTorch included; on a GPU the most "
    "that PyTorch had allocated there",
    "plain: the paper's network and losses as they read (benchmarks/plain_step.py), in turns with the step; results: "
    "the largest relative difference of a loss term between the two, float32, without dropout",
)
SPLIT_NOTES = (
    "the parts were timed one after another, with the device waited for after each; so their sum can exceed the whole "
    "step of the table above, above all on a GPU",
    "backward: with whatever looks at the gradients; data: drawing the batch, and copying it to a GPU",
)


@dataclass(frozen=True)
class Trainee:
    """A network with all that its step needs."""

    net: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[Batch], object]


def ours(dim: int, num_classes: int, precision: str, device: torch.device, compiled: bool = False) -> Trainee:
    """The step as main.py does it."""
    net, criterion = CO2Net(num_classes, (dim, dim)).to(device).train(), CO2Loss()
    optimizer = build_optimizer(net.parameters(), **ADAM)
    return Trainee(net, criterion, optimizer, TrainingStep(Objective(net, criterion, precision, compiled), optimizer))


def plain(dim: int, num_classes: int, precision: str, device: torch.device) -> Trainee:
    """The step as the paper and the field's code read."""
    net, criterion = plain_step.PlainCO2Net(num_classes, (dim, dim)).to(device).train(), plain_step.PlainLoss()
    optimizer = plain_step.plain_adam(net, **ADAM)
    return Trainee(
        net,
        criterion,
        optimizer,
        lambda batch: plain_step.plain_train_step(net, criterion, optimizer, batch, precision),
    )


def made_loader(
    dim: int, snippets: int, device: torch.device, num_classes: int = NUM_CLASSES, videos: int = VIDEOS
) -> BatchLoader:
    """Batches of made videos in memory."""
    annotations, source = made_training_set(videos, num_classes, dim)
    dataset = WeakVideoDataset(annotations, FeatureStore(source, source.modalities), "train")
    return BatchLoader(dataset, BATCH_SIZE, num_snippets=snippets, pin_memory=device.type == "cuda")


def measure(settings: Settings) -> list[Measured]:
    """Two tables, each with a row a size and precision."""
    device = choose_device(settings.device)
    sizes = QUICK_SIZES if settings.quick else SIZES
    kinds = yardstick.precisions(device)
    ways = product(kinds[-1:] if settings.quick else kinds, MODES[device.type])
    jobs = [(*size, *way) for size, way in product(sizes, ways)]
    done = [in_new_process(measured_step, *job, settings) for job in tqdm(jobs, "train", leave=False, delay=2)]
    net = _counted(sizes[0][0])
    rule = 3 * plain_step.forward_flops(net, BATCH_SIZE, sizes[0][1]) / 1e9
    notes = [note.format(rule=f"{rule:,.1f}", size=_size(*sizes[0])) for note in NOTES]
    missing = [] if "bf16" in kinds else ["train: bf16, which this machine does not multiply by itself"]
    title = f"one step of Adam, {BATCH_SIZE} videos, {NUM_CLASSES} classes"
    return [
        Measured("train", title, COLUMNS, [row for row, _ in done], notes, missing),
        Measured(
            "train_split",
            "the parts of such a step",
            SPLIT_COLUMNS,
            [row for _, rows in done for row in rows],
            SPLIT_NOTES,
        ),
    ]


def measured_step(dim: int, snippets: int, precision: str, mode: str, settings: Settings) -> tuple[dict, list[dict]]:
    """The row of one size and precision, and the rows of its parts, ours and plain; for a process of its own."""
    as_main_runs(settings)
    device = choose_device(settings.device)
    loader = made_loader(dim, snippets, device)
    fast = ours(dim, NUM_CLASSES, precision, device, mode == "compiled")
    peak = _peak_of(fast, loader, device)
    slow = plain(dim, NUM_CLASSES, precision, device)
    gap = largest_gap(fast, slow, next(loader), device)

    yard, turn = Yardstick(device, precision, settings.quick), STEPS_A_TURN[device.type]
    turns = [_turn(side, loader, device, turn) for side in (fast, slow)]
    budget = 0.05 if settings.quick else 25.0
    *both, mm, convolution = take_turns(*turns, *yard.runs, budget=budget, rounds=20)
    seconds, plain_seconds = (took / turn for took in both)
    flops = plain_step.step_flops(slow.net, BATCH_SIZE, snippets)
    shared = {"size": _size(dim, snippets), "precision": precision, "mode": mode}
    row = {
        **shared,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "gflop": flops / 1e9,
        "seconds": seconds,
        "snippets_s": BATCH_SIZE * snippets / seconds,
        **yard.shares(flops, seconds, [mm, convolution]),
        "peak_mb": peak / 1e6,
        "plain_seconds": plain_seconds,
        "ratio": plain_seconds / seconds,
        "gap": gap,
        "results": f"equal to {gap:.0e}",
    }
    rounds = 2 if settings.quick else 3 * turn
    # The parts are seen by hooks, which a compiled step does not call.
    sides = (("ours", fast, seconds), ("plain", slow, plain_seconds)) if mode == "eager" else ()
    parts = [
        {**shared, "step": name, **_parts(side, loader, device, rounds), "whole": 1000 * whole}
        for name, side, whole in sides
    ]
    return row, parts


@torch.no_grad()
def largest_gap(first: Trainee, second: Trainee, batch: Batch, device: torch.device) -> float:
    """The largest relative difference of a loss term, float32, both with the first one's weights, without dropout."""
    second.net.load_state_dict(first.net.state_dict())
    features, labels, pairs = (x.to(device) for x in batch)
    one, two = (side.criterion(side.net.eval()(features), labels, pairs) for side in (first, second))
    for side in (first, second):
        side.net.train()
    return max(abs(one[name] - two[name]).item() / max(abs(two[name]).item(), 1e-3) for name in two)


def _peak_of(side: Trainee, loader: BatchLoader, device: torch.device) -> int:
    """Bytes after three steps; Adam's state is there from the second on."""
    for _ in range(3):
        side.step(next(loader))
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def _turn(side: Trainee, loader: BatchLoader, device: torch.device, count: int) -> Callable[[], None]:
    """So many steps without waiting for the device between them, as main.py takes them."""

    def steps() -> None:
        for _ in range(count):
            side.step(next(loader))
        wait_for(device)

    return steps


def _parts(side: Trainee, loader: BatchLoader, device: torch.device, rounds: int) -> dict[str, float]:
    """Milliseconds of each part, and their sum."""
    split = split_step(lambda: next(loader), side.step, side.net, side.criterion, side.optimizer, device, rounds)
    ms = {part: 1000 * seconds for part, seconds in split.items()}
    return {**ms, "sum": sum(ms.values())}


def _counted(dim: int) -> plain_step.PlainCO2Net:
    with torch.device("meta"):  # sizes without memory
        return plain_step.PlainCO2Net(NUM_CLASSES, (dim, dim))


def _size(dim: int, snippets: int) -> str:
    return f"{dim}+{dim}, T {snippets}"
