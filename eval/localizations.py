"""Localizations by name, and the options that change their settings.

A localization is a function of the outputs of one video. Its settings have one name: an argument of the function, an
option of the command line and of a config.
"""

import argparse
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from eval.localize_two_stage import localize_two_stage, probability_scores
from eval.localize_um import localize_um, topk_scores
from eval.proposals import NMS, PADDINGS, localize, video_scores
from utils.errors import InputError, shorten
from utils.number_types import fraction, fraction_below_one, non_negative_float, positive_float, positive_int

NOT_SETTINGS = ("labels", "ambiguous", "snippet_rate")  # arguments of a localization that are not options: data


class Localization(NamedTuple):
    """Functions of some outputs of one video: video-level scores, and detections.

    Attributes:
        outputs: Names of these outputs, in the order of the functions' arguments.
        video_scores: Returns class scores (C,), or (C + 1,) with the background last.
        localize: Returns detections. Its named arguments, except NOT_SETTINGS, are settings.
    """

    outputs: tuple[str, ...]
    video_scores: Callable[..., np.ndarray]
    localize: Callable[..., np.ndarray]

    def settings(self) -> dict[str, object]:
        """Return the settings that `localize` takes by name, with the published values."""
        parameters = inspect.signature(self.localize).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in NOT_SETTINGS}


LOCALIZATIONS = {
    "outer_inner": Localization(("cas", "attention"), video_scores, localize),
    "two_stage": Localization(("cas", "attention"), probability_scores, localize_two_stage),
    "um": Localization(("cas", "magnitude"), topk_scores, localize_um),
}


def _padding(text: str) -> str:
    return _one_of(PADDINGS, text)


def _nms_kind(text: str) -> str:
    return _one_of(NMS, text)


def _one_of(words: tuple[str, ...], text: str) -> str:
    if text not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(words)}")
    return text


LISTS = ("attention_thresholds", "activation_thresholds")  # settings with several values
LOCALIZATION_SETTINGS = {  # type, help text, default as text
    "class_threshold": (
        fraction,
        "outer_inner, um: lowest video-level probability of a class to localize",
        "0.2",
    ),
    "fallback_class": (
        bool,
        "outer_inner: localize the best class of a video in which none reaches the threshold",
        "yes; hamnet: no",
    ),
    "topk_divisor": (
        positive_int,
        "outer_inner, um: divisor of T in the top-k mean of the video-level probabilities",
        "10; um: 9",
    ),
    "background_divisor": (
        positive_int,
        "um: divisor of T in the number of background snippets, whose mean magnitude becomes 0",
        "4",
    ),
    "attention_thresholds": (
        fraction_below_one,
        "outer_inner, um: attention thresholds that give the proposals; the attention of um is the magnitude",
        "10 from 0.1 to 0.9; delu: 20; um: 9 from 0.4 to 0.6",
    ),
    "activation_thresholds": (
        fraction_below_one,
        "um: thresholds on the class activation that give further proposals",
        "10 from 0 to 0.225",
    ),
    "upsampling": (positive_int, "um: factor of the linear upsampling in time before the thresholds", "24"),
    "outer_margin": (
        non_negative_float,
        "outer_inner, um: margin on either side of a proposal, as a share of its length",
        "0.25",
    ),
    "nms": (_nms_kind, f"outer_inner: kind of NMS, {' or '.join(NMS)}", "soft"),
    "nms_sigma": (positive_float, "outer_inner: width of the Gaussian of soft-NMS", "0.3"),
    "nms_tiou": (fraction, "outer_inner, um: tIoU above which hard NMS drops the lower score", "0.5; um: 0.6"),
    "nms_padding": (
        _padding,
        f"outer_inner with soft-NMS, um: length added to each segment in the tIoU of NMS: {', '.join(PADDINGS)}",
        "snippet; hamnet, um: second",
    ),
    "min_length": (
        positive_int,
        "outer_inner: length in snippets of the shortest detection; shorter ones are deleted after NMS",
        "1; delu: 2",
    ),
    "activation_threshold": (
        fraction,
        "two_stage: threshold from 0 (lowest class probability of the video) to 1 (highest)",
        "0.5",
    ),
    "class_score_weight": (
        non_negative_float,
        "all: weight of the video-level class score in the score of a detection",
        "0.2; two_stage: 0.7",
    ),
}


def add_localization_options(parser: argparse.ArgumentParser, trained: bool = False) -> None:
    """Add the settings of localization.

    Args:
        parser: Parser to change.
        trained: The settings come from a checkpoint, so that the options have no defaults of their own.
    """
    add = parser.add_argument_group("localization (Section 3.6)").add_argument
    for name, (number, help_text, default) in LOCALIZATION_SETTINGS.items():
        flag = "--" + name.replace("_", "-")
        help_text += f" (default: {'as in training' if trained else default})"
        if number is bool:
            add(flag, action=argparse.BooleanOptionalAction, help=help_text)
        else:
            metavar = {_padding: "LENGTH", _nms_kind: "KIND"}.get(number, "NUMBER")
            add(flag, type=number, nargs="+" if name in LISTS else None, metavar=metavar, help=help_text)


def check_localization(options: Mapping[str, object]) -> None:
    """Raise InputError if a setting of localization among the options of a run is not in its range."""
    for name, (number, *_) in LOCALIZATION_SETTINGS.items():
        value = options[name]
        try:
            if isinstance(value, list) != (name in LISTS) or value == [] or isinstance(value, bool) != (number is bool):
                raise argparse.ArgumentTypeError(f"got {shorten(value)}")
            for item in value if isinstance(value, list) else [value]:
                number(str(item))  # any text is a valid bool
        except argparse.ArgumentTypeError as error:
            raise InputError(f"the option {name} is not valid: {error}") from None
