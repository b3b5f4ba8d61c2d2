"""eval/detection.py against ActivityNet's own results, published scores, and a plain matcher."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval.matching
from eval.average_precision import mean_over_range
from eval.detection import evaluate_detections
from eval.detection_formats import read_detections, write_detections
from eval.sorting import number_order, score_order
from eval.tables import Table, localized_table, read_ground_truth
from tests.conftest import REFERENCE
from utils.errors import InputError

THUMOS_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# Cases in which ActivityNet's code raises, or orders ties by the processor.
REFUSED = {
    "16_inverted_prediction": "video 'a', detection 0.*ends before it starts",
    "17_inverted_gt": "video 'a', annotation 0",
    "37_empty_subset": "no video of subset 'test'.*train",
    "39_missing_score": "video 'a', detection 0: no 'score'",
}
BETTER = {
    "11_unknown_class": [[1.0]] * 5,  # the other class's detection is dropped
    "03_tie_coarse_200": None,  # checked against the plain matcher below
}


@given(st.lists(st.integers(0, 2**40)), st.lists(st.sampled_from([0.0, 0.5, 1.0])))
def test_orders_are_stable(numbers, scores):
    stable = np.argsort(numbers, kind="stable").tolist()
    assert number_order(np.array(numbers, dtype=np.int64), 2**40 + 1).tolist() == stable
    assert score_order(np.array(scores)).tolist() == sorted(range(len(scores)), key=lambda i: (scores[i], i))[::-1]


def plain_ap(truth, detections, threshold):
    """Apply the rule to one class. truth: rows (video, start, end); detections: the same with a score."""
    taken, hits, precisions = set(), 0, []
    crowd = Counter(video for video, _, _ in truth)
    by_score = sorted(range(len(detections)), key=lambda row: (detections[row][3], row), reverse=True)
    for rank, row in enumerate(by_score, start=1):
        video, start, end, _ = detections[row]
        best, best_key = None, (0.0, 0.0)
        for index, (other, first, last) in enumerate(truth):
            shared = max(0.0, min(end, last) - max(start, first))
            union = (last - first) + (end - start) - shared
            overlap = shared / union if union > 0 else np.inf  # there 0 / 0, which counts as a hit
            distance = abs(first + last - (start + end)) if crowd[other] > 16 else 0
            key = overlap, distance  # tIoU, then in a crowd the distance of the centers
            if other == video and index not in taken and overlap >= threshold and key >= best_key:
                best, best_key = index, key
        if best is not None:
            taken.add(best)
            hits += 1
        precisions.append((hits / len(truth), hits / rank))
    points = sorted({recall for recall, _ in precisions if recall > 0})
    return sum(max(p for r, p in precisions if r >= point) for point in points) / len(truth)


def plain_matrix(truth, detections, classes, thresholds):
    """Return AP [threshold][class]. truth: rows (video, label, start, end); detections: the same with a score."""
    rows = {c: [(v, s, e) for v, label, s, e in truth if label == c] for c in classes}
    hits = {c: [(v, s, e, score) for v, label, s, e, score in detections if label == c] for c in classes}
    return [[plain_ap(rows[c], hits[c], t) if rows[c] else np.nan for c in classes] for t in thresholds]


def table(rows, videos, classes):
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), -1).T if rows else np.zeros((5, 0))
    names, numbers = (videos, classes), columns[:2].astype(np.int64)
    return Table(*names, *numbers, *columns[2:4], columns[4] if len(columns) > 4 else None)


@pytest.fixture(params=sorted((REFERENCE / "data/eval_cases/small").glob("*.json")) or [None])
def case(request, reference):
    """One adversarial case with ActivityNet's result."""
    return request.param.stem, json.loads(request.param.read_text())


def test_every_small_case(case):
    name, data = case
    arguments = data["gt"], data["pred"], data["tiou_thresholds"]
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            evaluate_detections(*arguments, subset=data["subset"])
        return
    result = evaluate_detections(*arguments, subset=data["subset"])
    if name in BETTER:
        assert BETTER[name] is None or result.ap.tolist() == BETTER[name]
        assert "raises" not in data["official"] or len(result.notes) == 1
        return
    assert list(result.classes) == data["classes"]
    assert result.ap.tolist() == data["official"]["ap"]  # to the last bit
    assert result.map.tolist() == data["official"]["mAP"]
    assert result.average_map == data["official"]["average_mAP"]


def test_tied_scores_have_the_documented_order(reference):
    data = json.loads((reference / "data/eval_cases/small/03_tie_coarse_200.json").read_text())
    entries = {video: entry["annotations"] for video, entry in data["gt"]["database"].items()}
    truth = [(v, a["label"], *a["segment"]) for v, rows in entries.items() for a in rows]
    detections = [
        (v, a["label"], *a["segment"], a["score"]) for v, rows in data["pred"]["results"].items() for a in rows
    ]
    result = evaluate_detections(data["gt"], data["pred"], data["tiou_thresholds"])
    expected = plain_matrix(truth, detections, result.classes, data["tiou_thresholds"])
    np.testing.assert_allclose(result.ap, expected, rtol=1e-12)


def test_thumos_scale_to_the_last_bit(reference):
    folder = reference / "data/eval_cases/thumos_scale"
    expected = json.loads((folder / "expected.json").read_text())
    result = evaluate_detections(folder / "gt.json", folder / "pred.json", expected["tiou_thresholds"])
    assert list(result.classes) == expected["classes"]
    assert result.ap.tolist() == expected["official"]["ap"]
    assert result.map.tolist() == expected["official"]["mAP"]
    assert result.average_map == expected["official"]["average_mAP"]
    assert result.notes == ()


def test_stpn_list(reference):
    folder = reference / "data/detections"
    result = evaluate_detections(
        folder / "stpn_thumos14_ground_truth.json", folder / "stpn_thumos14.json", THUMOS_THRESHOLDS
    )
    published = [52.12, 44.20, 34.70, 26.06, 17.70, 10.09, 4.99, 1.34, 0.10]
    assert [round(value, 2) for value in 100 * result.map] == published


def test_mmaction2_list(reference):
    folder = reference / "data/detections"
    truth = json.loads((folder / "mmaction2_ground_truth.json").read_text())
    truth = {video.removeprefix("v_"): entry for video, entry in truth.items()}
    thresholds = np.linspace(0.5, 0.95, 10)
    result = evaluate_detections(truth, folder / "mmaction2_results.json", thresholds)
    expected = [0.71428571] * 3 + [0.6875] * 2 + [0.59722222] + [0.52083333] * 3 + [0.5]
    np.testing.assert_allclose(result.map, expected, atol=5e-9)
    assert round(result.average_map, 10) == 0.6177579365


# percent: tIoU 0.1 to 0.9, then the means of 0.1:0.5, 0.1:0.7 and 0.1:0.9
PROTOCOL_FIGURES = {
    "snippet": "68.0890 63.0542 54.0839 45.6476 37.1494 24.9951 12.3702 6.1119 1.8884 53.6048 43.6271 34.8211",
    "seconds": "68.3325 62.4073 53.5995 44.0275 33.4807 22.9182 12.2328 4.7182 0.9263 52.3695 42.4284 33.6270",
    "snippet-ddgnet": "68.6992 63.6383 54.4660 45.9588 37.3294 25.1441 12.3915 6.1268 1.8892 54.0183 43.9468 35.0715",
    "snippet-210": "69.4506 64.3541 55.1321 46.5398 37.8368 25.5341 12.6287 6.2521 1.9413 54.6627 44.4966 35.5189",
    "snippet-delu": "68.6953 63.6073 54.5599 46.3348 37.6487 25.6194 12.7562 6.3121 1.9501 54.1692 44.1745 35.2760",
    "seconds-210": "69.6908 63.7374 54.6259 44.8933 34.1035 23.3919 12.4710 4.8323 0.9688 53.4102 43.2734 34.3016",
}


@pytest.mark.parametrize("protocol", PROTOCOL_FIGURES)
def test_real_list_under_every_protocol(reference, protocol):
    result = evaluate_detections(
        reference / "data/thumos14/annotations.json",
        reference / "data/detections/thumos14_base_model_31587.json",
        THUMOS_THRESHOLDS,
        protocol=protocol,
    )
    assert len(result.classes) == 20
    measured = [*result.map]
    measured += [mean_over_range(result.tiou_thresholds, result.map, 0.1, high) for high in (0.5, 0.7, 0.9)]
    expected = [float(value) for value in PROTOCOL_FIGURES[protocol].split()]
    np.testing.assert_allclose(100 * np.array(measured), expected, atol=0.05)


def test_release_folder_is_the_same_ground_truth(reference):
    predictions = read_detections(reference / "data/detections/thumos14_base_model_31587.json")
    folder = reference / "data/thumos14"
    results = [
        evaluate_detections(truth, predictions, THUMOS_THRESHOLDS, protocol="snippet-ambiguous")
        for truth in (folder / "annotations.json", folder / "Thumos14reduced-Annotations")
    ]
    assert results[0].classes == results[1].classes
    assert (results[0].ap == results[1].ap).all()


# segments on a grid (equal tIoU, zero length) and off it
times = st.one_of(st.integers(0, 8).map(float), st.floats(0, 8, allow_subnormal=False))
spans = st.tuples(times, times).map(lambda pair: (min(pair), max(pair)))
names = st.tuples(st.integers(0, 1), st.integers(0, 1))
instances = st.lists(st.tuples(names, spans).map(lambda row: (*row[0], *row[1])), min_size=1, max_size=10)
scores = st.one_of(st.integers(0, 3).map(float), st.floats(-1, 4))
detected = st.lists(st.tuples(names, spans, scores).map(lambda row: (*row[0], *row[1], row[2])), max_size=24)


@settings(max_examples=300)
@given(instances, detected, st.permutations([0.1, 0.25, 0.5, 1.0]), st.sampled_from([1, 7, 1 << 13]))
def test_equals_the_plain_matcher(truth, detections, thresholds, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.matching, "FIRST_BLOCK", block)  # a small case in one block, or in many
        patch.setattr(eval.matching, "LARGEST_BLOCK", 2 * block)
        patch.setattr(eval.matching, "CHUNK", block)  # likewise: all videos in one chunk, or one or two in each
        names = ("v", "w"), ("x", "y")
        result = evaluate_detections(table(truth, *names), table(detections, *names), thresholds)
    np.testing.assert_allclose(result.ap, plain_matrix(truth, detections, (0, 1), thresholds), rtol=1e-12)
    for row in result.matched:  # no segment is taken twice
        hits = row[row >= 0]
        assert len(np.unique(hits)) == len(hits)


def annotations(**extra):
    first = {
        "subset": "test",
        "annotations": [{"label": "y", "segment": [0, 10]}, {"label": "x", "segment": [20, 30]}],
    }
    return {"database": {"a": first, "b": {"subset": "test", "annotations": []}}, **extra}


def predictions(*rows):
    return {"results": {"a": [{"label": c, "score": s, "segment": [b, e]} for c, s, b, e in rows]}}


def test_class_columns():
    detections = predictions(("x", 0.5, 20, 30))
    result = evaluate_detections(annotations(), detections, [0.5])
    assert result.classes == ("y", "x")
    assert result.ap.tolist() == [[0.0, 1.0]]
    result = evaluate_detections(annotations(classes=["x", "y", "z"]), detections, [0.5])
    assert result.classes == ("x", "y", "z")
    np.testing.assert_array_equal(result.ap, [[1.0, 0.0, np.nan]])
    assert result.map.tolist() == [0.5]
    assert result.as_dict()["ap"] == [[1.0, 0.0, None]]
    assert evaluate_detections(annotations(), detections, [0.5], classes=["x"]).ap.tolist() == [[1.0]]


def test_only_these_videos():
    data = annotations()
    data["database"]["b"]["annotations"] = [{"label": "x", "segment": [0, 10]}]
    detections = predictions(("x", 0.5, 20, 30))
    detections["results"]["unknown"] = [{"label": "x", "score": 0.9, "segment": [0, 1]}]
    assert evaluate_detections(data, detections, [0.5], classes=["x"]).map.tolist() == [0.25]
    result = evaluate_detections(data, detections, [0.5], videos=["a"], classes=["x"])
    assert result.map.tolist() == [1.0]
    assert result.notes == ()
    with pytest.raises(InputError, match="lacks 'nowhere'"):
        evaluate_detections(data, detections, [0.5], videos=["a", "nowhere"])


def test_arrays_files_and_dicts_give_the_same_result(tmp_path):
    rows = [("a", "x", 20.0, 27.0, 0.7), ("a", "y", 1.0, 12.0, 0.4), ("b", "y", 0.25, 1.0, 0.9)]
    kinds = [("video", "U5"), ("label", "U5"), ("start", float), ("end", float), ("score", float)]
    records = np.array(rows, dtype=kinds)
    write_detections(tmp_path / "d.json", read_detections(records))
    lines = [f"{start},{end},{video},{label},{score}" for video, label, start, end, score in rows]
    (tmp_path / "d.csv").write_text("\n".join(["t-start,t-end,video-id,label,score", *lines]) + "\n")
    (tmp_path / "annotations.json").write_text(json.dumps(annotations()))
    results = [
        evaluate_detections(truth, detections, [0.3, 0.9])
        for truth in (
            annotations(),
            tmp_path / "annotations.json",
            tmp_path,
            read_ground_truth(annotations(), "test"),
        )
        for detections in (
            records,
            tmp_path / "d.json",
            tmp_path / "d.csv",
            json.loads((tmp_path / "d.json").read_text()),
        )
    ]
    assert all(result.ap.tolist() == [[0.5, 1.0], [0.0, 0.0]] for result in results)


def test_localized_table_is_in_seconds():
    kinds = [("label", int), ("start", int), ("end", int), ("score", float)]
    localized = {"a": np.array([(1, 3, 8, 0.5)], dtype=kinds), "b": np.array([], dtype=kinds)}
    detections = localized_table(localized, ["x", "y"], 25 / 16)
    assert detections.videos == ("a", "b")
    assert (detections.start.tolist(), detections.end.tolist(), detections.label.tolist()) == ([1.92], [5.12], [1])


@pytest.mark.parametrize("thresholds", [[], [0.0], [1.5], [np.nan]])
def test_thresholds_outside_their_range_are_refused(thresholds):
    with pytest.raises(InputError, match="tIoU thresholds"):
        evaluate_detections(annotations(), predictions(), thresholds)


def test_bad_rows_in_arrays_are_named():
    detections = table([(0, 0, 1, 2, 0.5), (0, 0, 3, 2, 0.5)], ("a", "b"), ("y", "x"))
    with pytest.raises(InputError, match="video 'a', row 1.*ends before"):
        evaluate_detections(annotations(), detections, [0.5])
    detections.end[1], detections.score[0] = 4, np.nan
    with pytest.raises(InputError, match="video 'a', row 0"):
        evaluate_detections(annotations(), detections, [0.5])
