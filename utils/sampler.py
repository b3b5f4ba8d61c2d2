"""Which videos make a training batch, and which snippets of them.

Each draw comes from a generator of its own, whose state goes into the checkpoint, so that a resumed run sees
the batches that an uninterrupted one would have seen.
"""

import numpy as np

from utils.errors import InputError


class PairSampler:
    """Batches whose first rows are pairs of videos that share a class, as co-activity similarity needs.

    A pair's class is drawn uniformly among the classes with at least two videos, then two different videos
    of it; the rest of the batch is drawn uniformly from all videos, with replacement (as W-TALC does).
    """

    def __init__(
        self, labels: np.ndarray, batch_size: int = 10, num_pairs: int = 3, seed: int | np.random.Generator = 0
    ):
        """labels: (N, C) multi-hot. InputError: more pairs than fit, or no class with two videos to pair."""
        if num_pairs < 0 or batch_size < max(1, 2 * num_pairs):
            raise InputError(f"{num_pairs} pairs do not fit in a batch of {batch_size} videos")
        self.batch_size = batch_size
        self.num_videos = len(labels)
        members = [np.flatnonzero(column) for column in np.asarray(labels).T]
        self.pairable = [videos for videos in members if len(videos) >= 2]
        if num_pairs and not self.pairable:
            raise InputError("no class has two videos, so no pair shares a class; set the number of pairs to 0")
        self.pairs = np.arange(2 * num_pairs).reshape(num_pairs, 2)  # rows (0, 1), (2, 3), ...
        self._generator = np.random.default_rng(seed)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Video indices (batch_size,), and the pairs (P, 2) as rows of the batch."""
        indices = np.empty(self.batch_size, dtype=np.int64)
        for first, second in self.pairs:
            videos = self.pairable[self._generator.integers(len(self.pairable))]
            indices[[first, second]] = self._generator.choice(videos, size=2, replace=False)
        rest = indices[self.pairs.size :]
        rest[:] = self._generator.integers(self.num_videos, size=len(rest))
        return indices, self.pairs.copy()

    def state_dict(self) -> dict:
        """The generator's state, in plain Python values."""
        return self._generator.bit_generator.state

    def load_state_dict(self, state: dict) -> None:
        self._generator.bit_generator.state = state


def rank_rows(batch_size: int, num_pairs: int, rank: int, num_ranks: int) -> np.ndarray:
    """Which rows of a batch one of several processes takes: pair p is that of rank p mod N, with both its rows.

    The rest is dealt so that each has batch_size / N rows; its pairs come first, as in the whole batch.

    InputError: the batch cannot be divided evenly, or not without parting a pair.
    """
    share, uneven = divmod(batch_size, num_ranks)
    most_pairs = -(-num_pairs // num_ranks)
    if uneven or 2 * most_pairs > share:
        below, above = share * num_ranks, (share + bool(uneven)) * num_ranks
        smallest = max(1, 2 * most_pairs) * num_ranks
        fitting = sorted({size for size in (below, above) if size >= smallest}) or [smallest]
        raise InputError(
            f"a batch of {batch_size} videos with {num_pairs} pairs cannot be divided among {num_ranks} processes; "
            f"--batch-size {' or '.join(map(str, fitting))} can"
        )
    own = np.arange(2 * num_pairs).reshape(-1, 2)[rank::num_ranks]
    taken = [2 * len(range(other, num_pairs, num_ranks)) for other in range(num_ranks)]
    first = 2 * num_pairs + sum(share - pairs for pairs in taken[:rank])
    return np.concatenate([own.ravel(), np.arange(first, first + share - own.size)])


class ShardSampler:
    """The batches of a `PairSampler` over a window of a few shards, which moves on through all of them.

    Features in many files are read from few of them at a time. A window stays for as many batches as its videos fill
    once, one at least; then come the next shards. Each pass visits every shard once, in an order of its own. Where no
    class has two videos within a window, the shards that follow join it; at the end of a pass it joins the window
    before it. With all shards in one window the batches are those of the PairSampler with the same seed.
    """

    def __init__(
        self,
        labels: np.ndarray,
        shards: np.ndarray,
        open_shards: int,
        batch_size: int = 10,
        num_pairs: int = 3,
        seed: int = 0,
    ):
        """labels: (N, C) multi-hot; shards: (N,) where each video lies. InputError as PairSampler's."""
        self._generator = np.random.default_rng(seed)
        PairSampler(labels, batch_size, num_pairs)  # which refuses what no window can do
        self._labels, self._batch_size, self._num_pairs, self._open = labels, batch_size, num_pairs, open_shards
        self._videos = [np.flatnonzero(shards == shard) for shard in np.unique(shards)]  # by shard
        self._orders = np.random.default_rng([seed, 3])  # apart from the batches' and snippets' streams
        self._begin(self._next_order())

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Video indices (batch_size,), and the pairs (P, 2) as rows of the batch."""
        if self._drawn * self._batch_size >= max(1, len(self.videos)):
            self._move_on()
        self._drawn += 1
        places, pairs = self._sampler.draw()
        return self.videos[places], pairs

    def _next_order(self) -> np.ndarray:
        return self._orders.permutation(len(self._videos))

    def _begin(self, order: np.ndarray) -> None:
        """A pass through the shards in this order."""
        self._order, self._windows = order, self._widened(order)
        self._enter(0)

    def _enter(self, window: int, drawn: int = 0) -> None:
        self._window, self._drawn = window, drawn
        self.videos = self._videos_in(self._windows[window])  # those that batches are drawn from
        self._sampler = PairSampler(self._labels[self.videos], self._batch_size, self._num_pairs, self._generator)

    def _move_on(self) -> None:
        if self._window + 1 < len(self._windows):
            self._enter(self._window + 1)
        else:
            self._begin(self._next_order())

    def _widened(self, order: np.ndarray) -> list[np.ndarray]:
        """The shards in this order, cut into windows each of which has a pair."""
        windows, shards = [], order[:0]
        for start in range(0, len(order), self._open):
            shards = np.append(shards, order[start : start + self._open])
            if not self._num_pairs or (self._labels[self._videos_in(shards)].sum(axis=0) >= 2).any():
                windows.append(shards)
                shards = order[:0]
        if len(shards):
            windows.append(np.append(windows.pop(), shards) if windows else shards)
        return windows

    def _videos_in(self, shards: np.ndarray) -> np.ndarray:
        return np.sort(np.concatenate([self._videos[shard] for shard in shards]))

    def state_dict(self) -> dict:
        """The generators' states, and how far the pass has come, in plain Python values."""
        return {
            "generator": self._generator.bit_generator.state,
            "orders": self._orders.bit_generator.state,
            "order": self._order.tolist(),
            "window": self._window,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: dict) -> None:
        """ValueError for the state of a sampler over other shards."""
        if sorted(state["order"]) != list(range(len(self._videos))):
            raise ValueError(f"a pass through {len(state['order'])} shards, not {len(self._videos)}")
        self._begin(np.array(state["order"]))
        self._enter(state["window"], state["drawn"])
        self._orders.bit_generator.state = state["orders"]
        self._generator.bit_generator.state = state["generator"]


def stratified_snippets(lengths: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """One snippet from each of `count` equal strata of [0, n), for every video.

    (B,) lengths n >= 1 -> (B, count) indices, non-decreasing; snippets repeat where a stratum is shorter than
    a snippet (n < count).
    """
    lengths = np.asarray(lengths)[:, None]  # (B, 1)
    places = np.arange(count) + generator.random((len(lengths), count))  # (B, count), one in each [i, i + 1)
    snippets = (places * (lengths / count)).astype(np.int64)
    return np.minimum(snippets, lengths - 1)  # rounding can carry a place just below n to n
