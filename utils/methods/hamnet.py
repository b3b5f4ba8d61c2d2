"""HAM-Net: "A Hybrid Attention Mechanism for Weakly-Supervised Temporal Action Localization" (AAAI 2021).

The attention suppresses the T-CAM in three forms: soft (the attention itself), semi-soft (without its highest values)
and hard (the mask of the remaining values). So the network also learns the less discriminative parts of an action.
Equation numbers H1 to H4 are those of docs/methods.md. The published settings are in configs/hamnet_*.yaml.
"Release" marks parts from the authors' code. Attention unit, losses and localization are CO2-Net's.

Shapes: B videos, T snippets, D channels, C action classes (background is class C of a T-CAM).
"""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from model import AttentionUnit, activation, check_shape, check_sizes, check_temporal_pool, init_conv, pool_over_time
from utils.losses import Objective, mil_loss, norm_loss, opposition_loss, suppress
from utils.methods.base import Definition
from utils.number_types import fraction, fraction_below_one


class HAMNet(nn.Module):
    """Classifier and attention, both on the concatenated modalities, H1.

    Args:
        num_classes: Number of action classes C. The network adds the background class.
        modality_dims: Channels of the modalities, in the order of the features.
        classifier_dropout: Dropout before the last layer of the classifier: 0.7, on ActivityNet1.2 0.5.
        temporal_pool: Odd kernel, in snippets, of an average pool over time on T-CAM and attention, or None. The
            release pools on ActivityNet1.2 (kernel 17), in training and at test.

    Raises:
        ValueError: If there is no class, no modality, or an even kernel.
    """

    CLASS_LAYER = "classifier.weight"  # the parameter with one row per class, background last
    RELEASED_MODULES = {
        "classifier.0": "embedding.0",
        "classifier.2": "embedding.2",
        "classifier.5": "classifier",
        "attention.0": "attention.layers.0",
        "attention.2": "attention.layers.3",
        "attention.4": "attention.layers.5",
    }

    def __init__(
        self,
        num_classes: int,
        modality_dims: Sequence[int] = (1024, 1024),
        classifier_dropout: float = 0.7,
        temporal_pool: int | None = None,
    ):
        super().__init__()
        check_sizes(num_classes, modality_dims)
        check_temporal_pool(temporal_pool)
        self.num_classes, self.modality_dims, self.temporal_pool = num_classes, tuple(modality_dims), temporal_pool
        dim = sum(self.modality_dims)
        self.embedding = nn.Sequential(
            nn.Conv1d(dim, dim, 3, padding=1), activation(), nn.Conv1d(dim, dim, 3, padding=1), activation()
        )
        self.dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Conv1d(dim, num_classes + 1, 1)
        self.attention = AttentionUnit(dim, dropout=0.0, logit_dropout=0.0)
        self.apply(init_conv)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return T-CAM and attention.

        Args:
            features: Snippet features (B, T, sum of modality_dims), T >= 1.

        Returns:
            A dict of

            * `cas` (B, T, C + 1): T-CAM logits S, background last
            * `attention` (B, T): attention A, from the input features
            * `features` (B, T, D): embedding of the classifier, before the dropout

        Raises:
            ValueError: If the features have another shape.
        """
        check_shape(features, sum(self.modality_dims))
        x = features.transpose(1, 2).contiguous()  # (B, D, T)
        embedded = self.embedding(x)
        cas = self.classifier(self.dropout(embedded))  # (B, C + 1, T)
        attention = self.attention(x)  # (B, T)
        if self.temporal_pool is not None:
            cas, attention = (pool_over_time(y, self.temporal_pool) for y in (cas, attention))
        return {"cas": cas.transpose(1, 2), "attention": attention, "features": embedded.transpose(1, 2)}


def semi_soft_attention(attention: Tensor, ratio: float) -> Tensor:
    """Return the attention (B, T) where it is below `ratio` times its maximum over time, else 0: D of H2.

    The comparison carries no gradient. The release has an option for a threshold between minimum and maximum of the
    attention, but trains without it.
    """
    fixed = attention.detach()
    return torch.where(fixed < ratio * fixed.amax(dim=1, keepdim=True), attention, 0.0)


class HAMLoss(Objective):
    """Objective of HAM-Net, H3 and H4: four multiple-instance terms, the norm and the guide of the attention.

    `bcl` (on the T-CAM S) and `hal` (hard attention) have the background as a label. `sal` (soft attention, a plain
    product) and `ssal` (semi-soft attention) have not, because attention should have removed it.

    Args:
        topk_ratio: Divisor of T in the top-k of the multiple-instance terms: 10, on ActivityNet1.2 20.
        weights: Weights by term that differ from WEIGHTS. A weight of 0 removes a term, and its cost.
        drop_threshold: Share of the highest attention from which the semi-soft attention drops a snippet.

    Raises:
        ValueError: If a term is unknown.
    """

    # lambda_0 (1 - p), lambda_0 p, lambda_1 (1 - p), lambda_1 p, alpha, beta of the release; p = 0.2 (`drop_prob`)
    WEIGHTS = {"bcl": 0.8, "hal": 0.2, "sal": 0.8, "ssal": 0.2, "norm": 0.8, "guide": 0.8}

    def __init__(self, topk_ratio: int = 10, weights: Mapping[str, float] | None = None, drop_threshold: float = 0.2):
        super().__init__(weights)
        self.topk_ratio, self.drop_threshold = topk_ratio, drop_threshold

    def terms(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return a function per term; see `Objective.terms`. `pairs` and `progress` are not used."""
        cas, attention = outputs["cas"], outputs["attention"]
        semi_soft = semi_soft_attention(attention, self.drop_threshold)
        hard = (semi_soft > 0).to(cas)
        return {
            "bcl": lambda: mil_loss(cas, labels, 1.0, self.topk_ratio),
            "hal": lambda: mil_loss(suppress(cas, hard), labels, 1.0, self.topk_ratio),
            "sal": lambda: mil_loss(suppress(cas, attention, shifted=False), labels, 0.0, self.topk_ratio),
            "ssal": lambda: mil_loss(suppress(cas, semi_soft), labels, 0.0, self.topk_ratio),
            "norm": lambda: norm_loss(attention),
            "guide": lambda: opposition_loss(attention.unsqueeze(1), cas),
        }


def add_options(parser: ArgumentParser) -> None:
    """Add the options of HAM-Net alone."""
    add = parser.add_argument_group("hamnet").add_argument
    add(
        "--classifier-dropout",
        type=fraction_below_one,
        default=0.7,
        metavar="P",
        help="dropout before the last layer of the classifier",
    )
    add(
        "--drop-threshold",
        type=fraction,
        default=0.2,
        metavar="SHARE",
        help="share of the highest attention from which the semi-soft attention drops a snippet",
    )


DEFINITION = Definition(
    network=HAMNet,
    objective=HAMLoss,
    num_modalities=(1, 2),
    localization="outer_inner",
    add_options=add_options,
    defaults={"topk_ratio": 10, "fallback_class": False, "nms_padding": "second"},
)
