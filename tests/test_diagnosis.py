"""eval/diagnosis.py: every kind of error by hand, a plain version of DETAD's rules, and the command."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.detection import evaluate_detections
from eval.detection_formats import read_detections
from eval.diagnosis import (
    BINS,
    KINDS,
    MIN_PRECISION,
    MIN_TIOU,
    diagnose,
    diagnosis_figure,
    diagnosis_table,
    error_kinds,
    main,
)
from eval.tables import make_table, read_ground_truth
from utils.annotations import load_annotations
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.segments import tiou

THUMOS = DATASETS["thumos14"].tiou_thresholds


def evaluated(truth, detections, thresholds=(0.5,), protocol="seconds"):
    """Evaluate rows. truth: (video, label, start, end); detections: the same with a score."""
    table = make_table(truth)
    return evaluate_detections(table, make_table(detections), thresholds, protocol=protocol)


TRUTH = [("v", "run", 0, 10), ("v", "run", 100, 110), ("v", "jump", 50, 60), ("w", "jump", 0, 10)]


@pytest.mark.parametrize(
    ("detection", "kind"),
    [
        (("v", "run", 1, 10, 0.5), "true positive"),
        (("v", "run", 0, 5, 0.5), "true positive"),  # tIoU exactly 0.5
        (("v", "run", 102, 110, 0.5), "double detection"),  # the instance is taken by the first detection
        (("v", "run", 50, 59, 0.5), "wrong label"),
        (("v", "run", 0, 4, 0.5), "localization"),
        (("v", "run", 100, 104, 0.5), "localization"),
        (("v", "run", 0, 1, 0.5), "localization"),  # tIoU exactly 0.1
        (("v", "run", 50, 54, 0.5), "confusion"),
        (("v", "run", 20, 30, 0.5), "background"),
        (("v", "run", 0, 0.9, 0.5), "background"),
        (("w", "run", 20, 30, 0.5), "background"),
        (("a video without annotations", "run", 0, 10, 0.5), "background"),
    ],
)
def test_each_kind_of_error(detection, kind):
    result = evaluated(TRUTH, [("v", "run", 100, 110, 0.9), detection])
    assert [KINDS[number] for number in error_kinds(result)[0]] == ["true positive", kind]


def test_the_kind_depends_on_the_threshold():
    result = evaluated(TRUTH, [("v", "run", 0, 6, 0.5), ("v", "run", 0, 7, 0.4)], (0.1, 0.6, 0.7))
    kinds = [[KINDS[number] for number in row] for row in error_kinds(result)]
    assert kinds == [
        ["true positive", "double detection"],
        ["true positive", "double detection"],
        ["localization", "true positive"],
    ]


def test_the_better_overlap_decides_and_ties_are_the_own_class():
    twice = [("v", "run", 0, 10), ("v", "jump", 0, 10), ("v", "jump", 20, 30)]
    assert KINDS[error_kinds(evaluated(twice, [("v", "run", 0, 4, 1)]))[0, 0]] == "localization"
    # the jump overlaps by 0.5, the run, which is taken, by 0.4
    near = [("v", "jump", 0, 10), ("v", "run", 0, 4)]
    detections = [("v", "run", 0, 4, 0.9), ("v", "run", 0, 5, 0.8)]
    assert KINDS[error_kinds(evaluated(near, detections, (0.3,)))[0, 1]] == "double detection"
    assert KINDS[error_kinds(evaluated(near, [*detections, ("v", "run", 0, 8, 0.7)], (0.3,)))[0, 2]] == "wrong label"


def test_profile_slices_by_class():
    detections = [
        ("v", "run", 0, 10, 0.9),
        ("v", "run", 30, 40, 0.8),
        ("v", "run", 0, 10, 0.7),
        ("v", "jump", 50, 60, 0.1),
    ]
    profile = np.array(diagnose(evaluated(TRUTH, detections))["profile"])[0]
    assert profile[0].tolist() == [2, 0, 0, 0, 0, 1]  # run: places 1 and 2, jump: place 1
    assert profile[1].tolist() == [0, 1, 0, 0, 0, 0]  # run: place 3
    assert profile[2:].sum() == 0
    many = [("v", "run", 30, 40, place / 100) for place in range(25)]
    assert np.array(diagnose(evaluated(TRUTH, many))["profile"])[0].sum(axis=1).tolist() == [2] * 10


def test_removal_by_hand():
    detections = [("v", "run", 30, 40, 0.9), ("v", "run", 0, 10, 0.8), ("v", "run", 100, 110, 0.7)]
    diagnosis = diagnose(evaluated(TRUTH[:2], detections))
    assert diagnosis["average_map"] == pytest.approx(2 / 3)  # precisions 1/2 and 2/3
    gains = {kind: gain["average_map"] for kind, gain in diagnosis["removal"].items()}
    assert gains == pytest.approx(dict.fromkeys(KINDS[1:], 0) | {"background": 1 / 3})
    assert diagnosis["average_map_n"] == pytest.approx(2 / 3)  # one class: nothing to normalize


def test_normalized_map_by_hand():
    # 3 runs and 1 jump, so each class counts as 2. The jump's precision after one miss: 2 / (2 + 1).
    truth = [*TRUTH[:2], ("v", "run", 200, 210), ("v", "jump", 50, 60)]
    detections = [("v", "jump", 0, 10, 0.9), ("v", "jump", 50, 60, 0.8), ("v", "run", 0, 10, 0.7)]
    diagnosis = diagnose(evaluated(truth, detections))
    assert diagnosis["average_map"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert diagnosis["average_map_n"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_characteristics_by_hand():
    truth = [("v", "run", 0, 3), ("v", "run", 10, 16), ("w", "run", 0, 20)]
    detections = [("v", "run", 0, 3, 0.9), ("w", "run", 50, 70, 0.8), ("w", "run", 0, 20, 0.7)]
    diagnosis = diagnose(evaluated(truth, detections), {"v": 100, "w": 100})
    length = {part["bin"]: part for part in diagnosis["characteristics"]["length in s"]}
    assert [part["instances"] for part in length.values()] == [1, 1, 0, 0, 1]  # upper edges belong to their bin
    # XL: place 1 hits an XS and is set aside; then a miss and a hit. As if there were 3: 3 / (3 + 1).
    assert [length[size]["average_map_n"] for size in ("XS", "S", "XL")] == pytest.approx([1, 0, 3 / 4])
    assert [length[size]["not_found"] for size in ("XS", "S", "XL")] == [[0], [1], [0]]
    assert length["M"]["average_map_n"] is None and length["M"]["not_found"] is None
    counts = {name: [part["instances"] for part in bins] for name, bins in diagnosis["characteristics"].items()}
    assert counts["coverage"] == [0, 1, 1, 0, 1]
    assert counts["instances"] == [1, 2, 0, 0]
    assert diagnosis["not_found"] == pytest.approx([1 / 3])


def test_an_instance_found_too_late_is_not_found():
    detections = [("v", "run", 30, 40, 1 + place) for place in range(100)]
    early = [*detections[:18], ("v", "run", 0, 10, 0.5)]  # precision 1 / 19 > MIN_PRECISION
    late = [*detections[:20], ("v", "run", 0, 10, 0.5)]  # 1 / 21
    truth = TRUTH[:1]
    assert diagnose(evaluated(truth, early))["not_found"] == [0]
    assert diagnose(evaluated(truth, late))["not_found"] == [1]
    assert diagnose(evaluated(truth, late))["average_map"] == pytest.approx(1 / 21)


def test_on_the_snippet_grid_lengths_are_in_seconds():
    truth = [("v", "run", 0, 2.9), ("v", "run", 10, 18)]  # 5 and 12 or 13 snippets: 3.2 s, about 8 s
    result = evaluated(truth, [("v", "run", 0, 2.9, 1)], protocol="snippet")
    assert [part["instances"] for part in diagnose(result)["characteristics"]["length in s"]] == [0, 1, 1, 0, 0]
    slow = evaluate_detections(
        make_table(truth),
        make_table([("v", "run", 0, 2.9, 1)]),
        (0.5,),
        protocol="snippet",
        snippet_rate=1,
    )
    lengths = diagnose(slow, snippet_rate=1)["characteristics"]["length in s"]
    assert [part["instances"] for part in lengths] == [1, 0, 1, 0, 0]  # 3 and 8 s


@pytest.mark.parametrize("durations", [None, {}, {"v": 100}, {"v": 100, "w": None}, {"v": 0, "w": 0}])
def test_without_durations_coverage_is_left_out_with_a_note(durations):
    diagnosis = diagnose(evaluated(TRUTH, [("v", "run", 0, 10, 1), ("v", "jump", 0, 10, 1)]), durations)
    assert list(diagnosis["characteristics"]) == ["length in s", "instances"]
    assert len(diagnosis["notes"]) == 1 and "coverage is left out" in diagnosis["notes"][0]
    assert f"note: {diagnosis['notes'][0]}" in diagnosis_table(diagnosis)


def test_a_list_without_detections_and_an_unknown_dataset(tmp_path):
    result = evaluated(TRUTH, [])
    diagnosis = diagnose(result)
    assert diagnosis["average_map"] == 0 and diagnosis["not_found"] == [1]
    assert np.sum(diagnosis["profile"]) == 0
    assert "-" in diagnosis_table(diagnosis)
    diagnosis_figure(diagnosis, tmp_path / "empty.png")
    with pytest.raises(InputError, match="dataset 'ava' not found"):
        diagnose(result, dataset="ava")


def test_dollar_signs_in_class_names_are_plain_text(tmp_path):
    names = ["$x_{$", "a$b$", "$\\nonsense$"]
    truth = [("v", name, 10 * place, 10 * place + 5) for place, name in enumerate(names)]
    path = tmp_path / "figure.svg"
    with plt.rc_context({"svg.fonttype": "none"}):  # text as text
        diagnosis_figure(diagnose(evaluated(truth, [("v", "a$b$", 10, 15, 1)]), {"v": 100}), path)
    assert all(f"{name} (1)" in path.read_text(encoding="utf-8") for name in names)


TIMES = st.integers(0, 12)
ROWS = st.tuples(st.sampled_from("uv"), st.sampled_from("abc"), TIMES, st.integers(0, 6))


@st.composite
def cases(draw):
    truth = [(video, label, start, start + length) for video, label, start, length in draw(st.lists(ROWS, min_size=1))]
    detections = draw(st.lists(st.tuples(ROWS, st.integers(0, 9)), max_size=40))
    detections = [(video, label, start, start + length, score) for (video, label, start, length), score in detections]
    return evaluated(truth, detections, draw(st.sampled_from([(0.5,), (0.1, 0.3, 0.7), (0.05, 1.0)])))


def plain_kind(result, threshold, row):
    """Apply the rule of DETAD's paper and code to one detection."""
    if result.matched[threshold, row] >= 0:
        return "true positive"
    truth, detections, alpha = result.ground_truth, result.detections, result.tiou_thresholds[threshold]
    best, right = 0.0, False
    for instance in np.flatnonzero(truth.video == detections.video[row]):
        ends = [np.array([table.start[at], table.end[at]]) for table, at in ((truth, instance), (detections, row))]
        overlap, same = float(tiou(*ends)), truth.label[instance] == detections.label[row]
        if overlap > best or (overlap == best and same):
            best, right = overlap, same
    if best >= alpha:
        return "double detection" if right else "wrong label"
    if best >= MIN_TIOU:
        return "localization" if right else "confusion"
    return "background"


def plain_average_map_n(result, keep):
    """Compute DETAD's normalized mAP of the detections to keep (T, N), rank by rank."""
    truth = result.ground_truth
    labels = np.unique(truth.label)
    mean = len(truth) / len(labels)
    aps = []
    for threshold, matched in enumerate(result.matched):
        for label in labels:
            positives, hits, misses, points = np.sum(truth.label == label), 0, 0, []
            for row in np.flatnonzero((result.detections.label == label) & keep[threshold]):
                hits, misses = hits + (matched[row] >= 0), misses + (matched[row] < 0)
                recall = hits / positives
                points.append((recall, recall * mean / (recall * mean + misses)))
            steps = sorted({recall for recall, _ in points if recall > 0})
            aps.append(sum(max(p for r, p in points if r >= step) for step in steps) / positives)
    return np.mean(aps)


@settings(max_examples=150)
@given(cases())
def test_equals_the_plain_rules(result):
    kinds = error_kinds(result)
    assert [KINDS[number] for number in kinds.ravel()] == [plain_kind(result, *at) for at in np.ndindex(kinds.shape)]
    diagnosis = diagnose(result)
    assert diagnosis["average_map"] == pytest.approx(result.average_map)
    assert diagnosis["average_map_n"] == pytest.approx(plain_average_map_n(result, np.full(kinds.shape, True)))
    for number, kind in enumerate(KINDS[1:], start=1):
        gain = plain_average_map_n(result, kinds != number) - diagnosis["average_map_n"]
        if np.sum(diagnosis["profile"]) == kinds.size:  # the whole list is within the top 10G
            assert diagnosis["removal"][kind]["average_map_n"] == pytest.approx(gain)


@settings(max_examples=150)
@given(cases())
def test_properties_of_every_diagnosis(result):
    diagnosis = diagnose(result, {"u": 10, "v": 10})
    assert json.loads(json.dumps(diagnosis, allow_nan=False)) == diagnosis
    profile = np.array(diagnosis["profile"])
    positives = np.bincount(result.ground_truth.label, minlength=len(result.classes))
    sizes = np.bincount(result.detections.label, minlength=len(result.classes))
    assert (profile.sum(axis=(1, 2)) == np.minimum(sizes, 10 * positives).sum()).all()
    assert (profile[:, :, 0].sum(axis=1) <= (result.matched >= 0).sum(axis=1)).all()
    for gain in diagnosis["removal"].values():
        assert min(gain.values()) >= -1e-12
    for bins in diagnosis["characteristics"].values():
        assert sum(part["instances"] for part in bins) == len(result.ground_truth)
        missed = [part["instances"] * np.array(part["not_found"]) for part in bins if part["instances"]]
        np.testing.assert_allclose(sum(missed) / len(result.ground_truth), diagnosis["not_found"])
    assert sum(entry["instances"] for entry in diagnosis["classes"]) == len(result.ground_truth)
    assert np.mean([entry["average_ap"] for entry in diagnosis["classes"]]) == pytest.approx(result.average_map)
    assert diagnosis_table(diagnosis)


def test_bins_are_detads():
    lengths = diagnose(evaluated(TRUTH, []))["characteristics"]["length in s"]  # THUMOS14's are the default
    assert [part["up_to"] for part in lengths] == [3, 6, 12, 18, None]
    assert BINS["activitynet12"]["coverage"] == (0.2, 0.4, 0.6, 0.8, np.inf)
    assert set(BINS) <= set(DATASETS)
    assert MIN_PRECISION == 0.05


@pytest.fixture
def run(tmp_path, run_main):
    """Run the command on these detections and options; return exit status, stdout and stderr."""
    truth = {"a": {"subset": "test", "duration": 50, "annotations": [{"label": "x", "segment": [1, 5]}]}}

    def command(detections, *options):
        (tmp_path / "truth.json").write_text(json.dumps({"database": truth}))
        (tmp_path / "detections.json").write_text(
            detections if isinstance(detections, str) else json.dumps({"results": detections})
        )
        paths = ["--ground-truth", tmp_path / "truth.json", "--predictions", tmp_path / "detections.json"]
        return run_main(main, *paths, *options)

    return command


DETECTIONS = {"a": [{"label": "x", "score": 0.5, "segment": [1.0, 4.0]}]}


def test_command_prints_writes_and_draws(run, tmp_path):
    status, out, err = run(DETECTIONS, "--json", tmp_path / "out.json", "--figure", tmp_path / "out.png")
    assert (status, err) == (0, "")
    assert out.startswith("1 detections, 1 instances (G), seconds; percent, means over tIoU 0.1 0.2")
    assert [line.split()[2] for line in out.splitlines() if line.startswith("true positive")] == ["77.8"]
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["average_map"] == pytest.approx(7 / 9)
    assert list(content["characteristics"]) == ["length in s", "coverage", "instances"]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_command_uses_the_stored_snippet_rate_and_notes_missing_videos(run, tmp_path):
    detections = {"results": {**DETECTIONS, "unknown": DETECTIONS["a"]}, "snippet_rate": 1}
    snippet = ["--protocol", "snippet", "--json", tmp_path / "out.json"]
    status, out, err = run(json.dumps(detections), *snippet)
    assert (status, err) == (0, "")
    assert out.startswith("grid of the snippet protocols: 1 snippets per second (from ")
    seconds = json.loads((tmp_path / "out.json").read_text())["characteristics"]["length in s"]
    assert [part["instances"] for part in seconds] == [0, 1, 0, 0, 0]  # 4 s; divided by 25/16 Hz they would be 2.6
    assert run(json.dumps(detections), *snippet, "--snippet-rate", 2)[1].startswith("grid of the snippet protocols: 2 ")
    _, out, _ = run(json.dumps(detections), "--only-detected")
    assert "note: 1 of 1 annotated videos are evaluated: those with an entry; dropped: 1 detection of other" in out
    _, out, _ = run({}, "--json", tmp_path / "out.json")
    undetected, note = json.loads((tmp_path / "out.json").read_text())["notes"]
    assert undetected.startswith("1 of 1 annotated classes without any detection")
    assert note.startswith("1 annotated video without an entry in the detections") and f"note: {note}" in out


@pytest.mark.parametrize(
    ("detections", "options", "message"),
    [
        (DETECTIONS, ["--json", "/nowhere/out.json"], "/nowhere/out.json"),
        (DETECTIONS, ["--figure", "/nowhere/out.png"], "error: /nowhere/out.png: cannot be written (No such file"),
        (DETECTIONS, ["--json", "/"], "error: /: cannot be written (it is a folder)"),
        (DETECTIONS, ["--protocol", "all"], "(see python -m eval.diagnosis --help)"),
        (DETECTIONS, ["--figure", "picture.doc"], "'doc' is not supported"),
        (DETECTIONS, ["--subset", "train"], "no video of subset 'train'"),
        (DETECTIONS, ["--tiou-thresholds", "0"], "tIoU thresholds must lie in (0, 1]"),
        ({"a": [{"label": "x", "score": float("nan"), "segment": [1, 4]}]}, [], "detection 0: not finite"),
        ('{"results": {', [], "not valid JSON"),
    ],
)
def test_command_refuses_in_one_line(run, detections, options, message):
    status, _, err = run(detections, *options)
    assert status == 2
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_real_list(reference, tmp_path):
    annotations = load_annotations(reference / "data/thumos14/annotations.json")
    truth = read_ground_truth(reference / "data/thumos14/annotations.json", "test")
    detections = read_detections(reference / "data/detections/thumos14_base_model_31587.json")
    durations = {name: video.duration for name, video in annotations.videos.items()}
    diagnoses = {
        protocol: diagnose(evaluate_detections(truth, detections, THUMOS, protocol=protocol), durations)
        for protocol in ("seconds", "snippet")
    }
    first = diagnoses["seconds"]
    assert 100 * first["average_map"] == pytest.approx(33.627, abs=0.05)
    assert [part["instances"] for part in first["characteristics"]["length in s"]] == [1626, 851, 730, 114, 37]
    assert {kind for kind, gain in first["removal"].items() if gain["average_map"] > 0.04} == {
        "localization",
        "background",
    }
    on_grid = [part["instances"] for part in diagnoses["snippet"]["characteristics"]["length in s"]]
    assert np.abs(np.subtract(on_grid, [1626, 851, 730, 114, 37])).max() < 80  # only those near an edge change bins
    diagnosis_figure(first, tmp_path / "thumos14.png")
