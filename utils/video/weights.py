"""Weights of backbones: from the user's file, or torchvision's default download."""

from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import torch
from torch import nn

from utils.checkpoint import read_checkpoint
from utils.errors import InputError, shorten

_CONTAINERS = ("state_dict", "model")  # keys of a file around the weights
_PREFIX = "module."  # of DataParallel


def require_torchvision() -> ModuleType:
    """Import torchvision; InputError if it is not installed or does not fit PyTorch."""
    try:
        import torchvision
        import torchvision.models.optical_flow
        import torchvision.models.video
    except ImportError:
        raise InputError("this backbone needs torchvision; install it with: pip install -e '.[video]'") from None
    except RuntimeError as error:  # of other versions, or with CUDA beside PyTorch without
        raise InputError(
            f"the installed torchvision does not fit PyTorch {torch.__version__} ({error}); "
            "install both from one package index"
        ) from None
    return torchvision


def download_weights(name: str) -> Path:
    """Return the file of torchvision's default weights, downloaded once into PyTorch's cache.

    Args:
        name: Class in torchvision.models.video or torchvision.models.optical_flow, such as `S3D_Weights`.

    Raises:
        InputError: They cannot be downloaded.
    """
    models = require_torchvision().models
    kind = getattr(models.video, name, None) or getattr(models.optical_flow, name)
    url = kind.DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise InputError(f"{url}: cannot be downloaded ({error}); give the file with --weights") from None
    return path


def load_network(net: nn.Module, path: Path, head: Collection[str] = ()) -> nn.Module:
    """Load a state dict into a network, without running code of the file, and return the network.

    Args:
        net: Network without its last layer.
        path: File of a state dict.
        head: Modules of the last layer, whose weights are ignored.

    Raises:
        InputError: The file cannot be read, or its weights do not fit.
    """
    state = read_checkpoint(path)
    for key in _CONTAINERS:
        state = state[key] if isinstance(state.get(key), dict) else state
    if all(isinstance(name, str) and name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if str(name).split(".")[0] not in head}
    own = net.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # older files have none
    missing, unknown = own.keys() - state.keys() - counters, state.keys() - own.keys()
    if missing or unknown:
        names = f"no {min(missing)}" if missing else f"unknown {shorten(min(map(str, unknown)))}"
        raise InputError(
            f"{path}: not the weights of this backbone ({len(missing)} missing, {len(unknown)} unknown: {names})"
        )
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.shape != own[name].shape or value.layout != torch.strided:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"{path}: {name} is {got}, expected shape {tuple(own[name].shape)}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{path}: {name} contains NaN or infinite values; the file is damaged")
    net.load_state_dict(state, strict=False)
    return net
