"""A test pass: the network over 212 videos, their localization and both protocols, as main.py evaluates."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.made import SCALES, Scale, made_test_set
from benchmarks.measure import Settings, in_new_process, peak_memory, take_turns
from benchmarks.plain_step import PlainCO2Net, forward_flops
from benchmarks.table import Column, Measured
from benchmarks.yardstick import NOTES as YARDSTICK_NOTES
from benchmarks.yardstick import SHARE_COLUMNS, Yardstick, as_main_runs, wait_for
from eval.proposals import localize
from model import CO2Net
from utils.datasets import DATASETS
from utils.engine import Evaluation, Evaluator, choose_device
from utils.features.store import FeatureStore
from wsad_dataset import WeakVideoDataset

DIM, QUICK_DIM = 1024, 16
QUICK_SCALE = replace(SCALES["thumos14"], videos=12, instances=60)
TOLERANCE = 1e-4  # of a detection's score

COLUMNS = (
    Column("channels", "channels"),
    Column("device", "device"),
    Column("videos", "videos"),
    Column("snippets", "snippets", ","),
    Column("gflop", "GFLOP", ",.0f"),
    Column("plain_seconds", "plain forward s", ".2f"),
    Column("forward_seconds", "forward s", ".2f"),
    Column("snippets_s", "snippets/s", ",.0f"),
    *SHARE_COLUMNS,
    Column("whole_seconds", "whole pass s", ".2f"),
    Column("beyond_seconds", "beyond forward s", ".2f"),
    Column("detections", "detections", ","),
    Column("results", "results"),
    Column("peak_mb", "peak MB", ",.0f"),
)
NOTES = (
    *YARDSTICK_NOTES,
    "plain forward: the network alone, float32, one video after another; forward: the same inside the whole pass",
    "whole pass: forward, localization, classification mAP and detection mAP under both protocols, as main.py does it; "
    "beyond forward: the whole pass without the forward passes in it; rates are those of the forward passes in it",
    "SIMULATED features, an untrained network whose attention is scaled to a trained one's spread, so that there is as "
    "much to localize (benchmarks/made.py: made_outputs)",
    f"results: detections equal to those of the plain forward passes, scores to {TOLERANCE:g}",
)


def measure(settings: Settings) -> list[Measured]:
    """One row."""
    case = (QUICK_SCALE, QUICK_DIM) if settings.quick else (SCALES["thumos14"], DIM)
    rows = [in_new_process(measured_pass, *case, settings) for case in tqdm([case], "infer", leave=False, delay=2)]
    return [
        Measured("infer", "one pass over a test subset of THUMOS14's size, 20 classes, float32", COLUMNS, rows, NOTES)
    ]


def measured_pass(scale: Scale, dim: int, settings: Settings) -> dict:
    """The row of one test subset; for a process of its own."""
    as_main_runs(settings)
    device = choose_device(settings.device)
    annotations, source = made_test_set(scale, dim)
    spec = DATASETS[scale.dataset]
    dataset = WeakVideoDataset(annotations, FeatureStore(source, source.modalities), spec.test_subset)
    net = CO2Net(scale.classes, (dim, dim)).to(device).eval()
    spread_attention(net, dataset)
    evaluate, forwards = Evaluator(dataset, annotations, spec), ForwardClock(net, device)
    passes: list[tuple[float, Evaluation]] = []

    def whole() -> None:
        forwards.seconds = 0.0
        evaluation = evaluate(net)
        passes.append((forwards.seconds, evaluation))

    def forward() -> None:
        for index in range(len(dataset)):
            forward_pass(net, dataset, index)
        wait_for(device)

    yard = Yardstick(device, "float32", settings.quick)
    budget = 0.05 if settings.quick else 40.0
    plain_seconds, whole_seconds, *others = take_turns(forward, whole, *yard.runs, budget=budget, rounds=5)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    forward_seconds = float(np.median([seconds for seconds, _ in passes[1:] or passes]))
    snippets = int(dataset.lengths.sum())
    flops = forward_flops(PlainCO2Net(scale.classes, (dim, dim)), 1, snippets)
    return {
        "channels": 2 * dim,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "videos": len(dataset),
        "snippets": snippets,
        "gflop": flops / 1e9,
        "plain_seconds": plain_seconds,
        "forward_seconds": forward_seconds,
        "snippets_s": snippets / forward_seconds,
        **yard.shares(flops, forward_seconds, others),
        "whole_seconds": whole_seconds,
        "beyond_seconds": whole_seconds - forward_seconds,
        "detections": sum(len(result.detections) for result in passes[-1][1].results),
        "results": compared(passes[-1][1], net, dataset),
        "peak_mb": peak / 1e6,
    }


@torch.no_grad()
def forward_pass(net: nn.Module, dataset: WeakVideoDataset, index: int) -> dict[str, torch.Tensor]:
    """One video through the network, by itself."""
    return net(torch.tensor(dataset[index], device=next(net.parameters()).device)[None])


class ForwardClock:
    """Seconds that a network has spent in its forward passes since they were set to 0."""

    def __init__(self, net: nn.Module, device: torch.device):
        self.seconds, self._device = 0.0, device
        net.register_forward_pre_hook(self._begin)
        net.register_forward_hook(self._end)

    def _begin(self, *_) -> None:
        wait_for(self._device)
        self._began = time.perf_counter()

    def _end(self, *_) -> None:
        wait_for(self._device)
        self.seconds += time.perf_counter() - self._began


def compared(evaluation: Evaluation, net: nn.Module, dataset: WeakVideoDataset) -> str:
    """Whether the detections are those of one video after another."""
    different = 0
    for index, result in enumerate(evaluation.results):
        outputs = forward_pass(net, dataset, index)
        cas, attention = (outputs[name][0].cpu().numpy() for name in ("cas", "attention"))
        expected, found = localize(cas, attention), result.detections
        same = len(expected) == len(found) and all(
            np.array_equal(expected[name], found[name]) for name in ("label", "start", "end")
        )
        different += not (same and np.allclose(expected["score"], found["score"], rtol=0, atol=TOLERANCE))
    return f"{different} videos differ" if different else "equal"


@torch.no_grad()
def spread_attention(net: CO2Net, dataset: WeakVideoDataset) -> None:
    """Scale the last layer of both attention units: logits of mean -0.6 and deviation 2 on the longest video."""
    longest = int(dataset.lengths.argmax())
    for modality, unit in enumerate(net.attention_units):
        last = [layer for layer in unit.modules() if isinstance(layer, nn.Conv1d)][-1]
        logits = forward_pass(net, dataset, longest)["modality_attention"][0, modality].logit()
        scale = 2 / logits.std()
        last.weight.mul_(scale)
        last.bias.copy_((last.bias - logits.mean()) * scale - 0.6)
