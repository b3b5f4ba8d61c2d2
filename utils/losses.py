"""Training objective of CO2-Net: T-CAM, attention and video labels to named loss terms.

Section 3.5 of arXiv:2107.12589, one function per term under its equation number. "Release" marks choices of the
authors' code that the paper does not have. All terms stay finite for T = 1, for a pair without a shared class, and
for features of norm zero. The name `cas` has two meanings: the T-CAM (tensor), and the co-activity
similarity loss (term).

Shapes: B videos, T snippets, D channels, C action classes (background is class C of a T-CAM), P pairs.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

WEIGHTS = {"mil_org": 1.0, "mil_supp": 1.0, "cas": 1.0, "ml": 1.0, "oppo": 0.8, "norm": 0.8}
SUPPRESSIONS = ("shifted", "product")
CLAMP = 1e-6  # distance of attention weights, as probabilities, from 0 and 1


def suppress(cas: Tensor, attention: Tensor, shifted: bool = True) -> Tensor:
    """Return the suppressed T-CAM S_bar (B, T, C + 1), Eq. 9: A * S.

    Args:
        cas: T-CAM logits (B, T, C + 1).
        attention: Fused attention (B, T).
        shifted: Use A * (S - min_c S) + min_c S (release, in training). Low attention then gives the snippet's lowest
            logit instead of 0.
    """
    attention = attention.unsqueeze(-1)
    if not shifted:
        return attention * cas
    floor = cas.amin(dim=-1, keepdim=True)
    return attention * (cas - floor) + floor


def mil_loss(
    cas: Tensor, labels: Tensor, background: float | Tensor, topk_ratio: int, normalized: bool = False
) -> Tensor:
    """Compute the top-k multiple-instance learning loss: L_mil^org on S, L_mil^supp on S_bar (after W-TALC).

    A video's logit for a class is the mean of its top k = max(1, T // topk_ratio) snippet logits. The loss is the
    softmax cross-entropy with the labels divided by their sum.

    Args:
        cas: T-CAM logits (B, T, C + 1).
        labels: Multi-hot video labels (B, C).
        background: Label of the background class, for all videos or for each (B,). It is 1 on S, where background is
            present, and 0 on S_bar, where attention has removed it.
        topk_ratio: Divisor of T; 7 on THUMOS14, 5 on ActivityNet1.2.
        normalized: True if the T-CAM has log probabilities, which need no softmax over the classes.
    """
    column = torch.ones_like(labels[:, 0]) * background  # (B,), on the device of the labels
    labels = torch.cat([labels, column.unsqueeze(1)], dim=1)
    labels = labels / (labels.sum(dim=1, keepdim=True) + 1e-4)  # 1e-4: release
    k = max(1, cas.shape[1] // topk_ratio)
    video_logits = cas.topk(k, dim=1).values.mean(dim=1)  # (B, C + 1)
    log_probabilities = video_logits if normalized else F.log_softmax(video_logits, dim=1)
    return -(labels * log_probabilities).sum(dim=1).mean()


def co_activity_loss(
    features: Tensor, suppressed_cas: Tensor, labels: Tensor, pairs: Tensor, margin: float = 0.5
) -> Tensor:
    """Compute the co-activity similarity loss L_cas (Section 3.5, after W-TALC).

    Snippets of a class should look alike across videos. For a class that two videos share, each video has a high
    feature H and a low feature L. H is the mean of its snippets, weighted by the class's softmax over time; L has the
    remaining weights. H1 and H2 must be closer to each other than to L2 and L1, by a margin in cosine distance.

    Args:
        features: Fused features X_bar (B, T, D).
        suppressed_cas: Suppressed T-CAM S_bar (B, T, C + 1).
        labels: Multi-hot video labels (B, C).
        pairs: Rows of the batch that share a class (P, 2).
        margin: Margin of the hinge, in cosine distance.

    Returns:
        Mean over the shared labels of all pairs, or 0 without a shared label. In distributed training all ranks must
        call this function. The mean of their values is then the mean over all pairs.
    """
    num_snippets, num_classes = features.shape[1], labels.shape[1]
    rows = pairs.flatten()
    snippets = features[rows]  # (2P, T, D)
    weights = suppressed_cas[rows, :, :num_classes].softmax(dim=1)  # (2P, T, C), each column sums to 1
    high = weights.transpose(1, 2) @ snippets  # (2P, C, D)
    low = (snippets.sum(dim=1, keepdim=True) - high) / max(num_snippets - 1, 1)  # weights 1 - a
    (high_1, high_2), (low_1, low_2) = (x.unflatten(0, (-1, 2)).unbind(dim=1) for x in (high, low))
    distance_high = 1 - F.cosine_similarity(high_1, high_2, dim=-1)  # (P, C)
    distance_low_2 = 1 - F.cosine_similarity(high_1, low_2, dim=-1)
    distance_low_1 = 1 - F.cosine_similarity(low_1, high_2, dim=-1)
    hinge = 0.5 * (F.relu(distance_high - distance_low_2 + margin) + F.relu(distance_high - distance_low_1 + margin))
    shared = labels[pairs[:, 0]] * labels[pairs[:, 1]]  # (P, C)
    return (shared * hinge).sum() / _mean_divisor(shared)


def _mean_divisor(shared: Tensor) -> Tensor:
    """Return the divisor that turns this rank's sum over shared labels (P, C) into a mean over all pairs."""
    count = shared.sum()
    if not (distributed.is_available() and distributed.is_initialized()):
        return count.clamp(min=1)
    distributed.all_reduce(count)
    return count.clamp(min=1) / distributed.get_world_size()


def bernoulli_kl(attention: Tensor, target: Tensor) -> Tensor:
    """Compute the mean KL(target || attention), in nats, of attention weights as Bernoulli distributions.

    The pseudo label comes first, as in mutual learning (Zhang et al., CVPR 2018). Both are clamped to
    [CLAMP, 1 - CLAMP], so the divergence is finite. The sigmoid has almost no gradient where the clamp acts.
    """
    p, q = target.clamp(CLAMP, 1 - CLAMP), attention.clamp(CLAMP, 1 - CLAMP)
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


def bernoulli_js(attention: Tensor, target: Tensor) -> Tensor:
    """Compute the mean Jensen-Shannon divergence in nats, clamped as in `bernoulli_kl`."""
    middle = (attention + target) / 2
    return (bernoulli_kl(middle, attention) + bernoulli_kl(middle, target)) / 2


# Similarity delta of Eq. 6 (Table 4): attention and target of one shape to their mean distance.
SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "kl": bernoulli_kl,
    "js": bernoulli_js,
}


def mutual_loss(modality_attention: Tensor, similarity: str = "mse", alpha: float = 0.5) -> Tensor:
    """Compute the mutual learning loss L_ml, Eq. 6: each attention is the other's pseudo label, without gradient.

    Args:
        modality_attention: Attention of both modalities (B, 2, T).
        similarity: Similarity delta, a key of SIMILARITIES.
        alpha: Weight of the first modality's term.
    """
    first, second = modality_attention.unbind(dim=1)
    distance = SIMILARITIES[similarity]
    return alpha * distance(first, second.detach()) + (1 - alpha) * distance(second, first.detach())


def opposition(attentions: Tensor, cas: Tensor) -> Tensor:
    """Return the error of each attention (B, K, T): its distance from the opposite of the background probability.

    Args:
        attentions: Attention of each modality, the fused one, or a choice of them (B, K, T).
        cas: T-CAM logits (B, T, C + 1). The paper's s_{c+1} is the last column of their softmax (release).
    """
    background = cas.softmax(dim=-1)[..., -1].unsqueeze(1)  # (B, 1, T)
    return (attentions + background - 1).abs()


def opposition_loss(attentions: Tensor, cas: Tensor) -> Tensor:
    """Compute L_oppo, Eq. 7, the mean of `opposition`: attention is the opposite of the background probability."""
    return opposition(attentions, cas).mean()


def norm_loss(attentions: Tensor) -> Tensor:
    """Compute L_norm, Eq. 8: L1 norm (release: mean over snippets) of the three attentions (B, 3, T)."""
    return attentions.abs().mean()


class Objective(nn.Module):
    """Weighted sum of loss terms; a subclass defines WEIGHTS and `terms`.

    Args:
        weights: Weights by term that differ from WEIGHTS. A weight of 0 removes a term from the result, and its cost.

    Raises:
        ValueError: If a term is unknown, or none is left.

    Attributes:
        WEIGHTS: Published weight of each term.
    """

    WEIGHTS: Mapping[str, float]

    def __init__(self, weights: Mapping[str, float] | None = None):
        super().__init__()
        self.weights = complete_weights(weights or {}, self.WEIGHTS)

    def forward(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor = 0.0
    ) -> dict[str, Tensor]:
        """Return the active terms, unweighted, and their weighted sum `total`, all scalars.

        Args:
            outputs: Outputs of the network.
            labels: Multi-hot video labels (B, C).
            pairs: Rows of the batch that share a class (P, 2).
            progress: Share of training that has passed, in [0, 1).
        """
        return weighted_sum(self.terms(outputs, labels, pairs, progress), self.weights)

    def terms(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return a function per term that computes it; arguments as of `forward`."""
        raise NotImplementedError


class CO2Loss(Objective):
    """Objective of CO2-Net, Eq. 10: a weighted sum of six terms.

    Args:
        topk_ratio: Divisor of T in the top-k of L_mil (7 on THUMOS14, 5 on ActivityNet1.2).
        weights: Weights by term that differ from WEIGHTS. `mil` sets `mil_org` and `mil_supp` unless they are given.
            A weight of 0 removes a term from the result, and its cost.
        suppression: Suppressed T-CAM of the release (`shifted`), or the paper's Eq. 9 (`product`).
        mutual: Similarity of L_ml, a key of SIMILARITIES (Table 4).

    Raises:
        ValueError: If a term, the suppression or the similarity is unknown.
    """

    WEIGHTS = WEIGHTS

    def __init__(
        self,
        topk_ratio: int = 7,
        weights: Mapping[str, float] | None = None,
        suppression: str = "shifted",
        mutual: str = "mse",
    ):
        if mutual not in SIMILARITIES:
            raise ValueError(f"mutual is {mutual!r}, expected one of {', '.join(SIMILARITIES)}")
        if suppression not in SUPPRESSIONS:
            raise ValueError(f"suppression is {suppression!r}, expected one of {', '.join(SUPPRESSIONS)}")
        weights = dict(weights or {})
        if "mil" in weights:
            mil = weights.pop("mil")
            weights = {"mil_org": mil, "mil_supp": mil, **weights}
        super().__init__(weights)
        self.topk_ratio, self.suppression, self.mutual = topk_ratio, suppression, mutual

    def terms(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return a function per term; see `Objective.terms`."""
        cas, attentions = outputs["cas"], all_attentions(outputs)
        suppressed = self.suppress(cas, outputs["attention"])
        return {
            "mil_org": lambda: mil_loss(cas, labels, 1.0, self.topk_ratio),
            "mil_supp": lambda: mil_loss(suppressed, labels, 0.0, self.topk_ratio),
            "cas": lambda: co_activity_loss(outputs["features"], suppressed, labels, pairs),
            "ml": lambda: mutual_loss(outputs["modality_attention"], self.mutual),
            "oppo": lambda: opposition_loss(attentions, cas),
            "norm": lambda: norm_loss(attentions),
        }

    def suppress(self, cas: Tensor, attention: Tensor) -> Tensor:
        """Return the suppressed T-CAM (B, T, C + 1) of this objective; see `suppress`."""
        return suppress(cas, attention, shifted=self.suppression == "shifted")


def all_attentions(outputs: Mapping[str, Tensor]) -> Tensor:
    """Return the attention of both modalities, and the fused one (B, 3, T)."""
    return torch.cat([outputs["modality_attention"], outputs["attention"].unsqueeze(1)], dim=1)


def weighted_sum(terms: Mapping[str, Callable[[], Tensor]], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Compute the terms with a weight other than 0, and their weighted sum `total`."""
    values = {name: terms[name]() for name, weight in weights.items() if weight}
    total = sum(weights[name] * value for name, value in values.items()) if values else torch.zeros(())
    return {**values, "total": total}


def complete_weights(weights: Mapping[str, float], published: Mapping[str, float]) -> dict[str, float]:
    """Return the published weights, updated with the given ones; ValueError for an unknown term or no term left."""
    if unknown := sorted(set(weights) - set(published)):
        raise ValueError(f"unknown loss term {', '.join(unknown)}; the terms are {', '.join(published)}")
    weights = {**published, **weights}
    if not any(weights.values()):
        raise ValueError("all loss weights are 0; at least one term must be left to train with")
    return weights
