"""Detect actions in videos without labels.

python scripts/detect.py INPUT [...] --checkpoint runs/NAME/checkpoints/best.pt --output-dir OUT
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

import pandas as pd

from eval.csv_rows import SEGMENT_COLUMNS
from eval.detection_formats import write_detections
from eval.html_report.detection_files import annotations_of, open_detections
from eval.html_report.page import render_detections
from eval.html_report.player import add_segments, require_annotated, write_players
from eval.localizations import LOCALIZATION_SETTINGS, add_localization_options
from eval.outputs import write_outputs
from eval.tables import format_table, localized_table, read_annotations
from options import ANY_RECIPE_HELP
from utils.annotations import Annotations
from utils.datasets import Rate
from utils.detector import Detector, assumed_rate, load_detector
from utils.engine import VideoResult
from utils.errors import InputError, OneLineParser, count_noun, exit_on_input_error, name_some, shorten
from utils.features.convert import check_hdf5_names
from utils.features.store import FeatureStore
from utils.formats.files import file_name, save_figure, write_text
from utils.number_types import positive_float
from utils.run.devices import memory_advice
from utils.video.command import add_extraction_options, load_chosen_extractor
from utils.video.decode import VIDEO_SUFFIXES, find_videos
from utils.video.extract import extract_videos
from utils.video.stored import read_recipe, require_weights

MAX_PICTURES = 20  # also the number of pages without a player
MAX_ROWS = 20  # of the printed summary
PAGES = "pages"  # folder of the players


def main() -> None:
    """Run the command; the exit status is 1 if a video failed."""
    args = parse_args()
    if (args.output_dir / "options.yaml").exists():
        raise InputError(f"--output-dir {args.output_dir} is the folder of a run, whose results would be lost")
    settings = {name: value for name in LOCALIZATION_SETTINGS if (value := getattr(args, name)) is not None}
    truth = args.ground_truth and read_annotations(args.ground_truth, None)[0]
    videos = find_videos(path for path in args.inputs if has_videos(path))
    players = find_videos(args.video) or videos
    if videos and not all(map(has_videos, args.inputs)):
        raise InputError("the inputs are videos and features; detect in each by a command of its own")
    if videos and (args.video or args.snippet_rate):
        raise InputError("--video and --snippet-rate are for features as INPUT; leave them out")
    detector = load_detector(args.checkpoint, args.device, args.any_recipe, **settings)
    stores, failed = [] if videos else [detector.open(path) for path in args.inputs], []
    known = list(videos) or [video_id for store in stores for video_id in store.video_ids]
    if unknown := set(players) - set(known):
        raise InputError(f"--video: no features of {shorten(min(unknown))}; they have {name_some(known)}")
    if truth:
        require_annotated(known, truth, args.ground_truth)
    if videos:
        stores, failed = extract(detector, videos, args)
    if stores:
        rate = common_rate(detector, stores, args.snippet_rate)
        with memory_advice("use --device cpu"):
            results = detect(detector, stores, rate)
        write(args.output_dir, detector, stores, results, rate)
        write_pages(args, detector, stores, rate, settings, players, truth)
        print(summary(detector, [result for part in results for result in part], rate))
        files = "detections.json, detections.csv, outputs.h5, pictures/, pages/, report.html"
        print(f"the results are in {args.output_dir}: {files}")
    for error in failed:
        print(f"failed: {error}")
    if failed:
        raise SystemExit(1)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(
        prog="scripts/detect.py",
        description="Detect actions in videos without labels. Classes and settings come from the checkpoint. Writes "
        "detections.json (ActivityNet submission format, in seconds), detections.csv, outputs.h5 (attention and "
        f"T-CAM), pictures/ (the first {MAX_PICTURES} videos), pages/ (a player of each video beside its detections) "
        "and report.html. Videos that cannot be used are listed at the end, with exit status 1.",
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="video files or feature files, or folders of them")
    add("--checkpoint", required=True, help="best.pt, selected.pt or last.pt of a run")
    add("--output-dir", required=True, type=Path, help="folder for the detections and pages")
    help_text = "annotations.json, a dataset folder, or CSV; the pages show its segments beside the detections"
    add("--ground-truth", metavar="FILE", help=help_text)
    help_text = "copy each video beside its page, so that the folder can be moved (default: a relative link)"
    add("--copy-videos", action="store_true", help=help_text)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device; auto: the GPU if there is one")
    add("--any-recipe", action="store_true", help=ANY_RECIPE_HELP)
    group = parser.add_argument_group("features as INPUT")
    help_text = "snippets per second of features that do not store it (default: of the dataset of the checkpoint)"
    group.add_argument("--snippet-rate", type=positive_float, metavar="HZ", help=help_text)
    help_text = "videos of the features, for the pages; a file name without its extension is the name of the video"
    group.add_argument("--video", nargs="+", type=Path, default=[], metavar="FILE", help=help_text)
    add_extraction_options(parser.add_argument_group("videos as INPUT; the checkpoint stores their recipe"))
    add_localization_options(parser, trained=True)
    return parser.parse_args()


def has_videos(path: Path) -> bool:
    """Return True for a video file, or a folder of video files."""
    files = path.iterdir() if path.is_dir() else [path]
    return any(file.suffix.lower() in VIDEO_SUFFIXES for file in files)


def extract(
    detector: Detector, videos: Mapping[str, Path], args: argparse.Namespace
) -> tuple[list[FeatureStore], list[str]]:
    """Return the features of each video, and the errors of the others; print one line per video."""
    check_hdf5_names(videos)
    recipe = read_recipe(detector.recipe, detector.name)
    stores, failed = {}, []
    with memory_advice("lower --batch-size, or use --device cpu"):
        extractor = load_chosen_extractor(recipe, args)
        if not detector.any_recipe:
            require_weights(extractor, recipe, detector.name)
        for done, outcome in enumerate(extract_videos(extractor, videos, args.workers), 1):
            line = f"failed: {outcome.error}"
            if outcome.error:
                failed.append(outcome.error)
            else:
                path, rate = videos[outcome.video_id], Rate(recipe.fps, recipe.stride)
                store = stores[outcome.video_id] = detector.open_video(outcome.features, path, rate)
                line = f"{path}: {count_noun(store.num_snippets(outcome.video_id), 'snippet')}"
            print(f"[{done}/{len(videos)}] {line}", flush=True)
    return [stores[video_id] for video_id in videos if video_id in stores], failed


def common_rate(detector: Detector, stores: list[FeatureStore], snippet_rate: float | None) -> float:
    """Return the snippet rate of all features; print a note if it is an assumption.

    Raises:
        InputError: The features differ in their rate, or two of them contain the same video.
    """
    rates, paths = {}, {}
    for store in stores:
        rate, is_assumed = detector.rate(store, snippet_rate)
        rates.setdefault(rate, store.source.path)
        if is_assumed:
            print(f"{store.source.path}: {assumed_rate(rate)}; --snippet-rate changes it")
        for video_id in store.video_ids:
            if video_id in paths:
                raise InputError(f"video '{video_id}' is in {paths[video_id]} and in {store.source.path}; give it once")
            paths[video_id] = store.source.path
    if len(rates) > 1:
        got = ", ".join(f"{path} {rate:g}" for rate, path in rates.items())
        raise InputError(f"the features differ in snippets per second ({got}); detect in each by a command of its own")
    return next(iter(rates))


def detect(detector: Detector, stores: list[FeatureStore], rate: float) -> list[list[VideoResult]]:
    """Return the results of each store in stored order, and print one line per video."""
    total, done, results = sum(len(store.video_ids) for store in stores), 0, []
    for store in stores:
        print_left_out(store)
        found = {}
        for result in detector.results(store, rate, store.video_ids):
            done += 1
            found[result.video_id] = result
            seconds, found_here = len(result.attention) / rate, count_noun(len(result.detections), "detection")
            print(f"[{done}/{total}] {result.video_id}: {seconds:.1f} s, {found_here}")
        if empty := [video_id for video_id in store.video_ids if video_id not in found]:
            problem = f"{count_noun(len(empty), 'video')} without snippets"
            print(f"{store.source.path}: {problem}, left out ({name_some(empty)})")
        results.append([found[video_id] for video_id in store.video_ids if video_id in found])
    return results


def print_left_out(store: FeatureStore) -> None:
    """Print the number of videos that lack a modality."""
    listed = [video_id for modality in store.stored_modalities for video_id in store.source.video_ids(modality)]
    if partial := [video_id for video_id in dict.fromkeys(listed) if video_id not in store]:
        problem = f"{count_noun(len(partial), 'video')} without all of {', '.join(store.stored_modalities)}"
        print(f"{store.source.path}: {problem}, left out ({name_some(partial)})")


def write(
    folder: Path, detector: Detector, stores: list[FeatureStore], results: list[list[VideoResult]], rate: float
) -> None:
    """Write detections, outputs and pictures."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    videos = [result for part in results for result in part]
    table = localized_table({video.video_id: video.detections for video in videos}, detector.classes, rate)
    write_detections(folder / "detections.json", table, rate)
    columns = (
        [table.videos[video] for video in table.video],
        table.start,
        table.end,
        [table.classes[label] for label in table.label],
        table.score,
    )
    frame = pd.DataFrame(dict(zip((*SEGMENT_COLUMNS, "score"), columns, strict=True)))
    write_text(folder / "detections.csv", frame.to_csv(index=False, lineterminator="\n"))
    write_outputs(folder / "outputs.h5", videos, detector.classes, rate)
    pictured = [(store, result) for store, part in zip(stores, results, strict=True) for result in part]
    for store, result in pictured[:MAX_PICTURES]:
        figure = detector.draw(store, [result], rate)
        save_figure(figure, folder / "pictures" / f"{file_name(result.video_id)}.png", dpi=110)


def write_pages(
    args: argparse.Namespace,
    detector: Detector,
    stores: list[FeatureStore],
    rate: float,
    settings: Mapping[str, object],
    players: Mapping[str, Path],
    truth: Annotations | None,
) -> None:
    """Write report.html, and the page of each video that can be played and of the first others."""
    simulated = any(store.source.simulated for store in stores)
    sources = name_some(str(store.source.path) for store in stores)
    facts = {
        "checkpoint": detector.name,
        "features": f"{' + '.join(detector.modalities)}, {sources}{', SIMULATED' if simulated else ''}",
        "snippets per second": f"{rate:g}",
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()) or "as in training",
        "classes": name_some(detector.classes),
    }
    folder, spec = args.output_dir, detector.spec
    [run] = open_detections([folder], spec, facts=facts, simulated=simulated, modalities=detector.modalities)
    annotations = annotations_of([run])
    annotated = add_segments(annotations, truth) if truth else annotations
    shown = [name for number, name in enumerate(run.detections.videos) if number < MAX_PICTURES or name in players]
    videos = {name: players.get(name) for name in shown}
    pages = write_players(folder / PAGES, run, annotated, videos, args.copy_videos)
    links = {name: f"{PAGES}/{address}" for name, address in pages.items()}
    write_text(folder / "report.html", render_detections([run], annotations, None, links))


def summary(detector: Detector, videos: list[VideoResult], rate: float) -> str:
    """Return a table of the videos: length, number of detections, and the best detection."""
    rows = [["video", "best class", "start, s", "end, s", "score", "detections", "video, s"]]
    for result in videos[:MAX_ROWS]:
        best = result.detections[result.detections["score"].argsort()[-1:]]
        cells = [[detector.classes[b["label"]], b["start"] / rate, b["end"] / rate, b["score"]] for b in best]
        label, *numbers = cells[0] if cells else ["–"]
        texts = [f"{round(number, 2) + 0.0:.2f}" for number in numbers] or ["–"] * 3  # 0.0 in place of -0.0
        length = f"{len(result.attention) / rate:.1f}"
        rows.append([result.video_id, label, *texts, str(len(result.detections)), length])
    more = [f"... and {len(videos) - MAX_ROWS} more videos"] if len(videos) > MAX_ROWS else []
    return "\n".join(["", format_table(rows, left=2), *more])


if __name__ == "__main__":
    exit_on_input_error(main)
