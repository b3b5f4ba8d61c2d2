"""Options of the commands that extract features."""

import argparse
import os
from pathlib import Path

from utils.number_types import non_negative_int, positive_float, positive_int
from utils.video.decode import Limits
from utils.video.extract import Extractor, load_extractor
from utils.video.recipe import Recipe

MAX_WORKERS = 4


def add_extraction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of weights, speed and limits.

    Args:
        parser: Parser, or a group of its options.
    """
    add = parser.add_argument
    add("--weights", nargs="+", type=Path, default=[], metavar="FILE", help="state dict of the backbone, RGB then flow")
    add("--flow-weights", type=Path, metavar="FILE", help="state dict of RAFT (default: torchvision's download)")
    add("--batch-size", type=positive_int, default=8, metavar="N", help="clips per batch (default: %(default)s)")
    workers = min(MAX_WORKERS, max(1, (os.cpu_count() or 1) - 1))
    help_text = "processes that decode ahead of the backbone; 0: none (default here: %(default)s)"
    add("--workers", type=non_negative_int, default=workers, metavar="N", help=help_text)
    limit = "limit of a video, for untrusted files: "
    add("--max-pixels", type=positive_int, default=Limits.max_pixels, help=f"{limit}pixels per frame (%(default)s)")
    add("--max-frames", type=positive_int, default=Limits.max_frames, help=f"{limit}stored frames (%(default)s)")
    add("--max-hours", type=positive_float, default=Limits.max_hours, help=f"{limit}duration in hours (%(default)s)")


def load_chosen_extractor(recipe: Recipe, args: argparse.Namespace) -> Extractor:
    """Load the networks of a recipe as the parsed options state; see `load_extractor`."""
    limits = Limits(args.max_pixels, args.max_frames, args.max_hours)
    return load_extractor(recipe, args.weights, args.flow_weights, args.device, args.batch_size, limits)
