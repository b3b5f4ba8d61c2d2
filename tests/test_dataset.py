"""Tests of the weakly labeled dataset and its batches."""

import io
import json

import numpy as np
import pytest
import torch

from utils.annotations import parse_annotations
from utils.errors import InputError
from wsad_dataset import BatchLoader, WeakVideoDataset


class MemoryStore:
    """Features (T, 5) in memory; each value is 1000 * video + snippet."""

    modality_dims = (2, 3)
    snippet_rate = 2.0

    def __init__(self, lengths: dict[str, int]):
        self.counts = lengths

    def __contains__(self, video_id):
        return video_id in self.counts

    def lengths(self, video_ids):
        return np.array([self.counts[video_id] for video_id in video_ids])

    def __getitem__(self, video_id):
        values = 1000 * int(video_id[1:]) + np.arange(self.counts[video_id], dtype=np.float32)
        return np.repeat(values[:, None], 5, axis=1)

    def parts(self, video_id, snippets):
        return np.split(self[video_id][snippets], [2], axis=1)

    def multiply(self, features, video_id):
        """The scale is 1."""


LENGTHS = {"v0": 9, "v1": 4, "v2": 30, "v3": 1, "v5": 12}
CLASSES = ["A", "B", "C"]


def timeline(with_segments: bool = True) -> dict:
    entry = {"subset": "train", "duration": 30.0}
    labels = {"v0": ["A"], "v1": ["B", "A"], "v2": ["B"], "v3": ["A"], "v4": ["C"], "v5": ["B"]}
    segments = [{"label": "C", "segment": [1, 2]}] if with_segments else []
    database = {v: {**entry, "labels": names, "annotations": segments} for v, names in labels.items()}
    return {"classes": CLASSES, "database": {**database, "t0": {"subset": "test"}}}


def dataset(with_segments: bool = True, **options) -> WeakVideoDataset:
    annotations = parse_annotations(timeline(with_segments), "x")
    return WeakVideoDataset(annotations, MemoryStore(LENGTHS), "train", **{"missing_features": "skip", **options})


def test_attributes_and_features():
    data = dataset(min_snippets=4)
    assert data.video_ids == ["v0", "v1", "v2", "v5"]
    assert data.skipped == ["v4"]
    assert data.too_short == ["v3"]
    assert data.classes == ("A", "B", "C")
    assert data.modality_dims == (2, 3)
    assert data.snippet_rate == 2.0
    assert data.labels.dtype == bool
    np.testing.assert_array_equal(data.labels, [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]])
    for index, video_id in enumerate(data.video_ids):
        np.testing.assert_array_equal(data[index], MemoryStore(LENGTHS)[video_id])


def test_missing_features_are_an_error_with_advice():
    with pytest.raises(InputError, match=r"1 of the 6 videos of subset 'train'.*\(v4\).*--missing-features skip"):
        dataset(missing_features="error")


def test_no_video_left():
    with pytest.raises(InputError, match="1 have no features, 5 have fewer than 99"):
        dataset(min_snippets=99)
    with pytest.raises(InputError, match="subsets present"):
        WeakVideoDataset(parse_annotations(timeline(), "x"), MemoryStore(LENGTHS), "validation")
    with pytest.raises(InputError, match="'train': no video is left to use; lower --holdout"):
        dataset(video_ids=[])


def test_video_ids_choose_videos():
    assert dataset(video_ids=["v2", "v0"], missing_features="error").video_ids == ["v2", "v0"]
    with pytest.raises(InputError, match="'train': video 't0' not found"):
        dataset(video_ids=["v2", "t0"])


def batches(data: WeakVideoDataset, count: int = 4, **options) -> list:
    loader = BatchLoader(data, **{"batch_size": 6, "num_pairs": 2, "num_snippets": 8, "seed": 3, **options})
    return [[part.clone() for part in next(loader)] for _ in range(count)]


def assert_equal(first, second):
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


def test_a_batch_has_stratified_snippets_with_their_labels():
    data = dataset()
    for features, labels, pairs in batches(data, count=20):
        assert (features.dtype, labels.dtype, pairs.dtype) == (torch.float32, torch.float32, torch.int64)
        assert features.shape == (6, 8, 5)
        for video, label in zip(features.numpy(), labels.numpy(), strict=True):
            number, snippets = divmod(video[:, 0].astype(int), 1000)
            index = data.video_ids.index(f"v{number[0]}")
            assert (number == number[0]).all()
            assert (video == video[:, :1]).all()
            assert (np.diff(snippets) >= 0).all()
            assert snippets.max() < data.lengths[index]
            np.testing.assert_array_equal(label, data.labels[index])
        for first, second in pairs.tolist():
            assert (labels[first] * labels[second]).any()
            assert features[first, 0, 0] // 1000 != features[second, 0, 0] // 1000


def test_training_reads_no_segment():
    with_segments, without = dataset(), dataset(with_segments=False)
    np.testing.assert_array_equal(with_segments.labels, without.labels)
    assert_equal(batches(with_segments), batches(without))


def test_equal_seeds_give_equal_batches():
    assert_equal(batches(dataset(), seed=7), batches(dataset(), seed=7))
    assert not torch.equal(batches(dataset(), seed=7)[0][0], batches(dataset(), seed=8)[0][0])


def test_a_resumed_loader_returns_the_same_batches():
    loader = BatchLoader(dataset(), 6, 2, 8, seed=3)
    next(loader)
    saved = io.BytesIO()
    torch.save(loader.state_dict(), saved)
    expected = [[part.clone() for part in next(loader)] for _ in range(3)]
    resumed = BatchLoader(dataset(), 6, 2, 8, seed=99)
    resumed.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    assert_equal([[part.clone() for part in next(resumed)] for _ in range(3)], expected)
    json.dumps(loader.state_dict())


def test_a_batch_stays_valid_while_the_next_is_drawn():
    loader = BatchLoader(dataset(), 6, 2, 8, seed=3)
    first = next(loader)
    before = first.features.clone()
    next(loader)
    assert torch.equal(first.features, before)


def test_a_batch_needs_a_snippet():
    with pytest.raises(InputError, match="at least 1 snippet"):
        BatchLoader(dataset(), num_snippets=0)
