"""python -m eval.detection: its table, its JSON file, and its error messages."""

import importlib
import json
import sys

import pytest

from eval.detection import evaluate_detections, main
from eval.protocols import LEFT_OUT
from utils.errors import OneLineParser

TRUTH = {
    "database": {
        "a": {"subset": "test", "annotations": [{"label": "x", "segment": ["1.0", "5.0"]}]},
        "b": {"subset": "train", "annotations": [{"label": "x", "segment": [1, 5]}]},
    },
    "classes": ["x", "z"],
}
DETECTIONS = {"results": {"a": [{"label": "x", "score": 0.5, "segment": [1.0, 4.0]}]}}


@pytest.fixture
def run(tmp_path, run_main):
    """Run the command on these contents (text or JSON) and options; return exit status, stdout and stderr."""

    def command(truth, detections, *options, predictions="detections.json"):
        for name, content in (("truth.json", truth), (predictions, detections)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / name).write_text(text)
        paths = ["--ground-truth", tmp_path / "truth.json", "--predictions", tmp_path / predictions]
        return run_main(main, *paths, *options)

    return command


def test_table_and_json(run, tmp_path):
    status, out, err = run(TRUTH, DETECTIONS, "--json", tmp_path / "out.json")
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


def test_all_applicable_protocols(run, tmp_path):
    status, out, _ = run(
        TRUTH, DETECTIONS, "--protocol", "all", "--tiou-thresholds", 0.5, "--json", tmp_path / "o.json"
    )
    assert status == 0
    protocols = ["snippet", "seconds", "snippet-delu"]  # the others need videos that this file lacks
    assert [line.split()[0] for line in out.splitlines()[2:]] == protocols
    assert list(json.loads((tmp_path / "o.json").read_text())) == protocols


def test_unknown_videos_and_classes_have_a_note_each_that_counts_what_is_left(run):
    q = {"label": "q", "score": 1, "segment": [0, 1]}
    detections = {"results": {**DETECTIONS["results"], "v": [q, q, {**q, "label": "x"}]}}
    status, out, _ = run(TRUTH, detections)
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("note: ")] == [
        "note: dropped: 2 detections of 1 class that the ground truth lacks: 'q'",
        "note: false positives: 1 detection of 1 video that the ground truth lacks: 'v'",
    ]


@pytest.mark.parametrize(
    ("thresholds", "names", "means"),
    [
        ((0.1, 0.3, 0.5), ["mean"], ["100.00"]),
        ((0.5, 0.8), ["mean"], ["50.00"]),
        ((0.8,), ["mean"], ["0.00"]),
        ((0.5, 0.1, 0.3, 0.4, 0.2), ["0.1:0.5"], ["100.00"]),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7), ["0.1:0.5", "0.1:0.7"], ["100.00"] * 2),
        ((*(i / 10 for i in range(1, 10)), 0.85), ["0.1:0.5", "0.1:0.7", "0.1:0.9"], ["100.00", "100.00", "77.78"]),
    ],
)
def test_a_mean_has_a_range_as_its_name_only_if_it_is_the_published_one(run, thresholds, names, means):
    status, out, _ = run(TRUTH, DETECTIONS, "--tiou-thresholds", *thresholds)
    assert status == 0
    head, values = (line.split()[1 + len(thresholds) :] for line in out.splitlines())
    assert (head, values) == (names, means)


@pytest.mark.parametrize(
    ("stored", "options", "rate", "source"),
    [
        ({}, [], "1.5625", "the default of --dataset thumos14"),
        ({"snippet_rate": 2.5}, [], "2.5", "from "),
        ({"snippet_rate": None}, [], "1.5625", "the default of --dataset thumos14"),
        ({"snippet_rate": 2.5}, ["--snippet-rate", 4], "4", "--snippet-rate"),
    ],
)
def test_the_grid_is_that_of_the_detections(run, tmp_path, stored, options, rate, source):
    options = ["--protocol", "snippet", "--json", tmp_path / "o.json", *options]
    status, out, _ = run(TRUTH, {**DETECTIONS, **stored}, *options)
    assert status == 0
    assert out.startswith(f"grid of the snippet protocols: {rate} snippets per second ({source}")
    scores = json.loads((tmp_path / "o.json").read_text())
    thresholds = scores["tiou_thresholds"]
    on_grid = evaluate_detections(TRUTH, DETECTIONS, thresholds, protocol="snippet", snippet_rate=float(rate))
    assert scores["map"] == on_grid.map.tolist()
    assert "grid" not in run(TRUTH, {**DETECTIONS, **stored})[1]  # seconds


def test_annotated_videos_without_an_entry_have_a_note_and_can_be_left_out(run):
    one = {"subset": "test", "annotations": [{"label": "x", "segment": [1, 5]}]}
    empty = {"subset": "test", "annotations": []}
    truth = {"database": {"a": one, "b": one, "c": one, "d": one, "e": empty}}
    detections = {"results": {**DETECTIONS["results"], "b": [], "unknown": DETECTIONS["results"]["a"]}}
    status, out, _ = run(truth, detections, "--tiou-thresholds", 0.5)
    assert status == 0
    assert (
        "note: 2 annotated videos without an entry in the detections, all segments missed "
        "(--only-detected leaves them out)\n"
    ) in out
    assert out.splitlines()[-1].split()[1] == "12.50"
    status, out, _ = run(truth, detections, "--tiou-thresholds", 0.5, "--only-detected")
    assert status == 0
    assert out.splitlines()[0] == (
        "note: 2 of 4 annotated videos are evaluated: those with an entry; dropped: 1 detection of other videos"
    )
    assert out.splitlines()[-1].split()[1] == "50.00"
    assert "note" not in run(truth, {"results": {**dict.fromkeys("bcd", []), **DETECTIONS["results"]}})[1]
    assert run(truth, {"results": {"unknown": []}}, "--only-detected")[0] == 2


def test_a_protocol_that_leaves_videos_out_does_not_miss_them(run):
    one = {"subset": "test", "annotations": [{"label": "x", "segment": [1, 5]}]}
    truth = {"database": dict.fromkeys(["a", *LEFT_OUT], one)}
    assert "note: 2 annotated videos" in run(truth, DETECTIONS, "--protocol", "seconds")[1]
    assert "note" not in run(truth, DETECTIONS, "--protocol", "seconds-210")[1]


@pytest.mark.parametrize("module", ["eval.detection", "eval.compare", "eval.diagnosis"])
def test_every_option_has_a_help_text(module, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    shown = []
    monkeypatch.setattr(OneLineParser, "print_help", lambda parser, file=None: shown.append(parser))
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    assert len(shown) == 1
    assert all(action.help for action in shown[0]._actions)


@pytest.mark.parametrize("options", [["--protocol", "unknown"], ["--snippet-rate", "fast"], ["--wrong\noption"]])
def test_wrong_options_are_one_line(run, options):
    status, out, err = run(TRUTH, DETECTIONS, *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.endswith(" (see python -m eval.detection --help)\n")
    assert err.count("\n") == 1


def row(**changes):
    return {"results": {"a": [{"label": "x", "score": 0.5, "segment": [1.0, 4.0], **changes}]}}


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (row(score=float("nan")), "detections.json: video 'a', detection 0: not finite"),
        (row(segment=[4, 1]), "detections.json: video 'a', detection 0: the segment [4, 1] ends before it starts"),
        (row(segment=[1, "soon"]), "not numbers"),
        (row(segment=[1, 10**400]), "video 'a', detection 0: not numbers"),
        (row(score=10**400), "not numbers"),
        (row(segment="12"), "video 'a', detection 0: expected {"),
        (row(label=None), "video 'a', detection 0, label: expected a name, got None"),
        (row(label=["x"]), "expected a name, got ['x']"),
        ('{"results": {"a": [], "b": [], "a": []}}', "detections.json: the key 'a' appears more than once"),
        (row(segment=3), "video 'a', detection 0: expected {"),
        ({"results": {"a": [{"label": "x", "score": 1}]}}, "video 'a', detection 0: no 'segment'"),
        ({"results": {"a": {}}}, "video 'a': expected a list"),
        ({"results": {"a": 3}}, "video 'a': expected a list"),
        (TRUTH, "no 'results'"),
        ([], "no 'results'"),
        ({**DETECTIONS, "snippet_rate": 0}, "detections.json: 'snippet_rate': expected a positive number, got 0"),
        (
            {**DETECTIONS, "snippet_rate": "fast"},
            "detections.json: 'snippet_rate': expected a positive number, got 'fast'",
        ),
        (
            {**DETECTIONS, "snippet_rate": float("nan")},
            "detections.json: 'snippet_rate': expected a positive number, got nan",
        ),
        ({"results": {"two\nlines": 3}}, "video 'two lines'"),
        ("", "the file is empty"),
        (json.dumps(DETECTIONS)[:-5], "not valid JSON"),
        (None, "No such file"),
    ],
)
def test_bad_detections_are_refused_in_one_line(run, detections, message):
    status, out, err = run(TRUTH, detections, "--protocol", "snippet")
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
            "no video of subset 'validation'; subsets present: 'test', 'train'; choose another subset,",
        ),
        (DETECTIONS, [], "truth.json"),
        ("", [], "the file is empty"),
        (None, [], "no such file"),
        (TRUTH, ["--tiou-thresholds", "2"], "tIoU thresholds must lie in (0, 1]"),
        (TRUTH, ["--snippet-rate", "0"], "snippet rate"),
        (TRUTH, ["--json", "/nowhere/out.json"], "/nowhere/out.json: cannot be written"),
        ({"database": {"a": {"subset": "test", "labels": ["x"], "annotations": []}}}, [], "no annotated segment"),
    ],
)
def test_bad_ground_truth_and_options_are_refused_in_one_line(run, truth, options, message):
    status, _, err = run(truth, DETECTIONS, *options)
    assert status == 2
    assert message.lower() in err.lower()
    assert err.count("\n") == 1


CSV = "video-id,t-start,t-end,label,score\n"


@pytest.mark.parametrize(("name", "text"), [("f.csv", CSV + "a,1,4,x,0.5\n"), ("f.json", json.dumps(DETECTIONS))])
def test_a_byte_order_mark_is_accepted(run, name, text):
    status, out, err = run("\ufeff" + json.dumps(TRUTH), "\ufeff" + text, predictions=name)
    assert (status, err) == (0, "")
    assert "100.00" in out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("detections.csv", "", "the file is empty"),
        ("detections.csv", "video,start\na,1\n", "no column ['t-end', 'label', 'score']; expected a header such as"),
        (
            "detections.csv",
            CSV + "a,1,5,x,0.5\na,5,1,x,0.5\n",
            "video 'a', line 3: the segment [5, 1] ends before",
        ),
        ("detections.csv", CSV + "a,1\n", "video 'a', line 2: expected 5 fields"),
        ("detections.csv", "score," + CSV.replace(",score", "") + "0.5,a,1,5\n", "line 2: expected 5 fields"),
        ("detections.csv", CSV + "a,1,2,x,0.5,more\n", "line 2: expected 5 fields"),
        (
            "detections.csv",
            CSV + 'a,1,5,"x,0.5\na,1,5,x,0.5\n',
            "not a CSV file (unexpected end of data); is a quote left open",
        ),
        ("detections.csv", CSV + '"a\nb",5,1,x,0.5\n', "video 'a b', line 3: the segment [5, 1] ends before"),
        ("detections.npy", "x", "expected detections as a .json, .csv or .parquet file"),
    ],
)
def test_bad_csv_and_file_types(run, name, text, message):
    status, _, err = run(TRUTH, text, predictions=name)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
