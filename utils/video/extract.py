"""Extraction of features from videos.

`load_extractor(RECIPES["r2plus1d_18"])` returns an `Extractor`. `extractor(path)` returns the features of one video,
`{"rgb": (T, D) float32}`, with `extractor.recipe.snippet_rate` snippets per second. `extract_videos` decodes several
videos ahead of the backbone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from utils.errors import InputError
from utils.formats.checksums import sha256_of
from utils.run.devices import choose_device, is_out_of_memory, to_device
from utils.run.ranks import ranks_from_environment
from utils.video.backbones import BACKBONES, CHANNELS
from utils.video.decode import Limits, read_frames
from utils.video.flow import CPU_FLOWS, RAFT_WEIGHTS, build_cpu_flow, compute_raft_flow, load_raft
from utils.video.recipe import Recipe, crop_frames, normalize_clips, normalize_flow, resize_frame
from utils.video.weights import download_weights, load_network

_CHUNK = 32  # frames that a worker passes on at a time
_AHEAD = 2  # chunks that each worker decodes ahead


class Chunk(NamedTuple):
    """Consecutive frames of a video, resized but not cropped."""

    rgb: Tensor  # (K, 3, H, W) uint8, or float32 in [0, 255]
    flow: Tensor | None  # (K, 2, H, W), from the frame before each; one less at the start. None if not computed here


class Outcome(NamedTuple):
    """Result of one video: features, an error, or neither if another process claimed it."""

    video_id: str
    features: dict[str, np.ndarray] | None  # (T, D) float32 by modality
    error: str | None
    num_frames: int
    waited: float  # seconds that the backbone waited for frames


class Extractor:
    """Networks of a backbone on a device, with their recipe; see `load_extractor`.

    Attributes:
        recipe: Recipe with the SHA-256 of all weights.
        networks: Network of each modality.
    """

    def __init__(
        self,
        recipe: Recipe,
        networks: Mapping[str, nn.Module],
        device: torch.device,
        raft: nn.Module | None = None,
        batch_size: int = 8,
        limits: Limits | None = None,
    ):
        self.recipe, self.device, self.batch_size, self.limits = recipe, device, batch_size, limits or Limits()
        self.networks = {modality: net.to(device).eval() for modality, net in networks.items()}
        self.raft = raft.to(device).eval() if raft is not None else None

    def __call__(self, path: Path) -> dict[str, np.ndarray]:
        """Return the features of one video, {modality: (T, D) float32}.

        Raises:
            InputError: The video cannot be used; see `read_frames`.
        """
        video = _Video(self, path)
        for chunk in read_chunks(path, self.recipe, self.limits):
            video.add(chunk)
        return video.finish()

    def check(self) -> None:
        """Run the networks once; InputError if they cannot take the clips of the recipe."""
        for modality, net in self.networks.items():
            side, frames = self.recipe.crop, self.recipe.frames
            clip = torch.zeros(1, CHANNELS[modality], frames, side, side, device=self.device)
            try:
                with torch.inference_mode():
                    shape = tuple(net(clip).shape)
            except (RuntimeError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                raise InputError(
                    f"backbone {self.recipe.backbone} cannot take clips of {frames} frames of {side} x {side} pixels "
                    f"({str(error).splitlines()[0]})"
                ) from None
            if len(shape) != 2:
                raise InputError(f"backbone {self.recipe.backbone} gives shape {shape}, expected (clips, channels)")

    @torch.inference_mode()
    def features_of(self, modality: str, clips: Tensor) -> np.ndarray:
        """Return the features of clips, (B, N, C, H, W) -> (B, D) float32."""
        normalize = normalize_clips if modality == "rgb" else normalize_flow
        return self.networks[modality](normalize(to_device(clips, self.device), self.recipe)).float().cpu().numpy()


def load_extractor(
    recipe: Recipe,
    weights: Sequence[Path] = (),
    flow_weights: Path | None = None,
    device: str = "auto",
    batch_size: int = 8,
    limits: Limits | None = None,
) -> Extractor:
    """Load the networks of a recipe.

    Args:
        recipe: Recipe; its `weights` are filled in.
        weights: State dict of each modality's network; none for torchvision's default download.
        flow_weights: State dict of RAFT; None for the download.
        device: `auto`, `cpu` or `cuda`. Each process of torchrun has a GPU of its own.
        batch_size: Clips per batch.
        limits: Bounds of a video.

    Raises:
        InputError: The weights cannot be loaded, a library is not installed, or the recipe does not fit the backbone.
    """
    backbone = BACKBONES[recipe.backbone]
    modalities = backbone.modalities if recipe.flow != "none" else ("rgb",)
    if recipe.flow != "none" and "flow" not in backbone.modalities:
        raise InputError(f"backbone {recipe.backbone} has no network for flow; leave out --flow, or use i3d")
    if not weights and backbone.download is None:
        files = " ".join(f"{modality}.pt" for modality in modalities)
        raise InputError(f"backbone {recipe.backbone} has no weights to download; give --weights {files}")
    weights = weights or [download_weights(backbone.download)]
    if len(weights) != len(modalities):
        raise InputError(f"--weights: expected one file for each of {', '.join(modalities)}, got {len(weights)}")
    networks, sums = {}, {}
    for modality, path in zip(modalities, weights, strict=True):
        networks[modality] = load_network(backbone.build(CHANNELS[modality]), path, backbone.head)
        sums[modality] = sha256_of(path)
    raft = None
    if recipe.flow == "raft":
        path = flow_weights or download_weights(RAFT_WEIGHTS)
        raft, sums["raft"] = load_raft(path), sha256_of(path)
    elif recipe.flow in CPU_FLOWS:
        build_cpu_flow(recipe.flow)  # reports a missing library
    place = ranks_from_environment().device(choose_device(device))
    extractor = Extractor(replace(recipe, weights=sums), networks, place, raft, batch_size, limits)
    extractor.check()
    return extractor


def read_chunks(path: Path, recipe: Recipe, limits: Limits) -> Iterator[Chunk]:
    """Yield the frames of a video by the recipe, with their flow if OpenCV computes it.

    Raises:
        InputError: See `read_frames`.
    """
    flow = build_cpu_flow(recipe.flow) if recipe.flow in CPU_FLOWS else None
    frames, flows, previous = [], [], None
    for image in read_frames(path, recipe.fps, limits):
        frame = resize_frame(image, recipe)
        if flow is not None and previous is not None:
            flows.append(flow(previous, frame))
        frames.append(frame)
        previous = frame
        if len(frames) == _CHUNK:
            yield _to_chunk(frames, flows, flow is not None)
            frames, flows = [], []
    if frames:
        yield _to_chunk(frames, flows, flow is not None)


def _to_chunk(frames: list[Tensor], flows: list[Tensor], has_flow: bool) -> Chunk:
    empty = frames[0].new_zeros((0, 2, *frames[0].shape[1:]), dtype=torch.float32)
    return Chunk(torch.stack(frames), (torch.stack(flows) if flows else empty) if has_flow else None)


class _Video:
    """Video whose frames arrive in chunks; clips go through the networks as soon as a batch is complete."""

    def __init__(self, extractor: Extractor, path: Path):
        self._extractor, self._path, self._recipe = extractor, path, extractor.recipe
        self._buffers: dict[str, list[Tensor]] = {modality: [] for modality in extractor.networks}  # cropped frames
        self._first = 0  # number of the first frame in the buffers
        self._features: dict[str, list[np.ndarray]] = {modality: [] for modality in extractor.networks}
        self._clips = 0  # that went through the networks
        self._previous: Tensor | None = None  # last frame, for RAFT
        self.num_frames = 0

    def add(self, chunk: Chunk) -> None:
        """Add the next frames."""
        self.num_frames += len(chunk.rgb)
        self._store("rgb", chunk.rgb)
        if self._extractor.raft is not None:
            frames = chunk.rgb if self._previous is None else torch.cat([self._previous[None], chunk.rgb])
            self._previous = chunk.rgb[-1]
            if len(frames) > 1:
                flow = compute_raft_flow(self._extractor.raft, to_device(frames, self._extractor.device))
                self._store("flow", flow.cpu())
        elif chunk.flow is not None:
            self._store("flow", chunk.flow)
        batch = self._extractor.batch_size
        while self._is_complete(self._clips + batch - 1):
            self._run(batch)

    def finish(self) -> dict[str, np.ndarray]:
        """Return the features, (T, D) float32 per modality, after the last frame."""
        flows = self._buffers.get("flow")
        if flows is not None:  # the flow of the last frame
            flows.append(flows[-1] if flows else torch.zeros(2, self._recipe.crop, self._recipe.crop))
        while rest := self._recipe.num_snippets(self.num_frames) - self._clips:
            self._run(min(rest, self._extractor.batch_size))
        features = {modality: np.concatenate(parts) for modality, parts in self._features.items()}
        if not all(np.isfinite(values).all() for values in features.values()):
            raise InputError(f"{self._path}: its features contain NaN or infinite values; check the weights")
        return features

    def _store(self, modality: str, frames: Tensor) -> None:
        self._buffers[modality] += crop_frames(frames, self._recipe.crop).unbind()

    def _is_complete(self, clip: int) -> bool:
        """Return True if all frames of a clip have arrived, in every modality."""
        end = max(self._recipe.clip_range(clip).stop, (clip + 1) * self._recipe.stride)
        return all(self._first + len(buffer) >= end for buffer in self._buffers.values())

    def _run(self, count: int) -> None:
        """Run the networks on the next clips, and drop the frames that no later clip needs."""
        clips = [self._recipe.clip_range(self._clips + index) for index in range(count)]
        for modality, buffer in self._buffers.items():
            last = self._first + len(buffer) - 1
            rows = [[min(max(frame, 0), last) - self._first for frame in clip] for clip in clips]
            batch = torch.stack([torch.stack([buffer[row] for row in clip]) for clip in rows])  # (B, N, C, H, W)
            self._features[modality].append(self._extractor.features_of(modality, batch))
        self._clips += count
        needed = max(0, self._recipe.clip_range(self._clips).start) - self._first
        drop = min(needed, *(len(buffer) - 1 for buffer in self._buffers.values()))  # the last frame may be repeated
        for buffer in self._buffers.values():
            del buffer[:drop]
        self._first += drop


class _End(NamedTuple):
    """End of a video: after its last chunk, at an error, or at once if another process claimed it."""

    is_whole: bool
    error: str | None = None


class _Frames(IterableDataset):
    """Frames of several videos, as (video_id, chunk) and at last (video_id, end). Worker i of N decodes every N-th."""

    def __init__(self, paths: Mapping[str, Path], recipe: Recipe, limits: Limits, claim: Callable[[str], bool] | None):
        self.paths, self.recipe, self.limits, self.claim = paths, recipe, limits, claim

    def __iter__(self) -> Iterator[tuple[str, Chunk | _End]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for video_id in list(self.paths)[first::step]:
            if self.claim and not self.claim(video_id):
                yield video_id, _End(is_whole=False)
                continue
            try:
                for chunk in read_chunks(self.paths[video_id], self.recipe, self.limits):
                    yield video_id, chunk
                yield video_id, _End(is_whole=True)
            except InputError as error:
                yield video_id, _End(is_whole=False, error=str(error))


def extract_videos(
    extractor: Extractor, paths: Mapping[str, Path], workers: int, claim: Callable[[str], bool] | None = None
) -> Iterator[Outcome]:
    """Yield the result of each video, in the order in which videos end.

    Args:
        extractor: Backbone and recipe.
        paths: Videos by video_id.
        workers: Processes that decode ahead of the backbone, each another video; 0 decodes in this process.
        claim: Function that returns False to leave out a video, called just before its decoding; see
            `FeatureFolder.claim`. None leaves out none.

    Raises:
        InputError: A process that decodes videos was killed.
    """
    dataset = _Frames(paths, extractor.recipe, extractor.limits, claim)
    ahead = {"prefetch_factor": _AHEAD} if workers else {}
    loader = DataLoader(dataset, batch_size=None, num_workers=min(workers, len(paths)), **ahead)
    videos, waited = {}, dict.fromkeys(paths, 0.0)
    clock, items = time.perf_counter(), iter(loader)
    while True:
        try:
            video_id, item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "killed by signal" not in str(error) and "exited unexpectedly" not in str(error):
                raise
            raise InputError(
                "a process that decodes videos was killed, perhaps for its memory; run the command again with fewer "
                "--workers"
            ) from None
        waited[video_id] += time.perf_counter() - clock
        video = videos.setdefault(video_id, _Video(extractor, paths[video_id]))
        if isinstance(item, Chunk):
            video.add(item)
        else:
            features, error = None, item.error
            try:
                features = video.finish() if item.is_whole else None
            except InputError as problem:
                error = str(problem)
            yield Outcome(video_id, features, error, videos.pop(video_id).num_frames, waited[video_id])
        clock = time.perf_counter()
