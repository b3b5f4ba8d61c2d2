"""Parts of a method: network, objective and localization, and the options that configure them."""

import inspect
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from eval.proposals import LOCALIZATIONS


@dataclass(frozen=True)
class Definition:
    """Parts of a method before it is built. Each file of utils/methods defines one."""

    network: Callable[..., nn.Module]  # from num_classes, modality_dims and options
    objective: Callable[..., nn.Module]  # from options; called with outputs, labels and pairs
    num_modalities: tuple[int, ...]  # accepted numbers of modalities
    consensus: str  # default of the option `consensus`, a key of utils.fusion.CONSENSUS
    localization: str  # default of the option `localization`, a key of eval.proposals.LOCALIZATIONS
    add_options: Callable[[ArgumentParser], None]  # adds the options that only this method has

    def options(self) -> set[str]:
        """Return the names of the options that network, objective and localization take."""
        names = {*inspect.signature(self.network).parameters, *inspect.signature(self.objective).parameters}
        settings = {name for localization in LOCALIZATIONS.values() for name in localization.settings()}
        return (names - {"num_classes", "modality_dims"}) | {"localization"} | settings


@dataclass(frozen=True)
class Method:
    """Network, objective and localization of a built method.

    Attributes:
        network: Maps features (B, T, D) to a dict with `cas`, `attention`, `features`, ...
        objective: Maps outputs, labels (B, C) and pairs (P, 2) to named loss terms and `total`.
        localize: Maps `cas` (T, C + 1) and `attention` (T,) of one video to detections; see `eval.proposals.localize`.
        video_scores: Maps the same to video-level class scores (C + 1,), background last.
        architecture: Arguments of the network, stored in checkpoints.
    """

    network: nn.Module
    objective: nn.Module
    localize: Callable[..., np.ndarray]
    video_scores: Callable[..., np.ndarray]
    architecture: dict


def arguments_of(function: Callable, options: Mapping[str, object]) -> dict:
    """Select the options that a function or constructor takes."""
    return {name: options[name] for name in inspect.signature(function).parameters if name in options}
