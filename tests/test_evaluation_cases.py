"""The evaluation commands on files as people have them: names, units and layouts that differ from the ground truth."""

import json
from pathlib import Path

import numpy as np
import pytest

import eval.compare
import eval.detection
import eval.diagnosis
from eval.average_recall import average_recall
from eval.names import NameRule, find_difference
from eval.tables import make_table, read_ground_truth

FILES = Path(__file__).parent / "cases/evalfiles"
TRUTH = FILES / "good_gt.json"
COMMANDS = {
    "detection": (eval.detection.main, "--predictions"),
    "compare": (eval.compare.main, None),
    "diagnosis": (eval.diagnosis.main, "--predictions"),
}


@pytest.fixture
def run(run_main):
    """Run an evaluation command on these files and options; return exit status, stdout and stderr."""

    def command(truth, predictions, *options, name="detection"):
        main, option = COMMANDS[name]
        words = [option] if option else []
        return run_main(main, *words, predictions, "--ground-truth", truth, *options)

    return command


def values(out):
    """Return the numbers of the last line, without its name."""
    return [float(word) for word in out.splitlines()[-1].split()[1:]]


def notes(out):
    return [line for line in out.splitlines() if line.startswith("note: ")]


def changed(tmp_path, video=lambda name: name, label=lambda name: name, time=lambda value: value, every=1):
    """Write perfect.json with other video ids (of every n-th video), labels and times; return its path."""
    results = json.loads((FILES / "perfect.json").read_text())["results"]
    content = {}
    for number, (name, rows) in enumerate(results.items()):
        rows = [{**row, "label": label(row["label"]), "segment": [time(t) for t in row["segment"]]} for row in rows]
        content[name if number % every else video(name)] = rows
    (tmp_path / "changed.json").write_text(json.dumps({"results": content}))
    return tmp_path / "changed.json"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("file", "message", "options"),
    [
        (
            "vprefix.json",
            "none of the 5 videos is in the ground truth: found 'v_video_test_0000010', expected 'video_test_0000010' "
            "(prefix 'v_'); --strip v_ makes them match",
            ["--strip", "v_"],
        ),
        (
            "intlabel.json",
            "none of the 3 classes is in the ground truth: found '0', '1', '2'; expected 'Throw', 'Jump', 'Run'; "
            "--labels-are-indices reads class numbers as indices",
            ["--labels-are-indices"],
        ),
    ],
)
def test_nothing_matches_and_the_named_option_helps(run, name, file, message, options):
    status, out, err = run(TRUTH, FILES / file, name=name)
    assert (status, out) == (2, "")
    assert message in err and err.count("\n") == 1
    status, out, err = run(TRUTH, FILES / file, *options, name=name)
    assert status == 0
    assert ("100.00" in out) or ("100.0" in out)


@pytest.mark.parametrize(
    ("rename", "kind", "options"),
    [
        (lambda name: f"{name}.mp4", "file extension '.mp4'", ["--strip", ".mp4"]),
        (lambda name: f"thumos/{name}", "prefix 'thumos/'", ["--strip", "thumos/"]),
        (lambda name: f"{name}_rgb", "suffix '_rgb'", ["--strip", "_rgb"]),
        (lambda name: f"v_{name}.mp4", "prefix 'v_', file extension '.mp4'", ["--strip", "v_", ".mp4"]),
        (str.upper, "case", ["--loose-names"]),
        (lambda name: f" {name} ", "blanks", ["--loose-names"]),
        (lambda name: f"b'{name}'", "text of bytes", ["--loose-names"]),
        (lambda name: name.replace("_", "-"), "case, blanks, '-' or '_'", ["--loose-names"]),
        (lambda name: f"V_{name.upper()}", "case, prefix 'v_'", ["--strip", "v_", "--loose-names"]),
        (lambda name: f"b'v_{name}'", "text of bytes, prefix 'v_'", ["--strip", "v_", "--loose-names"]),
    ],
)
def test_every_kind_of_difference_in_video_ids(run, tmp_path, rename, kind, options):
    path = changed(tmp_path, video=rename)
    status, _, err = run(TRUTH, path)
    assert status == 2
    assert f"({kind}); {' '.join(options)} makes them match" in err
    status, out, _ = run(TRUTH, path, *options)
    assert (status, notes(out)) == (0, [])
    assert values(out)[0] == 100

    path = changed(tmp_path, video=rename, every=2)  # a share only
    status, out, _ = run(TRUTH, path)
    assert status == 0
    (note,) = [line for line in notes(out) if "false positives" in line]
    assert note.startswith("note: false positives: 6 detections of 3 videos that the ground truth lacks: ")
    assert f"({kind}); {' '.join(options)} makes them match)" in note


@pytest.mark.parametrize(("rename", "kind"), [(str.upper, "case"), (lambda name: f"b'{name}'", "text of bytes")])
def test_classes_that_differ_in_form(run, tmp_path, rename, kind):
    path = changed(tmp_path, label=rename)
    status, _, err = run(TRUTH, path)
    assert status == 2
    assert f"none of the 3 classes is in the ground truth: found '{rename('Jump')}', expected 'Jump' ({kind})" in err
    assert values(run(TRUTH, path, "--loose-names")[1])[0] == 100


def test_nothing_alike_lists_what_is_found_and_expected(run, tmp_path):
    status, _, err = run(TRUTH, changed(tmp_path, video=lambda name: f"q{name[-1]}"))
    assert status == 2
    assert "found 'q0', 'q1', 'q2' and 2 more; expected 'video_test_0000" in err
    status, _, err = run(TRUTH, changed(tmp_path, label=lambda name: str(100 + len(name))))
    assert status == 2
    assert "the class numbers reach 105, for 3 classes" in err


def test_another_subset_is_named(run, tmp_path):
    truth = json.loads(TRUTH.read_text())
    truth["database"] |= {"other": {"subset": "validation", "annotations": [{"label": "Run", "segment": [0, 4]}]}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "d.json").write_text('{"results": {"other": [{"label": "Run", "score": 1, "segment": [0, 4]}]}}')
    status, _, err = run(tmp_path / "truth.json", tmp_path / "d.json")
    assert status == 2
    assert "found 'other' of another subset; choose --subset validation" in err
    status, out, _ = run(tmp_path / "truth.json", tmp_path / "d.json", "--subset", "validation")
    assert (status, values(out)[0]) == (0, 100)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (None, "0", "the ground truth states no order of its classes"),
        (["x", "y"], "2", "expected class numbers 0 to 1, got '2'"),
        (["x", "y"], "x", "expected class numbers 0 to 1, got 'x'"),
    ],
)
def test_class_numbers_that_cannot_be_read(run, tmp_path, classes, label, message):
    truth = {"database": {"a": {"subset": "test", "annotations": [{"label": "x", "segment": [0, 4]}]}}}
    (tmp_path / "truth.json").write_text(json.dumps(truth | ({"classes": classes} if classes else {})))
    (tmp_path / "d.csv").write_text(f"video,start,end,label,score\na,0,4,{label},1\n")
    status, _, err = run(tmp_path / "truth.json", tmp_path / "d.csv", "--labels-are-indices")
    assert status == 2
    assert message in err


def test_label_ids_and_not_the_order_of_appearance_number_the_classes(run, tmp_path):
    truth = {"database": {"a": {"subset": "test", "annotations": []}}}
    for number, label in ((1, "x"), (0, "y")):
        row = {"label": label, "label_id": number, "segment": [4 * number, 4 * number + 3]}
        truth["database"]["a"]["annotations"].append(row)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "d.csv").write_text("video,start,end,label,score\na,0,3,0,1\na,4,7,1,1\n")
    status, out, _ = run(tmp_path / "truth.json", tmp_path / "d.csv", "--labels-are-indices")
    assert (status, values(out)[0]) == (0, 100)
    assert notes(out) == ["note: labels are read as class numbers: 0 y, 1 x"]


@pytest.mark.parametrize("numbers", [(0, 0), (0, None), (0, [1]), ("0", "1")])
def test_label_ids_that_do_not_number_the_classes_are_ignored(numbers):
    rows = [
        {"label": label, "label_id": number, "segment": [0, 1]} for label, number in zip("xy", numbers, strict=True)
    ]
    assert read_ground_truth({"a": {"subset": "test", "annotations": rows}}, "test").class_numbers == {}


def test_notes_of_some_protocols_only_name_the_first_of_them(run, tmp_path):
    truth = {"database": {"a": {"subset": "test", "annotations": [{"label": "x", "segment": [0, 4]}]}}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "d.csv").write_text("video,start,end,label,score\na,0,4,x,1\nb,0,0.5,x,1\nc,0,4,x,1\n")
    status, out, _ = run(tmp_path / "truth.json", tmp_path / "d.csv", "--protocol", "all")
    assert status == 0
    lacks = "that the ground truth lacks"
    assert notes(out) == [
        f"note: snippet: false positives: 2 detections of 2 videos {lacks}: 'b', 'c'",
        f"note: snippet-delu: false positives: 1 detection of 1 video {lacks}: 'c'",
    ]


def test_a_rule_that_makes_two_names_equal_is_refused(run, tmp_path):
    rows = [{"label": "x", "segment": [0, 4]}]
    truth = {"database": {name: {"subset": "test", "annotations": rows} for name in ("aB", "Ab")}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "d.csv").write_text("video,start,end,label,score\nab,0,4,x,1\n")
    status, _, err = run(tmp_path / "truth.json", tmp_path / "d.csv", "--loose-names")
    assert status == 2
    assert "video 'ab' of the detections: --loose-names makes it match 'aB', 'Ab'" in err
    (tmp_path / "d.csv").write_text("video,start,end,label,score\naB,0,4,x,1\nAb,0,4,x,1\n")
    assert values(run(tmp_path / "truth.json", tmp_path / "d.csv", "--loose-names")[1])[0] == 100


def test_names_that_only_contain_each_other_are_no_advice():
    assert find_difference(["v10", "v12"], ["v1", "v2"]) is None
    assert find_difference(["v_1", "q", "r"], ["1"]) is None  # a third of the names
    assert find_difference(["+x1"], ["x1"]).rule == NameRule(strip=("+",))
    assert NameRule(strip=("-x", "v_", "a b")).options() == "--strip v_ 'a b' --strip=-x"


@pytest.mark.parametrize(
    ("scale", "note"),
    [
        (25, "10 of 10 detections end beyond their video's duration; their times seem to be in frames"),
        (1000, "10 of 10 detections end beyond their video's duration; their times seem to be in milliseconds"),
        (1 / 60, "all 10 detections lie within [0, 1]; they seem to be fractions of the duration"),
    ],
)
def test_units(run, tmp_path, scale, note):
    status, out, _ = run(TRUTH, changed(tmp_path, time=lambda seconds: scale * seconds))
    assert status == 0
    assert notes(out) == [f"note: {note}, not seconds"]


def test_the_unit_of_the_ground_truth(run, tmp_path):
    truth = json.loads(TRUTH.read_text())
    for entry in truth["database"].values():
        for row in entry["annotations"]:
            row["segment"] = row["segment(frames)"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    status, out, _ = run(tmp_path / "truth.json", FILES / "perfect.json")
    assert status == 0
    assert notes(out) == [
        "note: 10 of 10 annotated segments end beyond their video's duration; their times seem to be in frames, "
        "not seconds"
    ]


def test_frames_of_the_case(run):
    status, out, _ = run(TRUTH, FILES / "frames.json")
    assert (status, values(out)[0]) == (0, 0)
    assert len(notes(out)) == 1 and "in frames" in notes(out)[0]


def test_annotated_classes_without_detections_are_named(run):
    status, out, _ = run(FILES / "gt_ambiguous.json", FILES / "perfect.json")
    assert (status, values(out)[0]) == (0, 75)
    assert notes(out) == ["note: 1 of 4 annotated classes without any detection, counted with AP 0: 'Ambiguous'"]


def test_segments_of_zero_length_give_the_figure_of_activitynet(run):
    status, out, _ = run(FILES / "zero_gt.json", FILES / "zero_pred.json")
    assert status == 0
    assert set(values(out)) == {100}
    assert len(notes(out)) == 1
    assert notes(out)[0].startswith("note: 1 annotated segment of zero length")


def test_zero_length_matches_first_once_and_anywhere_in_the_video():
    # In ActivityNet's code tIoU is 0 / 0 = NaN here, above all numbers and not below any threshold.
    truth = make_table([("a", "x", 5, 5), ("a", "x", 8, 12), ("a", "y", 0, 1)])
    rows = [("a", "x", 90, 90, 0.9), ("a", "x", 5, 5, 0.8), ("a", "x", 8, 12, 0.7), ("a", "y", 0.5, 0.5, 0.6)]
    result = eval.detection.evaluate_detections(truth, make_table(rows), [0.1, 1.0])
    assert result.matched.tolist() == [[0, -1, 1, -1]] * 2
    np.testing.assert_allclose(result.ap, [[5 / 6, 0]] * 2)


def test_notes_count_what_is_left(run):
    status, out, _ = run(FILES / "over_gt.json", FILES / "over_pred.json")
    assert status == 0
    assert notes(out) == [
        "note: dropped: 5 detections of 1 class that the ground truth lacks: 'Jump'",
        "note: false positives: 1 detection of 1 video that the ground truth lacks: 'x0'",
    ]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "header", ["video-id,t-start,t-end,label", "Video ID,start_time,end_time,class", "id,start,end,action"]
)
def test_csv_ground_truth(run, tmp_path, header, name):
    rows = [
        f"{video},{row['segment'][0]},{row['segment'][1]},{row['label']}"
        for video, entry in json.loads(TRUTH.read_text())["database"].items()
        for row in entry["annotations"]
    ]
    (tmp_path / "truth.csv").write_text("\n".join([header, *rows]))
    status, out, _ = run(tmp_path / "truth.csv", FILES / "perfect.json", name=name)
    assert status == 0
    assert "100.0" in out


def test_csv_ground_truth_with_subsets_and_durations(tmp_path):
    (tmp_path / "t.csv").write_text(
        "subset,duration,video,start,end,label\ntest,60,a,1,2,x\ntrain,30,b,1,2,y\ntest,60,a,3,4,y\n"
    )
    truth = read_ground_truth(tmp_path / "t.csv", "test")
    assert (truth.segments.videos, truth.segments.classes, truth.durations) == (("a",), ("x", "y"), {"a": 60})
    assert read_ground_truth(tmp_path / "t.csv", "train").segments.videos == ("b",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ((FILES / "charades.csv").read_text(), "no column ['t-start', 't-end', 'label']; expected a header"),
        ("video-id,t-start,t-end,label\n", "no row after the header"),
        ("video,id,start,end,label\na,1,0,1,x\n", "the columns ['video', 'id'] could all be 'video-id'"),
        ("video,start,end,label\na,0,soon,x\n", "video 'a', annotation 0: expected [start, end] in seconds"),
        ("video,start,end,label\na,2,1,x\n", "end before they start (video 'a', annotation 0: [2, 1])"),
        ("video,start,end,label,split\na,0,1,x,test\na,2,3,x,train\n", "line 3: its subset or duration differs"),
    ],
)
def test_csv_that_is_no_ground_truth_is_named_in_one_line(run, tmp_path, text, message):
    (tmp_path / "truth.csv").write_text(text)
    status, _, err = run(tmp_path / "truth.csv", FILES / "perfect.json")
    assert status == 2
    assert "truth.csv: " in err and message in err and err.count("\n") == 1


def test_average_recall_by_hand():
    truth = make_table([(video, "x", start, start + 1) for video in "ab" for start in (0, 1)])
    detections = make_table([(video, "x", start, start + 1, 1 - start / 2) for video in "ab" for start in (0, 1)])
    curve = average_recall(truth, detections, max_number=2)
    assert curve.recall.tolist() == [0.0] * 49 + [0.5] * 50 + [1.0]
    np.testing.assert_allclose(curve.number, np.arange(1, 101) / 50)
    assert curve.area == pytest.approx(0.255)
    curve = average_recall(truth, detections)  # at 1 per video the first, from 2 on both
    assert curve.recall.tolist() == [0.5] + [1.0] * 99
    assert curve.area == pytest.approx((99 - 0.25) / 100)
    # tIoU 0.625 reaches the thresholds 0.5, 0.55 and 0.6; labels do not matter.
    curve = average_recall(make_table([("a", "x", 0, 8)]), make_table([("a", "y", 0, 5, 1)]))
    np.testing.assert_allclose(curve.recall, 0.3)
    assert average_recall(truth, make_table([]).renumber(("a", "b"), ())).area == 0


def test_average_recall_shares_the_number_among_videos_and_counts_unknown_ones():
    truth = make_table([("a", "x", 0, 10), ("b", "x", 0, 10)])
    hit, miss = ("x", 0, 10), ("x", 20, 30)
    # At 1 per video on average, a has 3 of 4 detections: int(3 * 2 / 4) = 1 of its own, b int(1 * 2 / 4) = 0.
    rows = [("a", *hit, 0.9), ("a", *miss, 0.8), ("a", *miss, 0.7), ("b", *hit, 0.9)]
    curve = average_recall(truth, make_table(rows))
    assert curve.recall.tolist() == [0.5] + [1.0] * 99
    # 4 more in an unknown video halve the share of each video that is used, for at most 2 per video.
    rows += [("c", *miss, 1.0)] * 4
    detections = make_table(rows).renumber(truth.videos, truth.classes)
    assert average_recall(truth, detections, max_number=2).recall[-1] == 0.5


def test_average_recall_beside_map(run, tmp_path):
    options = ["--ar", "--protocol", "all", "--json", tmp_path / "o.json"]
    status, out, _ = run(TRUTH, FILES / "perfect.json", *options)
    assert status == 0
    head, *rows = [line.split() for line in out.splitlines()[-4:]]
    assert head == ["AR@AN", "1", "5", "10", "100", "AUC"]
    assert [row[0] for row in rows] == ["snippet", "seconds", "snippet-delu"]
    content = json.loads((tmp_path / "o.json").read_text())["seconds"]["average_recall"]
    assert 100 * content["auc"] == pytest.approx(float(rows[1][-1]), abs=0.005)
    assert len(content["number"]) == len(content["recall"]) == 100


def test_mmaction2_files_as_they_are(run, reference, tmp_path):
    folder = reference / "data/detections"
    files = folder / "mmaction2_ground_truth.json", folder / "mmaction2_results.json"
    status, _, err = run(*files, "--dataset", "activitynet12")
    assert status == 2
    assert "found 'bYUmtLBL7W4', expected 'v_bYUmtLBL7W4' (prefix 'v_'); --strip v_ makes them match" in err
    options = ["--dataset", "activitynet12", "--strip", "v_", "--json", tmp_path / "o.json"]
    assert run(*files, *options)[0] == 0
    content = json.loads((tmp_path / "o.json").read_text())
    expected = [0.71428571] * 3 + [0.6875] * 2 + [0.59722222] + [0.52083333] * 3 + [0.5]
    np.testing.assert_allclose(content["map"], expected, atol=5e-9)
    assert round(content["average_map"], 10) == 0.6177579365


@pytest.mark.parametrize(("found", "expected"), [([""], ["a"]), (["a"], [""]), ([" "], ["v_a"]), ([""], [" "])])
def test_empty_names_have_no_difference_in_form(found, expected):
    difference = find_difference(found, expected)
    assert difference is None or difference.rule.strip == ()
