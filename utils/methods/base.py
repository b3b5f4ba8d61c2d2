"""Parts of a method: network, objective and localization, and the options that configure them."""

import inspect
import math
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from eval.localizations import LOCALIZATIONS, Localization
from utils.errors import InputError


@dataclass(frozen=True)
class Definition:
    """Parts of a method before it is built. Each file of utils/methods defines one."""

    network: Callable[..., nn.Module]  # from num_classes, modality_dims and options
    objective: Callable[..., nn.Module]  # from options; called with outputs, labels, pairs and progress
    num_modalities: tuple[int, ...]  # accepted numbers of modalities
    localization: str  # default of the option `localization`, a key of LOCALIZATIONS
    add_options: Callable[[ArgumentParser], None] = lambda parser: None  # adds the options that only this method has
    consensus: str = "ccm"  # default of the option `consensus`, a key of utils.fusion.CONSENSUS
    localizations: tuple[str, ...] = ("outer_inner", "two_stage")  # accepted values of the option `localization`
    has_background: bool = True  # the T-CAM has a background column, and the attention a gradient
    defaults: Mapping[str, object] = field(default_factory=dict)  # published values of shared options that differ

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
        objective: Maps outputs, labels (B, C), pairs (P, 2) and `progress` to named loss terms and `total`. Progress is
            the share of training that has passed, in [0, 1).
        localization: Functions of the outputs of one video.
        settings: Settings of the localization by name.
        architecture: Arguments of the network, stored in checkpoints.
    """

    network: nn.Module
    objective: nn.Module
    localization: Localization
    settings: dict
    architecture: dict

    @property
    def lowest_threshold(self) -> float | None:
        """Attention at or below it gives no proposal; None if the localization has no such threshold."""
        thresholds = {**self.localization.settings(), **self.settings}.get("attention_thresholds")
        return None if thresholds is None else float(min(thresholds))

    def localize(self, outputs: Mapping[str, np.ndarray], **options: object) -> np.ndarray:
        """Detect the actions of one video.

        Args:
            outputs: Outputs of the network for this video, without the batch axis. `localization.outputs` are used.
            **options: `snippet_rate`, `ambiguous`, or other settings; see `eval.proposals.localize`.

        Returns:
            Structured array (N,): label, start and end (snippets), score.

        Raises:
            InputError: An output is missing, or its shape or a value is not valid.
        """
        return self.localization.localize(*self._arrays(outputs), **{**self.settings, **options})

    def propose(self, outputs: Mapping[str, np.ndarray], **options: object) -> np.ndarray:
        """Return the proposals of one video: its detections without NMS, exact duplicates included.

        Args:
            outputs: Outputs of the network for this video, as of `localize`.
            **options: `labels`, the classes to localize (default: the predicted ones), or others as of `localize`.
        """
        keep_all = arguments_of(self.localization.localize, {"nms": "hard", "nms_tiou": math.inf})
        return self.localize(outputs, **keep_all, **options)

    def video_scores(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return video-level class scores (C,), or (C + 1,) with the background last, from the same outputs."""
        settings = arguments_of(self.localization.video_scores, self.settings)
        return self.localization.video_scores(*self._arrays(outputs), **settings)

    def _arrays(self, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if missing := [name for name in self.localization.outputs if name not in outputs]:
            raise InputError(f"localize: the network has no output '{missing[0]}'; choose another localization")
        return [np.asarray(outputs[name]) for name in self.localization.outputs]


def arguments_of(function: Callable, options: Mapping[str, object]) -> dict:
    """Select the options that a function or constructor takes."""
    return {name: options[name] for name in inspect.signature(function).parameters if name in options}
