"""The converter: values stay equal bit for bit, and a flipped byte is never read as a value."""

import json
import os
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest

from scripts.convert_features import main
from tests.ave_release import BACKGROUND_CLIPS, make_release, write_array
from tests.test_features import LENGTHS, streams, write_folders, write_hdf5, write_joint
from utils.errors import InputError
from utils.features.convert import convert_features, write_dataset
from utils.features.index import INDEX
from utils.features.store import open_features
from utils.formats.checksums import SUMS, format_checksums, read_checksums
from utils.formats.files import atomic_write

DATABASE = {
    name: {"subset": subset, "duration": 9.5, "labels": ["A"], "annotations": [{"label": "A", "segment": [1, 2]}]}
    for name, subset in (("v1", "train"), ("v2", "train"), ("v3", "test"), ("v4", "test"))
}


def annotate(folder):
    (folder / "annotations.json").write_text(json.dumps({"classes": ["A"], "database": DATABASE}))
    return folder


def raw(folder) -> dict[str, np.ndarray]:
    """Return the arrays of a features.h5, read by h5py alone."""
    with h5py.File(folder / "features.h5") as file:
        return {f"{group}/{name}": array[()] for group in file for name, array in file[group].items()}


def checksums_match(folder) -> bool:
    done = subprocess.run(["sha256sum", "--check", SUMS], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout == "features.h5: OK\nannotations.json: OK\n"


@pytest.mark.parametrize(
    ("write", "rate"), [(write_hdf5, {}), (write_folders, {"fps": 30, "stride": 16}), (write_joint, {})]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.dtype(">f4")])
def test_every_format_is_converted_bit_for_bit(tmp_path, write, rate, dtype):
    data, out = streams(dtype), tmp_path / "a" / "out"
    source = tmp_path / "source"
    source.mkdir()
    annotate(write(source, data, fps=24, stride=8) if write is write_hdf5 else write(source, data))
    rows = convert_features(source, out, **rate)
    assert [(row.modality, row.videos, row.channels) for row in sorted(rows, key=str)] == [
        ("flow", 3, 4),
        ("rgb", 3, 4),
    ]
    found = raw(out)
    for modality, videos in data.items():
        for video_id, values in videos.items():
            stored = found.pop(f"{modality}/{video_id}")
            assert stored.dtype == values.dtype.newbyteorder("=")
            np.testing.assert_array_equal(stored, values)
    assert not found
    with h5py.File(out / "features.h5") as file:
        rate = {write_hdf5: (24, 8), write_folders: (30, 16), write_joint: (25, 16)}[write]
        assert all((group.attrs["fps"], group.attrs["stride"]) == rate for group in file.values())
    assert json.loads((out / "annotations.json").read_text())["database"]["v4"] == DATABASE["v4"] | {"ambiguous": []}
    assert checksums_match(out)
    assert sorted(os.listdir(out)) == [SUMS, "annotations.json", "features.h5", INDEX]
    first, second = open_features(source), open_features(out)
    assert all(np.array_equal(first[video_id], second[video_id]) for video_id in LENGTHS)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return annotate(write_hdf5(tmp_path / "source", streams(np.float64), fps=25, stride=16))


def test_wider_dtype_becomes_float32_and_is_reported(source, tmp_path, run_main):
    status, printed, _ = run_main(main, source, "--out", tmp_path / "out")
    assert status == 0
    assert "float64 became float32" in printed
    assert f"{'rgb':12} {3:7} {4:9} {1.5625:11g}  float64" in printed
    assert "features.h5 (0.0 MB)" in printed
    wide, narrow = raw(source), raw(tmp_path / "out")
    for name, values in wide.items():
        np.testing.assert_array_equal(narrow[name], values.astype(np.float32))


def test_value_beyond_float32_is_refused(source, tmp_path):
    with h5py.File(source / "features.h5", "r+") as file:
        file["flow/v3"][4, 1] = 1e300
    with pytest.raises(InputError, match="'flow' of video 'v3' has NaN or infinite values, first in row 4"):
        convert_features(source, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_rate_that_is_not_stored_must_be_given(tmp_path, run_main):
    annotate(write_folders(tmp_path, streams()))
    out = tmp_path / "out"
    for words, says in [
        ((), "the rate of 'flow' is not stored; give --fps and --stride"),
        (("--fps", 25), "--fps and --stride go together"),
        (("--fps", 25, "--stride", 0), "must be positive numbers"),
        (("--fps", "nan", "--stride", 16), "must be positive numbers"),
    ]:
        status, _, error = run_main(main, tmp_path, "--out", out, *words)
        assert (status, error.count("\n")) == (2, 1)
        assert says in error
    assert not out.exists()
    assert run_main(main, tmp_path, "--out", out, "--fps", 25, "--stride", 16)[0] == 0
    assert open_features(out).snippet_rate == 25 / 16


def test_contradictory_rate_is_refused(source, tmp_path):
    with pytest.raises(InputError, match="'(rgb|flow)' has 25 fps and 16 frames per snippet, got --fps 30 --stride 16"):
        convert_features(source, tmp_path / "out", fps=30, stride=16)
    convert_features(source, tmp_path / "out", fps=50, stride=32)  # the same rate
    assert open_features(tmp_path / "out").snippet_rate == 25 / 16


def test_subsets_and_modalities(source, tmp_path):
    convert_features(source, tmp_path / "test", subsets=["test"])
    assert sorted(raw(tmp_path / "test")) == ["flow/v3", "rgb/v3"]
    assert sorted(json.loads((tmp_path / "test/annotations.json").read_text())["database"]) == ["v3", "v4"]
    convert_features(source, tmp_path / "rgb", modalities=["rgb"])
    assert sorted(raw(tmp_path / "rgb")) == ["rgb/v1", "rgb/v2", "rgb/v3"]
    with pytest.raises(InputError, match="no video of subset 'val'"):
        convert_features(source, tmp_path / "val", subsets=["val"])
    with pytest.raises(InputError, match="modality 'audio' not found"):
        convert_features(source, tmp_path / "val", modalities=["audio"])


def test_simulated_stays_simulated(source, tmp_path, run_main):
    with h5py.File(source / "features.h5", "r+") as file:
        file.attrs["simulated"] = "by another program"
    assert "SIMULATED features: " in run_main(main, source, "--out", tmp_path / "out")[1]
    assert open_features(tmp_path / "out").source.simulated


def test_equal_features_are_kept_and_missing_files_added(source, tmp_path):
    out = tmp_path / "out"
    convert_features(source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    del before[INDEX]  # has the time stamp of annotations.json
    (out / SUMS).unlink()  # as a kill leaves it
    (out / "annotations.json").unlink()
    number = (out / "features.h5").stat().st_ino
    convert_features(source, out)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != INDEX} == before
    assert (out / "features.h5").stat().st_ino == number


def other_value(file):
    file["rgb/v2"][0, 0] += 1


def other_videos(file):
    del file["rgb/v2"]


def other_rate(file):
    file.attrs["fps"] = 30


def other_modalities(file):
    del file["flow"]


@pytest.mark.parametrize("change", [other_value, other_videos, other_rate, other_modalities])
def test_other_features_are_never_replaced(source, tmp_path, change):
    convert_features(source, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with h5py.File(source / "features.h5", "r+") as file:
        change(file)
    with pytest.raises(InputError, match=r"out/features\.h5: differs from the features to write"):
        convert_features(source, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("name", ["r2plus1d.h5", "x-I3D-JOINTFeatures.npy", "rgb/v.npy"])
def test_other_features_are_never_hidden(source, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"real")
    with pytest.raises(InputError, match="differs from the features to write"):
        convert_features(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == [path.name]


def test_other_annotations_are_never_replaced(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/annotations.json").write_text('{"v1": {"subset": "test", "labels": ["B"]}}')
    with pytest.raises(InputError, match="contains other annotations"):
        convert_features(source, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["annotations.json"]


@pytest.mark.parametrize("write", [write_hdf5, write_folders, write_joint])
def test_the_source_is_left_as_it_is(tmp_path, write):
    annotate(write(tmp_path, streams()))
    before = sorted(tmp_path.rglob("*"))
    link = tmp_path.parent / f"{tmp_path.name}_link"
    link.symlink_to(tmp_path)
    for out in (tmp_path, link):
        with pytest.raises(InputError, match="is the folder of the source"):
            convert_features(tmp_path, out, fps=25, stride=16)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_hdf5_would_merge_are_refused(tmp_path):
    data = streams()
    write_joint(tmp_path, data)
    np.save(tmp_path / "Tiny-Annotations" / "videoname.npy", np.array([b"a", b"a/b", b"c"]))
    annotate(tmp_path)
    with pytest.raises(InputError, match="cannot store a video named 'a/b'"):
        convert_features(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_little_space_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.features.convert.shutil.disk_usage", lambda _: type("usage", (), {"free": 99}))
    with pytest.raises(InputError, match="do not fit on this disk"):
        convert_features(source, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("limit", "rows"), [(300, 99), (20_000, 99), (2**16, 99), (2**16, 1)])
def test_full_disk_leaves_nothing(tmp_path, limit, rows, monkeypatch):
    """A limit on the file size stands for the full disk: the system refuses the write in the same way."""
    unraisable = []  # errors of HDF5 at a moment when none can be raised
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    arrays = ((f"rgb/v{number}", np.ones((rows, 99), np.float32)) for number in range(99))
    try:
        with pytest.raises(InputError, match=r"features\.h5: cannot be written \(File too large\)$"):
            write_dataset(tmp_path, arrays, {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []
    assert not unraisable


def test_checksums_of_other_files_stay(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / SUMS).write_text(format_checksums(out, ["notes.txt"]))
    notes = read_checksums(out)
    with atomic_write(out / SUMS) as partial:
        partial.write_text((out / SUMS).read_text() + "e3" * 32 + "  features.h5\n")
    convert_features(source, out)
    assert read_checksums(out) == notes | read_checksums(out)
    assert sorted(read_checksums(out)) == ["annotations.json", "features.h5", "notes.txt"]
    (out / SUMS).write_text("no sum\n")
    with pytest.raises(InputError, match="SHA256SUMS: damaged"):
        convert_features(source, out)


def test_long_videos_are_chunked_and_empty_ones_kept(tmp_path):
    long = np.arange(2**21, dtype=np.float32).reshape(-1, 64)
    write_dataset(tmp_path, [("rgb/long", long), ("rgb/none", long[:0])], {"rgb": {"fps": 25, "stride": 16}}, {})
    with h5py.File(tmp_path / "features.h5") as file:
        assert file["rgb/long"].chunks == (2**11, 64)
        assert file["rgb/long"].fletcher32
    store = open_features(tmp_path, ["rgb"])
    np.testing.assert_array_equal(store["long"], long)
    assert store["none"].shape == (0, 64)


def everything(folder) -> tuple:
    """Return everything that is read from a feature file."""
    store = open_features(folder, ("rgb", "flow"))
    values = tuple((video_id, store[video_id].tobytes()) for video_id in store.video_ids)
    return store.describe(), store.source.modalities, store.snippet_rate, store.modality_dims, values


def test_flipped_byte_is_detected_or_harmless(tmp_path):
    """Anywhere in the file: in values, shapes, names, attributes, or in the unused gaps between them."""
    source = tmp_path / "source"
    source.mkdir()
    data = {modality: {f"v{n}": values for n in range(9) for values in [videos["v1"]]} for modality, videos in
            streams(np.float16).items()}  # fmt: skip
    database = {f"v{n}": DATABASE["v1"] for n in range(9)}
    (source / "annotations.json").write_text(json.dumps({"classes": ["A"], "database": database}))
    write_hdf5(source, data, fps=25, stride=16, simulated="yes")
    out = tmp_path / "out"
    convert_features(source, out)
    (out / SUMS).unlink()  # so that only the file itself can detect it
    path = out / "features.h5"
    good, expected = path.read_bytes(), everything(out)
    generator = np.random.default_rng(0)
    detected = wrong = 0
    for place in generator.permutation(len(good))[:300]:
        flipped = bytearray(good)
        flipped[place] ^= generator.integers(1, 256)
        path.write_bytes(flipped)
        try:
            wrong += everything(out) != expected
        except InputError as error:
            detected += 1
            assert "\n" not in str(error)
            assert str(path) in str(error)
    assert wrong == 0
    assert detected > 150  # the others fell into gaps


def test_a_flipped_byte_in_the_annotations_is_detected(source, tmp_path):
    convert_features(source, tmp_path / "out")
    text = (tmp_path / "out/annotations.json").read_text()
    (tmp_path / "out/annotations.json").write_text(text.replace("9.5", "9.6", 1))
    with pytest.raises(InputError, match="differs from the checksum"):
        convert_features(source, tmp_path / "out")


def test_script(source, tmp_path):
    command = [sys.executable, "scripts/convert_features.py", source, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert checksums_match(tmp_path / "out")
    assert f"annotations: {tmp_path / 'out/annotations.json'} (4 videos)" in done.stdout


def test_every_format_has_its_own_rate(tmp_path):
    """The AVE release, with one snippet per second, is converted like the others."""
    clips = len(make_release(tmp_path / "ave"))
    for name, count in (("audio_feature", clips), ("audio_feature_noisy", BACKGROUND_CLIPS)):
        write_array(tmp_path / f"ave/{name}.h5", np.ones((count, 10, 4), np.float32))
    convert_features(tmp_path / "ave", tmp_path / "out")
    assert open_features(tmp_path / "out", None).snippet_rate == 1.0
