"""Optical flow between consecutive frames: DIS or TV-L1 by OpenCV, RAFT by torchvision.

The flow of frame k is the motion from frame k to frame k + 1. The last frame repeats the flow of the one before.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import InputError
from utils.video.weights import load_network, require_torchvision

FLOWS = ("none", "dis", "tvl1", "raft")
CPU_FLOWS = ("dis", "tvl1")  # computed while decoding, in the worker processes
RAFT_WEIGHTS = "Raft_Large_Weights"


def build_cpu_flow(method: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of two frames (3, H, W) in [0, 255] that gives their flow (2, H, W), x first, in pixels.

    Args:
        method: `dis` (DIS, preset medium) or `tvl1` (TV-L1 with OpenCV's defaults), both on gray values.

    Raises:
        InputError: OpenCV, or its contrib part for `tvl1`, is not installed.
    """
    try:
        import cv2

        cv2.setNumThreads(1)  # other processes decode other videos
        if method == "tvl1":
            algorithm = cv2.optflow.createOptFlow_DualTVL1()
        else:
            algorithm = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    except (ImportError, AttributeError):
        raise InputError(
            f"--flow {method} needs OpenCV with its contrib modules; install them with: pip install -e '.[video]'"
        ) from None

    def gray(frame: Tensor) -> np.ndarray:
        pixels = frame.permute(1, 2, 0).round().byte() if frame.is_floating_point() else frame.permute(1, 2, 0)
        return cv2.cvtColor(np.ascontiguousarray(pixels.numpy()), cv2.COLOR_RGB2GRAY)

    def flow(first: Tensor, second: Tensor) -> Tensor:
        return torch.from_numpy(algorithm.calc(gray(first), gray(second), None)).permute(2, 0, 1)

    return flow


def load_raft(path: Path) -> nn.Module:
    """Return RAFT (large) with the weights of a file; InputError if they do not fit."""
    models = require_torchvision().models.optical_flow
    return load_network(models.raft_large(weights=None), path)


@torch.inference_mode()
def compute_raft_flow(net: nn.Module, frames: Tensor) -> Tensor:
    """Return the flow from each frame to the next by RAFT, (K + 1, 3, H, W) in [0, 255] -> (K, 2, H, W)."""
    height, width = frames.shape[-2:]
    # RAFT needs multiples of 8 from 128 pixels on.
    pads = [max(128, -(-length // 8) * 8) - length for length in (width, height)]
    inputs = F.pad(frames.float() / 127.5 - 1, (0, pads[0], 0, pads[1]), mode="replicate")
    flows = [net(first[None], second[None])[-1] for first, second in zip(inputs[:-1], inputs[1:], strict=True)]
    return torch.cat(flows)[..., :height, :width]
