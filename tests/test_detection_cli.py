"""python -m eval.detection: what it prints, what it writes, and how it refuses."""

import json
import sys

import pytest

from eval.detection import main
from utils.errors import exit_on_input_error

TRUTH = {
    "database": {
        "a": {"subset": "test", "annotations": [{"label": "x", "segment": ["1.0", "5.0"]}]},
        "b": {"subset": "train", "annotations": [{"label": "x", "segment": [1, 5]}]},
    },
    "classes": ["x", "z"],
}
FOUND = {"results": {"a": [{"label": "x", "score": 0.5, "segment": [1.0, 4.0]}]}}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on these contents (text or JSON) and options: exit status, stdout, stderr."""

    def command(truth, found, *options, predictions="found.json"):
        for name, content in (("truth.json", truth), (predictions, found)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / name).write_text(text)
        paths = ["--ground-truth", tmp_path / "truth.json", "--predictions", tmp_path / predictions]
        monkeypatch.setattr(sys, "argv", ["detection", *map(str, paths), *map(str, options)])
        status = 0
        try:
            exit_on_input_error(main)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return command


def test_table_and_json(run, tmp_path):
    status, out, err = run(TRUTH, FOUND, "--json", tmp_path / "out.json")
    assert (status, err) == (0, "")
    head, row = out.splitlines()
    assert head.split() == ["mAP@tIoU", *(f"0.{i}" for i in range(1, 10)), "0.1:0.5", "0.1:0.7", "0.1:0.9"]
    assert row.split() == ["seconds", *["100.00"] * 7, "0.00", "0.00", "100.00", "100.00", "77.78"]
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["protocol"] == "seconds"
    assert content["classes"] == ["x", "z"]
    assert content["ap"][0] == [1.0, None]
    assert content["map"] == [1.0] * 7 + [0.0] * 2
    assert content["average_map"] == pytest.approx(7 / 9)
    assert len(content["tiou_thresholds"]) == 9


def test_all_protocols_that_mean_something_here(run, tmp_path):
    status, out, _ = run(TRUTH, FOUND, "--protocol", "all", "--tiou-thresholds", 0.5, "--json", tmp_path / "o.json")
    assert status == 0
    protocols = ["snippet", "seconds", "snippet-delu"]  # the others leave out videos that this file lacks
    assert [line.split()[0] for line in out.splitlines()[1:]] == protocols
    assert list(json.loads((tmp_path / "o.json").read_text())) == protocols


def test_strangers_are_counted_and_named_on_a_line_each(run):
    found = {"results": {**FOUND["results"], "v": [{"label": "q", "score": 1, "segment": [0, 1]}] * 2}}
    status, out, _ = run(TRUTH, found)
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("note: ")] == [
        "note: 2 detections of 1 videos that the ground truth lacks count as false positives: v",
        "note: 2 detections of 1 classes that the ground truth lacks are dropped: q",
    ]


def row(**changes):
    return {"results": {"a": [{"label": "x", "score": 0.5, "segment": [1.0, 4.0], **changes}]}}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (row(score=float("nan")), "found.json: video 'a', detection 0: not finite"),
        (row(segment=[4, 1]), "found.json: video 'a', detection 0: the segment [4, 1] ends before it starts"),
        (row(segment=[1, "soon"]), "not numbers"),
        (row(segment=3), "video 'a', detection 0: expected {"),
        ({"results": {"a": [{"label": "x", "score": 1}]}}, "video 'a', detection 0: no 'segment'"),
        ({"results": {"a": {}}}, "video 'a': expected a list"),
        ({"results": {"a": 3}}, "video 'a': expected a list"),
        (TRUTH, "no 'results'"),
        ([], "no 'results'"),
        ("", "the file is empty"),
        (json.dumps(FOUND)[:-5], "not valid JSON"),
        (None, "No such file"),
    ],
)
def test_bad_detections_are_refused_in_one_line(run, found, message):
    status, out, err = run(TRUTH, found)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("truth", "options", "message"),
    [
        (
            TRUTH,
            ["--subset", "validation"],
            "'validation' in the annotations; subsets present: ['test', 'train']",
        ),
        (FOUND, [], "truth.json"),
        ("", [], "the file is empty"),
        (None, [], "no such file"),
        (TRUTH, ["--tiou-thresholds", "2"], "tIoU thresholds must lie in (0, 1]"),
        (TRUTH, ["--snippet-rate", "0"], "snippet rate"),
        (TRUTH, ["--json", "/nowhere/out.json"], "/nowhere/out.json: cannot be written"),
        ({"database": {"a": {"subset": "test", "annotations": []}}}, [], "no annotated segment"),
    ],
)
def test_bad_ground_truth_and_options_are_refused_in_one_line(run, truth, options, message):
    status, _, err = run(truth, FOUND, *options)
    assert status == 2
    assert message.lower() in err.lower()
    assert err.count("\n") == 1


CSV = "video-id,t-start,t-end,label,score\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("found.csv", "", "the file is empty"),
        ("found.csv", "video,start\na,1\n", "no column ['video-id'"),
        (
            "found.csv",
            CSV + "a,1,5,x,0.5\na,5,1,x,0.5\n",
            "video 'a', line 3: the segment [5, 1] ends before",
        ),
        ("found.csv", CSV + "a,1\n", "video 'a', line 2: not numbers"),
        ("found.npy", "x", "expected detections as a .json or .csv file"),
    ],
)
def test_bad_csv_and_file_types(run, name, text, message):
    status, _, err = run(TRUTH, text, predictions=name)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
