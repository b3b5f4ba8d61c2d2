"""Frames of video files with exact times, by PyAV.

Time 0 is the first frame. At a frame rate, frame k is the stored frame nearest to k / fps seconds. So variable frame
rates need nothing special, and nothing is encoded again. Frames are turned upright and converted to 8-bit RGB.

Untrusted files: only single-file formats are opened, never a playlist, and `Limits` bounds memory and time.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from utils.errors import InputError, shorten

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv",
    ".ts", ".vob", ".webm", ".wmv",
))
# fmt: on
# Demuxers that read the named file and no other; playlists such as HLS and concat open files and addresses.
_FORMATS = (
    "3gp,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,webm,mov,mp4,m4a,3g2,mj2,"
    "mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,yuv4mpegpipe"
)
_THREADS = 2  # per decoder; several videos are decoded at a time
_MAX_ASPECT = 10  # longer side over shorter side; a thin frame would grow without bound where its short side is resized
_TRUNCATED_SECONDS, _TRUNCATED_SHARE = 1.0, 0.02  # of the duration in the header that may be missing at the end
_NO_FRAME = "has a video stream but no frame that can be decoded"
_MAX_STEP_BACK = 1.0  # seconds; a frame with an earlier time than the one before is left out up to this step


@dataclass(frozen=True)
class Limits:
    """Bounds of one video, so that an untrusted file takes bounded memory and time."""

    max_pixels: int = 4096 * 2304  # per frame
    max_frames: int = 2_000_000  # stored in the file: 9 hours at 60 Hz
    max_hours: float = 8.0


NO_LIMITS = Limits(max_pixels=2**31 - 1, max_frames=2**63, max_hours=1e9)  # for reading times without decoding


class VideoFacts(NamedTuple):
    """Facts in the header of a video file; they may be wrong in a damaged one."""

    width: int
    height: int
    duration: float | None  # seconds


class _TimedFrame(NamedTuple):
    time: float  # seconds after the first frame
    duration: float  # seconds
    frame: object  # av.VideoFrame


def find_videos(paths: Iterable[Path]) -> dict[str, Path]:
    """Return video files by video_id, the file name without its extension; folders are searched with subfolders.

    Raises:
        InputError: A path does not exist, a folder has no video, or two videos have the same name.
    """
    videos: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())
            if not files:
                raise InputError(f"{path}: no video found; expected files such as {path / 'NAME.mp4'}")
        for file in files:
            if (other := videos.setdefault(file.stem, file)) != file:
                raise InputError(f"{file}: has the same name as {other}; rename one of them")
    return videos


def read_facts(path: Path, limits: Limits) -> VideoFacts:
    """Return size and duration in a video's header.

    Raises:
        InputError: The file cannot be opened, has no video stream, or is beyond the limits.
    """
    with _open_stream(path, limits) as (container, stream):
        return VideoFacts(stream.codec_context.width, stream.codec_context.height, _stated_duration(container, stream))


def measure_duration(path: Path, limits: Limits) -> float:
    """Return the duration of a video in seconds, by the times of all its packets and without decoding.

    Raises:
        InputError: See `read_frames`.
    """
    first, last, count = math.inf, -math.inf, 0
    with _open_stream(path, limits) as (container, stream):
        for packet in container.demux(stream):
            if packet.pts is None:  # the last, empty packet
                continue
            time, count = float(packet.pts * packet.time_base), count + 1
            first, last = min(first, time), max(last, time + float((packet.duration or 0) * packet.time_base))
            _check_progress(path, count, last - first, limits)
        if count == 0:
            raise InputError(f"{path}: has no frame with a time; re-encode it, for example with ffmpeg")
        _check_complete(path, last - first, _stated_duration(container, stream))
    return last - first


def read_frames(path: Path, fps: float, limits: Limits) -> Iterator[np.ndarray]:
    """Yield the frames of a video at a constant rate: frame k is the stored frame nearest to k / fps seconds.

    Args:
        path: Video file.
        fps: Frames per second to yield.
        limits: Bounds of the video.

    Yields:
        (H, W, 3) uint8, RGB, upright; all of one size.

    Raises:
        InputError: The file cannot be opened, has no video stream or no frame, ends early, is damaged, or is beyond
            the limits.
    """
    with _open_stream(path, limits) as (container, stream):
        size = stream.codec_context.width, stream.codec_context.height
        stated = _stated_duration(container, stream)
        previous, count = None, 0
        for current in _timed_frames(path, container, stream, limits):
            if previous is not None:
                image = None
                while count / fps - previous.time <= current.time - count / fps:  # nearer to the previous frame
                    image = _to_image(path, previous.frame, size) if image is None else image
                    yield image
                    count += 1
            previous = current
        if previous is None:
            raise InputError(f"{path}: {_NO_FRAME}")
        end = previous.time + previous.duration
        _check_complete(path, end, stated)
        image = _to_image(path, previous.frame, size)
        while count / fps <= max(previous.time, end - 0.5 / fps) + 1e-6:
            yield image
            count += 1


def require_av() -> ModuleType:
    """Import PyAV; InputError if it is not installed."""
    try:
        import av
    except ImportError:
        raise InputError("reading videos needs PyAV; install it with: pip install -e '.[video]'") from None
    return av


@contextmanager
def _open_stream(path: Path, limits: Limits) -> Iterator[tuple]:
    """Open the first video stream of a file and check its size; errors of FFmpeg become InputErrors."""
    av = require_av()
    if not path.is_file():  # a device or a pipe may never end
        raise InputError(f"{path}: no such file")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path.resolve()}", options=options, metadata_errors="replace") as container:
            pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
            streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
            if not streams:
                others = sorted({stream.type or "unknown" for stream in container.streams})
                raise InputError(f"{path}: has no video stream (it has: {', '.join(others) or 'nothing'})")
            stream = streams[0]
            if stream.codec_context is None:
                raise InputError(f"{path}: its video codec is not supported; re-encode it, for example with ffmpeg")
            _check_size(path, stream.codec_context.width, stream.codec_context.height, limits)
            stated = _stated_duration(container, stream)
            _check_progress(path, stream.frames, stated or 0.0, limits)
            # The limit holds for every frame. Damage is an error; by default FFmpeg invents the damaged pixels.
            stream.codec_context.options = {"max_pixels": str(limits.max_pixels), "err_detect": "explode"}
            stream.codec_context.thread_count, stream.thread_type = _THREADS, "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        raise InputError(
            f"{path}: cannot be decoded ({error.strerror or error}); it is truncated, damaged or no video; "
            "`ffmpeg -i OLD NEW` repairs small damage"
        ) from None
    except (MemoryError, UnicodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be decoded ({type(error).__name__}: {shorten(str(error))})") from None


def _timed_frames(path: Path, container, stream, limits: Limits) -> Iterator[_TimedFrame]:
    """Yield frames with increasing times from 0."""
    start, time = None, -math.inf
    default = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    for count, frame in enumerate(container.decode(stream)):
        duration = float((frame.duration or 0) * (frame.time_base or 0)) or default
        # A raw stream without times has constant ones.
        moment = float(frame.pts * frame.time_base) if frame.pts is not None else count * default + (start or 0)
        start = moment if start is None else start
        moment -= start
        if moment < time - _MAX_STEP_BACK:
            raise InputError(f"{path}: its times jump back at {time:.1f} s; re-encode it, for example with ffmpeg")
        _check_progress(path, count + 1, moment, limits)
        if moment > time:
            time = moment
            yield _TimedFrame(moment, duration, frame)


def _to_image(path: Path, frame, size: tuple[int, int]) -> np.ndarray:
    """Return a frame as upright RGB, (H, W, 3) uint8, resized to the size of the stream if it changed."""
    try:
        image = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: pixel format {frame.format.name} cannot be converted to RGB ({error})") from None
    return np.rot90(image, round(frame.rotation / 90))  # both count counterclockwise


def _stated_duration(container, stream) -> float | None:
    """Return the duration of the video stream in the header, None if there is none."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    parts = stream.metadata.get("DURATION", "").split(":")  # Matroska
    try:
        if len(parts) == 3:
            return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])
    except ValueError:
        return None
    if container.duration and len(container.streams) == 1:  # otherwise that of the longest stream
        return container.duration / 1e6
    return None


def _check_size(path: Path, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise InputError(
            f"{path}: has {width} x {height} pixels, the limit is {limits.max_pixels:,}; --max-pixels raises it"
        )
    if min(width, height) < 1:
        raise InputError(f"{path}: {_NO_FRAME}")
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise InputError(f"{path}: has {width} x {height} pixels, expected sides that differ by a factor up to 10")


def _check_progress(path: Path, frames: int, seconds: float, limits: Limits) -> None:
    if frames > limits.max_frames:
        raise InputError(f"{path}: has more than {limits.max_frames:,} frames; --max-frames raises the limit")
    if seconds > limits.max_hours * 3600:
        raise InputError(f"{path}: is longer than {limits.max_hours:g} hours; --max-hours raises the limit")


def _check_complete(path: Path, end: float, stated: float | None) -> None:
    """Raise an InputError if a video ends much before the duration in its header."""
    if stated is not None and end < stated - max(_TRUNCATED_SECONDS, _TRUNCATED_SHARE * stated):
        raise InputError(f"{path}: ends after {end:.1f} of {stated:.1f} seconds; it is truncated or damaged")
