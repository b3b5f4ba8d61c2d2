"""Recipe of features: all that they depend on besides the videos, as a JSON object in the attributes of features.h5.

`utils/video/recipe.py` defines the recipes of scripts/extract_features.py. Here a recipe is any JSON object, so that
features of other extractors may have one, too.
"""

import json
from pathlib import Path

from utils.errors import InputError, name_some, shorten

RECIPE = "recipe"  # attribute of the file
_CHANGE = 40  # characters of a value in a message


def recipe_to_text(recipe: dict) -> str:
    """Return a recipe as the text of the attribute; equal recipes have equal texts."""
    return json.dumps(recipe, sort_keys=True, allow_nan=False)


def parse_recipe(text: str) -> dict:
    """Return the recipe in the text of an attribute; ValueError for anything but a JSON object."""
    try:
        recipe = json.loads(text)
    except RecursionError:
        raise ValueError("its recipe is nested too deeply") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"expected a JSON object as recipe, got {shorten(recipe)}")
    return recipe


def describe_recipe(recipe: dict) -> list[str]:
    """Return one line `name: value` per entry of a recipe."""
    return [f"{shorten(name)[1:-1]}: {shorten(_plain(value), 200)}" for name, value in recipe.items()]


def recipe_difference(recipe: dict | None, trained: dict | None) -> str | None:
    """Describe the first differences of features from those of a training: `fps 25 instead of 30`.

    Returns:
        A text for messages. None if the recipes are equal, or if one of them is not known.
    """
    if recipe is None or trained is None or recipe == trained:
        return None
    names = [name for name in {**trained, **recipe} if recipe.get(name) != trained.get(name)]
    parts = (f"{name} {_brief(recipe.get(name))} instead of {_brief(trained.get(name))}" for name in names)
    return name_some(parts)


def require_recipe(recipe: dict | None, checkpoint: dict, where: Path, path: str | Path) -> None:
    """Check that features have the recipe of those that a checkpoint was trained on, if both store one.

    Args:
        recipe: Recipe of the features.
        checkpoint: Content of the checkpoint.
        where: Path of the features.
        path: Path of the checkpoint.

    Raises:
        InputError: The recipes differ.
    """
    if difference := recipe_difference(recipe, checkpoint.get(RECIPE)):
        raise InputError(
            f"{where}: the recipe of the features is not that of the training of {path} ({difference}); extract the "
            "features by that recipe, or accept these with --any-recipe"
        )


def _brief(value: object) -> str:
    return shorten(_plain(value), _CHANGE)


def _plain(value: object) -> object:
    """Return a number, or a text without quotes."""
    return _Text(value) if isinstance(value, str) else value


class _Text(str):
    """Text that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self) if self.isprintable() else ascii(str(self))
