"""Tests of feature stores: equal features from every format, and errors that name file, video and row."""

import io
import pickle
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from utils.errors import InputError
from utils.features.check import main
from utils.features.sources import JOINT_SUFFIX
from utils.features.store import mean_difference, open_features


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


LENGTHS = {"v1": 5, "v2": 1, "v3": 9}


def streams(dtype=np.float32, width=4) -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return {
        modality: {v: generator.random((length, width)).astype(dtype) for v, length in LENGTHS.items()}
        for modality in ("rgb", "flow")
    }


def write_hdf5(folder, data, **attributes):
    with h5py.File(folder / "features.h5", "w") as file:
        for modality, videos in data.items():
            for video_id, values in videos.items():
                file[f"{modality}/{video_id}"] = values
        file.attrs.update(attributes)
    return folder


def write_folders(folder, data):
    for modality, videos in data.items():
        (folder / modality).mkdir()
        for video_id, values in videos.items():
            np.save(folder / modality / f"{video_id}.npy", values)
    return folder


class Python2Pickler(pickle._Pickler):
    """Write bytes as Python 2 wrote its strings, as in the releases' files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        self.write(b"T" + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_string


def write_joint(folder, data):
    names = np.array([name.encode() for name in LENGTHS])
    joint = np.empty(len(names), dtype=object)
    for row, video_id in enumerate(LENGTHS):
        joint[row] = np.concatenate([data["rgb"][video_id], data["flow"][video_id]], axis=1)
    (folder / "Tiny-Annotations").mkdir()
    np.save(folder / "Tiny-Annotations" / "videoname.npy", names)
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, np.lib.format.header_data_from_array_1_0(joint))
    Python2Pickler(content, protocol=2).dump(joint)
    (folder / f"Tiny{JOINT_SUFFIX}").write_bytes(content.getvalue())
    return folder


@pytest.mark.parametrize("write", [write_hdf5, write_folders, write_joint])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_format_gives_the_same_features(tmp_path, write, dtype):
    data = streams(dtype)
    store = open_features(write(tmp_path, data))
    assert store.modality_dims == (4, 4)
    assert set(store.video_ids) == set(LENGTHS)
    for video_id, length in LENGTHS.items():
        features = store[video_id]
        assert video_id in store
        assert store.num_snippets(video_id) == length
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features[:, :4], data["rgb"][video_id])
        np.testing.assert_array_equal(features[:, 4:], data["flow"][video_id])
    assert "v4" not in store


def test_modalities_are_in_the_requested_order(tmp_path):
    data = streams()
    store = open_features(write_hdf5(tmp_path, data), ("flow", "rgb_diff"))
    expected = np.concatenate([data["flow"]["v3"], mean_difference(data["rgb"]["v3"])], axis=1)
    np.testing.assert_array_equal(store["v3"], expected)


def test_a_video_needs_every_requested_modality(tmp_path):
    data = streams()
    del data["flow"]["v2"]
    store = open_features(write_hdf5(tmp_path, data))
    assert "v2" not in store
    with pytest.raises(InputError, match="'v2' has no features.*flow"):
        store["v2"]
    assert "v2" in open_features(tmp_path, ("rgb",))


def test_snippet_rate(tmp_path):
    assert open_features(write_hdf5(tmp_path, streams())).snippet_rate is None
    assert open_features(write_hdf5(tmp_path, streams(), fps=30.0, stride=16)).snippet_rate == 1.875
    with h5py.File(tmp_path / "features.h5", "a") as file:
        file["flow"].attrs.update(fps=25, stride=16)
    assert open_features(tmp_path, ("flow",)).snippet_rate == 25 / 16  # the group takes precedence over the file
    assert open_features(tmp_path, ("rgb", "flow")).snippet_rate == 1.875  # the grid of the first modality
    assert open_features(tmp_path, ("flow", "rgb")).snippet_rate == 25 / 16
    write_hdf5(tmp_path, streams(), fps=0, stride=16)
    with pytest.raises(InputError, match="positive numbers fps and stride"):
        _ = open_features(tmp_path).snippet_rate


@pytest.mark.parametrize(
    "attributes",
    [
        {"fps": 25, "stride": 0},
        {"fps": "abc", "stride": 16},
        {"fps": [25, 25], "stride": 16},
        {"fps": -25, "stride": -16},
        {"fps": np.nan, "stride": 16},
        {"fps": h5py.Empty("f4"), "stride": 16},
        {"fps": 25},
    ],
)
def test_an_invalid_rate_is_refused(tmp_path, attributes):
    write_hdf5(tmp_path, streams(), **attributes)
    with pytest.raises(InputError) as error:
        _ = open_features(tmp_path).snippet_rate
    assert "features.h5: the attributes of 'rgb': expected positive numbers fps and stride" in one_line(error)


def test_a_rate_may_be_an_array_of_one_number(tmp_path):
    assert open_features(write_hdf5(tmp_path, streams(), fps=[30], stride=[[16]])).snippet_rate == 1.875


def test_folders_take_their_rate_from_features_json(tmp_path):
    write_folders(tmp_path, streams())
    assert open_features(tmp_path).snippet_rate is None
    (tmp_path / "features.json").write_text('{"fps": 30, "stride": 16}', encoding="utf-8-sig")
    assert open_features(tmp_path).snippet_rate == 1.875


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "positive numbers fps and stride"),
        ("[30, 16]", "positive numbers fps and stride"),
        ('{"fps": 30}', "got {'fps': 30}"),
        ('{"fps": 30, "stride": 0}', "'stride': 0"),
        ('{"fps": 1%s, "stride": 1}' % ("0" * 400), "positive numbers fps and stride"),
        ('{"fps": [30], "stride": 1}', "positive numbers fps and stride"),
        ("30 / 16", "not valid JSON"),
    ],
)
def test_a_features_json_without_a_rate(tmp_path, content, message):
    (write_folders(tmp_path, streams()) / "features.json").write_text(content)
    with pytest.raises(InputError) as error:
        _ = open_features(tmp_path).snippet_rate
    assert "features.json: " in one_line(error)
    assert message in one_line(error)


def test_the_release_has_its_own_rate(tmp_path):
    assert open_features(write_joint(tmp_path, streams())).snippet_rate == 25 / 16


def test_mean_difference_by_hand():
    features = np.array([[0, 5], [2, 5], [1, 9], [1, 9]], dtype=np.float32)
    np.testing.assert_array_equal(mean_difference(features), [[2, 0], [1.5, 2], [0.5, 2], [0, 0]])
    np.testing.assert_array_equal(mean_difference(features[:1]), [[0, 0]])
    np.testing.assert_array_equal(mean_difference(features[:2]), [[2, 0], [2, 0]])


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.integers(-99, 99)))
def test_mean_difference_is_the_mean_over_the_neighbors(features):
    for t, row in enumerate(mean_difference(features)):
        neighbors = [abs(features[t] - features[n]) for n in (t - 1, t + 1) if 0 <= n < len(features)]
        np.testing.assert_array_equal(row, np.mean(neighbors or [0 * row], axis=0))


def bad_value(data):
    data["flow"]["v3"][4, 2] = np.inf


def bad_length(data):
    data["flow"]["v3"] = data["flow"]["v3"][:-3]


def bad_width(data):
    data["flow"]["v3"] = np.zeros((9, 7), dtype=np.float32)


def bad_rank(data):
    data["flow"]["v3"] = data["flow"]["v3"][None].repeat(2, axis=0)


def bad_type(data):
    data["flow"]["v3"] = np.zeros((9, 4), dtype=np.int64)


@pytest.mark.parametrize("write", [write_hdf5, write_folders])
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (bad_value, "row 4"),
        (bad_length, "'rgb': 9, 'flow': 6"),
        (bad_width, "(9, 7), expected (snippets, 4)"),
        (bad_rank, "(2, 9, 4)"),
        (bad_type, "int64"),
    ],
)
def test_an_error_names_file_video_and_row(tmp_path, write, spoil, expected):
    data = streams()
    spoil(data)
    store = open_features(write(tmp_path, data))
    store["v1"]
    with pytest.raises(InputError) as error:
        store["v3"]
    message = str(error.value)
    assert expected in message
    assert "'v3'" in message
    assert str(tmp_path) in message
    assert "\n" not in message


def test_links_and_groups_in_hdf5(tmp_path):
    data = streams()
    with h5py.File(
        write_hdf5(tmp_path, {"rgb": {**data["rgb"], "a/b/v4": data["rgb"]["v1"]}}) / "features.h5", "a"
    ) as file:
        file["rgb/linked"] = h5py.SoftLink("/rgb/v1")
        file["rgb/gone"] = h5py.SoftLink("/nowhere")
        file["rgb/far"] = h5py.ExternalLink("absent.h5", "/v1")
        file["rgb/round"] = file["rgb"]
        file["rgb/none"] = h5py.Empty("f4")
    store = open_features(tmp_path, ("rgb",))
    assert store.video_ids == ["a/b/v4", "far", "gone", "linked", "none", "v1", "v2", "v3"]
    np.testing.assert_array_equal(store["a/b/v4"], data["rgb"]["v1"])
    np.testing.assert_array_equal(store["linked"], data["rgb"]["v1"])
    for video_id, message in (
        ("gone", "links to a target that does not exist"),
        ("far", "links to"),
        ("none", "shape ()"),
    ):
        with pytest.raises(InputError, match=message) as error:
            store.num_snippets(video_id)
        assert video_id in one_line(error)


@pytest.mark.parametrize("write", [write_hdf5, write_folders])
@pytest.mark.parametrize("shape", [(5, 0), (8,), (2, 5, 4)])
def test_a_first_video_without_channels(tmp_path, write, shape):
    data = streams()
    data["rgb"]["v1"] = np.zeros(shape, dtype=np.float32)
    with pytest.raises(InputError) as error:
        _ = open_features(write(tmp_path, data)).modality_dims
    assert f"'rgb' of video 'v1' has shape {shape}, expected (snippets, channels >= 1)" in one_line(error)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_features(tmp_path / "absent")
    with pytest.raises(InputError, match=r"expected features\.h5"):
        open_features(tmp_path)
    (tmp_path / "features.h5").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="not a readable HDF5"):
        open_features(tmp_path)


def test_an_error_lists_the_stored_modalities(tmp_path):
    with pytest.raises(InputError, match=r"'audio' not found; stored are flow, rgb"):
        open_features(write_hdf5(tmp_path, streams()), ("rgb", "audio"))


def test_several_files_are_ambiguous_unless_one_is_features_h5(tmp_path):
    write_hdf5(tmp_path, streams())
    (tmp_path / "other.h5").write_bytes((tmp_path / "features.h5").read_bytes())
    assert open_features(tmp_path).source.path.name == "features.h5"
    (tmp_path / "features.h5").rename(tmp_path / "more.h5")
    with pytest.raises(InputError, match=r"more\.h5, other\.h5"):
        open_features(tmp_path)
    assert open_features(tmp_path / "other.h5").video_ids == list(LENGTHS)


def test_the_joint_file_must_fit_its_names(tmp_path):
    write_joint(tmp_path, streams())
    np.save(tmp_path / "Tiny-Annotations" / "videoname.npy", np.array([b"v1"]))
    with pytest.raises(InputError, match=r"3 videos, but .* names 1"):
        open_features(tmp_path)


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        (np.zeros(3), "video 'v1': expected (snippets, channels)"),
        (np.zeros((3, 8)), "got shape (8,)"),
        (np.zeros((3, 5, 7), dtype=np.float32), "got shape (5, 7)"),
        (np.float64(1), "got a single value"),
    ],
)
def test_a_joint_file_with_other_content(tmp_path, joint, message):
    np.save(write_joint(tmp_path, streams()) / f"Tiny{JOINT_SUFFIX}", joint)
    with pytest.raises(InputError) as error:
        open_features(tmp_path).num_snippets("v1")
    assert message in one_line(error)
    assert JOINT_SUFFIX in one_line(error)


def test_a_video_has_one_row_in_the_joint_file(tmp_path):
    write_joint(tmp_path, streams())
    np.save(tmp_path / "Tiny-Annotations" / "videoname.npy", np.array([b"v1", b"v2", b"v1"]))
    with pytest.raises(InputError, match=r"videoname\.npy: expected one row per video, got 2 rows of 'v1'"):
        open_features(tmp_path)


def describe(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["features", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def test_the_description_lists_what_is_stored_and_missing(tmp_path, monkeypatch, capsys):
    write_hdf5(tmp_path, streams(), fps=16, stride=16)
    database = {"v1": 5.5, "v3": 12.5, "v9": 3}
    entries = ", ".join(f'"{v}": {{"subset": "test", "duration": {d}}}' for v, d in database.items())
    (tmp_path / "annotations.json").write_text(f'{{"classes": ["A"], "database": {{{entries}}}}}')
    text = describe(monkeypatch, capsys, tmp_path)
    for line in ("HDF5", "rgb: 4 channels", "videos       3", "1 / 5 / 9", "1 snippets per second"):
        assert line in text
    assert "test: 2 of 3 videos have features" in text
    assert "missing: v9" in text
    assert "1 of 2 match" in text
    assert "v3 3.5" in text
    assert "all finite" in text


def test_the_description_compares_the_assumed_rate_with_the_durations(tmp_path, monkeypatch, capsys):
    write_folders(tmp_path, streams())
    entry = '{"subset": "test", "duration": 5.76, "labels": ["A"]}'
    (tmp_path / "annotations.json").write_text(f'{{"v3": {entry}, "v1": {entry}}}')
    text = describe(monkeypatch, capsys, tmp_path)
    assert "rate         not stored, assuming the dataset's 1.5625; to set it, give fps and stride in" in text
    assert "1 of 2 match" in text
    (tmp_path / "features.json").write_text('{"fps": 30, "stride": 16}')
    assert "1.875 snippets per second" in describe(monkeypatch, capsys, tmp_path)


def test_real_features(reference):
    store = open_features(reference / "data" / "thumos14", ("rgb", "rgb_diff"))
    assert len(store.video_ids) == 382
    assert store.modality_dims == (512, 512)
    assert store.snippet_rate == 1.875
    assert store["video_test_0000004"].shape == (63, 1024)
