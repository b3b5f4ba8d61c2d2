"""Datasets: everything that differs between them, as data. A config can define a further one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError, shorten
from utils.formats.files import read_yaml


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

_ACTIVITYNET = {
    "train_subset": "training",
    "test_subset": "validation",
    "tiou_thresholds": (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    "average_ranges": ((0.5, 0.95),),
    "main_range": (0.5, 0.95),
    "min_snippets": 11,  # the release leaves out videos with 10 snippets or fewer
    "pools_over_time": True,
}
_THUMOS = {
    "train_subset": "validation",
    "test_subset": "test",
    "tiou_thresholds": _THUMOS_THRESHOLDS,
    "average_ranges": _THUMOS_RANGES,
    "main_range": (0.1, 0.7),
}

DATASETS = {
    "thumos14": DatasetSpec("thumos14", **_THUMOS),
    "multithumos": DatasetSpec("multithumos", **_THUMOS),
    "activitynet12": DatasetSpec("activitynet12", **_ACTIVITYNET),
    "activitynet13": DatasetSpec("activitynet13", **_ACTIVITYNET),
    # The release has 402 validation and 402 test clips; the audio-visual paper reports 804 test videos.
    "ave": DatasetSpec(
        "ave",
        **{**_THUMOS, "train_subset": "train+background", "test_subset": "val+test"},
        snippet_rate=1.0,
        accuracy_subsets=("val+test", "test"),
    ),
    "demo": DatasetSpec("demo", **{**_THUMOS, "train_subset": "train"}),
}

# Options that define a dataset; a published one has them as defaults.
DATASET_OPTIONS = ("train_subset", "test_subset", "tiou_thresholds", "average_ranges", "snippet_rate", "min_snippets")


def dataset_options(name: str) -> dict:
    """Return the values of DATASET_OPTIONS; a dataset without published ones has those of THUMOS14, and no subsets."""
    spec = DATASETS.get(name) or DatasetSpec(name, **{**_THUMOS, "train_subset": None, "test_subset": None})
    return {
        "train_subset": spec.train_subset,
        "test_subset": spec.test_subset,
        "tiou_thresholds": list(spec.tiou_thresholds),
        "average_ranges": [f"{low:g}:{high:g}" for low, high in spec.average_ranges],
        "snippet_rate": spec.snippet_rate,
        "min_snippets": spec.min_snippets,
    }


def dataset_spec(options: Mapping[str, object]) -> DatasetSpec:
    """Return the dataset that options define: `dataset` and any of DATASET_OPTIONS, as in a config.

    The main range selects the best checkpoint. It is the published range if that is among the averaged ranges, else the
    first of them.

    Raises:
        InputError: If a value cannot be used, or a dataset without published values has no subsets.
    """
    name = options["dataset"]
    given = {key: options[key] for key in DATASET_OPTIONS if options.get(key) is not None}
    values = {**dataset_options(name), **given}
    for key in ("train_subset", "test_subset"):
        if not isinstance(values[key], str):
            raise InputError(
                f"dataset '{name}' has no published {key} (published: {', '.join(DATASETS)}); set {key} in the "
                f"config, or --{key.replace('_', '-')}"
            )
    try:
        thresholds = tuple(float(threshold) for threshold in values["tiou_thresholds"])
        ranges = tuple(parse_range(text) for text in values["average_ranges"])
        snippet_rate, min_snippets = float(values["snippet_rate"]), int(values["min_snippets"])
        if not thresholds or not ranges or not all(0 < t <= 1 for t in thresholds) or not snippet_rate > 0:
            raise ValueError("out of range")
    except (TypeError, ValueError) as error:
        raise InputError(f"dataset '{name}': {shorten(given)} cannot be used ({error})") from None
    for low, high in ranges:
        if not any(low <= threshold <= high for threshold in thresholds):
            raise InputError(f"dataset '{name}': no tIoU threshold lies in the averaged range {low:g}:{high:g}")
    published = DATASETS.get(name) or DatasetSpec(name, **_THUMOS)
    return replace(
        published,
        train_subset=values["train_subset"],
        test_subset=values["test_subset"],
        tiou_thresholds=thresholds,
        average_ranges=ranges,
        main_range=published.main_range if published.main_range in ranges else ranges[0],
        snippet_rate=snippet_rate,
        min_snippets=min_snippets,
    )


def parse_range(text: str) -> tuple[float, float]:
    """Return a range of tIoU from text such as `0.1:0.7`; ValueError for another text."""
    low, high = (float(part) for part in str(text).split(":"))
    if not 0 < low <= high <= 1:
        raise ValueError(f"{text!r} is not a range of tIoU such as 0.1:0.7")
    return low, high


def find_dataset(name: str) -> DatasetSpec:
    """Return a published dataset by name, or the dataset that a config file (or options.yaml of a run) defines.

    Raises:
        InputError: If there is neither such a dataset nor such a file, or the file defines none.
    """
    if name in DATASETS:
        return DATASETS[name]
    if not name.endswith((".yaml", ".yml")):
        raise InputError(f"dataset '{name}' not found; expected one of {', '.join(DATASETS)}, or a config file (.yaml)")
    options, path, seen = {}, Path(name), set()
    while "\0" not in str(path) and path.resolve() not in seen:
        seen.add(path.resolve())
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected lines of 'option: value'")
        options = {**content, **options}
        if content.get("base") is None:
            break
        path = path.parent / str(content["base"])
    if not isinstance(options.get("dataset"), str):
        raise InputError(f"{name}: has no line 'dataset: NAME'")
    return dataset_spec(options)
