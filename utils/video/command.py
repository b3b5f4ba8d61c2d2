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
    help_text = "state dict of the backbone; two for RGB and flow (default: torchvision's download)"
    add("--weights", nargs="+", type=Path, default=[], metavar="FILE", help=help_text)
    add("--flow-weights", type=Path, metavar="FILE", help="state dict of RAFT (default: torchvision's download)")
    add("--batch-size", type=positive_int, default=8, metavar="N", help="clips per batch (default: %(default)s)")
    workers = min(MAX_WORKERS, max(1, (os.cpu_count() or 1) - 1))
    help_text = "processes that decode ahead of the backbone; 0: none (default on this machine: %(default)s)"
    add("--workers", type=non_negative_int, default=workers, metavar="N", help=help_text)
    limit, default = "limit of a video, for untrusted files: ", " (default: %(default)s)"
    add("--max-pixels", type=positive_int, default=Limits.max_pixels, help=f"{limit}pixels per frame{default}")
    add("--max-frames", type=positive_int, default=Limits.max_frames, help=f"{limit}stored frames{default}")
    add("--max-hours", type=positive_float, default=Limits.max_hours, help=f"{limit}hours{default}")


def load_chosen_extractor(recipe: Recipe, args: argparse.Namespace) -> Extractor:
    """Load the networks of a recipe with the parsed options; see `load_extractor`."""
    limits = Limits(args.max_pixels, args.max_frames, args.max_hours)
    return load_extractor(recipe, args.weights, args.flow_weights, args.device, args.batch_size, limits)
