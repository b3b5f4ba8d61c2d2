"""Checkpoint files: written atomically, opened without running code.

They are zip archives, as `torch.save` writes them. PyTorch's reader ignores the CRC-32 of a record, so it is checked
here: a flipped bit is detected. A released .pkl in the legacy format has no checksum.

A checkpoint is one dict:

* `model`: state dict of the network, or with `--ema` the average of its weights; `architecture`: its arguments;
  `classes`: names in the order of its outputs;
* `options`: of the run; `iteration`; `metrics`: of the evaluation at that iteration, or None;
* `recipe`: of the features, if they store one (utils/features/recipes.py);
* `training` (last.pt, previous.pt and fault.pt): state of the run, see utils/training.py.
"""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import InputError, shorten
from utils.formats.files import atomic_write

# Module names of the release to those of model.CO2Net. Only the middle tap of X.channel_conv is used (see model.py).
# A network whose release has other names lists them in its attribute RELEASED_MODULES.
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
RELEASED_PREFIXES = ("module.", "net.")  # of all names: DataParallel, Lightning
RELEASED_UNUSED = ("feat_encoder.",)  # declared in the release, never used by its forward pass
# Entries of a checkpoint besides `model`. Released checkpoints are bare state dicts.
PARTS = {"architecture": dict, "classes": list, "options": dict, "iteration": int, "training": dict, "recipe": dict}
PARTS["metrics"] = dict | None
STATES = ("last.pt", "previous.pt")  # a run resumes from the first one that is intact


def save_checkpoint(path: str | Path, checkpoint: dict, previous: Path | None = None) -> None:
    """Write a checkpoint atomically.

    Args:
        path: File to write.
        checkpoint: Tensors and plain values.
        previous: New name of the file that `path` replaces; by default that file is deleted.

    Raises:
        InputError: If it cannot be written (a full disk, ...). The existing file is then unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        with partial.open("wb") as file:  # PyTorch's own file writer would hide the system's error
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # raised when closing the archive fails after a failed write
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        if previous is not None and path.exists():
            path.replace(previous)


def has_training_state(checkpoints: Path) -> bool:
    """Return True if a run's checkpoints folder has a file to resume from."""
    return any((checkpoints / name).exists() for name in STATES)


def read_checkpoint(path: str | Path) -> dict:
    """Return the dict of a checkpoint file, on the CPU. The file cannot run code.

    Raises:
        InputError: If the file does not exist, or is not a checkpoint of tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a checkpoint in it, such as {path}/checkpoints/best.pt")
    if not path.is_file():
        raise InputError(f"{path}: checkpoint not found; expected the .pt file of a run or a released .pkl")
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of unusual pickles before it refuses them
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception:  # a damaged file fails anywhere in the reader, a hostile one at its first global
        raise InputError(f"{path}: damaged, or not a checkpoint of only tensors and plain values") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: contains a {type(checkpoint).__name__}, expected a dict of weights")
    for name, kind in PARTS.items():
        if name in checkpoint and not isinstance(checkpoint[name], kind):
            expected = getattr(kind, "__name__", kind)
            raise InputError(f"{path}: expected {name} to be of type {expected}, got {shorten(checkpoint[name])}")
    if not all(isinstance(name, str) for name in checkpoint.get("classes", [])):
        raise InputError(f"{path}: expected classes to be names, got {shorten(checkpoint['classes'])}")
    return checkpoint


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint file into a network.

    Args:
        net: Network to change; unchanged if there is an error.
        path: A checkpoint of a run, or a released .pkl (legacy or zip, CUDA tensors) with the release's names.

    Raises:
        InputError: If the file cannot be opened, or its weights do not fit the network.
    """
    load_state(net, read_checkpoint(path), path)


def load_state(net: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Load the weights of an opened checkpoint into a network; see `load_weights`."""
    net.load_state_dict(checked_state(net, checkpoint, path))


def checked_state(net: nn.Module, checkpoint: dict, path: str | Path) -> dict[str, Tensor]:
    """Return the weights of an opened checkpoint under the names of a network.

    Raises:
        InputError: The weights do not fit the network, which may be on PyTorch's meta device.
    """
    state = checkpoint.get("model", checkpoint.get("state_dict", checkpoint))
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path}: not the weights of a network; expected tensors by name")
    for prefix in RELEASED_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    modules = getattr(net, "RELEASED_MODULES", RELEASED_MODULES)
    if any(name not in net.state_dict() and name.rpartition(".")[0] in modules for name in state):
        state = _convert_released(net, state, modules, path)
    _check_state(net, state, path)
    return state


def require_classes(checkpoint: dict, classes: Sequence[str], path: str | Path) -> None:
    """Raise InputError if a checkpoint was trained on these classes in another order."""
    trained = checkpoint.get("classes", list(classes))  # a released checkpoint has no class names
    if len(trained) == len(classes) and list(trained) != list(classes):
        index = next(i for i, (name, other) in enumerate(zip(trained, classes, strict=True)) if name != other)
        raise InputError(
            f"{path}: was trained with '{trained[index]}' as class {index}, the annotations have '{classes[index]}' "
            "there; use the 'classes' list of the annotations that it was trained on"
        )


def _check_archive(path: Path) -> None:
    """Check the CRC-32 of every record of a zip archive, and that reading it takes no more than its size."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise InputError(f"{path}: has compressed records; expected a checkpoint written by torch.save")
        if any(record.external_attr for record in records):  # PyTorch reads a record marked as a folder as zeros
            raise InputError(f"{path}: damaged; one of its records is marked as a folder")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise InputError(f"{path}: damaged; its records claim more bytes than the file has")
        if damaged := archive.testzip():
            raise InputError(f"{path}: damaged; its record {damaged} does not match its checksum")


def _convert_released(
    net: nn.Module, state: dict[str, Tensor], modules: dict[str, str], path: str | Path
) -> dict[str, Tensor]:
    converted = {}
    for name, tensor in state.items():
        if name.startswith(RELEASED_UNUSED):
            continue
        module, _, parameter = name.rpartition(".")
        if module not in modules:
            network = type(net).__name__
            raise InputError(f"{path}: has the weight {name}, which {network} does not have; is it of another network?")
        if ".channel_conv" in name and tensor.ndim == 3 and tensor.shape[2] == 3:
            tensor = tensor[:, :, 1:2]
        converted[f"{modules[module]}.{parameter}"] = tensor
    return converted


def _check_state(net: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Report the first mismatch in one line, where PyTorch would list all of them."""
    own = net.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        example = f"no {missing[0]}" if missing else f"unknown {unknown[0]}"
        raise InputError(
            f"{path}: not the weights of this network ({len(missing)} missing, {len(unknown)} unknown: {example})"
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
            raise InputError(
                f"{path}: {name} is {value.layout}, {value.dtype}, expected a dense tensor of floating-point numbers"
            )
    extra_rows = own[net.CLASS_LAYER].shape[0] - net.num_classes  # 1 with a background class, else 0
    classes = state[net.CLASS_LAYER].shape[0] - extra_rows if state[net.CLASS_LAYER].ndim else 0
    if classes != net.num_classes:
        raise InputError(
            f"{path}: the checkpoint has {classes} classes, the dataset has {net.num_classes}; "
            "use the annotations that it was trained on"
        )
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}; "
                "are the features of another width?"
            )
        if not torch.isfinite(state[name]).all():
            raise InputError(f"{path}: {name} contains NaN or infinite values; the checkpoint is damaged")
