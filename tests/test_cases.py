"""Inputs that people hand over, in the layouts of the field's common tools, through the commands as a user types them.

`tests/cases/good` is a small dataset; each test writes it in the layout or with the fault of one kind.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from main import main as train
from scripts.convert_features import main as convert
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
    assert "9 videos have modalities of different length, which were cut to the shorter" in out
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
