"""Videos to features: clips, flow, bad videos among good ones, kills, several processes."""

import inspect
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.extract_features import main as extract
from tests.conftest import ROOT
from tests.videos import LIMITS, TINY, TINY_BACKBONE, TINY_FLOW, Tiny, bad_videos, steady, write_video
from utils.errors import InputError
from utils.features import open_features
from utils.features.check import main as describe
from utils.video.backbones import BACKBONES
from utils.video.extract import Extractor, extract_videos, load_extractor, read_chunks
from utils.video.flow import build_cpu_flow
from utils.video.folder import FeatureFolder
from utils.video.recipe import Recipe, crop_frames, normalize_clips


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Registers the tiny backbone; returns the words of the command that choose it."""
    monkeypatch.setitem(BACKBONES, "tiny", TINY_BACKBONE)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pt")
    return "--backbone", "tiny", "--weights", tmp_path / "tiny.pt", "--device", "cpu", "--workers", "0"


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
        flow = build_cpu_flow(method)(*frames)
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
# Writes half of the fourth video and waits, so that it can be killed at this moment at any speed of the machine.
WAITING_RUNNER = RUNNER.replace(
    "\nexit_on_input_error(main)",
    """
import time
from utils.video import folder
write, numbers = folder.write_features, iter(range(3))
def write_or_wait(path, arrays, attributes):
    if next(numbers, None) is not None:
        return write(path, arrays, attributes)
    write(path, ((name, values[: len(values) // 2]) for name, values in arrays), attributes)
    path.with_name("half").touch()
    time.sleep(1e6)
folder.write_features = write_or_wait
exit_on_input_error(main)""",
)


def test_a_killed_extraction_continues_to_the_same_values(tiny, tmp_path, run_main):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(12):
        write_video(videos / f"v{number:02d}.mp4", steady(25, 40))
    words = [*map(str, (videos, "--out", tmp_path / "killed", *tiny[:-1])), "2"]  # two worker processes
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WAITING_RUNNER, *words]
    staging = tmp_path / "killed" / ".extraction"
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not (staging / "half").exists():
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    (staging / "damaged.h5").write_bytes(b"half of a file")
    (staging / "x.h5.partial-1").touch()
    status, printed, error = run_main(extract, videos, "--out", tmp_path / "killed", *tiny)
    assert status == 0 and "3 videos of 12 already in" in printed, error
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
