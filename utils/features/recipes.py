"""Recipe of features: all that they depend on besides the videos, as a JSON object in the attributes of features.h5.

`utils/video/recipe.py` defines the recipes of scripts/extract_features.py. Here a recipe is any JSON object, so that
features of other extractors can have one too.
"""

import json
from pathlib import Path

from utils.errors import InputError, name_some, shorten

RECIPE = "recipe"  # attribute of a feature file, and entry of a checkpoint


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
    return [f"{_show(name)}: {_show(value, 200)}" for name, value in recipe.items()]


def recipe_difference(recipe: dict | None, trained: dict | None) -> str | None:
    """Describe the first differences between two recipes, as in `fps 25 instead of 30`.

    Args:
        recipe: Recipe of features, None if not stored.
        trained: Recipe of the training features, None if not stored.

    Returns:
        A text for messages. None if the recipes are equal, or if one of them is not stored.
    """
    if recipe is None or trained is None or recipe == trained:
        return None
    names = [name for name in {**trained, **recipe} if recipe.get(name) != trained.get(name)]
    parts = (f"{name} {_show(recipe.get(name))} instead of {_show(trained.get(name))}" for name in names)
    return name_some(parts)


def require_recipe(recipe: dict | None, trained: dict | None, where: Path, path: str | Path) -> None:
    """Check that features have the recipe of the training features, if both are stored.

    Args:
        recipe: Recipe of the features, None if not stored.
        trained: Recipe that the checkpoint stores, None if it stores none.
        where: Path of the features, for the message.
        path: Path of the checkpoint, for the message.

    Raises:
        InputError: The recipes differ.
    """
    if difference := recipe_difference(recipe, trained):
        raise InputError(
            f"{where}: the features have another recipe than the training features of {path} ({difference}); extract "
            "them by the recipe of the training, or accept them with --any-recipe"
        )


def _show(value: object, length: int = 40) -> str:
    """Return a value for messages; texts have no quotes."""
    text = shorten(value, length)
    return text[1:-1] if isinstance(value, str) else text
