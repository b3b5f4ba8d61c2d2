"""Recipe of an extraction: from the frames of a video to the input of a backbone.

Snippet i covers the frames from i * stride to (i + 1) * stride. Its clip has `frames` frames around the middle of
these. So the times of snippets are right for any number of frames per clip. With frames = stride, as in the published
recipes, clips do not overlap. Frames before the first or after the last one repeat it; the last frames that do not
fill a snippet are left out, unless the video has no more than these.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # of Kinetics-400, in torchvision


@dataclass(frozen=True)
class Recipe:
    """Everything that features depend on besides the video, as it is stored with them."""

    backbone: str
    fps: float  # frames per second, by time
    frames: int  # per clip
    stride: int  # frames from one snippet to the next
    resize: tuple[int, ...]  # pixels: (short side,), which keeps the aspect ratio, or (height, width)
    crop: int  # side of the square in the center
    mean: tuple[float, ...] = MEAN  # of RGB values in [0, 1]
    std: tuple[float, ...] = STD
    antialias: bool = False  # of the bilinear resize
    rounded: bool = True  # resized values are rounded to 8 bits
    flow: str = "none"  # method, see utils/video/flow.py
    flow_bound: float = 20.0  # pixels per frame; flow is clipped to it and divided by it
    weights: dict[str, str] = field(default_factory=dict)  # SHA-256 of the file, by modality; `raft` for the flow

    @property
    def snippet_rate(self) -> float:
        """Snippets per second."""
        return self.fps / self.stride

    def as_dict(self) -> dict:
        """Return the recipe as plain values of JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def clip_range(self, index: int) -> range:
        """Return the frames of a clip; some may lie before or after the video."""
        first = index * self.stride - (self.frames - self.stride) // 2
        return range(first, first + self.frames)

    def num_snippets(self, num_frames: int) -> int:
        """Return the number of snippets of a video, at least 1."""
        return max(1, num_frames // self.stride)


def resize_frame(image: np.ndarray, recipe: Recipe) -> Tensor:
    """Resize a frame as the recipe states, bilinearly.

    Shape:
        (H, W, 3) uint8 -> (3, h, w) uint8, or float32 in [0, 255] if the recipe does not round.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # (3, H, W)
    size = _resized(pixels.shape[1:], recipe.resize)
    if size != tuple(pixels.shape[1:]):
        options = {"mode": "bilinear", "align_corners": False, "antialias": recipe.antialias}
        pixels = F.interpolate(pixels[None].float(), size, **options)[0]
    if not recipe.rounded:
        return pixels.float()
    return pixels if pixels.dtype == torch.uint8 else pixels.round_().clamp_(0, 255).byte()


def crop_frames(frames: Tensor, side: int) -> Tensor:
    """Crop the central square, (..., H, W) -> (..., side, side); a smaller frame is padded with zeros."""
    pads = [max(0, side - length) for length in (frames.shape[-1], frames.shape[-2])]
    if any(pads):
        frames = F.pad(frames, (pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2))
    top, left = (round((length - side) / 2) for length in frames.shape[-2:])
    return frames[..., top : top + side, left : left + side]


def normalize_clips(clips: Tensor, recipe: Recipe) -> Tensor:
    """Return the input of an RGB backbone.

    Shape:
        clips (B, N, 3, H, W), uint8 or float32 in [0, 255] -> (B, 3, N, H, W) float32.
    """
    mean, std = (clips.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    return ((clips.float() / 255 - mean) / std).transpose(1, 2)  # (B, 3, N, H, W)


def normalize_flow(clips: Tensor, recipe: Recipe) -> Tensor:
    """Return the input of a flow backbone in [-1, 1], (B, N, 2, H, W) in pixels per frame -> (B, 2, N, H, W)."""
    return (clips.clamp(-recipe.flow_bound, recipe.flow_bound) / recipe.flow_bound).transpose(1, 2)


def _resized(size: tuple[int, int], resize: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width after the resize, in the rounding of torchvision."""
    if len(resize) == 2:
        return tuple(resize)
    height, width = size
    longer = int(resize[0] * max(size) / min(size))
    return (resize[0], longer) if height <= width else (longer, resize[0])
