"""Recipe that a checkpoint stores, checked, so that a detector extracts the features that it was trained on."""

import math
from collections.abc import Callable
from dataclasses import fields

from utils.errors import InputError, shorten
from utils.video.backbones import BACKBONES
from utils.video.extract import Extractor
from utils.video.flow import FLOWS
from utils.video.recipe import Recipe

_MAX_LENGTH = 4096  # frames, and pixels of a side
_MAX_CLIP = 2**28  # pixels of all frames


def read_recipe(content: dict | None, where: str) -> Recipe:
    """Return the recipe of a checkpoint as one of this project.

    Args:
        content: Recipe in the checkpoint, from an untrusted file; None if it has none.
        where: Checkpoint, for messages.

    Raises:
        InputError: There is no recipe, or no backbone of this project follows it.
    """
    advice = "give features in place of videos"
    if content is None:
        raise InputError(f"{where}: does not store how its features were extracted from videos; {advice}")
    if not isinstance(content, dict):
        raise InputError(f"{where}: the recipe of its features is {shorten(content)}, expected a dict; {advice}")
    names = [field.name for field in fields(Recipe)]
    if missing := [name for name in names if name not in content]:
        raise InputError(f"{where}: the recipe of its features has no '{missing[0]}'; {advice}")
    if unknown := [name for name in content if name not in names]:
        raise InputError(f"{where}: the recipe of its features has the unknown entry {shorten(unknown[0])}; {advice}")
    for name, check in _CHECKS.items():
        if not check(content[name]):
            got = shorten(content[name])
            raise InputError(f"{where}: the recipe of its features has {name} {got}, which is not valid; {advice}")
    if content["backbone"] not in BACKBONES:
        got, known = shorten(content["backbone"]), ", ".join(BACKBONES)
        raise InputError(f"{where}: its features come from backbone {got}, expected one of {known}; {advice}")
    recipe = Recipe(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})
    if recipe.frames * recipe.crop**2 > _MAX_CLIP:
        raise InputError(f"{where}: the clips of its recipe have more than {_MAX_CLIP:,} pixels; {advice}")
    return recipe


def require_weights(extractor: Extractor, recipe: Recipe, where: str) -> None:
    """Check that an extractor has the weights of a recipe.

    Args:
        extractor: Extractor of the recipe.
        recipe: Recipe of a checkpoint.
        where: Checkpoint, for the message.

    Raises:
        InputError: A SHA-256 differs.
    """
    for name, expected in recipe.weights.items():
        got = extractor.recipe.weights.get(name, "none")
        if got != expected:
            raise InputError(
                f"{where}: expected the {name} weights of its training features (SHA-256 {expected[:16]}...), "
                f"got others ({got[:16]}...); give their file with --weights, or accept these with --any-recipe"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_length(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX_LENGTH


def _is_list(check: Callable, *counts: int) -> Callable:
    """Return a check of lists with one of these lengths."""
    return lambda values: isinstance(values, list) and len(values) in counts and all(map(check, values))


def _is_positive(value: object) -> bool:
    return _is_number(value) and 0 < value <= 1e6


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


_CHECKS = {
    "backbone": lambda value: isinstance(value, str),
    "fps": _is_positive,
    "frames": _is_length,
    "stride": _is_length,
    "resize": _is_list(_is_length, 1, 2),
    "crop": _is_length,
    "mean": _is_list(_is_number, 3),
    "std": _is_list(_is_positive, 3),
    "antialias": lambda value: isinstance(value, bool),
    "rounded": lambda value: isinstance(value, bool),
    "flow": lambda value: value in FLOWS,
    "flow_bound": _is_positive,
    "weights": _is_texts,
}
