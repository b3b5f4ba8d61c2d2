"""Tests of overlap, runs, soft-NMS and units."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.segments import hard_nms, runs, seconds_to_snippets, snippets_to_seconds, soft_nms, tiou

segments = st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def plain_soft_nms(boxes, scores, sigma):
    """Apply the definition, one segment at a time."""
    left = [[*box, score, index] for index, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    order, taken = [], []
    while left:
        best = max(left, key=lambda row: (row[2], -row[3]))
        left.remove(best)
        order.append(best[3])
        taken.append(best[2])
        for row in left:
            shared = max(0, min(row[1], best[1]) - max(row[0], best[0]) + 1)
            union = (row[1] - row[0] + 1) + (best[1] - best[0] + 1) - shared
            row[2] *= np.exp(-((shared / union) ** 2) / sigma)
    return order, taken


def test_hard_nms_drops_what_overlaps_a_better_segment():
    boxes = np.array([[0, 10], [0, 8], [20, 30], [5, 15], [0, 10]])
    order, scores = hard_nms(boxes, np.array([0.5, 0.9, 0.1, 0.4, 0.5]), 0.5)
    assert (order.tolist(), scores.tolist()) == ([1, 3, 2], [0.9, 0.4, 0.1])  # tIoU of the first two is 0.8
    assert hard_nms(boxes, np.array([0.5, 0.9, 0.1, 0.4, 0.5]), 1.0)[0].tolist() == [1, 0, 4, 3, 2]
    assert len(hard_nms(np.empty((0, 2)), np.empty(0), 0.5)[0]) == 0


@settings(max_examples=300)
@given(st.lists(st.tuples(segments, st.integers(-3, 3)), max_size=12), st.sampled_from([0.1, 0.3, 1.0]))
def test_soft_nms_matches_its_definition(rows, sigma):
    boxes = np.array([row[0] for row in rows], dtype=np.int64).reshape(-1, 2)
    scores = np.array([row[1] for row in rows], dtype=np.float64)  # ties and negative scores are frequent
    order, taken = soft_nms(boxes, scores, sigma)
    expected_order, expected_scores = plain_soft_nms(boxes.tolist(), scores.tolist(), sigma)
    assert order.tolist() == expected_order
    np.testing.assert_allclose(taken, expected_scores, rtol=1e-12)


def test_soft_nms_cuts_nothing_and_leaves_disjoint_segments_alone():
    order, taken = soft_nms(np.array([[0, 4], [10, 14], [0, 4]]), np.array([0.5, 0.9, 0.4]), 0.3)
    assert order.tolist() == [1, 0, 2]
    np.testing.assert_allclose(taken, [0.9, 0.5, 0.4 * np.exp(-1 / 0.3)])


def test_tiou_of_all_pairs():
    first = np.array([[0.0, 10.0], [5.0, 5.0], [20.0, 30.0]])
    second = np.array([[5.0, 15.0], [5.0, 5.0]])
    expected = [[5 / 15, 0.0], [0.0, 0.0], [0.0, 0.0]]  # 0 / 0, between the two empty ones, is 0
    np.testing.assert_allclose(tiou(first[:, None], second[None]), expected)


def test_runs_of_each_row():
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=bool)
    row, start, end = runs(mask)
    assert row.tolist() == [0, 0, 2, 3]
    assert start.tolist() == [0, 3, 1, 0]
    assert end.tolist() == [2, 4, 2, 4]


def test_units():
    assert seconds_to_snippets([0.32, 0.96, 1.0], 25 / 16).tolist() == [0, 2, 2]  # 0.5 -> 0, 1.5 -> 2
    snippets = np.arange(5000)
    assert (seconds_to_snippets(snippets_to_seconds(snippets, 25 / 16), 25 / 16) == snippets).all()
    assert (seconds_to_snippets(snippets_to_seconds(snippets, 30 / 16), 30 / 16) == snippets).all()
