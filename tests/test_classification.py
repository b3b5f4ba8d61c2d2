"""eval/classification.py: average precision of video-level classification."""

import numpy as np
import pytest

from eval.classification import classification_map
from utils.errors import InputError


def plain_ap(scores, labels):
    hits, precisions = 0, []
    for rank, video in enumerate(sorted(range(len(scores)), key=lambda v: -scores[v]), start=1):
        if labels[video]:
            hits += 1
            precisions.append(hits / rank)
    return sum(precisions) / len(precisions) if precisions else float("nan")


def test_equals_the_definition_with_ties():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, (40, 7)) / 5
    labels = (generator.random((40, 7)) < 0.2).astype(np.float32)
    labels[:, 3] = 0
    ap, mean = classification_map(scores, labels)
    np.testing.assert_allclose(ap, [plain_ap(scores[:, c], labels[:, c]) for c in range(7)], rtol=1e-12)
    assert np.isnan(ap[3])
    assert mean == pytest.approx(np.nanmean(ap))


def test_perfect_and_reversed_order():
    labels = np.array([[1], [0], [0]])
    assert classification_map(np.array([[0.9], [0.5], [0.1]]), labels)[1] == 1.0
    assert classification_map(np.array([[0.1], [0.5], [0.9]]), labels)[1] == pytest.approx(1 / 3)


def test_without_positives_it_is_undefined():
    ap, mean = classification_map(np.zeros((2, 3)), np.zeros((2, 3)))
    assert np.isnan(ap).all()
    assert np.isnan(mean)


def test_bad_input():
    with pytest.raises(InputError, match="video 1, class 0"):
        classification_map(np.array([[0.1], [np.nan]]), np.ones((2, 1)))
    with pytest.raises(InputError, match=r"\(2, 1\) and \(2, 2\)"):
        classification_map(np.zeros((2, 1)), np.zeros((2, 2)))
