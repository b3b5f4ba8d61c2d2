"""Random choice of the videos of a training batch, and of the snippets of each video.

Each sampler has its own random generator, and checkpoints include its state. So a resumed run has the same batches as
an uninterrupted run.
"""

from collections.abc import Callable

import numpy as np

from utils.errors import InputError


class PairSampler:
    """Batches whose first rows are pairs of videos with a common class, for the co-activity similarity loss.

    The class of a pair is drawn uniformly from the classes with at least two videos, then two different videos of it.
    The rest of the batch is drawn uniformly from all videos, with replacement, as in W-TALC.

    Args:
        labels: (N, C) multi-hot labels.
        batch_size: Videos per batch.
        num_pairs: Pairs per batch.
        seed: Seed of the batches, or the generator that draws them.

    Raises:
        InputError: The pairs do not fit into a batch, or no class has two videos.
    """

    def __init__(
        self, labels: np.ndarray, batch_size: int = 10, num_pairs: int = 3, seed: int | np.random.Generator = 0
    ):
        if num_pairs < 0 or batch_size < max(1, 2 * num_pairs):
            raise InputError(f"--num-pairs {num_pairs} does not fit into a batch of {batch_size} videos")
        self.batch_size = batch_size
        self.num_pairs = num_pairs
        self.num_videos = len(labels)
        members = [np.flatnonzero(column) for column in np.asarray(labels).T]
        self.pairable = [videos for videos in members if len(videos) >= 2]
        if num_pairs and not self.pairable:
            raise InputError("no class has two videos, so no pair shares a class; use --num-pairs 0")
        self._generator = np.random.default_rng(seed)

    def draw(self) -> np.ndarray:
        """Return the videos of the next batch, (batch_size,) indices; rows 2p and 2p + 1 are pair p."""
        pairs = np.empty((self.num_pairs, 2), dtype=np.int64)
        for row in pairs:
            videos = self.pairable[self._generator.integers(len(self.pairable))]
            row[:] = self._generator.choice(videos, size=2, replace=False)
        rest = self._generator.integers(self.num_videos, size=self.batch_size - pairs.size)
        return np.concatenate([pairs.ravel(), rest])

    def state_dict(self) -> dict:
        """Return the state of the generator, as plain Python values."""
        return self._generator.bit_generator.state

    def load_state_dict(self, state: dict) -> None:
        """Continue with the draw that `state_dict` described."""
        self._generator.bit_generator.state = state


class ShardSampler:
    """Batches of a `PairSampler` over a window of a few shards, which moves through all of them.

    So features in many files are read from a few files at a time. The videos of a window fill a number of batches; the
    window stays for so many batches, at least one. A pass visits every shard once, in random order. If no class has two
    videos in a window, it also gets the next shards; at the end of a pass it joins the previous window. With all shards
    in one window, the batches equal those of the PairSampler with the same seed.

    Args:
        labels: (N, C) multi-hot labels.
        shards: (N,) number of the shard that contains each video.
        open_shards: Shards per window.
        batch_size: Videos per batch.
        num_pairs: Pairs per batch.
        seed: Seed of the batches and of the order of the shards.

    Raises:
        InputError: As in `PairSampler`.
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
        self._generator = np.random.default_rng(seed)
        PairSampler(labels, batch_size, num_pairs)  # raises InputError for what no window can fulfill
        self._labels, self._batch_size, self._num_pairs = labels, batch_size, num_pairs
        self._open_shards = open_shards
        self._by_shard = [np.flatnonzero(shards == shard) for shard in np.unique(shards)]  # videos
        self._orders = np.random.default_rng([seed, 3])  # independent of the batches and the snippets
        self._begin_pass(self._orders.permutation(len(self._by_shard)))

    def draw(self) -> np.ndarray:
        """Return the videos of the next batch, (batch_size,) indices; rows 2p and 2p + 1 are pair p."""
        if self._drawn * self._batch_size >= max(1, len(self.videos)):
            if self._window + 1 < len(self._windows):
                self._enter_window(self._window + 1)
            else:
                self._begin_pass(self._orders.permutation(len(self._by_shard)))
        self._drawn += 1
        return self.videos[self._sampler.draw()]

    def _begin_pass(self, order: np.ndarray) -> None:
        self._order, self._windows = order, self._cut_into_windows(order)
        self._enter_window(0)

    def _enter_window(self, window: int, drawn: int = 0) -> None:
        self._window, self._drawn = window, drawn  # drawn: batches from this window so far
        self.videos = self._videos_in(self._windows[window])
        self._sampler = PairSampler(self._labels[self.videos], self._batch_size, self._num_pairs, self._generator)

    def _cut_into_windows(self, order: np.ndarray) -> list[np.ndarray]:
        """Return the shards in this order, cut into windows that each contain a pair."""
        windows, shards = [], order[:0]
        for start in range(0, len(order), self._open_shards):
            shards = np.append(shards, order[start : start + self._open_shards])
            if not self._num_pairs or (self._labels[self._videos_in(shards)].sum(axis=0) >= 2).any():
                windows.append(shards)
                shards = order[:0]
        if len(shards):
            windows.append(np.append(windows.pop(), shards) if windows else shards)
        return windows

    def _videos_in(self, shards: np.ndarray) -> np.ndarray:
        return np.sort(np.concatenate([self._by_shard[shard] for shard in shards]))

    def state_dict(self) -> dict:
        """Return the states of the generators and the position in the pass, as plain Python values."""
        return {
            "generator": self._generator.bit_generator.state,
            "orders": self._orders.bit_generator.state,
            "order": self._order.tolist(),
            "window": self._window,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue with the draw that `state_dict` described.

        Raises:
            ValueError: The state belongs to other shards.
        """
        if sorted(state["order"]) != list(range(len(self._by_shard))):
            raise ValueError(f"expected a pass through {len(self._by_shard)} shards, got {len(state['order'])}")
        self._begin_pass(np.array(state["order"]))
        self._enter_window(state["window"], state["drawn"])
        self._orders.bit_generator.state = state["orders"]
        self._generator.bit_generator.state = state["generator"]


def rank_rows(batch_size: int, num_pairs: int, rank: int, num_ranks: int) -> np.ndarray:
    """Return the rows of a batch that one of several processes takes.

    Rank r takes both rows of the pairs p with p mod num_ranks = r. Other rows fill its share of
    batch_size / num_ranks rows.

    Raises:
        InputError: The batch cannot be divided evenly without splitting a pair.
    """
    share, remainder = divmod(batch_size, num_ranks)
    most_pairs = -(-num_pairs // num_ranks)
    if remainder or 2 * most_pairs > share:
        below, above = share * num_ranks, (share + bool(remainder)) * num_ranks
        smallest = max(1, 2 * most_pairs) * num_ranks
        fitting = sorted({size for size in (below, above) if size >= smallest}) or [smallest]
        raise InputError(
            f"a batch of {batch_size} videos with {num_pairs} pairs cannot be divided among {num_ranks} processes; "
            f"use --batch-size {' or '.join(map(str, fitting))}"
        )
    paired = np.arange(2 * num_pairs).reshape(-1, 2)[rank::num_ranks]
    taken = [2 * len(range(other, num_pairs, num_ranks)) for other in range(num_ranks)]  # paired rows per rank
    first = 2 * num_pairs + sum(share - rows for rows in taken[:rank])
    return np.concatenate([paired.ravel(), np.arange(first, first + share - paired.size)])


def stratified_snippets(lengths: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return one random snippet from each of `count` equal strata of [0, n), per video.

    Args:
        lengths: (B,) numbers of snippets n >= 1.
        count: T, snippets per video.
        generator: Source of randomness.

    Returns:
        (B, T) indices, non-decreasing. They repeat where a stratum is shorter than a snippet (n < T).
    """
    lengths = np.asarray(lengths)[:, None]  # (B, 1)
    positions = np.arange(count) + generator.random((len(lengths), count))  # (B, T), one in each [i, i + 1)
    snippets = (positions * (lengths / count)).astype(np.int64)
    return np.minimum(snippets, lengths - 1)  # rounding can turn a position just below n into n


def release_snippets(lengths: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return `count` snippets per video, drawn as in the release.

    Snippet i of T is one of floor(i n / T), ..., floor((i + 1) n / T), and the last one ends at n - 1. Both ends are
    included, so neighboring parts overlap. Without jitter where both floors are equal, as for most i with n < T. A
    video with n = T is taken as it is.

    Args:
        lengths: (B,) numbers of snippets n >= 1.
        count: T, snippets per video.
        generator: Source of randomness.

    Returns:
        (B, T) indices, non-decreasing.
    """
    lengths = np.asarray(lengths)[:, None]  # (B, 1)
    edges = (np.arange(count + 1) * lengths) // count  # (B, T + 1)
    first, last = edges[:, :-1], np.minimum(edges[:, 1:], lengths - 1)
    drawn = first + (generator.random(first.shape) * (last - first + 1)).astype(np.int64)  # (B, T)
    return np.where(lengths == count, first, drawn)


SAMPLINGS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "stratified": stratified_snippets,
    "release": release_snippets,
}
