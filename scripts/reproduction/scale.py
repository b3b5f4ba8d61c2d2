"""Measure the first training steps at several feature scales: logits, attention, and gradients on the attention logit.

python scripts/reproduction/scale.py --path-dataset DIR --config configs/thumos14_r2plus1d.yaml

Each line describes the network before a step, on the batch of that step:

* `T-CAM`: root mean square of the class logits;
* `logit`: root mean square of the attention logits, before their dropout, and `attention`: mean of their sigmoid;
* `|TERM|`: norm of the gradient of a weighted loss term on the attention logits of the batch;
* `TERM push`: sum of the negative gradient. Below 0, the term lowers the attention.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository root

import torch

from options import method_options, parse_args
from utils.annotations import load_annotations
from utils.datasets import dataset_spec
from utils.errors import OneLineParser, exit_on_input_error
from utils.features import open_features
from utils.fusion import CONSENSUS
from utils.methods import build_method
from utils.number_types import positive_float, positive_int
from utils.optimizer import FusedAdam
from utils.run.fast_cpu import speed_up_cpu
from utils.run.random_states import seed_everything
from wsad_dataset import BatchLoader, WeakVideoDataset

NORMS = ("mil_supp", "norm")  # terms whose gradient norm is printed; mil_org does not depend on the attention
PUSHES = ("mil_supp", "norm", "oppo", "cas", "ml")  # terms whose push is printed
HEADER = ["module", "scale", "step", "T-CAM", "logit", "attention"]
HEADER += [*(f"|{name}|" for name in NORMS), *(f"{name} push" for name in PUSHES)]
SHOWN = (0, 1, 2, 3, 5, 7, 10, 15, 20)  # steps to print, and the last one


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = OneLineParser(prog="scripts/reproduction/scale.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--path-dataset", required=True, help="folder with annotations.json and the features")
    add("--config", default="configs/thumos14_r2plus1d.yaml", help="config of the runs")
    add("--scales", nargs="+", type=positive_float, default=[1.0, 0.25], metavar="NUMBER", help="feature scales")
    add("--consensus", nargs="+", choices=tuple(CONSENSUS), default=["ccm", "add"], help="consensus modules")
    add("--steps", type=positive_int, default=20, help="training steps per run")
    add("--seed", type=int, default=0, help="random seed")
    args = parser.parse_args(argv)
    print_row(HEADER)
    for consensus in args.consensus:
        for scale in args.scales:
            options = ["--config", args.config, "--path-dataset", args.path_dataset, "--consensus", consensus]
            options += ["--feature-scale", str(scale), "--seed", str(args.seed), "--precision", "float32"]
            for step, values in enumerate(measure(parse_args(options), args.steps)):
                if step in SHOWN or step == args.steps:
                    print_row([consensus, str(scale), str(step), *(f"{value:.3g}" for value in values)])


def print_row(cells: Sequence[str]) -> None:
    """Print a line of the table at once: a run takes minutes."""
    print("".join(f"{cell:>{max(10, len(name) + 2)}}" for cell, name in zip(cells, HEADER, strict=True)), flush=True)


def measure(args: Namespace, steps: int) -> Iterator[list[float]]:
    """Yield the columns of HEADER from `T-CAM` on, before each step and after the last one."""
    annotations = load_annotations(args.path_dataset)
    store = open_features(args.path_dataset, args.modalities).scaled(args.feature_scale)
    dataset = WeakVideoDataset(
        annotations,
        store,
        dataset_spec(vars(args)).train_subset,
        missing_features=args.missing_features,
        device=None,
    )
    loader = BatchLoader(dataset, args.batch_size, args.num_pairs, args.num_snippets, args.seed, sampling=args.sampling)
    seed_everything(args.seed)
    method = build_method(args.method, len(annotations.classes), dataset.modality_dims, **method_options(args))
    speed_up_cpu(method.network, args.precision, reuse_memory=True)
    logits: list[torch.Tensor] = []
    for unit in method.network.attention_units:
        unit.layers[-2].register_forward_hook(lambda module, inputs, output: logits.append(output))
    optimizer = FusedAdam(method.network.parameters(), args.lr, weight_decay=args.weight_decay)
    weights = method.objective.weights
    for _ in range(steps + 1):
        batch = next(loader)
        logits.clear()
        outputs = method.network(batch.features)
        terms = method.objective(outputs, batch.labels, batch.pairs)
        gradients = {name: gradient_of(weights[name] * terms[name], logits) for name in PUSHES}
        values = torch.cat([part.detach().flatten() for part in logits])
        yield [
            outputs["cas"].detach().square().mean().sqrt().item(),
            values.square().mean().sqrt().item(),
            values.sigmoid().mean().item(),
            *(gradients[name].norm().item() for name in NORMS),
            *(-gradients[name].sum().item() for name in PUSHES),
        ]
        optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        optimizer.step()


def gradient_of(term: torch.Tensor, logits: list[torch.Tensor]) -> torch.Tensor:
    """Return the gradient of a term on all attention logits of a batch, in one vector."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(term, logits, retain_graph=True)])


if __name__ == "__main__":
    exit_on_input_error(main)
