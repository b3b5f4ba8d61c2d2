"""Simulated features: reproducible, complete, shaped like the problem, and never replacing real ones."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from tests.conftest import ROOT
from utils.annotations import annotations_to_json, load_annotations, parse_annotations
from utils.errors import InputError
from utils.features.index import INDEX
from utils.features.simulate import MARK, invent_timeline, simulate_features, simulate_video
from utils.features.store import open_features
from utils.formats.checksums import SUMS, read_checksums, verify_checksum

BAD_NAMES = ("a//b", "/a", "a/./b", "a\0", "", "\ud800", "/".join("a" * 17))
DEMO = parse_annotations(invent_timeline(20, 4, seed=1), "the synthetic timeline")


def contents(folder) -> dict[str, np.ndarray]:
    store = open_features(folder)
    return {video_id: store[video_id] for video_id in store.video_ids}


def check_sums(folder) -> bool:
    for name in read_checksums(folder):
        verify_checksum(folder / name)
    return sorted(read_checksums(folder)) == ["annotations.json", "features.h5"]


def test_features_match_the_timeline(tmp_path):
    path = simulate_features(DEMO, tmp_path / "new" / "folder", (6, 10), seed=0)
    store = open_features(path.parent)
    assert store.modality_dims == (6, 10)
    assert store.snippet_rate == 25 / 16
    assert annotations_to_json(load_annotations(path.parent)) == annotations_to_json(DEMO)
    for video in DEMO.videos.values():
        assert store.num_snippets(video.video_id) == int(video.duration * 25 / 16)
        assert store[video.video_id].min() >= 0
    with h5py.File(path) as file:
        assert b"simulated" in file.attrs["simulated"]
        assert file["rgb/train_0000"].dtype == np.float16


def test_seed_decides_and_order_of_videos_does_not(tmp_path):
    reverse = replace(DEMO, videos=dict(reversed(list(DEMO.videos.items()))))
    for name, annotations, seed in (("a", DEMO, 0), ("b", reverse, 0), ("c", DEMO, 1)):
        simulate_features(annotations, tmp_path / name, (6, 6), seed)
    first, second, other = (contents(tmp_path / name) for name in "abc")
    for video_id, features in first.items():
        np.testing.assert_array_equal(features, second[video_id])
        assert not np.array_equal(features, other[video_id])


def test_video_id_with_a_slash_is_read_back(tmp_path):
    entry = {"subset": "test", "duration": 9, "labels": ["A"]}
    annotations = parse_annotations({"kitchen/cam1/v1": entry, "kitchen/v2": entry, "v3": entry}, "x")
    simulate_features(annotations, tmp_path, (4, 4))
    found = contents(tmp_path)
    assert list(found) == ["kitchen/cam1/v1", "kitchen/v2", "v3"]
    assert {features.shape for features in found.values()} == {(14, 8)}


def test_flow_shows_when_and_appearance_does_not():
    """Regress inside/outside on each stream of every other video; test it on the rest."""
    correlation = {}
    for stream, name in enumerate(("rgb", "flow")):
        features, inside = [], []
        for video in DEMO.videos.values():
            length = int(video.duration * 25 / 16)
            features.append(simulate_video(video, DEMO.classes, length, (32, 32), seed=0)[stream])
            center = (np.arange(length) + 0.5) * 16 / 25
            starts, ends = video.segments[:, :1], video.segments[:, 1:]
            inside.append(((center >= starts) & (center < ends)).any(axis=0))
        train, test = (np.concatenate(features[half::2]).astype(np.float64) for half in (0, 1))
        weights = np.linalg.lstsq(np.c_[train, np.ones(len(train))], np.concatenate(inside[::2]), rcond=None)[0]
        predicted = np.c_[test, np.ones(len(test))] @ weights
        correlation[name] = np.corrcoef(predicted, np.concatenate(inside[1::2]))[0, 1]
    assert correlation["flow"] > 0.7
    assert correlation["rgb"] < correlation["flow"] - 0.15


def test_synthetic_timeline():
    content = invent_timeline(50, 5, seed=2)
    assert content == invent_timeline(50, 5, seed=2)
    annotations = parse_annotations(content, "x")
    assert len(annotations.subset("train")) == 30
    assert len(annotations.subset("test")) == 20
    videos = annotations.videos.values()
    assert sum(len(video.labels) > 1 for video in videos) >= 3
    assert any(len(video.ambiguous) for video in annotations.subset("test"))
    for video in videos:
        assert len(video.segments)
        assert set(video.labels) == set(video.segment_labels)
        assert video.segments.max() < video.duration
    for name in annotations.classes:
        assert sum(name in video.labels for video in annotations.subset("train")) >= 2
    lengths = np.concatenate([video.segments[:, 1] - video.segments[:, 0] for video in videos])
    assert lengths.min() < 3
    assert lengths.max() > 12


def test_simulated_files_may_be_replaced(tmp_path):
    simulate_features(DEMO, tmp_path, (4, 4), seed=0)
    other = parse_annotations(invent_timeline(3, 2, seed=9), "x")
    simulate_features(other, tmp_path, (4, 4), seed=0)
    assert len(contents(tmp_path)) == len(load_annotations(tmp_path).videos) == 3
    assert sorted(os.listdir(tmp_path)) == [SUMS, "annotations.json", "features.h5", INDEX]
    assert check_sums(tmp_path)


@pytest.mark.parametrize(
    "name", ["features.h5", "r2plus1d.h5", "x-I3D-JOINTFeatures.npy", "rgb/v.npy", "v.npz", "features/train/rgb/v.npy"]
)
def test_real_features_are_never_replaced_or_hidden(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"real")
    with pytest.raises(InputError, match="not simulated"):
        simulate_features(DEMO, tmp_path, (4, 4))
    assert (tmp_path / name).read_bytes() == b"real"


def test_other_annotations_are_never_replaced(tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps(invent_timeline(2, 2)))
    before = (tmp_path / "annotations.json").read_bytes()
    with pytest.raises(InputError, match="other annotations"):
        simulate_features(DEMO, tmp_path, (4, 4))
    simulate_features(load_annotations(tmp_path), tmp_path, (4, 4))  # beside its own annotations is allowed
    assert (tmp_path / "annotations.json").read_bytes() == before
    assert check_sums(tmp_path)


def test_files_without_checksums_may_be_replaced(tmp_path):
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file.attrs["simulated"] = MARK
    simulate_features(DEMO, tmp_path, (4, 4))
    assert len(contents(tmp_path)) == 20


@pytest.mark.parametrize(
    "killed_in",
    [
        "utils.features.simulate.simulate_video",
        "utils.features.convert.write_json",
        "utils.features.convert.format_checksums",
    ],
)
def test_kill_leaves_complete_files_and_no_wrong_checksums(tmp_path, killed_in):
    """Before, between and after the renames of the two files."""
    simulate_features(DEMO, tmp_path, (4, 4), seed=0)
    old = (tmp_path / "features.h5").read_bytes()
    code = f"""
import os, signal
from unittest import mock
from tests.test_simulate import DEMO, simulate_features
with mock.patch({killed_in!r}, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)):
    simulate_features(DEMO, {str(tmp_path)!r}, (4, 4), seed=1)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(contents(tmp_path)) == len(load_annotations(tmp_path).videos) == 20
    assert ((tmp_path / "features.h5").read_bytes() == old) == (killed_in != "utils.features.convert.format_checksums")
    assert (tmp_path / SUMS).exists() == (killed_in == "utils.features.simulate.simulate_video")
    assert not (tmp_path / SUMS).exists() or check_sums(tmp_path)
    simulate_features(DEMO, tmp_path, (4, 4), seed=1)
    assert check_sums(tmp_path)


def test_error_changes_nothing(tmp_path, monkeypatch):
    simulate_features(DEMO, tmp_path, (4, 4))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("utils.features.simulate.simulate_video", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate_features(DEMO, tmp_path, (4, 4), seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("database", "dims", "seed", "message"),
    [
        ({"v": {"subset": "t"}}, (4, 4), 0, "neither a duration nor a segment"),
        ({"v": {"subset": "t", "duration": 9}}, (4, 0), 0, "widths"),
        ({"v": {"subset": "t", "duration": 9}}, (4, 4), -1, "seed"),
        ({"v": {"subset": "t", "duration": 9}}, (4, 4), 2**63, "seed"),
        ({"v": {"subset": "t", "duration": 1e15}}, (4, 4), 0, "do not fit"),
        ({name: {"subset": "t", "duration": 9} for name in ("a", "a/b")}, (4, 4), 0, "store a video named 'a/b'"),
        *(({name: {"subset": "t", "duration": 9}}, (4, 4), 0, "rename|expected a name") for name in BAD_NAMES),
    ],
)
def test_bad_input_is_refused_before_writing(tmp_path, database, dims, seed, message):
    with pytest.raises(InputError, match=message):
        simulate_features(
            parse_annotations({"classes": ["A"], "database": database}, "x"), tmp_path / "out", dims, seed
        )
    assert not (tmp_path / "out").exists()


def run_script(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/simulate_features.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_script(tmp_path):
    (tmp_path / "given.json").write_text(json.dumps(annotations_to_json(DEMO)))
    result = run_script("--annotations", tmp_path / "given.json", "--out", tmp_path / "out", "--dims", 4, 8)
    assert result.returncode == 0, result.stderr
    assert "20 videos" in result.stdout
    assert open_features(tmp_path / "out").modality_dims == (4, 8)
    absent = run_script("--annotations", tmp_path / "absent.json", "--out", tmp_path / "out")
    assert absent.returncode == 2
    assert absent.stderr.startswith("error: ")
    assert absent.stderr.count("\n") == 1


def test_real_timeline(reference, tmp_path):
    annotations = load_annotations(reference / "data" / "thumos14")
    simulate_features(annotations, tmp_path, (4, 4))
    assert len(contents(tmp_path)) == 412
