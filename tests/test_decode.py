"""Frames of videos: the right ones at the right times, upright, in RGB; bad and untrusted files."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.videos import HEIGHT, LIMITS, WIDTH, bad_videos, steady, write_video
from utils.errors import InputError
from utils.video.decode import Limits, find_videos, measure_duration, read_facts, read_frames

PAL = Fraction(24000, 1001)  # 23.976 Hz
VARIABLE = np.cumsum(np.random.default_rng(0).integers(1200, 9000, 60)).tolist()  # 13 to 100 Hz
CLIPS = {
    "30": steady(30),
    "25": steady(25),
    "23.976": steady(PAL),
    "variable": [Fraction(tick - VARIABLE[0], 120000) for tick in VARIABLE],
    "late start": [moment + 3 for moment in steady(25)],
}


def number_of(image: np.ndarray) -> int:
    red, green, _ = image[HEIGHT // 2, WIDTH // 2].astype(int)
    return round((red - 10) / 20) + 12 * round((green - 10) / 20)


@pytest.mark.parametrize("name", CLIPS)
def test_each_frame_is_the_nearest_in_time(name, tmp_path):
    times = CLIPS[name]
    path = write_video(tmp_path / "clip.mp4", times)
    seconds = np.array([float(moment - times[0]) for moment in times])
    last = seconds[-1] + 1 / 30
    for fps in (30, 25, 10, 60):
        numbers = [number_of(image) for image in read_frames(path, fps, LIMITS)]
        wanted = np.arange(len(numbers)) / fps
        gaps = np.abs(seconds[:, None] - wanted)  # (stored, wanted)
        allowed = gaps.min(axis=0) + 1e-9
        assert (gaps[numbers, np.arange(len(numbers))] <= allowed).all()
        assert abs(len(numbers) / fps - last) < 1 / fps + 0.1
        inside = wanted <= seconds[-1]
        half = np.diff(seconds).max() / 2 + 1e-9
        assert (gaps[numbers, np.arange(len(numbers))][inside] <= half).all()
    if name in ("30", "25"):
        assert [number_of(image) for image in read_frames(path, int(name), LIMITS)] == list(range(60))


def test_frames_are_turned_upright(tmp_path):
    path = write_video(tmp_path / "phone.mp4", steady(30, 3), rotation=-90)
    # The matrix of a phone's portrait video, in the track header: turn clockwise by 90 degrees.
    content = path.read_bytes()
    matrix = struct.unpack(">9i", content[content.find(b"tkhd") + 44 :][:36])
    assert matrix[:5] == (0, 65536, 0, -65536, 0)
    [first, *_] = read_frames(path, 30, LIMITS)
    assert first.shape == (WIDTH, HEIGHT, 3)
    assert first[:4, -4:].min() > 200 and first[:4, :4, 2].max() < 60  # the square is at the right top


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        (".mkv", "ffv1", "gray"),
        (".mkv", "ffv1", "yuv422p10le"),
        (".avi", "ffv1", "bgra"),
        (".mp4", "libx264", "yuvj444p"),
    ],
)
def test_any_pixel_format_becomes_rgb(suffix, codec, pixels, tmp_path):
    path = write_video(tmp_path / f"odd{suffix}", steady(30, 5), codec=codec, pixels=pixels)
    images = list(read_frames(path, 30, LIMITS))
    assert len(images) == 5 and images[0].shape == (HEIGHT, WIDTH, 3) and images[0].dtype == np.uint8
    if pixels != "gray":
        assert [number_of(image) for image in images] == list(range(5))


def test_durations_come_from_the_times_of_the_frames(tmp_path):
    path = write_video(tmp_path / "clip.mp4", steady(25, 50), audio=True)
    assert measure_duration(path, LIMITS) == pytest.approx(2, abs=0.05)
    facts = read_facts(path, LIMITS)
    assert (facts.width, facts.height) == (WIDTH, HEIGHT) and facts.duration == pytest.approx(2, abs=0.05)


def test_bad_videos_are_refused_in_one_line(tmp_path):
    expected = bad_videos(tmp_path / "bad")
    assert len(expected) == 10
    for name, message in expected.items():
        with pytest.raises(InputError) as refusal:
            list(read_frames(tmp_path / "bad" / name, 25, LIMITS))
        assert message in str(refusal.value) and name in str(refusal.value), str(refusal.value)


@pytest.mark.parametrize(
    ("limits", "option"),
    [
        (Limits(max_pixels=WIDTH * HEIGHT - 1), "--max-pixels"),
        (Limits(max_frames=59), "--max-frames"),
        (Limits(max_hours=1.5 / 3600), "--max-hours"),
    ],
)
def test_a_video_beyond_the_limits_is_refused(limits, option, tmp_path):
    path = write_video(tmp_path / "long.mp4", steady(30))
    for read in (lambda: list(read_frames(path, 30, limits)), lambda: measure_duration(path, limits)):
        with pytest.raises(InputError, match=option):
            read()


def test_a_jump_in_time_is_bounded_without_memory(tmp_path):
    path = write_video(tmp_path / "jump.mkv", [0, Fraction(1, 30), 36000])
    frames = read_frames(path, 30, LIMITS)
    with pytest.raises(InputError, match="longer than 8 hours"):
        list(frames)


def test_only_files_are_opened_and_names_are_unique(tmp_path):
    for path in ("/dev/zero", tmp_path / "none.mp4"):
        with pytest.raises(InputError, match="no such file"):
            list(read_frames(Path(path), 25, LIMITS))
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="no video found"):
        find_videos([tmp_path / "a"])
    for name in ("x.mp4", "a/x.mkv", "a/notes.txt"):
        (tmp_path / name).touch()
    assert find_videos([tmp_path / "a"]) == {"x": tmp_path / "a/x.mkv"}
    with pytest.raises(InputError, match="has the same name"):
        find_videos([tmp_path])
