"""Annotated videos in columns: about 100 bytes per video, where objects take a kilobyte."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress

import numpy as np


@dataclass(frozen=True)
class Video:
    """One annotated video."""

    video_id: str
    subset: str
    duration: float | None  # seconds
    labels: tuple[str, ...]  # weak labels in class order; training reads nothing else
    segments: np.ndarray  # (N, 2) float64, [start, end] in seconds
    segment_labels: tuple[str, ...]  # (N,)
    ambiguous: np.ndarray  # (M, 2) float64, seconds

    def is_in(self, subset: str) -> bool:
        """Return True if the video belongs to a subset, or to one of several (`val+test`)."""
        return self.subset.casefold() in subset_names(subset)


def subset_names(name: str) -> set[str]:
    """Return the subsets that a name stands for, in lower case: `val+test` is itself, `val` and `test`."""
    name = name.casefold()
    return {name, *name.split("+")}


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Return the number of each name in order of first appearance."""
    numbers: dict[str, int] = {}
    for name in names:
        numbers.setdefault(name, len(numbers))
    return numbers


class VideoTable(Mapping[str, Video]):
    """Videos by id, in order; an item is made when it is asked for.

    Args:
        numbers: Number of each of the N videos by id, in order; see `numbered`.
        subsets: Names of subsets.
        classes: Names of labels.
        columns: Arrays by name. Per video, `subset` (N,) and `duration` (N,), NaN if unknown. Its labels, segments and
            ambiguous segments are the rows `starts[n]` to `starts[n + 1]` of `labels`, `segments` with
            `segment_labels`, and `ambiguous`, with `label_starts`, `segment_starts` and `ambiguous_starts`.
    """

    def __init__(
        self, numbers: dict[str, int], subsets: Sequence[str], classes: Sequence[str], columns: Mapping[str, np.ndarray]
    ):
        self.numbers, self.subsets, self.classes, self.columns = numbers, subsets, classes, columns

    @classmethod
    def pack(cls, videos: Iterable[Video]) -> "VideoTable":
        """Return a table of videos."""
        videos = list(videos)
        subsets, classes = numbered(v.subset for v in videos), numbered(chain(*(v.labels for v in videos)))
        classes |= numbered(chain(classes, *(v.segment_labels for v in videos)))
        durations = [np.nan if v.duration is None else v.duration for v in videos]
        columns = {
            "subset": np.array([subsets[v.subset] for v in videos], np.uint32),
            "duration": np.array(durations, np.float64),
            "labels": np.array([classes[label] for v in videos for label in v.labels], np.uint32),
            "label_starts": _starts(len(v.labels) for v in videos),
            "segments": np.concatenate([np.empty((0, 2)), *(v.segments for v in videos)]),
            "segment_labels": np.array([classes[label] for v in videos for label in v.segment_labels], np.uint32),
            "segment_starts": _starts(len(v.segments) for v in videos),
            "ambiguous": np.concatenate([np.empty((0, 2)), *(v.ambiguous for v in videos)]),
            "ambiguous_starts": _starts(len(v.ambiguous) for v in videos),
        }
        return cls(numbered(v.video_id for v in videos), list(subsets), list(classes), columns)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self.numbers

    def __getitem__(self, video_id: str) -> Video:
        number = self.numbers[video_id]
        labels, segments, ambiguous = (
            slice(*self.columns[f"{name}_starts"][number : number + 2].tolist())
            for name in ("label", "segment", "ambiguous")
        )
        duration = float(self.columns["duration"][number])
        return Video(
            video_id,
            self.subsets[self.columns["subset"][number]],
            None if np.isnan(duration) else duration,
            tuple(self.classes[label] for label in self.columns["labels"][labels].tolist()),
            self.columns["segments"][segments],
            tuple(self.classes[label] for label in self.columns["segment_labels"][segments].tolist()),
            self.columns["ambiguous"][ambiguous],
        )

    def in_subset(self, name: str) -> list[str]:
        """Return the videos of a subset, or of several (`val+test`)."""
        chosen = [number for number, subset in enumerate(self.subsets) if subset.casefold() in subset_names(name)]
        return list(compress(self.numbers, np.isin(self.columns["subset"], chosen)))

    def label_matrix(self, video_ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
        """Return the multi-hot weak labels (len(video_ids), len(classes)) bool."""
        rows, owners = self.rows_of(video_ids, "label")
        order = numbered(classes)
        matrix = np.zeros((len(video_ids), len(classes)), dtype=bool)
        numbers = np.array([order.get(name, 0) for name in self.classes], np.int64)
        matrix[owners, numbers[self.columns["labels"][rows]]] = True
        return matrix

    def rows_of(self, video_ids: Sequence[str], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows (R,) of some videos in columns of any length, and the index of the video of each row (R,).

        Args:
            video_ids: The videos, in the order wanted.
            name: `label`, `segment` or `ambiguous`.
        """
        numbers = np.fromiter(map(self.numbers.__getitem__, video_ids), np.int32, len(video_ids))
        first = self.columns[f"{name}_starts"][numbers]
        counts = self.columns[f"{name}_starts"][numbers + 1] - first
        owners = np.repeat(np.arange(len(numbers), dtype=np.int32), counts)
        first -= _starts(counts)[:-1]  # may wrap around below 0; the sum with the repeated values wraps back
        return np.arange(len(owners), dtype=np.uint32) + np.repeat(first, counts), owners


def _starts(counts: Iterable[int]) -> np.ndarray:
    """Return where the rows of each video start, and where the last ones end."""
    return np.cumsum([0, *counts], dtype=np.uint32)
