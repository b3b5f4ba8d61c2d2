"""Inputs that people hand over, in the layouts of the field's common tools, through the commands as a user types them.

`tests/cases/good` is a small dataset; each test writes it in the layout or with the fault of one kind.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from main import main as train
from scripts.convert_features import main as convert
from utils.annotations import load_annotations
from utils.errors import InputError
from utils.features.check import main as check
from utils.features.store import open_features

CASES = Path(__file__).resolve().parent / "cases"
ROOT = CASES.parents[1]
STREAMS = ("rgb", "flow")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A dataset folder with the annotations of `good` and no features."""
    (tmp_path / "data").mkdir()
    shutil.copy(CASES / "good" / "annotations.json", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run_train(run_main, tmp_path):
    """Train two iterations as the README says, with these more options."""

    def command(folder, *words):
        config = ["--config", ROOT / "configs" / "thumos14.yaml", "--path-dataset", folder, "--device", "cpu"]
        small = ["--max-iter", 2, "--num-snippets", 16, "--batch-size", 6, "--num-pairs", 2]
        words = [*config, *small, "--run-dir", tmp_path / "run", *words]
        return run_main(train, *words)

    return command


def arrays() -> dict[str, dict[str, np.ndarray]]:
    """Return the features of `good` by stream and video."""
    return {
        stream: {path.stem: np.load(path) for path in sorted((CASES / "good" / stream).glob("*.npy"))}
        for stream in STREAMS
    }


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def write_streams(folder: Path, change=lambda stream, video, values: values) -> Path:
    """Write `<stream>/<video>.npy`, each array changed by a function."""
    for stream, videos in arrays().items():
        for video, values in videos.items():
            write(folder / stream / f"{video}.npy", change(stream, video, values))
    return folder


def edit_annotations(folder: Path, edit) -> None:
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    for video, entry in content["database"].items():
        edit(video, entry)
    path.write_text(json.dumps(content))


def assert_good(folder: Path, modalities=STREAMS) -> None:
    """Compare the features that are read with those of `good`."""
    store, expected = open_features(folder, modalities), open_features(CASES / "good")
    assert sorted(store.video_ids) == expected.video_ids
    for video in store.video_ids:
        np.testing.assert_array_equal(store[video], expected[video])


def assert_works(folder: Path, run_main, run_train) -> str:
    """Check and train a dataset; return the output of the check."""
    status, report, error = run_main(check, folder, "--check")
    assert (status, error.replace("\r", "")[-6:]) != (1, ""), report
    assert status == 0, report
    status, out, error = run_train(folder)
    assert status == 0, error
    return report


def test_good(run_main, run_train):
    assert_works(CASES / "good", run_main, run_train)


def test_subsets_with_capitals(folder, run_main, run_train):
    write_streams(folder)
    edit_annotations(folder, lambda video, entry: entry.update(subset=entry["subset"].title()))
    report = assert_works(folder, run_main, run_train)
    assert "dataset thumos14" in report
    status, _, error = run_main(
        convert, folder, "--out", folder / "new", "--subsets", "TEST", "--fps", 25, "--stride", 16
    )
    assert status == 0, error


def test_streams_that_differ_by_a_snippet(folder, run_main, run_train, tmp_path):
    write_streams(folder, lambda stream, video, values: values[: len(values) - (stream == "flow")])
    report = assert_works(folder, run_main, run_train)
    assert "warning   cut to the shorter     9" in report and "0 errors" in report
    assert "warning: cut to the shorter: 9 (" in run_train(folder, "--run-dir", tmp_path / "again")[1]
    status, out, error = run_main(convert, folder, "--out", tmp_path / "new", "--fps", 25, "--stride", 16)
    assert status == 0, error
    assert "9 videos with modalities of different length, which were cut to the shorter" in out
    store, converted = open_features(folder), open_features(tmp_path / "new")
    for video in store.video_ids:
        assert len(store[video]) == len(arrays()["rgb"][video]) - 1
        np.testing.assert_array_equal(store[video], converted[video])
        np.testing.assert_array_equal(store[video][3:9], store.rows(video, np.arange(3, 9)))


def test_streams_that_differ_by_more_are_an_error_everywhere(folder, run_main, run_train):
    write_streams(folder, lambda stream, video, values: values[: len(values) - 3 * (stream == "flow")])
    status, report, _ = run_main(check, folder, "--check")
    assert status == 1 and "error     different lengths     9" in report
    commands = [run_train(folder), run_main(convert, folder, "--out", folder / "new", "--fps", 25, "--stride", 16)]
    for status, _, error in commands:
        assert status == 2 and ("different lengths: 9" in error or "differ by more than 2 snippets or 1 %" in error)


def test_nested_folders(folder, run_main, run_train):
    for stream, videos in arrays().items():
        for video, values in videos.items():
            subset = "train" if "validation" in video else "test"
            write(folder / "features" / subset / stream / f"{video}.npy", values)
    (folder / "annotations.json").rename(folder / "gt.json")
    assert_good(folder)
    assert_works(folder, run_main, run_train)


def test_files_of_the_video_features_tool(folder, run_main, run_train):
    for stream, videos in arrays().items():
        for video, values in videos.items():
            write(folder / "i3d" / f"{video}_{stream}.npy", values)
            write(folder / "i3d" / f"{video}_fps.npy", np.array(25.0))
            write(folder / "i3d" / f"{video}_timestamps_ms.npy", np.arange(len(values)) * 640.0)
    assert_good(folder)
    assert open_features(folder).snippet_rate == 25 / 16
    assert "rate not given" not in assert_works(folder, run_main, run_train)


def test_names_that_end_with_the_modality(folder, run_main, run_train):
    for stream, videos in arrays().items():
        for video, values in videos.items():
            write(folder / "all" / f"{video}_{stream}.npy", values)
    assert_good(folder)
    for file in (folder / "all").glob("*_flow.npy"):
        file.rename(file.with_name(file.name.replace("_flow", "_tvl1")))
    rate = ["--fps", 25, "--stride", 16]
    status, _, error = run_main(convert, folder, "--out", folder / "new", "--suffix", "rgb", "tvl1", *rate)
    assert status == 0, error
    assert_good(folder / "new", ("rgb", "tvl1"))


@pytest.mark.parametrize("by", ["features.json", "option", "nothing"])
def test_joined_channels(folder, run_main, run_train, by):
    streams = arrays()
    for video, values in streams["rgb"].items():
        write(folder / "i3d_features" / f"{video}.npy", np.concatenate([values, streams["flow"][video]], axis=1))
    if by == "option":
        words = ["--split", "rgb:0:4", "flow:4:8", "--fps", 25, "--stride", 16]
        status, _, error = run_main(convert, folder, "--out", folder / "new", *words)
        assert status == 0, error
        assert_good(folder / "new")
    elif by == "features.json":
        settings = {"fps": 25, "stride": 16, "split": {"rgb": [0, 4], "flow": [4, 8]}}
        (folder / "features.json").write_text(json.dumps(settings))
        assert_good(folder)
        assert_works(folder, run_main, run_train)
        (folder / "features.json").write_text(json.dumps({**settings, "split": {"rgb": [0, 4], "flow": [4, 9]}}))
        status, _, error = run_train(folder, "--run-dir", folder / "run")
        assert status == 2 and "unreadable features: 9 (" in error
        assert "has no channels 4 to 9 of 'flow'; correct the split" in run_main(check, folder, "--check")[1]
    else:
        status, _, error = run_train(folder)
        assert status == 2 and 'give "split" in features.json or --split' in error
        status, report, _ = run_main(check, folder, "--check")
        assert "note      one modality" in report and '"split" in features.json or --split' in report


@pytest.mark.parametrize("ending", ["h5", "hdf5"])
def test_hdf5_by_video(folder, run_main, run_train, ending):
    with h5py.File(folder / f"sub_activitynet_v1-3.c3d.{ending}", "w") as file:
        for video, values in arrays()["rgb"].items():
            file[f"v_{video}/c3d_features"] = values
    store = open_features(folder, ["c3d_features"])
    np.testing.assert_array_equal(store["video_test_0000010"], arrays()["rgb"]["video_test_0000010"])
    status, report, _ = run_main(check, folder, "--check")
    assert status == 0 and "c3d_features of 9 videos" in report
    status, _, error = run_train(folder, "--modalities", "c3d_features", "c3d_features_diff")
    assert status == 0, error


def test_hdf5_of_videos_alone(folder, run_main, run_train):
    with h5py.File(folder / "i3d.h5", "w") as file:
        file.attrs.update(fps=25, stride=16)
        for video, values in arrays()["rgb"].items():
            file[video] = values
    store = open_features(folder, ["i3d"])
    assert store.snippet_rate == 25 / 16 and sorted(store.video_ids) == sorted(arrays()["rgb"])
    np.testing.assert_array_equal(store["video_test_0000010"], arrays()["rgb"]["video_test_0000010"])
    status, _, error = run_train(folder, "--modalities", "i3d", "i3d_diff")
    assert status == 0, error


def test_a_file_in_place_of_a_folder_is_one_line(folder, run_train, tmp_path):
    write_streams(folder)
    (folder / "features.h5").write_bytes(b"")
    status, _, error = run_train(folder / "features.h5")
    assert status == 2 and "is a file of features; give the folder that holds it" in error
    (tmp_path / "run").write_text("")
    status, _, error = run_train(folder)
    assert status == 2 and f"{tmp_path / 'run'}: is a file; --run-dir expects a folder" in error


def test_a_missing_subset_names_the_file_and_the_options(folder, run_train):
    write_streams(folder)
    edit_annotations(folder, lambda video, entry: entry.update(subset="mine"))
    status, _, error = run_train(folder, "--test-subset", "mine")
    assert status == 2 and error.startswith(f"error: {folder / 'annotations.json'}: no video of subset 'validation'")
    assert "subsets present: 'mine'; choose another --train-subset or --dataset" in error


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files(folder, run_main, run_train, save):
    write_streams(folder)
    for file in sorted((folder / "flow").iterdir()):
        save(file.with_suffix(".npz"), np.load(file))
        file.unlink()
    assert_good(folder)
    assert_works(folder, run_main, run_train)


def test_npz_files_with_both_modalities(folder, run_main):
    streams = arrays()
    (folder / "i3d").mkdir()
    for video in streams["rgb"]:
        np.savez(folder / "i3d" / f"{video}.npz", rgb=streams["rgb"][video], flow=streams["flow"][video])
    assert_good(folder)
    status, _, error = run_main(convert, folder, "--out", folder / "new", "--fps", 25, "--stride", 16)
    assert status == 0, error
    assert_good(folder / "new")


def test_arrays_with_a_leading_axis_of_one(folder, run_main, run_train):
    write_streams(folder, lambda stream, video, values: values[None])
    assert_good(folder)
    assert_works(folder, run_main, run_train)
    status, _, error = run_main(convert, folder, "--out", folder / "new", "--fps", 25, "--stride", 16)
    assert status == 0, error
    assert_good(folder / "new")


def test_transposed_arrays(folder, run_main, run_train):
    write_streams(folder, lambda stream, video, values: values.T)
    status, report, _ = run_main(check, folder, "--check")
    assert status == 1 and "\n1 error, 0 warnings" in report and "--transpose turns them" in report
    rate = ["--fps", 25, "--stride", 16]
    for status, _, error in (run_train(folder), run_main(convert, folder, "--out", folder / "new", *rate)):
        assert status == 2 and "look transposed" in error and "--transpose turns them" in error
    status, _, error = run_main(convert, folder, "--out", folder / "new", "--transpose", *rate)
    assert status == 0, error
    assert_good(folder / "new")


@pytest.mark.parametrize("by", ["features.json", "option"])
def test_features_rescaled_to_a_fixed_length(folder, run_main, run_train, by):
    lengths = {video: len(values) for video, values in arrays()["rgb"].items()}
    ramp = np.arange(100, dtype=np.float32)[:, None]
    write_streams(folder, lambda stream, video, values: ramp / 100 * lengths[video] * [[1, 2]])
    status, report, _ = run_main(check, folder, "--check")
    assert status == 1 and "error     rescaled to a fixed length     1" in report and "\n1 error, 0 warnings" in report
    status, _, error = run_train(folder)
    assert status == 2 and "every video has 100 snippets" in error and "--rescaled" in error
    read = folder
    if by == "option":
        read = folder / "new"
        status, _, error = run_main(convert, folder, "--out", read, "--rescaled")
        assert status == 0, error
    else:
        (folder / "features.json").write_text('{"rescaled": true}')
    assert_works(read, run_main, run_train)
    store = open_features(read)
    assert store.snippet_rate == 25 / 16
    for video, length in lengths.items():  # the features count the snippets of the video, in real time
        assert store.num_snippets(video) == length
        assert np.abs(store[video][:, 0] - np.arange(length)).max() < 1
        np.testing.assert_array_equal(store[video][4:9], store.rows(video, np.arange(4, 9)))


def test_segments_that_end_before_they_start(folder, run_main, run_train):
    write_streams(folder)

    def invert(video, entry):
        entry["annotations"].append({"label": "Run", "segment": [9.5, 2]})

    edit_annotations(folder, invert)
    status, report, _ = run_main(check, folder, "--check")
    assert status == 1 and "error     inverted segment     9" in report and "\n9 errors, 0 warnings" in report
    rate = ["--fps", 25, "--stride", 16]
    for status, _, error in (run_train(folder), run_main(convert, folder, "--out", folder / "new", *rate)):
        assert status == 2 and "9 of the segments end before they start" in error
        assert "[9.5, 2] and 6 more); correct them, or leave them out with" in error
    status, out, error = run_main(convert, folder, "--out", folder / "new", "--drop-inverted", *rate)
    assert status == 0, error
    assert "9 annotated segments with the end before the start, left out" in out
    for video, entry in load_annotations(folder / "new").videos.items():
        assert len(entry.segments) == len(entry.segment_labels) == 2, video


def test_multithumos_with_its_inverted_segments(reference):
    folder = reference / "data" / "multithumos" / "MultiThumos-Annotations"
    with pytest.raises(InputError, match="30 of the segments end before they start") as error:
        load_annotations(folder)
    assert len(str(error.value)) < 500
    annotations = load_annotations(folder, drop_inverted=True)
    assert (len(annotations.videos), len(annotations.classes), annotations.num_dropped) == (413, 65, 30)
    assert sum(len(video.segments) for video in annotations.videos.values()) == 38_690 - 30


def test_main_and_check_agree(folder, run_main, run_train):
    """The command that main.py suggests finds the errors that it counts."""
    write_streams(folder, lambda stream, video, values: values if video.endswith("1") else values[:, :3, None])
    status, _, error = run_train(folder, "--modalities", "rgb", "rgb_diff", "--missing-features", "skip")
    assert status == 2
    command = shlex.split(error.partition("; python -m utils.features ")[2].removesuffix(" lists every error\n"))
    assert command == [
        str(folder),
        *["--check", "--modalities", "rgb", "rgb_diff", "--dataset", "thumos14"],
        *["--missing-features", "skip"],
    ]
    counted = re.findall(r"([a-z ]+): (\d+) \(", error)
    status, report, _ = run_main(check, *command)
    assert status == 1 and counted
    for kind, count in counted:
        assert re.search(rf"error +{kind.strip()} +{count} ", report)


def test_messages_are_short(folder, run_main, run_train):
    """No line of any command lists thousands of names."""
    with h5py.File(folder / "features.h5", "w") as file:
        for number in range(2000):
            file[f"modality {number}/v"] = np.zeros((3, 2), np.float32)
    edit_annotations(folder, lambda video, entry: entry.update(subset=f"{video} {'x' * 99}"))
    outputs = [run_main(check, folder, "--check"), run_train(folder)]
    outputs.append(run_main(convert, folder, "--out", folder / "new", "--subsets", "none"))
    for status, out, error in outputs:
        assert status
        assert max(map(len, (out + error.split("\r")[-1]).splitlines())) < 1500


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("good", []),
        ("offbyone", []),
        ("basnet", []),
        ("videofeatures", []),
        ("capital", []),
        ("anetc3d", ["--modalities", "c3d_features", "c3d_features_diff"]),
        ("mixedext", []),
    ],
)
def test_inputs_as_reported(reference, run_main, run_train, name, words):
    """The larger inputs, where they are available: main.py and its check take them as they are."""
    folder = reference / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    status, report, _ = run_main(check, folder, "--check", *words)
    assert (status, run_train(folder, *words)[0]) == (0, 0), report
