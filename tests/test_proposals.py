"""eval/proposals.py against Section 3.6 written out, proposal by proposal."""

import time

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
def test_equals_the_plain_one(snippets, classes, seed):
    cas, attention = example(snippets, classes, seed)
    found, expected = localize(cas, attention), plain_localize(cas, attention)
    assert [tuple(row)[:3] for row in found.tolist()] == [row[:3] for row in expected]
    np.testing.assert_allclose(found["score"], [row[3] for row in expected], rtol=1e-9, atol=1e-9)


def test_one_snippet_and_snippet_zero_alone():
    found = localize(np.array([[2.0, 0.0]]), np.array([0.5]))
    assert set(zip(found["start"].tolist(), found["end"].tolist(), strict=True)) == {(0, 1)}
    found = localize(np.ones((4, 2)), np.array([0.95, 0.0, 0.0, 0.0]))
    assert (found["start"] == 0).all()
    assert (found["end"] == 1).all()
    assert len(found) == 10  # one proposal a threshold


def test_no_attention_no_detections():
    assert len(localize(np.ones((5, 3)), np.zeros(5))) == 0


def test_video_scores_are_probabilities():
    cas, attention = example(37)
    scores = video_scores(cas, attention)
    assert scores.shape == (5,)
    assert scores.sum() == pytest.approx(1)
    assert np.isfinite(video_scores(1e4 * cas, attention)).all()


def test_every_class_above_the_threshold_else_the_best():
    cas, attention = np.zeros((20, 4)), np.full(20, 0.5)
    assert set(localize(cas, attention)["label"]) == {0, 1, 2}  # a quarter each, background the fourth
    assert set(localize(cas, attention, class_threshold=0.3)["label"]) == {0}


def test_detections_that_share_a_snippet_with_an_ambiguous_segment_are_deleted():
    attention = np.zeros(20)
    attention[[2, 3, 4, 10, 11, 15]] = 0.95

    def spans(found):
        return {(row["start"], row["end"]) for row in found}

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


def test_long_videos_stay_cheap():
    cas, attention = example(5000)
    started = time.process_time()
    assert len(localize(cas, attention)) > 500
    assert time.process_time() - started < 0.5  # 6 ms of a core's time
