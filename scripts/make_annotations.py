"""Write annotations.json for videos and a CSV file of their labels.

python scripts/make_annotations.py VIDEOS --labels labels.csv --out DIR [--test-share 0.3] [--seed 0]
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

import numpy as np
from tqdm import tqdm

from eval.csv_rows import read_rows
from utils.annotations import parse_annotations
from utils.errors import InputError, OneLineParser, count_noun, exit_on_input_error, name_some, shorten
from utils.features.convert import ANNOTATIONS, write_files
from utils.number_types import fraction_below_one, non_negative_float, seed
from utils.video.decode import NO_LIMITS, VIDEO_SUFFIXES, find_videos, measure_duration

TRAIN, TEST = "train", "test"


def main() -> None:
    """Write annotations.json; the exit status is 1 if a video cannot be read."""
    parser = OneLineParser(
        prog="scripts/make_annotations.py",
        description="Write DIR/annotations.json for videos and their labels. The CSV file has a header `video,label` "
        "and one row per video and class. Optional columns: `start` and `end` (seconds) of an action, which are needed "
        "to score test videos, and `subset`, for every video or for none. Durations are read from the videos.",
    )
    add = parser.add_argument
    add("videos", nargs="+", type=Path, metavar="VIDEO", help="video files, or folders that are searched for videos")
    add("--labels", type=Path, required=True, metavar="CSV", help="file with the columns video and label")
    add("--out", type=Path, required=True, metavar="DIR", help="dataset folder to write annotations.json into")
    help_text = f"share of each class's videos in the subset `{TEST}`, if no subset is given (default: %(default)s)"
    add("--test-share", type=fraction_below_one, default=0.3, metavar="SHARE", help=help_text)
    add("--seed", type=seed, default=0, help="random seed of the split (default: %(default)s)")
    args = parser.parse_args()
    if (args.out / ANNOTATIONS).exists():
        raise InputError(f"{args.out / ANNOTATIONS}: already exists; choose another --out, or move the file away")
    paths, failed = find_videos(args.videos), []
    database = read_labels(args.labels, paths)
    for video_id in tqdm(list(database), desc="reading durations", unit="video", disable=None):
        try:
            database[video_id]["duration"] = round(measure_duration(paths[video_id], NO_LIMITS), 3)
        except InputError as error:
            failed.append(str(error))
            del database[video_id]
    if not database:
        raise InputError(f"no video can be read: {failed[0]}")
    if not any("subset" in video for video in database.values()):
        split(database, args.test_share, args.seed)
    classes = sorted({label for video in database.values() for label in video["labels"]})
    content = {"classes": classes, "database": database}
    parse_annotations(content, str(args.labels))  # the checks of every reader
    write_files(args.out, {}, {}, content)
    for subset in sorted({video["subset"] for video in database.values()}):
        videos = [video for video in database.values() if video["subset"] == subset]
        segments = sum(len(video["annotations"]) for video in videos)
        print(f"{subset}: {count_noun(len(videos), 'video')}, {count_noun(segments, 'annotated segment')}")
    if others := [video_id for video_id in paths if video_id not in database]:
        print(f"{count_noun(len(others), 'video')} without labels, left out ({name_some(others)})")
    print(f"{args.out / ANNOTATIONS}: {count_noun(len(database), 'video')} of {count_noun(len(classes), 'class')}")
    for error in failed:
        print(f"failed: {error}")
    if failed:
        raise SystemExit(1)


def read_labels(path: Path, videos: Mapping[str, Path]) -> dict[str, dict]:
    """Return the entries of the videos in a CSV file, without their durations.

    Raises:
        InputError: The file cannot be used, names a video that does not exist, gives a video two subsets, or gives only
            some videos a subset.
    """
    database: dict[str, dict] = {}
    for place, (name, label, start, end, subset) in read_rows(
        path, ("video-id", "label"), ("t-start", "t-end", "subset")
    ):
        file = Path(name)
        video_id = file.stem if file.suffix.lower() in VIDEO_SUFFIXES else name
        if video_id not in videos:
            raise InputError(f"{place}: no such video among {count_noun(len(videos), 'file')}; expected its file name")
        if not label.strip():
            raise InputError(f"{place}: the label is empty")
        entry = database.setdefault(video_id, {"labels": [], "annotations": []})
        if label not in entry["labels"]:
            entry["labels"].append(label)
        if start or end:
            segment = [parse_seconds(time, place) for time in (start, end)]
            entry["annotations"].append({"label": label, "segment": segment})
        if subset and entry.setdefault("subset", subset) != subset:
            raise InputError(f"{place}: is in the subsets '{entry['subset']}' and '{subset}'; expected one")
    if not database:
        raise InputError(f"{path}: has no rows")
    if len({"subset" in entry for entry in database.values()}) > 1:
        without = next(video_id for video_id, entry in database.items() if "subset" not in entry)
        raise InputError(f"{path}: {shorten(without)} has no subset; give one for every video, or for none")
    return database


def parse_seconds(text: str | None, place: str) -> float:
    """Convert a time in seconds; InputError for anything else."""
    try:
        return non_negative_float(text or "")
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{place}: expected start and end in seconds, but {error}") from None


def split(database: dict[str, dict], test_share: float, seed: int) -> None:
    """Put a share of each class's videos into the test subset, at random. Each class has at least one training video.

    A video with several labels counts for the first one in alphabetical order.
    """
    groups = defaultdict(list)
    for video_id in sorted(database):
        groups[min(database[video_id]["labels"])].append(video_id)
    generator = np.random.default_rng(seed)
    for label in sorted(groups):
        order = generator.permutation(groups[label])
        count = min(round(test_share * len(order)), len(order) - 1)
        for index, video_id in enumerate(order):
            database[str(video_id)]["subset"] = TEST if index < count else TRAIN


if __name__ == "__main__":
    exit_on_input_error(main)
