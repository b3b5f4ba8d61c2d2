"""Clips for tests, a backbone for them, and SIMULATED features; a test file skips where PyAV is not installed."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from utils.annotations import parse_annotations
from utils.features import open_features
from utils.features.convert import write_dataset
from utils.features.simulate import invent_timeline, simulate_features
from utils.video.backbones import Backbone
from utils.video.decode import Limits
from utils.video.recipe import Recipe

av = pytest.importorskip("av", reason="PyAV is not installed (pip install -e '.[video]')")
WIDTH, HEIGHT = 64, 48
TICK = Fraction(1, 120000)  # of the written times
LIMITS = Limits()
TINY = Recipe("tiny", fps=10, frames=4, stride=4, resize=(24,), crop=16)


class Tiny(nn.Module):
    """A backbone of three numbers per clip: mean red, mean green, and the slope of red over time."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        means = clips.mean((3, 4)) * self.scale[:, None]  # (B, C, N)
        return torch.stack([means[:, 0].mean(1), means[:, 1].mean(1), means[:, 0, -1] - means[:, 0, 0]], dim=1)


TINY_BACKBONE = Backbone(Tiny, TINY)
TINY_FLOW = Backbone(Tiny, replace(TINY, flow="dis"), modalities=("rgb", "flow"))


def write_video(path: Path, times, *, codec="libx264", pixels="yuv420p", rotation=None, audio=False) -> Path:
    """Write a clip whose frame i is shown from times[i]; its colors encode i, and a white square marks its left top."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=30, options={"crf": "10"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.codec_context.time_base = TICK
        if rotation is not None:
            stream.set_display_rotation(rotation)
        sound = file.add_stream("aac", rate=8000) if audio else None
        for number, moment in enumerate(times):
            image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
            image[:] = number % 12 * 20 + 10, number // 12 * 20 + 10, 0
            image[:8, :8] = 255
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(Fraction(moment) / TICK), TICK
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            write_sound(file, sound)
    return path


def write_sound(file, stream) -> None:
    for start in range(0, 8000, 1000):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        file.mux(stream.encode(frame))
    file.mux(stream.encode())


def steady(fps, count=60) -> list[Fraction]:
    return [Fraction(number) / fps for number in range(count)]


def copy_packets(source: Path, target: Path, numbers: range, options: dict | None = None) -> None:
    with av.open(str(source)) as file, av.open(str(target), "w", options=options or {}) as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        for number, packet in enumerate(file.demux(video=0)):
            if number in numbers:
                packet.stream = stream
                out.mux(packet)


def bad_videos(folder: Path) -> dict[str, str]:
    """Write ten files that are no usable videos; returns a part of the message for each."""
    folder.mkdir(exist_ok=True)
    good = write_video(folder / "whole.mp4", steady(25, 100)).read_bytes()
    copy_packets(folder / "whole.mp4", folder / "moved.mp4", range(100), {"movflags": "faststart"})
    copy_packets(folder / "whole.mp4", folder / "empty.ts", range(3, 9))  # no key frame, so no frame can be decoded
    front = (folder / "moved.mp4").read_bytes()  # the header comes first, so that a part can be opened
    raw = write_video(folder / "raw.mkv", steady(25, 100), codec="ffv1").read_bytes()
    hole = bytearray(good)
    middle = len(good) // 2
    hole[middle : middle + 400] = bytes(range(200)) * 2
    with av.open(str(folder / "audio.mp4"), "w") as file:
        write_sound(file, file.add_stream("aac", rate=8000))
    contents = {
        "cut.mp4": good[: len(good) // 2],
        "cut_front.mp4": front[: len(front) * 2 // 3],
        "cut_raw.mkv": raw[: len(raw) // 2],
        "hole.mp4": bytes(hole),
        "nothing.mp4": b"",
        "zeros.mp4": bytes(4000),
        "noise.avi": np.random.default_rng(0).bytes(4000),
        "playlist.mp4": b"ffconcat version 1.0\nfile whole.mp4\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for extra in ("whole.mp4", "moved.mp4", "raw.mkv"):
        (folder / extra).unlink()
    cannot = "cannot be decoded"
    return {
        **dict.fromkeys(contents, cannot),
        "cut_front.mp4": "",
        "cut_raw.mkv": "",
        "audio.mp4": "has no video stream (it has: audio)",
        "empty.ts": "no frame that can be decoded",
    }


def simulated_dataset(folder: Path, recipe: Recipe, dims: tuple[int, int] = (4, 3)) -> Path:
    """Write SIMULATED features with a recipe, as if they came from videos."""
    simulate_features(parse_annotations(invent_timeline(16, 3), "timeline"), folder, dims)
    store = open_features(folder, None)
    arrays = [(f"{name}/{v}", store.source.read(name, v)) for name in store.modalities for v in store.video_ids]
    rates = {name: {"fps": 25, "stride": 16} for name in store.modalities}
    write_dataset(folder, arrays, {"/": {"simulated": "yes", "recipe": json.dumps(recipe.as_dict())}, **rates}, None)
    return folder
