"""UM: "Weakly-supervised Temporal Action Localization by Uncertainty Modeling" (AAAI 2021).

There is no background class. Features of actions have a large magnitude, those of the background a small one. Weights,
divisors and the two dropouts are the release's. The localization is in eval/localize_um.py. Equation numbers U1 to
U8 are those of docs/methods.md. The published settings are in configs/um_thumos14.yaml.

Shapes: B videos, T snippets, D channels, C action classes.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import check_shape, check_sizes
from utils.losses import Objective
from utils.methods.base import Definition
from utils.number_types import positive_float, positive_int


class UMNet(nn.Module):
    """Embedding and classifier on the concatenated modalities, U1.

    Args:
        num_classes: Number of action classes C.
        modality_dims: Channels of the modalities, in the order of the features.
        topk_ratio: Divisor of T in the number of action snippets.
        background_ratio: Divisor of T in the number of background snippets.

    Raises:
        ValueError: If there is no class or no modality.
    """

    CLASS_LAYER = "classifier.weight"  # the parameter with one row per class
    RELEASED_MODULES = {"cas_module.conv.0": "embedding.0", "cas_module.classifier.0": "classifier"}

    def __init__(
        self,
        num_classes: int,
        modality_dims: Sequence[int] = (1024, 1024),
        topk_ratio: int = 9,
        background_ratio: int = 4,
    ):
        super().__init__()
        check_sizes(num_classes, modality_dims)
        self.num_classes, self.modality_dims = num_classes, tuple(modality_dims)
        self.topk_ratio, self.background_ratio = topk_ratio, background_ratio
        dim = sum(self.modality_dims)
        self.embedding = nn.Sequential(nn.Conv1d(dim, dim, 3, padding=1), nn.ReLU())
        self.dropout, self.snippet_dropout = nn.Dropout(0.7), nn.Dropout(0.7)
        self.classifier = nn.Conv1d(dim, num_classes, 1, bias=False)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return T-CAM and feature magnitudes.

        Args:
            features: Snippet features (B, T, sum of modality_dims), T >= 1.

        Returns:
            A dict of

            * `cas` (B, T, C): T-CAM logits, without background
            * `magnitude` (B, T): norm of the embedded features
            * `mask` (B, T): dropout mask z of the snippets, for the selection in U2
            * `attention` (B, T): magnitude on a scale from the mean of the background (0) to that of the actions (1)
            * `features` (B, T, D): embedded features

        Raises:
            ValueError: If the features have another shape.
        """
        check_shape(features, sum(self.modality_dims))
        embedded = self.embedding(features.transpose(1, 2))  # (B, D, T)
        cas = self.classifier(self.dropout(embedded))  # (B, C, T)
        precise = torch.promote_types(embedded.dtype, torch.float32)
        magnitude = torch.linalg.vector_norm(embedded, dim=1, dtype=precise)  # (B, T)
        return {
            "cas": cas.transpose(1, 2),  # (B, T, C)
            "magnitude": magnitude,
            "mask": self.snippet_dropout(torch.ones_like(magnitude)),
            "attention": normalize_magnitude(magnitude.detach(), self.topk_ratio, self.background_ratio),
            "features": embedded.transpose(1, 2),  # (B, T, D)
        }


def normalize_magnitude(magnitude: Tensor, topk_ratio: int, background_ratio: int) -> Tensor:
    """Rescale magnitudes (B, T), M of U7: mean of the lowest ones to 0, mean of the highest ones to 1, clipped."""
    num_actions, num_background = (max(1, magnitude.shape[1] // ratio) for ratio in (topk_ratio, background_ratio))
    high = magnitude.topk(num_actions, dim=1).values.mean(dim=1, keepdim=True)
    low = magnitude.topk(num_background, dim=1, largest=False).values.mean(dim=1, keepdim=True)
    distance = torch.where(high > low, high - low, 1.0)
    return ((magnitude - low) / distance).clamp(0, 1)


def mean_of_highest(values: Tensor, keys: Tensor, ratio: int) -> Tensor:
    """Return the mean (B, K) of values (B, T, K) over the max(1, T // ratio) snippets of highest key (B, T)."""
    k = max(1, keys.shape[1] // ratio)
    weights = torch.zeros_like(keys).scatter(1, keys.topk(k, dim=1).indices, 1 / k)  # (B, T)
    return (weights.unsqueeze(1) @ values).squeeze(1)  # (B, K)


class UMLoss(Objective):
    """Objective of UM, U6: classification, uncertainty modeling and background entropy.

    Action snippets have the largest magnitudes, background snippets the smallest, among those that the mask leaves.
    `cls` is the classification loss of the video. `be` makes all classes equally probable in the background. `um` makes
    the norm of the mean action feature reach the margin, and that of the mean background feature vanish.

    Args:
        topk_ratio: Divisor of T in the number of action snippets.
        background_ratio: Divisor of T in the number of background snippets.
        magnitude_margin: Norm that the mean action feature should reach.
        weights: Weights by term that differ from WEIGHTS. A weight of 0 removes a term, and its cost.

    Raises:
        ValueError: If a term is unknown.
    """

    WEIGHTS = {"cls": 1.0, "um": 5e-4, "be": 1.0}

    def __init__(
        self,
        topk_ratio: int = 9,
        background_ratio: int = 4,
        magnitude_margin: float = 100.0,
        weights: Mapping[str, float] | None = None,
    ):
        super().__init__(weights)
        self.topk_ratio, self.background_ratio, self.margin = topk_ratio, background_ratio, magnitude_margin

    def terms(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return a function per term; see `Objective.terms`. `pairs` and `progress` are not used."""
        cas, features = outputs["cas"], outputs["features"]
        magnitude, mask = outputs["magnitude"].detach(), outputs["mask"]
        action_keys = magnitude * mask  # U2
        background_keys = (magnitude.amax(dim=1, keepdim=True) - magnitude) * mask

        def classification() -> Tensor:  # U3
            k = max(1, cas.shape[1] // self.topk_ratio)
            scores = cas.topk(k, dim=1).values.mean(dim=1).softmax(dim=-1)  # (B, C)
            targets = labels / labels.sum(dim=1, keepdim=True).clamp(min=1)
            return F.binary_cross_entropy(scores, targets)

        def background_entropy() -> Tensor:  # U4
            scores = mean_of_highest(cas, background_keys, self.background_ratio).softmax(dim=-1)
            return F.binary_cross_entropy(scores, torch.full_like(scores, 1 / scores.shape[1]))

        def uncertainty() -> Tensor:  # U5
            action = mean_of_highest(features, action_keys, self.topk_ratio).norm(dim=-1)  # (B,)
            background = mean_of_highest(features, background_keys, self.background_ratio).norm(dim=-1)
            return (F.relu(self.margin - action) + background).square().mean()

        return {"cls": classification, "um": uncertainty, "be": background_entropy}


def add_options(parser: ArgumentParser) -> None:
    """Add the options of UM alone."""
    add = parser.add_argument_group("um").add_argument
    add(
        "--background-ratio",
        type=positive_int,
        default=4,
        metavar="RATIO",
        help="divisor of T in the number of background snippets in training",
    )
    add(
        "--magnitude-margin",
        type=positive_float,
        default=100.0,
        metavar="NORM",
        help="norm that the mean feature of the action snippets should reach",
    )


DEFINITION = Definition(
    network=UMNet,
    objective=UMLoss,
    num_modalities=(1, 2),
    localization="um",
    localizations=("um",),
    has_background=False,
    add_options=add_options,
    defaults={"topk_ratio": 9, "nms_padding": "second"},
)
