"""Videos to features: the right frames at the right times, published preprocessing, bad files, kills and resumes."""

import inspect
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import main
from scripts.detect import main as detect
from scripts.extract_features import main as extract
from scripts.make_annotations import main as annotate
from scripts.second_stage import main as second_stage
from test import main as localize
from tests.conftest import ROOT
from utils.annotations import load_annotations, parse_annotations
from utils.checkpoint import read_checkpoint
from utils.detector import load_detector
from utils.errors import InputError
from utils.features import open_features
from utils.features.check import main as describe
from utils.features.convert import convert_features, write_dataset
from utils.features.shards import shard_name
from utils.features.simulate import invent_timeline, simulate_features
from utils.video.backbones import BACKBONES, RECIPES, Backbone
from utils.video.decode import Limits, find_videos, frames_at, measure_duration, read_facts
from utils.video.extract import Extractor, extract_videos, load_extractor, read_chunks
from utils.video.flow import cpu_flow
from utils.video.folder import FeatureFolder
from utils.video.i3d import I3D
from utils.video.recipe import Recipe, crop_frames, normalize_clips, resize_frame
from utils.video.weights import load_network

av = pytest.importorskip("av", reason="PyAV is not installed (pip install -e '.[video]')")

WIDTH, HEIGHT = 64, 48
PAL = Fraction(24000, 1001)  # 23.976 Hz
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


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Registers the tiny backbone; returns the words of the command that choose it."""
    monkeypatch.setitem(BACKBONES, "tiny", TINY_BACKBONE)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pt")
    return "--backbone", "tiny", "--weights", tmp_path / "tiny.pt", "--device", "cpu", "--workers", "0"


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


def number_of(image: np.ndarray) -> int:
    red, green, _ = image[HEIGHT // 2, WIDTH // 2].astype(int)
    return round((red - 10) / 20) + 12 * round((green - 10) / 20)


VARIABLE = np.cumsum(np.random.default_rng(0).integers(1200, 9000, 60)).tolist()  # 13 to 100 Hz
CLIPS = {
    "30": steady(30),
    "25": steady(25),
    "23.976": steady(PAL),
    "variable": [Fraction(tick - VARIABLE[0], 120000) for tick in VARIABLE],
    "late start": [moment + 3 for moment in steady(25)],
}


@pytest.mark.parametrize("name", CLIPS)
def test_each_frame_is_the_nearest_in_time(name, tmp_path):
    times = CLIPS[name]
    path = write_video(tmp_path / "clip.mp4", times)
    seconds = np.array([float(moment - times[0]) for moment in times])
    last = seconds[-1] + 1 / 30
    for fps in (30, 25, 10, 60):
        numbers = [number_of(image) for image in frames_at(path, fps, LIMITS)]
        wanted = np.arange(len(numbers)) / fps
        gaps = np.abs(seconds[:, None] - wanted)  # (stored, wanted)
        allowed = gaps.min(axis=0) + 1e-9
        assert (gaps[numbers, np.arange(len(numbers))] <= allowed).all()
        assert abs(len(numbers) / fps - last) < 1 / fps + 0.1
        inside = wanted <= seconds[-1]
        half = np.diff(seconds).max() / 2 + 1e-9
        assert (gaps[numbers, np.arange(len(numbers))][inside] <= half).all()
    if name in ("30", "25"):
        assert [number_of(image) for image in frames_at(path, int(name), LIMITS)] == list(range(60))


def test_frames_are_turned_upright(tmp_path):
    path = write_video(tmp_path / "phone.mp4", steady(30, 3), rotation=-90)
    # The matrix of a phone's portrait video, in the track header: turn clockwise by 90 degrees.
    content = path.read_bytes()
    matrix = struct.unpack(">9i", content[content.find(b"tkhd") + 44 :][:36])
    assert matrix[:5] == (0, 65536, 0, -65536, 0)
    [first, *_] = frames_at(path, 30, LIMITS)
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
    images = list(frames_at(path, 30, LIMITS))
    assert len(images) == 5 and images[0].shape == (HEIGHT, WIDTH, 3) and images[0].dtype == np.uint8
    if pixels != "gray":
        assert [number_of(image) for image in images] == list(range(5))


def test_durations_come_from_the_times_of_the_frames(tmp_path):
    path = write_video(tmp_path / "clip.mp4", steady(25, 50), audio=True)
    assert measure_duration(path, LIMITS) == pytest.approx(2, abs=0.05)
    facts = read_facts(path, LIMITS)
    assert (facts.width, facts.height) == (WIDTH, HEIGHT) and facts.duration == pytest.approx(2, abs=0.05)


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


def test_bad_videos_are_refused_in_one_line(tmp_path):
    expected = bad_videos(tmp_path / "bad")
    assert len(expected) == 10
    for name, message in expected.items():
        with pytest.raises(InputError) as refusal:
            list(frames_at(tmp_path / "bad" / name, 25, LIMITS))
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
    for read in (lambda: list(frames_at(path, 30, limits)), lambda: measure_duration(path, limits)):
        with pytest.raises(InputError, match=option):
            read()


def test_a_jump_in_time_is_bounded_without_memory(tmp_path):
    path = write_video(tmp_path / "jump.mkv", [0, Fraction(1, 30), 36000])
    frames = frames_at(path, 30, LIMITS)
    with pytest.raises(InputError, match="longer than 8 hours"):
        list(frames)


def test_only_files_are_opened_and_names_are_unique(tmp_path):
    for path in ("/dev/zero", tmp_path / "none.mp4"):
        with pytest.raises(InputError, match="no such file"):
            list(frames_at(Path(path), 25, LIMITS))
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="no video found"):
        find_videos([tmp_path / "a"])
    for name in ("x.mp4", "a/x.mkv", "a/notes.txt"):
        (tmp_path / name).touch()
    assert find_videos([tmp_path / "a"]) == {"x": tmp_path / "a/x.mkv"}
    with pytest.raises(InputError, match="has the same name"):
        find_videos([tmp_path])


# Clips and features


def test_clips_are_centered_on_their_snippets():
    equal = replace(TINY, frames=16, stride=16)
    assert [equal.clip_range(index) for index in (0, 1)] == [range(16), range(16, 32)]
    assert equal.num_snippets(47) == 2 and equal.num_snippets(3) == 1
    for frames in (4, 8, 15, 32):
        clip = replace(equal, frames=frames).clip_range(3)
        assert len(clip) == frames and abs(np.mean(clip) - np.mean(range(48, 64))) <= 0.5


def clip_means(path: Path, recipe: Recipe) -> np.ndarray:
    """The features of Tiny without its buffers and batches: all frames in memory at once."""
    frames = torch.cat([chunk.rgb for chunk in read_chunks(path, recipe, LIMITS)])
    rows = [
        [min(max(number, 0), len(frames) - 1) for number in recipe.clip_range(clip)]
        for clip in range(recipe.num_snippets(len(frames)))
    ]
    clips = torch.stack([crop_frames(frames, recipe.crop)[row] for row in rows])
    with torch.inference_mode():
        return Tiny()(normalize_clips(clips, recipe)).numpy()


@pytest.mark.parametrize(("frames", "stride", "count"), [(4, 4, 70), (16, 4, 70), (3, 8, 70), (4, 4, 2), (1, 1, 33)])
def test_features_of_a_stream_of_frames_equal_those_of_all_frames(frames, stride, count, tmp_path):
    path = write_video(tmp_path / "clip.mp4", steady(30, count))
    recipe = replace(TINY, fps=30, frames=frames, stride=stride)
    extractor = Extractor(recipe, {"rgb": Tiny()}, torch.device("cpu"), batch_size=3)
    features = extractor(path)["rgb"]
    assert features.dtype == np.float32 and len(features) == max(1, count // stride)
    np.testing.assert_allclose(features, clip_means(path, recipe), atol=1e-5)


def test_flow_has_the_snippets_of_rgb_and_the_direction_of_motion(tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="OpenCV is not installed (pip install -e '.[video]')")
    texture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)  # (96, 128, 3)
    frames = [
        torch.from_numpy(np.roll(texture, shift, axis=(1, 0)).copy()).permute(2, 0, 1) for shift in ((0, 0), (3, 1))
    ]
    for method in ("dis", "tvl1"):
        flow = cpu_flow(method)(*frames)
        assert flow.shape == (2, 96, 128)
        torch.testing.assert_close(
            flow.median(dim=2).values.median(dim=1).values, torch.tensor([3.0, 1.0]), atol=0.2, rtol=0
        )
    monkeypatch.setitem(BACKBONES, "tiny", TINY_FLOW)
    for name, channels in (("rgb", 3), ("flow", 2)):
        torch.save(Tiny(channels).state_dict(), tmp_path / f"{name}.pt")
    weights = [tmp_path / "rgb.pt", tmp_path / "flow.pt"]
    path = write_video(tmp_path / "clip.mp4", steady(10, 35))
    extractor = load_extractor(TINY_FLOW.recipe, weights, device="cpu")
    features = extractor(path)
    assert {name: values.shape for name, values in features.items()} == {"rgb": (8, 3), "flow": (8, 3)}
    assert set(extractor.recipe.weights) == {"rgb", "flow"}
    with pytest.raises(InputError, match="expected one file for each of rgb, flow, got 1"):
        load_extractor(TINY_FLOW.recipe, weights[:1])
    one = write_video(tmp_path / "one.mp4", [0])
    assert extractor(one)["flow"].shape == (1, 3)


# The command


def features_in(folder: Path) -> dict[str, np.ndarray]:
    store = open_features(folder, ["rgb"])
    return {video_id: store[video_id] for video_id in store.video_ids}


def test_ten_bad_videos_among_twenty_good_ones(tiny, tmp_path, run_main):
    videos = tmp_path / "videos"
    bad = bad_videos(videos)
    for number in range(20):
        write_video(videos / f"good_{number:02d}.mp4", steady(25, 20 + number))
    out = tmp_path / "out"
    status, printed, error = run_main(extract, videos, "--out", out, *tiny)
    assert status == 1 and not error
    assert "extracted        20" in printed and "failed           10" in printed
    for name in bad:
        assert f"failed: {videos / name}: " in printed
    features = features_in(out)
    assert len(features) == 20
    extractor = load_extractor(TINY, [tmp_path / "tiny.pt"], device="cpu")
    for video_id in ("good_00", "good_13"):
        np.testing.assert_array_equal(features[video_id], extractor(videos / f"{video_id}.mp4")["rgb"])
    store = open_features(out, None)
    assert store.snippet_rate == 2.5 and store.recipe == extractor.recipe.as_dict()
    status, printed, error = run_main(describe, out)
    assert status == 0 and "backbone: tiny" in printed and extractor.recipe.weights["rgb"] in printed
    (tmp_path / "more").mkdir()
    write_video(tmp_path / "more" / "later.mp4", steady(25, 40))
    status, printed, _ = run_main(extract, videos / "good_00.mp4", tmp_path / "more", "--out", out, *tiny)
    assert status == 0 and "1 video of 2 already in" in printed
    assert features_in(out).keys() == {*features, "later"}
    status, _, error = run_main(extract, videos / "good_00.mp4", "--out", out, *tiny, "--fps", 5)
    assert status == 2 and "has features of another recipe" in error and error.count("\n") == 1


# The command with the tiny backbone, for processes of their own; it does not import the tests, which takes seconds.
RUNNER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from torch import nn
from scripts.extract_features import main
from utils.errors import exit_on_input_error
from utils.video.backbones import BACKBONES, Backbone
from utils.video.recipe import Recipe
{inspect.getsource(Tiny)}
BACKBONES["tiny"] = Backbone(Tiny, {TINY!r})
exit_on_input_error(main)
"""


def test_a_killed_extraction_continues_to_the_same_values(tiny, tmp_path, run_main):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(12):
        write_video(videos / f"v{number:02d}.mp4", steady(25, 100))
    words = [*map(str, (videos, "--out", tmp_path / "killed", *tiny[:-1])), "2"]  # two worker processes
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER, *words]
    staging = tmp_path / "killed" / ".extraction"
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None and len(list(staging.glob("*.h5"))) < 3:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    (staging / "damaged.h5").write_bytes(b"half of a file")
    (staging / "x.h5.partial-1").touch()
    status, printed, error = run_main(extract, videos, "--out", tmp_path / "killed", *tiny)
    assert status == 0 and "already in" in printed, error
    assert not staging.exists()
    assert run_main(extract, videos, "--out", tmp_path / "whole", *tiny)[0] == 0
    killed, whole = features_in(tmp_path / "killed"), features_in(tmp_path / "whole")
    assert killed.keys() == whole.keys() and len(whole) == 12
    for video_id, values in whole.items():
        assert killed[video_id].tobytes() == values.tobytes()


def test_worker_processes_give_the_same_features_and_errors(tmp_path):
    paths = {
        f"v{number}": write_video(tmp_path / f"v{number}.mp4", steady(25, 30 + 20 * number)) for number in range(3)
    }
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    paths["bad"] = tmp_path / "bad.mp4"
    extractor = Extractor(TINY, {"rgb": Tiny()}, torch.device("cpu"))
    alone, ahead = ({o.video_id: o for o in extract_videos(extractor, paths, workers)} for workers in (0, 2))
    assert alone.keys() == ahead.keys() == paths.keys()
    for video_id, outcome in alone.items():
        assert outcome.error == ahead[video_id].error and outcome.num_frames == ahead[video_id].num_frames
        if outcome.features:
            np.testing.assert_array_equal(outcome.features["rgb"], ahead[video_id].features["rgb"])
    assert alone["bad"].features is None and "cannot be decoded" in alone["bad"].error


@pytest.fixture
def shared(tiny, tmp_path):
    """Returns the words of an extraction of eight videos and a bad one, without --out."""
    (tmp_path / "videos").mkdir()
    for number in range(8):
        write_video(tmp_path / f"videos/v{number}.mp4", steady(25, 30))
    (tmp_path / "videos/bad.mp4").write_bytes(b"no video")
    (tmp_path / "run.py").write_text(RUNNER)
    return (tmp_path / "videos", *tiny)


def assert_equal_features(folder: Path, words, run_main) -> None:
    assert run_main(extract, *words, "--out", folder.with_name("whole"))[0] == 1
    shared, whole = features_in(folder), features_in(folder.with_name("whole"))
    assert shared.keys() == whole.keys() and len(whole) == 8
    assert all(shared[video_id].tobytes() == values.tobytes() for video_id, values in whole.items())
    assert not (folder / ".extraction").exists()


def test_processes_share_the_videos_and_the_last_one_assembles(shared, tmp_path, run_main):
    out, extractor = tmp_path / "out", load_extractor(TINY, [tmp_path / "tiny.pt"], device="cpu")
    mine = {f"v{number}": tmp_path / f"videos/v{number}.mp4" for number in (0, 3, 4)}
    with FeatureFolder(out, extractor.recipe) as folder:
        assert all(map(folder.claim, mine))
        status, printed, error = run_main(extract, *shared, "--out", out)
        assert status == 1 and not error and "1 other process at work" in printed
        assert "extracted         5" in printed and "by others         3" in printed
        assert len(list((out / ".extraction").glob("*.h5"))) == 5 and not (out / "features.h5").exists()
        assert not folder.claim("v1")
        for video_id, path in mine.items():
            folder.add(video_id, extractor(path))
        other = replace(extractor.recipe, fps=5)
        with pytest.raises(InputError, match="extracts features by another recipe"), FeatureFolder(out, other):
            pass
        assert folder.assemble() == 0
    assert_equal_features(out, shared, run_main)


def test_two_slurm_jobs_equal_one_process(shared, tmp_path, run_main, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed (pip install submitit)")
    monkeypatch.setattr("scripts.extract_features.__file__", str(tmp_path / "run.py"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = (*shared, "--out", tmp_path / "out", "--jobs", 2, "--slurm", "cluster=local")
    status, printed, error = run_main(extract, *words)
    assert status == 2 and "2 of 2 jobs failed" in error  # both report the bad video
    logs = "".join(path.read_text() for path in (tmp_path / "out/slurm").glob("*_log.out"))
    assert "submitted 2 jobs" in printed and logs.count("videos/bad.mp4: ") >= 2
    assert_equal_features(tmp_path / "out", shared, run_main)
    status, _, error = run_main(extract, *words, "color")
    assert status == 2 and "expected NAME=VALUE, got 'color'" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "i3d_thumos14"), "has no weights to download; give --weights rgb.pt flow.pt"),
        (("--backbone", "r2plus1d_18", "--flow", "dis"), "has no network for flow"),
        (("--backbone", "i3d", "--flow", "none", "--weights", "bad.pt"), "not a checkpoint"),
    ],
)
def test_impossible_extractions_are_refused_in_one_line(words, message, tmp_path, run_main, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.pt").write_bytes(b"no weights")
    write_video(tmp_path / "clip.mp4", [0])
    status, _, error = run_main(extract, "clip.mp4", "--out", "out", *words)
    assert status == 2 and message in error and error.count("\n") == 1


# Annotations and recipes


def test_annotations_from_a_table_of_labels(tmp_path, run_main):
    videos = tmp_path / "videos"
    videos.mkdir()
    rows = ["video,label,start,end"]
    for number in range(20):
        write_video(videos / f"v{number:02d}.mp4", steady(25, 10 + number))
        rows.append(f"v{number:02d}{'.mp4' * (number % 2)},{'Jump' if number < 10 else 'Run'},,")
    rows += ["v03,Run,0.1,0.4", "v03,Run,,"]
    (videos / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "bad,Jump,,"]) + "\n")
    write_video(videos / "unnamed.mp4", steady(25, 5))
    words = (videos, "--labels", tmp_path / "labels.csv", "--out")
    status, printed, error = run_main(annotate, *words, tmp_path / "a")
    assert status == 1 and f"failed: {videos / 'bad.mp4'}" in printed and "left out (bad, unnamed)" in printed, error
    annotations = load_annotations(tmp_path / "a")
    assert annotations.classes == ("Jump", "Run") and len(annotations.videos) == 20
    assert annotations.videos["v03"].labels == ("Jump", "Run")
    assert annotations.videos["v03"].segments.tolist() == [[0.1, 0.4]]
    for number in range(20):
        assert annotations.videos[f"v{number:02d}"].duration == pytest.approx((10 + number) / 25, abs=0.03)
    tests = [video.video_id for video in annotations.subset("test")]
    assert len(tests) == 6 and sum(video_id < "v10" for video_id in tests) == 3
    for folder, seed in (("b", 0), ("c", 1)):
        (videos / "bad.mp4").unlink(missing_ok=True)
        (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
        assert run_main(annotate, *words, tmp_path / folder, "--seed", seed)[0] == 0
        other = [video.video_id for video in load_annotations(tmp_path / folder).subset("test")]
        assert (other == tests) == (seed == 0)
    status, _, error = run_main(annotate, *words, tmp_path / "a")
    assert status == 2 and "already exists" in error


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("clip,Run,\nother,Run,", "no such video among 1 file"),
        ("clip,,", "the label is empty"),
        ("clip,Run,late", "expected start and end in seconds"),
        ("", "has no rows"),
    ],
)
def test_unusable_labels_are_refused_in_one_line(rows, message, tmp_path, run_main):
    write_video(tmp_path / "clip.mp4", steady(25, 5))
    (tmp_path / "labels.csv").write_text(f"video,label,start\n{rows}\n")
    words = (tmp_path / "clip.mp4", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out")
    status, _, error = run_main(annotate, *words)
    assert status == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def simulated_dataset(folder: Path, recipe: Recipe, dims: tuple[int, int] = (4, 3)) -> Path:
    """Write SIMULATED features with a recipe, as if they came from videos."""
    simulate_features(parse_annotations(invent_timeline(16, 3), "timeline"), folder, dims)
    store = open_features(folder, None)
    arrays = [(f"{name}/{v}", store.source.read(name, v)) for name in store.modalities for v in store.video_ids]
    rates = {name: {"fps": 25, "stride": 16} for name in store.modalities}
    write_dataset(folder, arrays, {"/": {"simulated": "yes", "recipe": json.dumps(recipe.as_dict())}, **rates}, None)
    return folder


def test_a_detector_refuses_features_of_another_recipe(tmp_path, run_main):
    data = simulated_dataset(tmp_path / "data", TINY)
    run, words = tmp_path / "run", ("--device", "cpu", "--max-iter", "2", "--eval-every", "2", "--num-snippets", "20")
    words = (*words, "--precision", "float32")
    train = ("--config", ROOT / "configs/demo.yaml", "--run-dir", run, *words, "--path-dataset")
    status, _, error = run_main(main.main, *train, data)
    assert status == 0, error
    checkpoint = run / "checkpoints/last.pt"
    assert read_checkpoint(checkpoint)["recipe"] == TINY.as_dict()
    assert json.loads((run / "environment.json").read_text())["features"]["recipe"] == TINY.as_dict()
    convert_features(data, tmp_path / "copy")
    assert open_features(tmp_path / "copy", None).recipe == TINY.as_dict()
    other = simulated_dataset(tmp_path / "other", replace(TINY, fps=12.5, weights={"rgb": "ab" * 32}))
    end = ("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", "--device", "cpu")
    score, video = (localize, "--path-dataset"), (detect,)
    assert run_main(*score, tmp_path / "copy", *end)[0] == 0
    for command in (score, video):
        status, _, error = run_main(*command, other, *end)
        assert status == 2 and "fps 12.5 instead of 10" in error and error.count("\n") == 1
    assert run_main(*score, other, *end, "--any-recipe")[0] == 0
    status, _, error = run_main(second_stage, "--run", run, "--path-dataset", other, "--device", "cpu")
    assert status == 2 and "fps 12.5 instead of 10" in error and error.count("\n") == 1
    assert not (tmp_path / "run_pmil_s0").exists()
    assert load_detector(checkpoint, "cpu", any_recipe=True).open(other).recipe["fps"] == 12.5
    status, _, error = run_main(main.main, *train, other, "--resume", "--max-iter", "4")
    assert status == 2 and "was trained on features of another recipe" in error and error.count("\n") == 1


@pytest.mark.parametrize("value", [np.bytes_(b"[1]"), np.bytes_(b"{"), np.bytes_(b"[" * 9000), "text", 3])
def test_a_recipe_in_a_file_is_a_json_object_of_fixed_length(value, tmp_path):
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["rgb/video"] = np.ones((3, 2), dtype=np.float32)
        file.attrs["recipe"] = value
    with pytest.raises(InputError, match="not a readable HDF5 file") as refusal:
        open_features(tmp_path, None)
    assert "\n" not in str(refusal.value)


def test_shards_share_one_recipe(tmp_path):
    for number, fps in enumerate((10, 10, 12)):
        with FeatureFolder(tmp_path / str(number), replace(TINY, fps=fps, stride=fps, weights={"rgb": "0"})) as folder:
            folder.add(f"v{number}", {"rgb": np.ones((3, 2), dtype=np.float32)})
            folder.assemble()
    for second, is_same in ((1, True), (2, False)):
        shards = tmp_path / f"shards{second}"
        shards.mkdir()
        for number, source in enumerate((0, second)):
            shutil.copy(tmp_path / str(source) / "features.h5", shards / shard_name(number, 2))
        if is_same:
            assert open_features(shards, None).recipe["fps"] == 10
        else:
            with pytest.raises(InputError, match="'rgb' has|another recipe"):
                open_features(shards, None)


# Preprocessing and networks against torchvision and the published ones


@pytest.fixture(scope="module")
def torchvision():
    """Returns torchvision, also where its compiled operators do not fit a PyTorch without CUDA: no backbone has any."""
    pytest.importorskip("torch")
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
    from utils.video.flow import load_raft, raft_flow

    torch.manual_seed(0)
    torch.save(torchvision.models.optical_flow.raft_large().state_dict(), tmp_path / "raft.pth")
    net = load_raft(tmp_path / "raft.pth").eval()
    frames = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    assert raft_flow(net, frames).shape == (1, 2, 60, 90)


def test_recipes_survive_the_file(tmp_path):
    recipe = replace(TINY, weights={"rgb": "ab" * 32})
    assert json.loads(json.dumps(recipe.as_dict())) == recipe.as_dict()
    with FeatureFolder(tmp_path, recipe) as folder:
        folder.add("a/b", {"rgb": np.ones((3, 2), dtype=np.float32)})
        folder.assemble()
    assert open_features(tmp_path, None).describe()["recipe"] == recipe.as_dict()
