"""Checkpoints: written whole or not at all, opened without running code, resumed bit for bit.

A checkpoint is one dict: ``model`` (state dict), ``architecture`` (CO2Net's arguments), ``classes`` (in the order of
its outputs), ``options`` (the run's), ``iteration``, ``metrics`` of its evaluation, and, in ``last.pt``, ``training``:
optimiser, batches, running losses and every random state that the next step depends on.
"""

import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import InputError

# The release's module names -> ours. X.channel_conv keeps only its middle tap; see model.ConsensusModule.
RELEASED_MODULES = {
    "vAttn.channel_conv.0": "consensus.0.global_context.0",
    "vAttn.bit_wise_attn.0": "consensus.0.cross_modal.0",
    "vAttn.attention.0": "attention_units.0.layers.0",
    "vAttn.attention.3": "attention_units.0.layers.3",
    "vAttn.attention.5": "attention_units.0.layers.5",
    "fAttn.channel_conv.0": "consensus.1.global_context.0",
    "fAttn.bit_wise_attn.0": "consensus.1.cross_modal.0",
    "fAttn.attention.0": "attention_units.1.layers.0",
    "fAttn.attention.3": "attention_units.1.layers.3",
    "fAttn.attention.5": "attention_units.1.layers.5",
    "fusion.0": "fusion.0",
    "classifier.1": "classifier.1",
    "classifier.4": "classifier.4",
}
RELEASED_UNUSED = ("feat_encoder.",)  # declared in the release, never in its forward pass


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint beside its place and move it there, so that a stop at any time leaves a whole file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(checkpoint, partial)
    os.replace(partial, path)


def read_checkpoint(path: str | Path) -> dict:
    """The dict of a checkpoint file, on the CPU; weights-only, so a stranger's file cannot run code.

    Raises:
        InputError: if there is no such file or it is not a checkpoint of tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; expected a .pt file of a run or a released .pkl")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file fails anywhere in the reader, a hostile one at its first global
        raise InputError(f"{path}: damaged, or not a checkpoint of tensors and plain values alone") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}, expected a dict of weights")
    return checkpoint


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of ours, or a released .pkl (legacy or zip, CUDA tensors) by its own parameter names.

    Raises:
        InputError: if the file cannot be opened, or its weights are not those of ``net``; ``net`` is then unchanged.
    """
    load_state(net, read_checkpoint(path), path)


def load_state(net: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Load the weights of an opened checkpoint into ``net``; see load_weights."""
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path}: not the weights of a network; expected tensors by name")
    if any(name.startswith(("vAttn.", "fAttn.", "module.vAttn.")) for name in state):
        state = _from_release(state, path)
    _check_state(net, state, path)
    net.load_state_dict(state)


def require_classes(checkpoint: dict, classes: Sequence[str], path: str | Path) -> None:
    """InputError if a checkpoint was trained on these classes in another order: it would score the wrong ones."""
    trained = checkpoint.get("classes", list(classes))  # a released checkpoint does not say
    if len(trained) == len(classes) and list(trained) != list(classes):
        index = next(i for i, (ours, theirs) in enumerate(zip(trained, classes, strict=True)) if ours != theirs)
        raise InputError(
            f"{path}: was trained with '{trained[index]}' as class {index}, the annotations have '{classes[index]}' "
            "there; give them the 'classes' list of the annotations that it was trained on"
        )


def _from_release(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    converted = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if name.startswith(RELEASED_UNUSED):
            continue
        module, _, parameter = name.rpartition(".")
        if module not in RELEASED_MODULES:
            raise InputError(f"{path}: has the weight {name}, which no CO2-Net has; is it of another network?")
        if ".channel_conv." in name and tensor.ndim == 3 and tensor.shape[2] == 3:
            tensor = tensor[:, :, 1:2]
        converted[f"{RELEASED_MODULES[module]}.{parameter}"] = tensor
    return converted


def _check_state(net: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """One line that says what differs, rather than PyTorch's list of all that does."""
    own = net.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        example = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}"
        raise InputError(
            f"{path}: not the weights of this network ({len(missing)} missing, {len(unknown)} unknown: {example})"
        )
    classes = state["classifier.4.weight"].shape[0] - 1
    if classes != net.num_classes:
        raise InputError(
            f"{path}: the checkpoint has {classes} classes, the dataset has {net.num_classes}; "
            "give the annotations that it was trained on"
        )
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}; "
                "are the features of another width?"
            )
        if not torch.isfinite(state[name]).all():
            raise InputError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")


class Stateful(Protocol):
    """What a training needs of its batches: a state that is saved and restored."""

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


class Training:
    """What changes while a network trains: saved whole, and resumed as if it had never stopped.

    Attributes:
        iteration: steps done.
        metrics: of the last evaluation, None before it or after a stop between evaluations.
        chosen: iteration and score of each chosen checkpoint, by its name; ``best`` is best.pt.
        untrained: metrics before the first step, if they were asked for.

    Args:
        identity: ``architecture``, ``classes`` and ``options``, written into every checkpoint.
        run: the run folder; checkpoints go to its ``checkpoints``.
    """

    def __init__(self, net: nn.Module, optimiser: torch.optim.Optimizer, loader: Stateful, identity: dict, run: Path):
        self.net, self.optimiser, self.loader, self.identity = net, optimiser, loader, identity
        self.folder = run / "checkpoints"
        self.iteration, self.metrics, self.untrained = 0, None, None
        self.chosen: dict[str, dict] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def advance(self, terms: dict[str, Tensor]) -> None:
        """Count a step; its losses are summed on the device, so that no step waits for them."""
        self.iteration += 1
        self.metrics = None  # those of other weights
        self._count += 1
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.double()

    def losses(self) -> dict[str, float]:
        """Means of the loss terms since the last evaluation; InputError with all of them if one is not finite."""
        means = {name: value.item() / self._count for name, value in self._sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            values = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            last = self.folder / "last.pt"
            kept = f"; {last} holds the last good state" if last.exists() else ""
            raise InputError(
                f"the loss is not finite at iteration {self.iteration} ({values}); lower --lr, or check the features "
                f"with python -m utils.features DIR{kept}"
            )
        return means

    def evaluated(self, metrics: dict, scores: dict[str, list[float]], on_schedule: bool) -> None:
        """Save last.pt, and NAME.pt of every score that is the highest of its name so far.

        An evaluation off the schedule, at the end of a run whose length is no multiple of its interval, is no
        candidate: the run may be resumed, and must then be the run that was not stopped there.
        """
        self.metrics = metrics
        if on_schedule:
            self._sums, self._count = {}, 0
        for name, score in scores.items():
            if name not in self.chosen or (on_schedule and score > self.chosen[name]["score"]):
                self.chosen[name] = {"iteration": self.iteration, "score": score}
                save_checkpoint(self.folder / f"{name}.pt", self._weights())
        self.save_last()

    def stopped(self) -> None:
        """Save last.pt between evaluations; InputError, and nothing saved, if a loss is not finite."""
        self.losses()
        self.save_last()

    def save_last(self) -> None:
        """Save last.pt: the weights, and all that the next step depends on."""
        training = {
            "optimiser": self.optimiser.state_dict(),
            "batches": self.loader.state_dict(),
            "random": random_states(),
            "losses": {"sums": self._sums, "count": self._count},
            "chosen": self.chosen,
            "untrained": self.untrained,
        }
        save_checkpoint(self.folder / "last.pt", {**self._weights(), "training": training})

    def resume(self, eval_every: int, max_iter: int) -> None:
        """Continue from last.pt, if there is one."""
        path = self.folder / "last.pt"
        if not path.exists():
            return
        checkpoint = read_checkpoint(path)
        if not {"training", "iteration", "metrics"} <= set(checkpoint):
            raise InputError(f"{path}: holds weights but no state of a training; it cannot be resumed from")
        require_classes(checkpoint, self.identity["classes"], path)
        load_state(self.net, checkpoint, path)
        self.iteration, self.metrics = checkpoint["iteration"], checkpoint["metrics"]
        training = checkpoint["training"]
        self.optimiser.load_state_dict(training["optimiser"])
        self.loader.load_state_dict(training["batches"])
        device = next(self.net.parameters()).device
        self._sums = {name: value.to(device) for name, value in training["losses"]["sums"].items()}
        self._count = training["losses"]["count"]
        self.untrained = training["untrained"]
        self.chosen = training["chosen"]
        if self.iteration < max_iter:
            on_schedule = [name for name, choice in self.chosen.items() if choice["iteration"] % eval_every == 0]
            self.chosen = {name: self.chosen[name] for name in on_schedule}
        restore_random_states(training["random"])

    def _weights(self) -> dict:
        return {
            **self.identity,
            "model": self.net.state_dict(),
            "iteration": self.iteration,
            "metrics": self.metrics,
        }


def seed_everything(seed: int) -> None:
    """Seed all global random generators that training may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - whoever adds an idea may use it
    torch.manual_seed(seed)


def random_states() -> dict:
    """The states of all global random generators that training draws from."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what is being kept
    states = {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict) -> None:
    """Set all global random generators to what random_states returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
