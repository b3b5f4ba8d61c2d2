"""DELU: CO2-Net's network, with an evidential loss per video and a course from easy to hard snippets.

Chen et al., "Dual-evidential learning for weakly-supervised temporal action localization" (ECCV 2022). Equation
numbers E1 to E4 are those of docs/methods.md. The published settings are in configs/delu_*.yaml.

Shapes: B videos, T snippets, C action classes (background is class C of a T-CAM), P pairs.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from utils.losses import CO2Loss, all_attentions, opposition
from utils.methods.base import Definition
from utils.methods.co2net import build_network
from utils.number_types import non_negative_float, positive_int

EVIDENCES = ("exp", "relu")
COURSES = ("release", "rank")
MAX_LOGIT = 10.0  # bound of the logits whose exponential is evidence


def evidential_loss(
    suppressed: Tensor, attention: Tensor, labels: Tensor, topk_ratio: int = 9, evidence: str = "exp"
) -> Tensor:
    """Compute the generalized evidential loss of the videos, E1 and E2.

    The evidence for a class comes from its mean suppressed logit over the snippets of highest attention. All classes
    share these snippets.

    Args:
        suppressed: Suppressed T-CAM S_bar (B, T, C + 1).
        attention: Fused attention (B, T).
        labels: Multi-hot video labels (B, C).
        topk_ratio: Divisor of T in the number of snippets.
        evidence: `exp` with the log loss (THUMOS14), or `relu` with the squared error (ActivityNet1.2).
    """
    k = max(1, attention.shape[1] // topk_ratio)
    snippets = attention.topk(k, dim=1).indices.unsqueeze(-1)  # (B, k, 1)
    logits = suppressed.take_along_dim(snippets, dim=1).mean(dim=1)[:, :-1]  # (B, C)
    if evidence == "relu":
        alpha = logits.relu() + 1
        return (labels - alpha / alpha.sum(dim=1, keepdim=True)).square().sum(dim=1).mean()
    alpha = logits.clamp(-MAX_LOGIT, MAX_LOGIT).exp() + 1
    strength = alpha.sum(dim=1, keepdim=True)  # (B, 1)
    uncertainty = labels.shape[1] / strength.detach()
    # Of several labels, the one with the least evidence weighs most. The weights carry a gradient (release).
    weights = labels / alpha
    weights = labels.sum(dim=1, keepdim=True) * weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return ((1 - uncertainty) * weights * (strength.log() - alpha.log())).sum(dim=1).mean()


@torch.no_grad()
def course_weights(
    suppressed: Tensor, progress: float | Tensor, amplitude: float = 0.7, course: str = "release"
) -> Tensor:
    """Return the weight (B, T) of each snippet at a point of training, E3. The weights of a video have mean 1.

    Args:
        suppressed: Suppressed T-CAM S_bar (B, T, C + 1).
        progress: Share of training that has passed, from 0 to 1.
        amplitude: Largest distance of a weight from 1.
        course: `rank` orders the weights by the uncertainty of the snippets: at progress 0 the most certain snippet has
            the largest weight. `release` uses the inverse permutation: snippet t gets the weight at the time position
            of the snippet with rank t. This position has no relation to the uncertainty of snippet t.
    """
    num_snippets = suppressed.shape[1]
    theta = 2 * (torch.arange(num_snippets, device=suppressed.device, dtype=suppressed.dtype) + 0.5) / num_snippets - 1
    weights = 1 + amplitude * torch.tanh(theta * (1 - 2 * progress))  # (T,)
    certainty = suppressed.clamp(-MAX_LOGIT, MAX_LOGIT).exp().sum(dim=-1)  # (B, T), falls with the uncertainty
    # Stable, because snippets at the bound of the logits are equally certain. Their order in the release is undefined.
    if course == "release":
        return weights[certainty.argsort(dim=1, descending=True, stable=True)]
    return weights[certainty.argsort(dim=1, stable=True).argsort(dim=1)]


class DELULoss(CO2Loss):
    """Objective of DELU: CO2-Net's, plus `edl` (E1 or E2) and `uct` (E4).

    Args:
        topk_ratio: As in CO2Loss.
        weights: As in CO2Loss.
        suppression: As in CO2Loss.
        mutual: As in CO2Loss.
        evidence: Evidence of `edl`; see `evidential_loss`.
        evidence_topk_ratio: Divisor of T in `edl` (9 on THUMOS14, 5 on ActivityNet1.2).
        amplitude: Amplitude of the course of `uct` (0.7 on THUMOS14, 0.2 on ActivityNet1.2).
        course: Order of the snippets in `uct`; see `course_weights`.

    Raises:
        ValueError: If a term or a choice is unknown.
    """

    WEIGHTS = {**CO2Loss.WEIGHTS, "oppo": 0.4, "edl": 1.3, "uct": 0.4}

    def __init__(
        self,
        topk_ratio: int = 7,
        weights: Mapping[str, float] | None = None,
        suppression: str = "shifted",
        mutual: str = "mse",
        evidence: str = "exp",
        evidence_topk_ratio: int = 9,
        amplitude: float = 0.7,
        course: str = "release",
    ):
        super().__init__(topk_ratio, weights, suppression, mutual)
        for name, value, choices in (("evidence", evidence, EVIDENCES), ("course", course, COURSES)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
        self.evidence = {"topk_ratio": evidence_topk_ratio, "evidence": evidence}
        self.course = {"amplitude": amplitude, "course": course}

    def terms(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return a function per term; see `CO2Loss.terms`."""
        cas, attention = outputs["cas"], outputs["attention"]
        suppressed = self.suppress(cas, attention)

        def uct() -> Tensor:  # E4
            weights = course_weights(suppressed, progress, **self.course).unsqueeze(1)  # (B, 1, T)
            return (weights * opposition(all_attentions(outputs), cas)).mean()

        return {
            **super().terms(outputs, labels, pairs, progress),
            "edl": lambda: evidential_loss(suppressed, attention, labels, **self.evidence),
            "uct": uct,
        }


def add_options(parser: ArgumentParser) -> None:
    """Add the options of DELU's two terms, which DDG-Net has as well."""
    add = parser.add_argument_group("delu, ddg_net").add_argument
    add(
        "--evidence",
        choices=EVIDENCES,
        default="exp",
        help="evidence of L_edl: exp with the log loss (THUMOS14), or relu with the squared error (ActivityNet1.2)",
    )
    add(
        "--evidence-topk-ratio",
        type=positive_int,
        default=9,
        metavar="RATIO",
        help="divisor of T in L_edl: the T // RATIO snippets of highest attention give the evidence",
    )
    add(
        "--amplitude",
        type=non_negative_float,
        default=0.7,
        help="largest distance from 1 of a snippet's weight in L_uct",
    )
    add(
        "--course",
        choices=COURSES,
        default="release",
        help="weight of a snippet in L_uct: by its rank by uncertainty, from easy to hard (rank), or by the inverse "
        "permutation of the ranks (release)",
    )


DEFINITION = Definition(
    network=build_network,
    objective=DELULoss,
    num_modalities=(2,),
    localization="outer_inner",
    add_options=add_options,
    # The release's localization since April 2024. The paper's numbers come from CO2-Net's: 10 thresholds, every length.
    defaults={"attention_thresholds": np.linspace(0.1, 0.9, 20), "min_length": 2},
)
