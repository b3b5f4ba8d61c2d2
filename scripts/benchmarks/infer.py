"""One pass over a test subset: network, localization and scores, as main.py evaluates."""

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import timer

from eval.proposals import localize
from scripts.benchmarks import yardstick
from scripts.benchmarks.measure import Settings, device_name, device_peak_mb, time_in_turns
from scripts.benchmarks.synthetic import THUMOS14, Scale, make_dataset
from scripts.benchmarks.table import ResultTable
from scripts.benchmarks.yardstick import Yardstick, count_flops
from utils.datasets import DATASETS
from utils.engine import Evaluation, Evaluator
from utils.features.store import FeatureStore
from utils.methods import build_method
from utils.run.devices import choose_device
from wsad_dataset import WeakVideoDataset

DIM, QUICK_DIM = 1024, 16
QUICK_SCALE = THUMOS14.resize(8)
TOLERANCE = 1e-4  # of the score of a detection

TITLE = "one pass over a test subset of THUMOS14's size, 20 classes, float32"
NOTES = (
    *yardstick.NOTES,
    "plain forward: the network alone, one video after another; forward: the network inside the whole pass",
    "whole pass: forward, localization, classification mAP and detection mAP under both protocols; other: the whole "
    "pass without its forward passes; rates are those of the forward passes",
    "SIMULATED features, and an untrained network whose attention is scaled to the spread of a trained one, so that "
    "there is as much to localize (synthetic.py: make_outputs)",
    f"results: detections equal to those of the plain forward passes, scores to {TOLERANCE:g}",
)


def measure(settings: Settings) -> list[ResultTable]:
    """Return one row."""
    size = (QUICK_SCALE, QUICK_DIM) if settings.quick else (THUMOS14, DIM)
    return [ResultTable("infer", TITLE, [settings.run_apart(measure_pass, *size, settings)], NOTES)]


def measure_pass(scale: Scale, dim: int, settings: Settings) -> dict:
    """Measure the pass over one test subset."""
    settings.apply()
    device = choose_device(settings.device)
    annotations, source = make_dataset(scale, dim)
    spec = DATASETS["thumos14"]
    dataset = WeakVideoDataset(annotations, FeatureStore(source, source.modalities), spec.test_subset)
    method = build_method("co2net", scale.classes, (dim, dim))
    net = method.network.to(device).eval()
    spread_attention(net, dataset)
    evaluate = Evaluator(dataset, annotations, spec)
    marks: list[float] = []
    passes: list[tuple[float, Evaluation]] = []  # seconds of the forward passes, and the result

    def whole_pass() -> None:
        marks.clear()
        evaluation = evaluate(method)
        passes.append((sum(marks[1::2]) - sum(marks[::2]), evaluation))

    def plain_pass() -> None:
        for index in range(len(dataset)):
            forward_pass(net, dataset, index)

    net.register_forward_pre_hook(lambda *_: marks.append(timer()))
    net.register_forward_hook(lambda *_: marks.append(timer()))
    best = Yardstick(device, "float32", settings.quick)
    functions = (plain_pass, whole_pass, *best.functions)
    plain_seconds, whole_seconds, *best_seconds = time_in_turns(*functions, budget=settings.budget(40.0), rounds=5)
    peak_mb = device_peak_mb(device)
    forward_seconds = float(np.median([seconds for seconds, _ in passes[1:] or passes]))
    snippets = int(dataset.lengths.sum())
    longest = int(dataset.lengths.argmax())
    flops = count_flops(lambda: forward_pass(net, dataset, longest)) * snippets / int(dataset.lengths[longest])
    evaluation = passes[-1][1]
    return {
        "channels": 2 * dim,
        "device": device_name(device),
        "videos": len(dataset),
        "snippets": snippets,
        "GFLOP": flops / 1e9,
        "plain forward seconds": plain_seconds,
        "forward seconds": forward_seconds,
        "snippets/s": snippets / forward_seconds,
        **best.rates(flops, forward_seconds, best_seconds),
        "whole pass seconds": whole_seconds,
        "other seconds": whole_seconds - forward_seconds,
        "detections": sum(len(result.detections) for result in evaluation.results),
        "results": compare_detections(evaluation, net, dataset),
        "peak MB": peak_mb,
    }


@torch.no_grad()
def forward_pass(net: nn.Module, dataset: WeakVideoDataset, index: int) -> dict[str, torch.Tensor]:
    """Run the network on one video."""
    return net(torch.tensor(dataset[index], device=next(net.parameters()).device)[None])


def compare_detections(evaluation: Evaluation, net: nn.Module, dataset: WeakVideoDataset) -> str:
    """Compare detections with those of one video after another: "equal", or the number of videos that differ."""
    different = 0
    for index, result in enumerate(evaluation.results):
        outputs = forward_pass(net, dataset, index)
        expected = localize(*(outputs[name][0].cpu().numpy() for name in ("cas", "attention")))
        equal = len(expected) == len(result.detections) and all(
            np.array_equal(expected[name], result.detections[name]) for name in ("label", "start", "end")
        )
        different += not (equal and np.allclose(expected["score"], result.detections["score"], rtol=0, atol=TOLERANCE))
    return f"{different} videos differ" if different else "equal"


@torch.no_grad()
def spread_attention(net: nn.Module, dataset: WeakVideoDataset) -> None:
    """Scale the last layer of both attention units to logits of mean -0.6 and deviation 2 on the longest video."""
    longest = int(dataset.lengths.argmax())
    for modality, unit in enumerate(net.attention_units):
        last = [layer for layer in unit.modules() if isinstance(layer, nn.Conv1d)][-1]
        logits = forward_pass(net, dataset, longest)["modality_attention"][0, modality].logit()
        scale = 2 / logits.std()
        last.weight.mul_(scale)
        last.bias.copy_((last.bias - logits.mean()) * scale - 0.6)
