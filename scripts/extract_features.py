"""Extract features from videos into a dataset folder.

python scripts/extract_features.py VIDEOS --out DIR --recipe r2plus1d_18 [--weights FILE]
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from tqdm import tqdm

from utils.errors import InputError, OneLineParser, count_noun, exit_on_input_error
from utils.features.convert import FEATURES, check_hdf5_names
from utils.number_types import positive_float, positive_int
from utils.run.devices import memory_advice
from utils.run.ranks import ranks_from_environment
from utils.run.slurm import run_jobs, slurm_parameter
from utils.video.backbones import BACKBONES, RECIPES
from utils.video.command import add_extraction_options, load_chosen_extractor
from utils.video.decode import find_videos, read_facts
from utils.video.extract import Extractor, extract_videos
from utils.video.flow import FLOWS
from utils.video.folder import FeatureFolder
from utils.video.recipe import Recipe


def main() -> None:
    """Extract features; the exit status is 1 if a video failed."""
    args, command = parse_args()
    if args.slurm is not None:
        run_on_slurm([sys.executable, str(Path(__file__).resolve()), *command], args)
        return
    videos = find_videos(args.videos)
    check_hdf5_names(videos)
    recipe = choose_recipe(args)
    with memory_advice("lower --batch-size, or use --device cpu"):
        extractor = load_chosen_extractor(recipe, args)
        with FeatureFolder(args.out, extractor.recipe) as folder:
            failed = extract(extractor, videos, folder, args.workers)
    if failed:
        if ranks_from_environment().size > 1:
            folder.wait()  # torchrun stops all processes when one fails
        raise SystemExit(1)


def run_on_slurm(command: list[str], args: argparse.Namespace) -> None:
    """Run a command as jobs that share the videos, and wait for them."""
    failed, folder, advice = 0, args.out / "slurm", "the jobs continue"
    for number, error in run_jobs([command] * args.jobs, "extract", folder, dict(args.slurm), advice):
        failed += error is not None
        print(f"job {number + 1} of {args.jobs} {'failed' if error else 'is done'}", flush=True)
    if failed:
        raise InputError(f"{failed} of {count_noun(args.jobs, 'job')} failed, see {folder}; the same command continues")


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the command line without those for SLURM."""
    starter = OneLineParser(prog="scripts/extract_features.py", add_help=False)
    add = starter.add_argument_group("jobs of a SLURM cluster").add_argument
    parameters = {"type": slurm_parameter, "nargs": "*", "metavar": "NAME=VALUE"}
    add("--slurm", **parameters, help="run as jobs of a SLURM cluster, with these parameters of submitit's executor")
    add("--jobs", type=positive_int, default=1, metavar="N", help="jobs that share the videos (default: %(default)s)")
    command = starter.parse_known_args()[1]
    parser = OneLineParser(
        prog="scripts/extract_features.py",
        description="Extract features from videos into DIR/features.h5, video by video. The command can be stopped at "
        "any moment; run it again to continue. Several processes that run it share the videos. Videos that cannot "
        "be used are listed at the end, with exit status 1.",
        parents=[starter],
    )
    add = parser.add_argument
    add("videos", nargs="+", type=Path, metavar="VIDEO", help="video files, or folders that are searched for videos")
    add("--out", type=Path, required=True, metavar="DIR", help="dataset folder to write features.h5 into")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--backbone", choices=list(BACKBONES), help="backbone, with its default recipe")
    choice.add_argument("--recipe", choices=list(RECIPES), help="published recipe")
    help_text = "optical flow, for backbones with a flow network; none: RGB alone (default: the recipe's)"
    add("--flow", choices=FLOWS, help=help_text)
    add("--fps", type=positive_float, metavar="HZ", help="frames per second (default: the recipe's)")
    add("--frames", type=positive_int, metavar="N", help="frames per clip (default: the recipe's)")
    add("--stride", type=positive_int, metavar="N", help="frames from one snippet to the next (default: the recipe's)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device; auto: the GPU if there is one")
    add_extraction_options(parser)
    return parser.parse_args(), command


def choose_recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe that the options name, with their changes."""
    recipe = RECIPES[args.recipe] if args.recipe else BACKBONES[args.backbone].recipe
    given = {name: getattr(args, name) for name in ("flow", "fps", "frames", "stride")}
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def extract(extractor: Extractor, videos: Mapping[str, Path], folder: FeatureFolder, workers: int) -> dict[str, str]:
    """Extract the videos that the folder lacks, print a summary, and return the errors by video."""
    done = folder.list_finished()
    durations, errors = {}, {}
    for video_id, path in videos.items():
        try:
            if video_id not in done:
                durations[video_id] = read_facts(path, extractor.limits).duration
        except InputError as error:
            errors[video_id] = str(error)
    if stored := len(videos) - len(durations) - len(errors):
        print(f"{count_noun(stored, 'video')} of {len(videos)} already in {folder.path}")
    for error in errors.values():
        print(f"failed: {error}")
    progress, frames, snippets, waited, extracted = Progress(durations), 0, 0, 0.0, 0
    todo = {video_id: videos[video_id] for video_id in durations}
    while todo:
        ended = set()
        for outcome in extract_videos(extractor, todo, workers, folder.claim):
            if outcome.features is None and outcome.error is None:
                progress.skip(outcome.video_id)
                continue
            ended.add(outcome.video_id)
            if outcome.error:
                errors[outcome.video_id] = outcome.error
                progress.advance(outcome.video_id, f"failed: {outcome.error}")
                continue
            folder.add(outcome.video_id, outcome.features)
            count = len(next(iter(outcome.features.values())))
            frames, snippets, waited = frames + outcome.num_frames, snippets + count, waited + outcome.waited
            extracted, seconds = extracted + 1, outcome.num_frames / extractor.recipe.fps
            progress.advance(outcome.video_id, f"{outcome.video_id}: {seconds:.1f} s, {count_noun(count, 'snippet')}")
        # Videos of a process that was lost meanwhile can be claimed now.
        todo = {video_id: path for video_id, path in todo.items() if video_id not in ended} if ended else {}
    active = folder.assemble()
    elapsed = progress.elapsed
    print(f"\n{'extracted':12} {extracted:6}  {count_noun(snippets, 'snippet')} of {count_noun(frames, 'frame')}")
    print(f"{'stored before':12} {stored:6}")
    if others := len(videos) - extracted - stored - len(errors):
        print(f"{'by others':12} {others:6}")
    print(f"{'failed':12} {len(errors):6}")
    if frames:
        share = f"the backbone waited for frames in {waited / elapsed:.0%} of the time"
        print(f"{frames / elapsed:.0f} frames per second; {share}")
    for error in errors.values():
        print(f"failed: {error}")
    if active:
        print(f"{count_noun(active, 'other process')} at work; the last one writes {folder.path / FEATURES}")
    elif len(errors) < len(videos):
        print(f"features in {folder.path}: python -m utils.features {folder.path} describes them")
    return errors


class Progress:
    """One line per video, with the time that the other videos will take.

    Args:
        durations: Seconds of each video, None where they are unknown.
    """

    def __init__(self, durations: Mapping[str, float | None]):
        known = [duration for duration in durations.values() if duration]
        usual = sum(known) / len(known) if known else 1.0
        self._durations = {video_id: duration or usual for video_id, duration in durations.items()}
        self._left = set(durations)
        self._done, self._seconds, self._start = 0, 0.0, time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def advance(self, video_id: str, message: str) -> None:
        """Print the line of a video that ended."""
        self.skip(video_id)
        self._done, self._seconds = self._done + 1, self._seconds + self._durations[video_id]
        left = self.elapsed * sum(self._durations[video_id] for video_id in self._left) / self._seconds
        eta = f", {tqdm.format_interval(left)} left" if self._left else ""
        print(f"[{self._done}/{self._done + len(self._left)}] {message}{eta}", flush=True)

    def skip(self, video_id: str) -> None:
        """Leave out a video that another process extracts."""
        self._left.discard(video_id)


if __name__ == "__main__":
    exit_on_input_error(main)
