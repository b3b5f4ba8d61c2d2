"""Checkpoints: written whole or not at all, opened without running code, resumed bit for bit.

A checkpoint is one dict: ``model`` (state dict), ``architecture`` (CO2Net's arguments), ``options`` (the run's), and,
in ``last.pt``, ``training`` (iteration, optimiser, and every random state that the next step depends on).
"""

import os
import pickle
import random
from pathlib import Path

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
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: not a checkpoint that can be opened safely ({reason})") from error
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
    if any(name.startswith(("vAttn.", "fAttn.", "module.vAttn.")) for name in state):
        state = _from_release(state, path)
    _check_state(net, state, path)
    net.load_state_dict(state)


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
    missing, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
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
