"""Tests of sharded features: reading, checking, writing, and training from them."""

import json
import os
import subprocess

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from main import main as train
from scripts.convert_features import main as convert
from tests.test_caching import arguments, demo  # noqa: F401 - a fixture
from tests.test_convert import annotate, other_rate, other_value, other_videos
from tests.test_features import LENGTHS, streams, write_folders, write_hdf5
from tests.test_train import one_thread  # noqa: F401 - a fixture for every test here
from utils.errors import InputError
from utils.features.check import check_dataset
from utils.features.convert import _Selection, convert_features
from utils.features.index import INDEX
from utils.features.shards import MAX_OPEN, shard_name
from utils.features.sources import Source
from utils.features.store import open_features
from utils.formats.checksums import SUMS


def write_shards(folder, *videos: str, count: int | None = None, dtype=np.float32, **attributes):
    """Write one shard per string of videos ('v1 v3', 'v2'), with both modalities, and annotations."""
    data = streams(dtype)
    for number, names in enumerate(videos):
        with h5py.File(folder / shard_name(number, count or len(videos)), "w") as file:
            for modality in data:
                file.create_group(modality).attrs.update({"fps": 25, "stride": 16, **attributes})
                for name in names.split():
                    file[f"{modality}/{name}"] = data[modality][name]
    return annotate(folder)


def test_many_files_are_read_as_one(tmp_path):
    store, data = open_features(write_shards(tmp_path, "v3", "", "v1 v2")), streams()
    assert store.describe() == {"path": str(tmp_path), "form": "sharded HDF5", "simulated": False}
    assert store.video_ids == ["v3", "v1", "v2"]
    assert store.snippet_rate == 25 / 16
    for video_id, length in LENGTHS.items():
        expected = np.concatenate([data["rgb"][video_id], data["flow"][video_id]], axis=1)
        assert store.num_snippets(video_id) == length
        np.testing.assert_array_equal(store[video_id], expected)
        np.testing.assert_array_equal(store.rows(video_id, np.array([0, 0, length - 1])), expected[[0, 0, -1]])
    np.testing.assert_array_equal(store.shards(["v1", "v3", "v2"]), [2, 0, 2])


def remove(folder):
    (folder / shard_name(1, 3)).unlink()


def add_surplus(folder):
    (folder / shard_name(2, 3)).rename(folder / shard_name(3, 3))


def add_twice(folder):
    (folder / shard_name(2, 3)).rename(folder / "features-0-of-3.h5")


def add_other_set(folder):
    (folder / shard_name(2, 3)).rename(folder / shard_name(2, 4))


def add_whole_file(folder):
    (folder / shard_name(2, 3)).rename(folder / "features.h5")


def add_video_again(folder):
    with h5py.File(folder / shard_name(2, 3), "a") as file:
        file["flow/v3"] = np.ones((9, 4))


def change_rate(folder):
    with h5py.File(folder / shard_name(2, 3), "a") as file:
        file["rgb"].attrs["fps"] = 30


def cut(folder):
    path = folder / shard_name(1, 3)
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "1 of 3 shards not found, first features-00001-of-00003.h5"),
        (add_surplus, "features-00003-of-00003.h5 is surplus; the last of 3 shards is 2"),
        (add_twice, "features-0-of-3.h5 and features-00000-of-00003.h5 have the same number"),
        (add_other_set, "expected one set of shards, got shards of 3 and of 4"),
        (add_whole_file, "features.h5 is beside shards of features"),
        (add_video_again, "00002-of-00003.h5: video 'v3' is also in features-00000-of-00003.h5"),
        (change_rate, "features-00002-of-00003.h5: 'rgb' has .*, in earlier shards .*fps=25"),
        (cut, "features-00001-of-00003.h5: not a readable HDF5 file"),
    ],
)
def test_an_incomplete_set_is_refused_in_one_line(tmp_path, damage, message):
    damage(write_shards(tmp_path, "v3", "v1", "v2"))
    with pytest.raises(InputError, match=message) as error:
        open_features(tmp_path)
    assert "\n" not in str(error.value)
    assert [finding.kind for finding in check_dataset(tmp_path).findings][0] == "unreadable features"


def test_a_fault_names_its_shard(tmp_path):
    write_shards(tmp_path, "v3", "v1", "v2")
    with h5py.File(tmp_path / shard_name(2, 3), "a") as file:
        file["rgb/v2"][0, 1] = np.nan
        file["flow/v9"] = np.ones((3, 3))
    findings = {finding.kind: finding for finding in check_dataset(tmp_path, dataset="demo").findings}
    for kind in ("NaN or infinity", "wrong width"):
        assert findings[kind].where == str(tmp_path / shard_name(2, 3))


def descriptors(folder) -> int:
    """Return the number of files in a folder that this process has open."""
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.path.exists(link) and os.readlink(link).startswith(str(folder)) for link in links)


def test_few_files_are_open_at_a_time_and_listing_reads_no_values(tmp_path, monkeypatch):
    count = 2 * MAX_OPEN + 3
    values = np.random.default_rng(0).random((count, 3, 2)).astype(np.float32)
    for number in range(count):
        with h5py.File(tmp_path / shard_name(number, count), "w") as file:
            file.create_dataset(f"rgb/v{number}", data=values[number], chunks=(2, 2), compression="gzip")
    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", None)
        store = open_features(tmp_path, ("rgb",))
        assert [store.num_snippets(f"v{number}") for number in range(count)] == [3] * count
    for number in np.random.default_rng(1).permutation(count).tolist() + [0, 0]:
        np.testing.assert_array_equal(store[f"v{number}"], values[number])
        np.testing.assert_array_equal(store.rows(f"v{number}", np.array([2])), values[number][2:])
        assert descriptors(tmp_path) <= MAX_OPEN


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_converting_into_shards_and_back_changes_no_bit(tmp_path, dtype, count):
    data, one = streams(dtype), tmp_path / "one"
    one.mkdir()
    annotate(write_hdf5(one, data, fps=24, stride=8))
    shards, back, again = (tmp_path / name for name in ("shards", "back", "again"))
    convert_features(one, shards, shards=count)
    names = [shard_name(number, count) for number in range(count)]
    assert sorted(os.listdir(shards)) == [SUMS, "annotations.json", *names, INDEX]
    done = subprocess.run(["sha256sum", "--check", SUMS], cwd=shards, capture_output=True, text=True, check=False)
    assert done.stdout == "".join(f"{name}: OK\n" for name in [*names, "annotations.json"])
    convert_features(shards, back)
    first, second = open_features(one), open_features(back)
    assert first.video_ids == second.video_ids == open_features(shards).video_ids
    for modality, videos in data.items():
        for video_id, values in videos.items():
            for folder in (shards, back):
                stored = open_features(folder).source.read(modality, video_id)
                assert stored.dtype == dtype
                np.testing.assert_array_equal(stored, values)
    convert_features(one, again, shards=count)
    assert all((again / name).read_bytes() == (shards / name).read_bytes() for name in (SUMS, *names))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 30))
def test_shards_are_ordered_nonempty_and_balanced(tmp_path_factory, lengths, count):
    class Lengths(Source):
        path, modalities, simulated = tmp_path_factory.getbasetemp(), ("rgb",), False
        shape = staticmethod(lambda _, video_id: (lengths[int(video_id)], 2))
        read = staticmethod(lambda _, video_id: np.ones((lengths[int(video_id)], 2), np.float32))
        rate = staticmethod(lambda _: None)
        video_ids = staticmethod(lambda _: [str(number) for number in range(len(lengths))])

    selection = _Selection(Lengths(), ("rgb",), None)
    if count > len(lengths):
        with pytest.raises(InputError, match="do not fill"):
            selection.shards(count)
        return
    shards = selection.shards(count)
    assert list(shards) == [shard_name(number, count) for number in range(count)]
    assert [int(video_id) for videos in shards.values() for video_id in videos] == list(range(len(lengths)))
    assert all(shards.values())
    largest = max(sum(lengths[int(video_id)] for video_id in videos) for videos in shards.values())
    assert largest <= max(sum(lengths) / count + max(lengths), max(lengths))


def test_an_interrupted_conversion_continues(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    annotate(write_hdf5(source, streams(), fps=25, stride=16))
    convert_features(source, out, shards=3)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    del before[INDEX]  # has the time stamps of the files
    inode = (out / shard_name(2, 3)).stat().st_ino
    for name in (SUMS, shard_name(0, 3), shard_name(1, 3)):  # as after a kill between the renames
        (out / name).unlink()
    convert_features(source, out, shards=3)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != INDEX} == before
    assert (out / shard_name(2, 3)).stat().st_ino == inode


@pytest.mark.parametrize("change", [other_value, other_videos, other_rate, None])
def test_other_shards_are_never_replaced(tmp_path, change):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    annotate(write_hdf5(source, streams(), fps=25, stride=16))
    convert_features(source, out, shards=3)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    if change:
        with h5py.File(source / "features.h5", "r+") as file:
            change(file)
    with pytest.raises(InputError, match="differs from the features to write|do not fill"):
        convert_features(source, out, shards=3 if change else 2)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_error_in_the_last_shard_leaves_no_files(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    data = streams()
    data["rgb"]["v3"][4, 1] = np.inf
    annotate(write_folders(source, data))
    with pytest.raises(InputError, match="'v3' has NaN or infinite values"):
        convert_features(source, out, shards=3, fps=25, stride=16)
    assert os.listdir(out) == []


def test_commands_give_the_same_results_with_shards_as_with_one_file(demo, tmp_path, run_main):  # noqa: F811
    """Conversion, check and training."""
    shards = tmp_path / "shards"
    status, printed, _ = run_main(convert, demo, "--out", shards, "--shards", 4)
    assert status == 0
    assert f"SIMULATED features: {shards} (" in printed
    assert not [finding for finding in check_dataset(shards).findings if finding.severity == "error"]
    assert run_main(convert, demo, "--out", tmp_path / "x", "--shards", 17)[0] == 2
    train(arguments(demo, tmp_path / "one", "--max-iter", 2))
    train(arguments(shards, tmp_path / "many", "--max-iter", 2, "--cache", "none", "--open-shards", 4))
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "many"))
    assert first == second
    status, _, error = run_main(lambda: train(arguments(demo, tmp_path / "none", "--open-shards", 2)))
    assert status == 2
    assert "--open-shards needs sharded features" in error


def test_a_run_resumes_in_the_middle_of_a_window(demo, tmp_path):  # noqa: F811
    shards = tmp_path / "shards"
    convert_features(demo, shards, shards=4)
    options = ["--open-shards", 1, "--batch-size", 2, "--num-pairs", 1, "--cache", "none"]
    train(arguments(shards, tmp_path / "whole", *options))
    train(arguments(shards, tmp_path / "stopped", *options, "--max-iter", 2))
    train(arguments(shards, tmp_path / "stopped", *options, "--resume"))
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "stopped"))
    assert first == second
