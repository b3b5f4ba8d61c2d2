"""Preprocessing and networks of videos, against torchvision and the published ones."""

import sys
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from utils.errors import InputError
from utils.video.backbones import BACKBONES, RECIPES
from utils.video.flow import compute_raft_flow, load_raft
from utils.video.i3d import I3D
from utils.video.recipe import crop_frames, normalize_clips, resize_frame
from utils.video.weights import load_network


@pytest.fixture(scope="module")
def torchvision():
    """Returns torchvision, also where its compiled operators do not fit a PyTorch without CUDA: no backbone has any."""
    try:
        import torchvision
    except ImportError:
        pytest.skip("torchvision is not installed (pip install -e '.[video]')")
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        with mock.patch("torch.library.register_fake", lambda *words, **options: lambda function: function):
            import torchvision
    import torchvision.models.optical_flow
    import torchvision.models.video
    import torchvision.transforms

    return torchvision


TORCHVISION = [name for name in BACKBONES if BACKBONES[name].download]


@pytest.mark.parametrize("name", TORCHVISION)
def test_preprocessing_equals_torchvisions(name, torchvision):
    recipe = BACKBONES[name].recipe
    transform = getattr(torchvision.models.video, BACKBONES[name].download).DEFAULT.transforms()
    for height, width in ((240, 320), (321, 179), (256, 256), (112, 112)):
        images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        frames = torch.stack([resize_frame(image, recipe) for image in images])
        ours = normalize_clips(crop_frames(frames, recipe.crop)[None], recipe)[0]
        theirs = transform(torch.from_numpy(images).permute(0, 3, 1, 2))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TORCHVISION)
def test_backbones_are_torchvisions_without_the_last_layer(name, torchvision, tmp_path):
    backbone = BACKBONES[name]
    torch.manual_seed(0)
    with torch.device("meta"):
        full = getattr(torchvision.models.video, name)()
        net = backbone.build(3)
    missing = full.state_dict().keys() - net.state_dict().keys()
    assert missing and all(key.startswith(backbone.head) for key in missing)
    assert net.state_dict().keys() <= full.state_dict().keys()
    if name in ("r2plus1d_18", "s3d"):
        net, full = backbone.build(3), getattr(torchvision.models.video, name)().eval()
        torch.save(full.state_dict(), tmp_path / "weights.pth")
        load_network(net, tmp_path / "weights.pth", backbone.head).eval()
        side = 32 if name == "r2plus1d_18" else 224
        clips = torch.rand(1, 3, 16, side, side)
        with torch.inference_mode():
            features = net(clips)
            assert features.shape == (1, {"r2plus1d_18": 512, "s3d": 1024}[name])
            last = [module for module in full.modules() if isinstance(module, nn.Linear | nn.Conv3d)][-1]
            scores = features @ last.weight.flatten(1).T + last.bias
            torch.testing.assert_close(scores, full(clips), rtol=1e-4, atol=1e-4)


def test_published_recipes():
    r2plus1d, i3d = RECIPES["r2plus1d_18"], RECIPES["i3d_thumos14"]
    assert (r2plus1d.fps, r2plus1d.frames, r2plus1d.stride, r2plus1d.resize, r2plus1d.crop) == (
        30,
        16,
        16,
        (128, 171),
        112,
    )
    assert (i3d.fps, i3d.frames, i3d.stride, i3d.crop, i3d.flow, i3d.flow_bound) == (25, 16, 16, 224, "tvl1", 20)
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    resized = nn.functional.interpolate(pixels, (128, 171), mode="bilinear")[0] * 255
    torch.testing.assert_close(resize_frame(image, r2plus1d), resized, rtol=0, atol=1e-4)
    frame = crop_frames(resize_frame(image, i3d), 224)
    values = normalize_clips(frame[None, None], i3d)
    torch.testing.assert_close(values[0, :, 0], frame.float() * 2 / 255 - 1, rtol=0, atol=1e-6)


def test_i3d_has_the_published_parameters():
    with torch.device("meta"):
        rgb, flow = I3D(3), I3D(2)
    # pytorch-i3d has 12,697,264 and 12,675,312 parameters with its 400 classes.
    assert [sum(p.numel() for p in net.parameters()) + 1024 * 400 + 400 for net in (rgb, flow)] == [12697264, 12675312]
    shapes = {name: tuple(value.shape) for name, value in rgb.state_dict().items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Conv3d_2c_3x3.bn.running_var"] == (192,)
    assert shapes["Mixed_4f.b2b.conv3d.weight"] == (128, 32, 3, 3, 3)
    assert shapes["Mixed_5c.b1b.conv3d.weight"] == (384, 192, 3, 3, 3)
    assert shapes["Mixed_5c.b3b.bn.weight"] == (128,)
    assert len(shapes) == 342


def test_i3d_pads_as_tensorflow_does(tmp_path):
    """A unit that sums its window shows its padding."""
    net = I3D(3).eval()
    unit = net.Conv3d_2c_3x3
    nn.init.ones_(unit.conv3d.weight)
    with torch.inference_mode():
        sums = unit(torch.ones(1, 64, 3, 3, 3))[0, 0] * (1 + 0.001) ** 0.5
    torch.testing.assert_close(sums[1, 1], torch.tensor([18.0, 27.0, 18.0]) * 64, rtol=1e-4, atol=0)
    pool = net.MaxPool3d_2a_3x3
    steps = torch.arange(4.0)  # `SAME` pads an even side of stride 2 at its end only
    assert pool(steps.expand(1, 1, 1, 4, 4))[0, 0, 0, 0].tolist() == [2.0, 3.0]
    torch.save({**net.state_dict(), "logits.conv3d.bias": torch.zeros(157)}, tmp_path / "i3d.pt")
    load_network(I3D(3), tmp_path / "i3d.pt", ("logits",))
    with pytest.raises(InputError, match="expected shape"):
        load_network(I3D(2), tmp_path / "i3d.pt", ("logits",))
    with pytest.raises(InputError, match="0 missing, 1 unknown"):
        load_network(I3D(3), tmp_path / "i3d.pt")


def test_raft_gives_the_flow_of_each_pair_at_the_size_of_the_frames(torchvision, tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.optical_flow.raft_large().state_dict(), tmp_path / "raft.pth")
    net = load_raft(tmp_path / "raft.pth").eval()
    frames = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    assert compute_raft_flow(net, frames).shape == (1, 2, 60, 90)
