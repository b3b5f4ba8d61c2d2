"""Datasets: everything that differs between them, as data."""

from dataclasses import dataclass
from typing import NamedTuple


class Rate(NamedTuple):
    """Frame rate of the videos and stride of the snippets at which features were extracted."""

    fps: float
    stride: float  # frames per snippet

    @property
    def snippet_rate(self) -> float:
        """Snippets per second."""
        return self.fps / self.stride


RELEASE_RATE = Rate(25, 16)  # the releases' I3D features
SNIPPET_RATE = RELEASE_RATE.snippet_rate


@dataclass(frozen=True)
class DatasetSpec:
    """Published protocol of one dataset."""

    name: str
    train_subset: str
    test_subset: str
    tiou_thresholds: tuple[float, ...]
    average_ranges: tuple[tuple[float, float], ...]  # tIoU ranges averaged in tables, both ends included
    main_range: tuple[float, float]  # range whose mean mAP selects the best checkpoint
    snippet_rate: float = SNIPPET_RATE  # Hz, for features that do not store their rate
    min_snippets: int = 1  # shorter videos are left out of training and test
    pools_over_time: bool = False  # True: the network averages T-CAM and attention over time
    accuracy_subsets: tuple[str, ...] = ()  # subsets scored by snippet accuracy; the first selects the best checkpoint

    def temporal_pool(self, num_snippets: int) -> int | None:
        """Return the kernel of the temporal average pool in snippets (odd; 13 for 60), None for no pool."""
        return (num_snippets // 5) // 2 * 2 + 1 if self.pools_over_time else None


# Literals instead of linspace or arange: 0.3 and 0.30000000000000004 give different AP on a snippet grid.
_THUMOS_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_THUMOS_RANGES = ((0.1, 0.5), (0.1, 0.7), (0.1, 0.9))

DATASETS = {
    "thumos14": DatasetSpec(
        name="thumos14",
        train_subset="validation",
        test_subset="test",
        tiou_thresholds=_THUMOS_THRESHOLDS,
        average_ranges=_THUMOS_RANGES,
        main_range=(0.1, 0.7),
    ),
    "activitynet12": DatasetSpec(
        name="activitynet12",
        train_subset="training",
        test_subset="validation",
        tiou_thresholds=(0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
        average_ranges=((0.5, 0.95),),
        main_range=(0.5, 0.95),
        min_snippets=11,  # the release leaves out videos with 10 snippets or fewer
        pools_over_time=True,
    ),
    # The release has 402 validation and 402 test clips; the audio-visual paper reports 804 test videos.
    "ave": DatasetSpec(
        name="ave",
        train_subset="train+background",
        test_subset="val+test",
        tiou_thresholds=_THUMOS_THRESHOLDS,
        average_ranges=_THUMOS_RANGES,
        main_range=(0.1, 0.7),
        snippet_rate=1.0,
        accuracy_subsets=("val+test", "test"),
    ),
    "demo": DatasetSpec(
        name="demo",
        train_subset="train",
        test_subset="test",
        tiou_thresholds=_THUMOS_THRESHOLDS,
        average_ranges=_THUMOS_RANGES,
        main_range=(0.1, 0.7),
    ),
}
