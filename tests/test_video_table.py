"""Videos in columns are the videos that were packed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from utils.video_table import Video, VideoTable

CLASSES = ("A", "B", "C")
names = st.lists(st.sampled_from(CLASSES), max_size=4)


def video(number: int, subset: str, duration: float | None, labels: list[str], segment_labels: list[str]) -> Video:
    times = np.arange(2.0 * len(segment_labels)).reshape(-1, 2) + number
    weak = tuple(sorted(set(labels)))
    return Video(f"v{number}", subset, duration, weak, times, tuple(segment_labels), times[1:] / 2)


videos = st.lists(
    st.tuples(st.sampled_from(["val", "Val", "test"]), st.none() | st.floats(0, 9), names, names), max_size=6
).map(lambda rows: [video(number, *row) for number, row in enumerate(rows)])


def assert_same(one: Video, other: Video) -> None:
    for name in ("video_id", "subset", "duration", "labels", "segment_labels"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("segments", "ambiguous"):
        assert getattr(one, name).dtype == np.float64
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(videos)
def test_a_table_gives_the_videos_back(videos):
    table = VideoTable.pack(videos)
    assert list(table) == [video.video_id for video in videos]
    assert "other" not in table
    for packed, given_video in zip(table.values(), videos, strict=True):
        assert_same(packed, given_video)


@given(videos, st.sampled_from(["val", "TEST", "val+test", "other"]), st.permutations(CLASSES), st.randoms())
def test_subsets_and_labels_are_those_of_the_videos(videos, subset, classes, random):
    table = VideoTable.pack(videos)
    assert table.in_subset(subset) == [video.video_id for video in videos if video.is_in(subset)]
    chosen = random.sample(videos, len(videos))
    matrix = table.label_matrix([video.video_id for video in chosen], classes)
    expected = [[name in video.labels for name in classes] for video in chosen]
    np.testing.assert_array_equal(matrix, np.array(expected, dtype=bool).reshape(len(chosen), len(classes)))
