"""Tests of pair batches, batches from shards, and stratified snippets."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from utils.errors import InputError
from utils.sampler import SAMPLINGS, PairSampler, ShardSampler, release_snippets, stratified_snippets


def pairs_of(indices, num_pairs):
    return indices[: 2 * num_pairs].reshape(num_pairs, 2)


multi_hot = arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(1, 4)), elements=st.sampled_from([0, 1]))


@given(multi_hot, st.integers(0, 3), st.integers(0, 4), st.integers(0, 99))
def test_a_batch_begins_with_pairs_that_share_a_class(labels, num_pairs, more, seed):
    if num_pairs and labels.sum(axis=0).max() < 2:
        with pytest.raises(InputError, match="no class has two videos"):
            PairSampler(labels, 2 * num_pairs + more, num_pairs, seed)
        return
    indices = PairSampler(labels, 2 * num_pairs + more + 1, num_pairs, seed).draw()
    assert indices.shape == (2 * num_pairs + more + 1,)
    assert ((indices >= 0) & (indices < len(labels))).all()
    for first, second in pairs_of(indices, num_pairs):
        assert first != second
        assert (labels[first] * labels[second]).any()


def test_classes_of_pairs_are_drawn_uniformly():
    labels = np.zeros((23, 3))
    labels[:20, 0] = labels[20:22, 1] = labels[22, 2] = 1  # 20, 2 and 1 videos: the last class has no pair
    sampler = PairSampler(labels, batch_size=2, num_pairs=1, seed=0)
    rare = sum(sampler.draw().min() >= 20 for _ in range(2000))
    assert 900 < rare < 1100


def test_the_rest_is_drawn_uniformly():
    sampler = PairSampler(np.eye(4), batch_size=4000, num_pairs=0, seed=0)
    counts = np.bincount(sampler.draw(), minlength=4)
    assert (abs(counts - 1000) < 150).all()


def test_the_state_continues_the_draws():
    labels = np.ones((9, 2))
    sampler = PairSampler(labels, seed=5)
    sampler.draw()
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = [sampler.draw() for _ in range(5)]
    resumed = PairSampler(labels, seed=0)
    resumed.load_state_dict(state)
    np.testing.assert_array_equal([resumed.draw() for _ in range(5)], expected)


@pytest.mark.parametrize(("batch_size", "num_pairs"), [(5, 3), (0, 0), (4, -1)])
def test_pairs_must_fit_in_the_batch(batch_size, num_pairs):
    with pytest.raises(InputError, match="does not fit"):
        PairSampler(np.ones((9, 2)), batch_size, num_pairs)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5), st.integers(1, 600), st.integers(0, 99))
def test_each_snippet_comes_from_its_own_stratum(lengths, count, seed):
    snippets = stratified_snippets(np.array(lengths), count, np.random.default_rng(seed))
    assert snippets.shape == (len(lengths), count)
    for row, length in zip(snippets, lengths, strict=True):
        assert row.min() >= 0
        assert row.max() < length
        assert (np.diff(row) >= 0).all()
        low, high = np.arange(count) * length / count, np.arange(1, count + 1) * length / count
        assert (row + 1 > low - 1e-9).all()  # snippet i covers [i, i + 1), which meets the stratum
        assert (row < high + 1e-9).all()


def test_a_count_equal_to_the_length_is_every_snippet_once():
    np.testing.assert_array_equal(stratified_snippets([7, 7], 7, np.random.default_rng(1)), [range(7)] * 2)


def test_snippets_are_drawn_uniformly():
    snippets = stratified_snippets(np.full(4000, 3), 2, np.random.default_rng(0))  # strata [0, 1.5), [1.5, 3)
    np.testing.assert_allclose((snippets[:, 0] == 0).mean(), 2 / 3, atol=0.03)
    np.testing.assert_allclose((snippets[:, 1] == 2).mean(), 2 / 3, atol=0.03)


def test_a_position_that_rounds_up_to_the_length_stays_inside():
    class AlmostOne:
        def random(self, shape):
            return np.full(shape, np.nextafter(1, 0))

    lengths = np.arange(1, 2000)
    assert (stratified_snippets(lengths, 500, AlmostOne()).max(axis=1) == lengths - 1).all()


class Constant:
    """Generator whose every number in [0, 1) is the same."""

    def __init__(self, value):
        self.value = value

    def random(self, shape):
        return np.full(shape, self.value)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5), st.integers(1, 600), st.integers(0, 99))
def test_snippets_of_the_release_lie_between_the_floors_of_both_edges(lengths, count, seed):
    snippets = release_snippets(np.array(lengths), count, np.random.default_rng(seed))
    assert snippets.shape == (len(lengths), count)
    for row, length in zip(snippets, lengths, strict=True):
        edges = [i * length // count for i in range(count)] + [length - 1]
        assert (row >= edges[:-1]).all()
        assert (row <= edges[1:]).all()
        assert (np.diff(row) >= 0).all()


@pytest.mark.parametrize(
    ("length", "count", "lowest", "highest"),
    [
        (6, 3, [0, 2, 4], [2, 4, 5]),  # edges 0, 2, 4, and the last snippet 5
        (7, 3, [0, 2, 4], [2, 4, 6]),  # edges 0, 2.33, 4.67
        (5, 5, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),  # n = T: every snippet once
        (2, 5, [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]),  # edges 0, 0.4, 0.8, 1.2, 1.6
        (1, 3, [0, 0, 0], [0, 0, 0]),
        (4, 1, [0], [3]),
    ],
)
def test_snippets_of_the_release_by_hand(length, count, lowest, highest):
    for value, expected in ((0.0, lowest), (np.nextafter(1, 0), highest)):
        np.testing.assert_array_equal(release_snippets([length], count, Constant(value)), [expected])


def test_snippets_of_the_release_are_drawn_uniformly():
    snippets = release_snippets(np.full(6000, 6), 3, np.random.default_rng(0))
    for column, (first, last) in enumerate([(0, 2), (2, 4), (4, 5)]):
        counts = np.bincount(snippets[:, column], minlength=6)[first : last + 1]
        np.testing.assert_allclose(counts / 6000, 1 / (last - first + 1), atol=0.03)


def test_both_samplings_draw_the_same_amount_of_random_numbers():
    """A run under either has the same pairs, dropout and, per batch, the same state of the snippets' generator."""
    states = []
    for draw in SAMPLINGS.values():
        generator = np.random.default_rng(3)
        draw([4, 9], 6, generator)
        states.append(generator.bit_generator.state)
    assert states[0] == states[1]


def sharded_videos(generator, videos=40, classes=3, shards=7):
    labels = generator.random((videos, classes)) < 0.5
    return labels, np.sort(np.arange(videos) % shards)


@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 5), st.integers(0, 2))
def test_batches_come_from_a_window_of_shards_and_a_pass_visits_each_once(seed, open_shards, more, num_pairs):
    labels, shards = sharded_videos(np.random.default_rng(seed))
    sampler = ShardSampler(labels, shards, open_shards, 2 * num_pairs + more, num_pairs, seed)
    for _ in range(2):  # passes
        visited = []
        while len(visited) < 7:
            indices = sampler.draw()
            window = np.unique(shards[sampler.videos])
            assert set(shards[indices]) <= set(window)
            np.testing.assert_array_equal(sampler.videos, np.flatnonzero(np.isin(shards, window)))
            for first, second in pairs_of(indices, num_pairs):
                assert first != second
                assert (labels[first] & labels[second]).any()
            batches = 1
            while batches * len(indices) < len(sampler.videos):
                assert set(shards[sampler.draw()]) <= set(window)
                batches += 1
            visited += window.tolist()
        assert sorted(visited) == list(range(7))


def test_each_pass_has_its_own_order():
    labels, shards = np.ones((40, 1)), np.arange(40) // 4
    sampler = ShardSampler(labels, shards, 1, 4, 1, seed=0)
    orders = [[int(shards[sampler.draw()[0]]) for _ in range(10)] for _ in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    again = ShardSampler(labels, shards, 1, 4, 1, seed=0)
    assert [[int(shards[again.draw()[0]]) for _ in range(10)] for _ in range(3)] == orders


@pytest.mark.parametrize("open_shards", [7, 8, 99])
def test_one_window_of_all_shards_gives_the_batches_without_shards(open_shards):
    labels, shards = sharded_videos(np.random.default_rng(3))
    plain, sampler = PairSampler(labels, seed=5), ShardSampler(labels, shards, open_shards, seed=5)
    for _ in range(30):
        np.testing.assert_array_equal(plain.draw(), sampler.draw())


@given(st.integers(0, 40), st.integers(1, 3), st.integers(0, 9))
def test_the_state_continues_within_a_window(drawn, open_shards, seed):
    labels, shards = sharded_videos(np.random.default_rng(0))
    sampler = ShardSampler(labels, shards, open_shards, 5, 2, seed)
    for _ in range(drawn):
        sampler.draw()
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = [sampler.draw() for _ in range(25)]
    resumed = ShardSampler(labels, shards, open_shards, 5, 2, seed + 1)
    resumed.load_state_dict(state)
    np.testing.assert_array_equal([resumed.draw() for _ in range(25)], expected)
    with pytest.raises(ValueError, match="expected a pass through 2 shards, got 7"):
        ShardSampler(labels, np.arange(40) % 2, open_shards).load_state_dict(state)


def test_a_window_without_a_pair_is_widened():
    labels = np.zeros((6, 2))
    labels[[0, 5], 0] = labels[[1, 2], 1] = 1  # classes 0 and 1 have two videos each, every video in its own shard
    for seed in range(20):
        sampler = ShardSampler(labels, np.arange(6), 1, 2, 1, seed)
        seen = []
        while len(seen) < 6:
            first, second = sampler.draw()
            assert (labels[first] * labels[second]).any()
            while len(sampler.videos) > 2 * sampler._drawn:
                sampler.draw()
            seen += sampler.videos.tolist()
        assert sorted(seen) == list(range(6))
    with pytest.raises(InputError, match="no class has two videos"):
        ShardSampler(np.eye(4), np.arange(4), 1, 2, 1)
