"""Tests of annotation files: content, agreement of both formats of the same data, and errors."""

import json
import os
import pickle

import numpy as np
import pytest

from utils.annotations import annotations_to_json, load_annotations, parse_annotations
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.formats.npy import array_shape, load_array

EXAMPLE = {
    "classes": ["Dive", "Clap", "Jump"],
    "database": {
        "b": {
            "subset": "test",
            "duration": "20.5",
            "annotations": [{"label": "Jump", "segment": ["1.5", "2"]}, {"label": "Dive", "segment": [4, 9]}],
            "ambiguous": [[10, 11.5]],
        },
        "a": {"subset": "train", "annotations": [{"label": "Clap", "segment": [0, 1]}], "labels": ["Jump"]},
    },
}


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def with_video(**entry) -> dict:
    return {"classes": ["Dive"], "database": {"v7": {"subset": "test", **entry}}}


def test_a_file_is_read_completely():
    annotations = parse_annotations(EXAMPLE, "x")
    assert annotations.classes == ("Dive", "Clap", "Jump")
    assert list(annotations.videos) == ["b", "a"]
    video = annotations.videos["b"]
    assert (video.subset, video.duration) == ("test", 20.5)
    assert video.labels == ("Dive", "Jump")  # annotated classes, in class order
    assert video.segment_labels == ("Jump", "Dive")
    np.testing.assert_array_equal(video.segments, [[1.5, 2], [4, 9]])
    np.testing.assert_array_equal(video.ambiguous, [[10, 11.5]])
    weak = annotations.videos["a"]
    assert weak.labels == ("Jump",)  # weak labels of the file, although the segment has another class
    assert weak.duration is None
    assert weak.ambiguous.shape == (0, 2)


def test_classes_default_to_order_of_appearance_and_a_bare_dict_is_read():
    annotations = parse_annotations(EXAMPLE["database"], "x")
    assert annotations.classes == ("Jump", "Dive", "Clap")


def test_json_round_trip():
    annotations = parse_annotations(EXAMPLE, "x")
    content = json.loads(json.dumps(annotations_to_json(annotations)))
    assert annotations_to_json(parse_annotations(content, "y")) == content
    assert content["database"]["b"]["annotations"][1] == {"label": "Dive", "segment": [4.0, 9.0]}


def test_an_error_lists_the_subsets_present():
    annotations = parse_annotations(EXAMPLE, "x")
    assert [video.video_id for video in annotations.subset("train")] == ["a"]
    with pytest.raises(InputError, match="validation.*: 'test', 'train'"):
        annotations.subset("validation")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "list"),
        ({}, "at least one video"),
        ({"database": []}, "at least one video"),
        ({"results": {"v": []}}, "'results' has no 'subset'"),
        ({"classes": ["a", "a"], "database": {"v": {"subset": "t"}}}, "different names"),
        (with_video(annotations={}), "lists"),
        (with_video(annotations=[["Dive", 1, 2]]), "video 'v7'"),
        (with_video(annotations=[{"label": "Clap", "segment": [1, 2]}]), "'v7' has the label 'Clap'"),
        (with_video(labels=["Clap"]), "'v7' has the label 'Clap'"),
        (with_video(annotations=[{"label": "Dive"}]), "annotation 0"),
        (
            with_video(annotations=[{"label": "Dive", "segment": [1, 2]}, {"label": "Dive", "segment": [3, 1]}]),
            "n 1",
        ),
        (with_video(annotations=[{"label": "Dive", "segment": [1, float("nan")]}]), "annotation 0"),
        (with_video(annotations=[{"label": "Dive", "segment": [1, "soon"]}]), "annotation 0"),
        (with_video(ambiguous=[[0, 1, 2]]), "ambiguous segment 0"),
        (with_video(duration="long"), "duration 'long'"),
        (with_video(duration=-1), "duration -1"),
        (with_video(duration=10**400), "duration 1000"),
        (with_video(annotations=[{"label": "Dive", "segment": [1, 10**400]}]), "annotation 0: expected [start, end]"),
        (with_video(annotations=[{"label": "Dive", "segment": "12"}]), "expected [start, end] in seconds, got '12'"),
        (with_video(annotations=[{"label": None, "segment": [1, 2]}]), "'v7', label: expected a name, got None"),
        (with_video(labels=[None]), "'v7', labels: expected a name, got None"),
        (with_video(labels=[["Dive"]]), "expected a name, got ['Dive']"),
        (with_video(subset=None), "'v7', subset: expected a name, got None"),
        ({"classes": [None], "database": {"v": {"subset": "t"}}}, "'classes': expected a name, got None"),
        ({"classes": "Dive", "database": {"v": {"subset": "t"}}}, "different names"),
        ({"classes": [], "database": {"v": {"subset": "t"}}}, "no class"),
        ({"database": {"v": {"subset": "t", "labels": []}}}, "no class; 'classes' is empty"),
        (with_video(labels=["Di\nve"]), "label 'Di ve'"),
    ],
)
def test_an_error_names_the_video_and_the_row(data, message):
    with pytest.raises(InputError) as error:
        parse_annotations(data, "notes.json")
    assert message in one_line(error)
    assert "notes.json" in one_line(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b'{"database": {"a"', "complete"),
        (b"\xff\xfe{", "JSON"),
        (b"[" * 10**5, "JSON"),
        (b"3", "int"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "annotations.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        load_annotations(tmp_path)
    assert message in one_line(error)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"database": {"v1": {"subset": "t"}, "v2": {"subset": "t"}, "v1": {"subset": "t"}}}', "v1"),
        ('{"database": {}, "classes": [], "database": {}}', "database"),
    ],
)
def test_a_key_that_appears_twice_is_refused(tmp_path, content, key):
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(InputError) as error:
        load_annotations(tmp_path)
    assert f"annotations.json: the key '{key}' appears more than once" in one_line(error)


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps(EXAMPLE), encoding="utf-8-sig")
    assert load_annotations(tmp_path).classes == ("Dive", "Clap", "Jump")


def test_integers_are_names():
    entry = {"subset": 1, "annotations": [{"label": 3, "segment": [1, 2]}]}
    annotations = parse_annotations({"classes": [3], "database": {"v": entry}}, "x")
    assert annotations.classes == annotations.videos["v"].segment_labels == ("3",)
    assert annotations.subset("1")


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_annotations(tmp_path / "absent")
    with pytest.raises(InputError, match="neither"):
        load_annotations(tmp_path)


class Malice:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("content", [[Malice()], {"a": [Malice()]}, Malice()])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    array = np.empty(1, dtype=object)
    array[0] = content
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match="mkdir|EMPTY_DICT"):
        load_array(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_without_an_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([None, None]), allow_pickle=True)
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(whole[:128] + pickle.dumps([1, 2]))
    (tmp_path / "c.npy").write_bytes(whole[:140])
    (tmp_path / "d.npy").write_bytes(b"PK\x03\x04")
    for name in "bcd":
        with pytest.raises(InputError) as error:
            load_array(tmp_path / f"{name}.npy")
        assert f"{name}.npy" in one_line(error)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_object_arrays_of_every_protocol_are_read(tmp_path, protocol):
    array = np.empty(2, dtype=object)
    array[0], array[1] = np.arange(6, dtype=np.float32).reshape(2, 3), ["text", b"bytes", np.float64(1.5)]
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, file, protocol=protocol)
    loaded = load_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(loaded[0], array[0])
    assert loaded[1] == array[1]
    assert array_shape(tmp_path / "a.npy") == (2,)


def lists(*rows) -> np.ndarray:
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return array


def write_release(folder, **changed):
    columns = {
        "videoname": np.array([b"v1", b"v2"]),
        "subset": np.array([b"validation", b"test"]),
        "duration": np.array([[9.5], [8.0]]),
        "labels_all": lists([b"Dive"], [b"Dive", b"Clap"]),
        "labels": lists([], [b"Clap", b"Dive"]),
        "segments": lists([], [[1.0, 2.5], [3.0, 4.0]]),
        "classlist": np.array([b"Clap", b"Dive"]),
    }
    for name, column in (columns | changed).items():
        np.save(folder / f"{name}.npy", column, allow_pickle=True)
    return folder


def test_a_release_folder(tmp_path):
    write_release(tmp_path)
    (tmp_path / "Ambiguous_test.txt").write_text("v2 5 6.5\n", encoding="utf-8-sig")
    annotations = load_annotations(tmp_path)
    assert annotations.classes == ("Clap", "Dive")
    first, second = annotations.videos.values()
    assert (first.video_id, first.subset, first.duration, first.labels) == ("v1", "validation", 9.5, ("Dive",))
    assert (second.labels, second.segment_labels) == (("Clap", "Dive"), ("Clap", "Dive"))
    np.testing.assert_array_equal(second.segments, [[1, 2.5], [3, 4]])
    np.testing.assert_array_equal(second.ambiguous, [[5, 6.5]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.zeros(2)}, "labels.npy: row 0: expected a list, got "),
        ({"labels": lists([], [1.0, 2.0])}, "'v2', label: expected a name, got 1.0"),
        ({"labels": lists([], [b"Clap"])}, "'v2' has 1 labels for 2 segments"),
        ({"labels_all": np.array([b"Dive", b"Clap"])}, "labels_all.npy: row 0: expected a list"),
        ({"segments": lists([], [1.0, 2.0])}, "'v2', annotation 0: expected [start, end]"),
        ({"segments": lists([], b"12")}, "segments.npy: row 1: expected a list"),
        ({"duration": np.ones((2, 2))}, "duration.npy: expected one number of seconds per video, got shape (2, 2)"),
        ({"duration": lists(None, [[1], 2])}, "'v2': duration [[1], 2] is not a number"),
        ({"classlist": np.array(b"Dive")}, "classlist.npy: expected one row per video or class, got a single value"),
        ({"classlist": np.arange(2)}, "classlist.npy: row 0: expected a name"),
        ({"videoname": np.array([b"v1"])}, "differ in the number of videos"),
        ({"videoname": np.array([b"v1", b"v1"])}, "videoname.npy: expected one row per video, got 2 rows of 'v1'"),
        ({"subset": np.array([1, 2])}, "subset.npy: row 0: expected a name"),
    ],
)
def test_a_release_folder_that_cannot_be_used(tmp_path, changed, message):
    with pytest.raises(InputError) as error:
        load_annotations(write_release(tmp_path, **changed))
    assert message in one_line(error)
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize(("content", "message"), [(b"v1 \xff 2\n", "not UTF-8 text"), (b"v1 2\n", "line 1: expected")])
def test_ambiguous_segments_that_cannot_be_used(tmp_path, content, message):
    write_release(tmp_path)
    (tmp_path / "Ambiguous_test.txt").write_bytes(content)
    with pytest.raises(InputError) as error:
        load_annotations(tmp_path)
    assert f"Ambiguous_test.txt: {message}" in one_line(error)


def test_the_release_folder_equals_the_json(reference):
    thumos = reference / "data" / "thumos14"
    content = load_annotations(thumos / "annotations.json")
    release = load_annotations(thumos / "Thumos14reduced-Annotations")
    for annotations in (content, release):  # the JSON has durations rounded to 0.1 ms
        assert len(annotations.videos) == 412
    first, second = annotations_to_json(content), annotations_to_json(release)
    for video_id, entry in first["database"].items():
        assert entry.pop("duration") == pytest.approx(second["database"][video_id].pop("duration"), abs=5.1e-5)
    assert first == second
    assert list(content.videos) == list(release.videos)


def test_thumos14_statistics(reference):
    videos = load_annotations(reference / "data" / "thumos14").videos.values()
    assert sum(len(video.segments) for video in videos) == 6365
    assert sum(set(video.labels) != set(video.segment_labels) for video in videos) == 28


def test_every_spec_fits_its_annotations(reference):
    for name in ("thumos14", "activitynet12"):
        annotations = load_annotations(reference / "data" / name)
        assert annotations.subset(DATASETS[name].train_subset)
        assert annotations.subset(DATASETS[name].test_subset)


def test_dataset_specs():
    assert DATASETS["thumos14"].tiou_thresholds[2] == 0.3  # the literal, not 0.30000000000000004
    assert DATASETS["activitynet12"].tiou_thresholds == tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
    assert DATASETS["activitynet12"].temporal_pool(60) == 13
    assert DATASETS["thumos14"].temporal_pool(500) is None
    for spec in DATASETS.values():
        assert spec.main_range in spec.average_ranges
        assert {bound for bounds in spec.average_ranges for bound in bounds} <= set(spec.tiou_thresholds)
