"""Trained methods: options, features and networks of checkpoints, for test.py, the detector and the scripts."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.localizations import LOCALIZATION_SETTINGS, LOCALIZATIONS, check_localization
from options import complete_options, method_options
from utils.checkpoint import checked_state, load_state, require_classes
from utils.errors import InputError, shorten
from utils.features import FeatureStore
from utils.features.recipes import RECIPE, require_recipe
from utils.methods import METHODS, Method, arguments_of, build_method
from utils.number_types import feature_scale


def stored_options(checkpoint: dict, path: str | Path, advice: str = "add --config configs/thumos14.yaml") -> Namespace:
    """Return the options that a checkpoint of this project stores, checked.

    Raises:
        InputError: The checkpoint has no options (a released one), or invalid ones.
    """
    options = checkpoint.get("options")
    if options is None:
        raise InputError(f"{path}: has no options (a released checkpoint?); {advice}")
    types = {"dataset": str, "modalities": list, "missing_features": str, "num_snippets": int}
    complete = all(isinstance(options.get(name), kind) for name, kind in types.items())
    if not complete or not all(isinstance(m, str) for m in options["modalities"]):
        raise InputError(f"{path}: its options are not those of a run; give others with --config")
    options = Namespace(**complete_options(options))
    if options.method not in tuple(METHODS) or options.localization not in tuple(LOCALIZATIONS):
        raise InputError(f"{path}: its options name an unknown method or localization")
    return options


def override_localization(options: Namespace, given: Mapping[str, object]) -> Namespace:
    """Return the options of a run with other settings of localization.

    Args:
        options: Options of the run.
        given: Settings by name. None and other names change nothing.

    Raises:
        InputError: A setting is not valid.
    """
    settings = {name: given[name] for name in LOCALIZATION_SETTINGS if given.get(name) is not None}
    changed = Namespace(**{**vars(options), **settings})
    check_localization(vars(changed))
    return changed


def stored_scale(checkpoint: dict, path: str | Path, options: Namespace) -> float:
    """Return the feature scale that a checkpoint stores; that of the options for a released or an older one.

    Raises:
        InputError: The scale is not a number in its range.
    """
    scale = checkpoint.get("options", {}).get("feature_scale", options.feature_scale)
    try:
        number = feature_scale(str(scale))
    except ArgumentTypeError as error:
        raise InputError(f"{path}: its feature_scale is not valid: {error}") from None
    if number == "auto":
        raise InputError(f"{path}: stores no feature scale, which auto needs; give the number in --config")
    return number


def match_training(
    store: FeatureStore, checkpoints: Mapping[str, dict], options: Namespace, any_recipe: bool
) -> FeatureStore:
    """Return features as networks were trained on them: scaled, and of the same recipe.

    Args:
        store: Features, not scaled.
        checkpoints: Content of each file by its path. The first one gives the scale.
        options: Options of the first run.
        any_recipe: Accept features of another recipe than those of the training.

    Raises:
        InputError: The features have another recipe.
    """
    first, checkpoint = next(iter(checkpoints.items()))
    if not any_recipe:
        for path, other in checkpoints.items():
            require_recipe(store.recipe, other.get(RECIPE), store.source.path, path)
    return store.scaled(stored_scale(checkpoint, first, options))


def load_method(
    checkpoint: dict, path: str | Path, options: Namespace, classes: Sequence[str], modality_dims: Sequence[int]
) -> Method:
    """Build the method of a checkpoint and load its weights.

    Args:
        checkpoint: Content of the file; a released one has weights only, so its architecture comes from the options.
        path: File, for messages.
        options: Options of the run.
        classes: Names of the classes.
        modality_dims: Channels of each modality.

    Raises:
        InputError: The method cannot be built, or the weights do not fit it.
    """
    architecture = checkpoint.get("architecture", {})
    stored = arguments_of(METHODS[options.method].network, architecture)
    if unknown := [name for name in architecture if name not in stored]:
        raise InputError(f"{path}: its architecture has the unknown argument {shorten(unknown[0])}")
    arguments = {**method_options(options), **stored}
    for name in ("num_classes", "modality_dims"):
        arguments.pop(name, None)
    require_classes(checkpoint, classes, path)
    try:
        with torch.device("meta"):  # an architecture that the weights do not fit takes no memory
            empty = build_method(options.method, len(classes), modality_dims, **arguments)
    except RuntimeError as error:  # sizes beyond PyTorch's numbers
        raise InputError(f"{path}: its network cannot be built ({error})") from None
    checked_state(empty.network, checkpoint, path)
    method = build_method(options.method, len(classes), modality_dims, **arguments)
    load_state(method.network, checkpoint, path)
    return method


def load_pool(
    checkpoints: Mapping[str, dict], options: Namespace, classes: Sequence[str], modality_dims: Sequence[int]
) -> Method:
    """Build the method of checkpoints by path; the outputs of several are averaged before localization.

    Args:
        checkpoints: Content of each file by its path.
        options: Options of the first run.
        classes: Names of the classes.
        modality_dims: Channels of each modality.

    Raises:
        InputError: As in `load_method`, or the checkpoints were trained on other modalities or feature scales.
    """
    first, *others = checkpoints
    for path in others:
        for name in ("modalities", "feature_scale"):
            expected, got = (checkpoints[key].get("options", {}).get(name) for key in (first, path))
            if got != expected:
                raise InputError(
                    f"{path}: expected {name} {shorten(expected)} as in {first}, got {shorten(got)}; use checkpoints "
                    "of the same features"
                )
    methods = [
        load_method(checkpoint, path, options, classes, modality_dims) for path, checkpoint in checkpoints.items()
    ]
    if not others:
        return methods[0]
    return replace(methods[0], network=Pool([method.network for method in methods]))


class Pool(nn.ModuleList):
    """Networks of equal outputs, whose mean it returns."""

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the mean over the networks of each output."""
        outputs = [network(features) for network in self]
        return {name: torch.stack([each[name] for each in outputs]).mean(dim=0) for name in outputs[0]}
