"""Checkpoint files: released names, safe opening, and one-line errors."""

import pickle
from pathlib import Path

import pytest
import torch

from model import CO2Net
from tests.golden_cases import released_shapes
from utils.checkpoint import RELEASED_MODULES, load_weights, read_checkpoint, save_checkpoint
from utils.errors import InputError


def released_state(classes=3):
    """Return a state dict with the released names and narrow layers."""
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g) for name, shape in released_shapes(classes, dim=8).items()}


def assert_loaded(net, state):
    own = net.state_dict()
    for released, name in RELEASED_MODULES.items():
        weight = state[f"{released}.weight"]
        if ".channel_conv." in released:
            weight = weight[:, :, 1:2]
        assert torch.equal(own[f"{name}.weight"], weight)
        assert torch.equal(own[f"{name}.bias"], state[f"{released}.bias"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_released_checkpoint(tmp_path, zipped):
    path, state, net = tmp_path / "best.pkl", released_state(), CO2Net(3, (8, 8))
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    load_weights(net, path)
    assert_loaded(net, state)


def test_released_checkpoint_of_cuda_tensors(tmp_path):
    """Load a legacy file that names 'cuda:0' as the device of its storages, as written on a GPU."""
    path, state, net = tmp_path / "best.pkl", released_state(), CO2Net(3, (8, 8))
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    on_cpu, on_gpu = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    assert on_cpu in content
    path.write_bytes(content.replace(on_cpu, on_gpu))
    load_weights(net, path)
    assert_loaded(net, state)


def test_checkpoint_of_a_run(tmp_path):
    first, second = CO2Net(3, (8, 8)), CO2Net(3, (8, 8))
    save_checkpoint(tmp_path / "best.pt", {"model": first.state_dict(), "options": {"lr": 1e-4}})
    load_weights(second, tmp_path / "best.pt")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


class Attack:
    """Object that creates a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_untrusted_checkpoint_runs_no_code(tmp_path, write):
    path, target = tmp_path / "best.pkl", tmp_path / "attacked"
    with path.open("wb") as file:
        write({"model": Attack(target)}, file)
    with pytest.raises(InputError, match="damaged, or not a checkpoint") as error:
        load_weights(CO2Net(3, (8, 8)), path)
    assert "\n" not in str(error.value)
    assert not target.exists()


def renamed(state, old, new):
    return {name.replace(old, new): value for name, value in state.items()}


def damaged(state):
    state["fusion.0.bias"][3] = float("nan")
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (released_state(classes=5), "has 5 classes, the dataset has 3"),
        (renamed(released_state(), "fusion.0", "fuse.0"), "has the weight fuse.0.weight"),
        ({"vAttn.channel_conv.0.bias": torch.zeros(8)}, "not the weights of this network"),
        ({"layer.weight": torch.zeros(8)}, "not the weights of this network"),
        (released_state() | {"fusion.0.weight": torch.zeros(4, 16, 1)}, "are the features of another width"),
        (damaged(released_state()), "fusion.0.bias contains NaN"),
        (torch.zeros(3), "expected a dict of weights"),
        ({"model": 5}, "expected tensors by name"),
        ({"model": {3: torch.zeros(2)}}, "expected tensors by name"),
        ({"vAttn.channel_conv.0.bias": "text"}, "expected tensors by name"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, state, message):
    net, path = CO2Net(3, (8, 8)), tmp_path / "best.pkl"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(state, path)
    with pytest.raises(InputError, match=message) as error:
        load_weights(net, path)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "best.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="best.pt") as error:
        load_weights(CO2Net(3, (8, 8)), path)
    assert "\n" not in str(error.value)


def test_failed_save_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"iteration": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"iteration": lambda: None})
    assert torch.load(path, weights_only=True) == {"iteration": 1}


def test_a_folder_is_named_as_one(tmp_path):
    with pytest.raises(InputError, match="is a folder; expected a checkpoint in it, such as .*checkpoints/best.pt"):
        read_checkpoint(tmp_path)
