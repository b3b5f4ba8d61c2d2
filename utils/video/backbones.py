"""Backbones that turn clips into features, and published recipes.

A further backbone is one entry of BACKBONES: a function that builds the network from its number of input channels, and
its recipe. The network maps clips (B, C, N, H, W), normalized by the recipe, to features (B, D).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from utils.video.i3d import I3D, I3D_HEAD
from utils.video.recipe import Recipe
from utils.video.weights import require_torchvision

CHANNELS = {"rgb": 3, "flow": 2}  # of a network's input, by modality


@dataclass(frozen=True)
class Backbone:
    """Network of one feature stream or of two."""

    build: Callable[[int], nn.Module]  # from the number of input channels
    recipe: Recipe  # default
    head: tuple[str, ...] = ()  # modules of a weights file that are not used: the classifier
    modalities: tuple[str, ...] = ("rgb",)  # one network, and one weights file, for each
    download: str | None = None  # torchvision's class of default weights


def _build_torchvision(name: str, head: str, channels: int) -> nn.Module:
    """Build a video model of torchvision without its classifier."""
    net = getattr(require_torchvision().models.video, name)(weights=None)
    setattr(net, head, nn.Identity())
    return net


def _torchvision(name: str, weights: str, head: str, **recipe) -> Backbone:
    build = partial(_build_torchvision, name, head)
    return Backbone(build, Recipe(name, **recipe), (head,), download=weights)


# Frame rates and clip lengths are those of torchvision's evaluation, but S3D's clip of 128 frames. Strides give about
# two snippets per second.
_RESNET = {"fps": 15, "frames": 16, "stride": 8, "resize": (128, 171), "crop": 112}
_LARGE = {"fps": 15, "frames": 32, "stride": 8, "crop": 224}
_MVIT = {"fps": 7.5, "frames": 16, "stride": 4, "resize": (256,), "crop": 224}
BACKBONES = {
    "r2plus1d_18": _torchvision("r2plus1d_18", "R2Plus1D_18_Weights", "fc", **_RESNET),
    "r3d_18": _torchvision("r3d_18", "R3D_18_Weights", "fc", **_RESNET),
    "mc3_18": _torchvision("mc3_18", "MC3_18_Weights", "fc", **_RESNET),
    "s3d": _torchvision("s3d", "S3D_Weights", "classifier", **_LARGE, resize=(256, 256)),
    "mvit_v2_s": _torchvision(
        "mvit_v2_s", "MViT_V2_S_Weights", "head", **_MVIT, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)
    ),
    "swin3d_t": _torchvision(
        "swin3d_t",
        "Swin3D_T_Weights",
        "head",
        **{**_LARGE, "resize": (256,), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    ),
    # As the authors of I3D describe it (github.com/google-deepmind/kinetics-i3d).
    "i3d": Backbone(
        I3D,
        Recipe(
            "i3d",
            fps=25,
            frames=16,
            stride=16,
            resize=(256,),
            crop=224,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            antialias=True,
            flow="tvl1",
        ),
        I3D_HEAD,
        modalities=("rgb", "flow"),
    ),
}

RECIPES = {
    # The `r21d` model of the video_features tool: floats are resized, and never rounded to 8 bits.
    "r2plus1d_18": replace(BACKBONES["r2plus1d_18"].recipe, fps=30, stride=16, rounded=False),
    "i3d_thumos14": BACKBONES["i3d"].recipe,
}
