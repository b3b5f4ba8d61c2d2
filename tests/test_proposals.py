"""eval/proposals.py against a plain version of Section 3.6, proposal by proposal."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.proposals import localize, video_scores
from tests.test_segments import plain_soft_nms
from utils.errors import InputError


def plain_localize(cas, attention):
    """(label, start, end, score) rows, by loops over classes, thresholds and snippets."""
    length, suppressed = len(attention), attention[:, None] * cas
    top = np.sort(suppressed, axis=0)[::-1][: max(1, length // 10)].mean(axis=0)
    scores = (np.exp(top) / np.exp(top).sum())[:-1]
    rows = []
    for label in [c for c in range(len(scores)) if scores[c] >= 0.2] or [int(scores.argmax())]:
        boxes, values = [], []
        for threshold in np.linspace(0.1, 0.9, 10):
            start = 0
            while start < length:
                end = start
                while end < length and attention[end] > threshold:
                    end += 1
                if end > start:
                    reach = 0.25 * (end - start)
                    left = range(max(0, int(start - reach)), start)
                    right = range(end, min(length, int(end - 1 + reach) + 1))
                    outside = [suppressed[i, label] for i in (*left, *right)]
                    contrast = suppressed[start:end, label].mean() - (np.mean(outside) if outside else 0)
                    boxes.append((start, end))
                    values.append(contrast + 0.2 * scores[label])
                start = max(end, start + 1)
        order, taken = plain_soft_nms(boxes, values, 0.3)
        rows += [(label, *boxes[index], score) for index, score in zip(order, taken, strict=True)]
    return rows


def example(snippets, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    kernel = np.exp(-(np.linspace(-2, 2, 9) ** 2))
    attention = np.convolve(generator.standard_normal(snippets + 8), kernel, "valid")
    attention = 1 / (1 + np.exp(-attention))
    cas = generator.standard_normal((snippets, classes + 1))
    cas[:, generator.integers(classes)] += 3 * attention
    return cas, attention


@settings(max_examples=150)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 10_000))
def test_equals_the_plain_version(snippets, classes, seed):
    cas, attention = example(snippets, classes, seed)
    detections, expected = localize(cas, attention), plain_localize(cas, attention)
    assert [tuple(row)[:3] for row in detections.tolist()] == [row[:3] for row in expected]
    np.testing.assert_allclose(detections["score"], [row[3] for row in expected], rtol=1e-9, atol=1e-9)


def test_one_snippet_and_the_first_snippet_alone():
    detections = localize(np.array([[2.0, 0.0]]), np.array([0.5]))
    assert set(zip(detections["start"].tolist(), detections["end"].tolist(), strict=True)) == {(0, 1)}
    detections = localize(np.ones((4, 2)), np.array([0.95, 0.0, 0.0, 0.0]))
    assert (detections["start"] == 0).all()
    assert (detections["end"] == 1).all()
    assert len(detections) == 10  # one proposal per threshold


def test_no_attention_no_detections():
    assert len(localize(np.ones((5, 3)), np.zeros(5))) == 0


def test_video_scores_are_probabilities():
    cas, attention = example(37)
    scores = video_scores(cas, attention)
    assert scores.shape == (5,)
    assert scores.sum() == pytest.approx(1)
    assert np.isfinite(video_scores(1e4 * cas, attention)).all()


def test_classes_above_the_threshold_or_the_best_one():
    cas, attention = np.zeros((20, 4)), np.full(20, 0.5)
    assert set(localize(cas, attention)["label"]) == {0, 1, 2}  # a quarter each, background the fourth
    assert set(localize(cas, attention, class_threshold=0.3)["label"]) == {0}


def test_detections_that_share_a_snippet_with_an_ambiguous_segment_are_deleted():
    attention = np.zeros(20)
    attention[[2, 3, 4, 10, 11, 15]] = 0.95

    def spans(detections):
        return {(row["start"], row["end"]) for row in detections}

    cas = np.ones((20, 2))
    assert spans(localize(cas, attention)) == {(2, 5), (10, 12), (15, 16)}
    # [5, 10) touches two detections without sharing a snippet; [11, 11) is empty
    assert spans(localize(cas, attention, ambiguous=np.array([[5, 10], [11, 11]]))) == {
        (2, 5),
        (10, 12),
        (15, 16),
    }
    assert spans(localize(cas, attention, ambiguous=np.array([[4, 5], [15, 30]]))) == {(10, 12)}
    assert len(localize(cas, attention, ambiguous=np.zeros((0, 2)))) == len(localize(cas, attention))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    cas, attention = example(9)
    cas[4, 1] = value
    with pytest.raises(InputError, match="cas is not finite at snippet 4"):
        localize(cas, attention)
    with pytest.raises(InputError, match="attention is not finite at snippet 0"):
        localize(np.ones((9, 2)), np.full(9, value))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"\(5, 3\) and \(4,\)"):
        localize(np.ones((5, 3)), np.ones(4))
    with pytest.raises(InputError, match="T >= 1"):
        localize(np.ones((0, 3)), np.ones(0))


def test_memory_grows_linearly_with_the_video():
    cas, attention = example(5000)
    tracemalloc.start()
    detections = localize(cas, attention)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(detections) > 2500  # all pairs of these would take 50 MB
    assert peak < 8e6
