"""The training objective: T-CAM, attention and video labels -> named loss terms.

Section 3.5 of arXiv:2107.12589, one function a term under its equation number; "release" marks what the authors'
implementation does where the paper is silent or differs. All terms are means or sums that stay finite for T = 1,
for a pair without a shared class and for features of norm zero.

Shapes: B videos, T snippets, D channels, C action classes (background is class C of a T-CAM), P pairs.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

WEIGHTS = {"mil_org": 1.0, "mil_supp": 1.0, "cas": 1.0, "ml": 1.0, "oppo": 0.8, "norm": 0.8}
CLAMP = 1e-6  # attention weights as probabilities stay this far from 0 and 1


def suppress(cas: Tensor, attention: Tensor, shifted: bool = True) -> Tensor:
    """Suppressed T-CAM S_bar, Eq. 9: A * S.

    Shifted (release, in training): A * (S - min_c S) + min_c S, so that low attention means the snippet's lowest
    logit rather than a logit of zero.

    Args:
        cas: T-CAM logits (B, T, C + 1).
        attention: fused attention (B, T).
    """
    attention = attention.unsqueeze(-1)
    if not shifted:
        return attention * cas
    floor = cas.amin(dim=-1, keepdim=True)
    return attention * (cas - floor) + floor


def mil_loss(
    cas: Tensor, labels: Tensor, background: float | Tensor, topk_ratio: int, normalized: bool = False
) -> Tensor:
    """Top-k multiple-instance learning loss: L_mil^org on S, L_mil^supp on S_bar (Section 3.5, after W-TALC).

    A video's logit of a class is the mean of its top k = max(1, T // topk_ratio) snippet logits; the loss is softmax
    cross-entropy against the labels divided by their sum.

    Args:
        cas: T-CAM logits (B, T, C + 1).
        labels: multi-hot video labels (B, C).
        background: label of the background class, of all videos or of each (B,): 1 on S, where background is
            present, 0 on S_bar, where attention has removed it.
        topk_ratio: 7 on THUMOS14, 5 on ActivityNet1.2.
        normalized: the T-CAM holds log probabilities, which need no softmax over the classes.
    """
    column = torch.ones_like(labels[:, 0]) * background  # made on the device, which need not wait for the host
    labels = torch.cat([labels, column.unsqueeze(1)], dim=1)
    labels = labels / (labels.sum(dim=1, keepdim=True) + 1e-4)  # 1e-4: release
    k = max(1, cas.shape[1] // topk_ratio)
    video_logits = cas.topk(k, dim=1).values.mean(dim=1)  # (B, C + 1)
    log_probabilities = video_logits if normalized else F.log_softmax(video_logits, dim=1)
    return -(labels * log_probabilities).sum(dim=1).mean()


def co_activity_loss(
    features: Tensor, suppressed_cas: Tensor, labels: Tensor, pairs: Tensor, margin: float = 0.5
) -> Tensor:
    """Co-activity similarity loss L_cas (Section 3.5, after W-TALC): snippets of a class look alike across videos.

    For a class that two videos share, each video has a high feature H (mean of its snippets, weighted by the class's
    softmax over time) and a low feature L (weighted by the rest). H1 must be nearer to H2 than L2 is to H1 and L1
    to H2, by a margin in cosine distance.

    Args:
        features: fused features X_bar (B, T, D).
        suppressed_cas: S_bar (B, T, C + 1).
        labels: multi-hot video labels (B, C).
        pairs: rows of the batch that share a class (P, 2).

    Returns:
        Mean over the shared labels of all pairs; 0 if there is none. Processes that train together get such values
        that their mean is that over the pairs of all of them; they must all call this.
    """
    num_snippets, num_classes = features.shape[1], labels.shape[1]
    rows = pairs.flatten()
    snippets = features[rows]  # (2P, T, D)
    weights = suppressed_cas[rows, :, :num_classes].softmax(dim=1)  # (2P, T, C), each column sums to 1
    high = weights.transpose(1, 2) @ snippets  # (2P, C, D)
    low = (snippets.sum(dim=1, keepdim=True) - high) / max(num_snippets - 1, 1)  # weights 1 - a
    (high_1, high_2), (low_1, low_2) = (x.unflatten(0, (-1, 2)).unbind(dim=1) for x in (high, low))
    near = 1 - F.cosine_similarity(high_1, high_2, dim=-1)  # (P, C)
    far_2 = 1 - F.cosine_similarity(high_1, low_2, dim=-1)
    far_1 = 1 - F.cosine_similarity(low_1, high_2, dim=-1)
    hinge = 0.5 * (F.relu(near - far_2 + margin) + F.relu(near - far_1 + margin))
    shared = labels[pairs[:, 0]] * labels[pairs[:, 1]]  # (P, C)
    return (shared * hinge).sum() / _pair_labels(shared)


def _pair_labels(shared: Tensor) -> Tensor:
    """What a sum over the shared labels (P, C) of this process's pairs is divided by, for a mean over all pairs."""
    count = shared.sum()
    if not (distributed.is_available() and distributed.is_initialized()):
        return count.clamp(min=1)
    distributed.all_reduce(count)
    return count.clamp(min=1) / distributed.get_world_size()


def bernoulli_kl(attention: Tensor, target: Tensor) -> Tensor:
    """Mean KL(target || attention) in nats of the Bernoulli distributions that the attention weights are.

    The pseudo label comes first, as in mutual learning (Zhang et al., CVPR 2018). Both are clamped to
    [CLAMP, 1 - CLAMP], so that the divergence is finite at 0 and 1, where the sigmoid has no gradient left anyway.
    """
    p, q = target.clamp(CLAMP, 1 - CLAMP), attention.clamp(CLAMP, 1 - CLAMP)
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


def bernoulli_js(attention: Tensor, target: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence in nats: half of each one's KL to their mean; clamped as in bernoulli_kl."""
    middle = (attention + target) / 2
    return (bernoulli_kl(middle, attention) + bernoulli_kl(middle, target)) / 2


# delta of Eq. 6, Table 4: (attention, target) of one shape -> their mean distance.
SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "kl": bernoulli_kl,
    "js": bernoulli_js,
}


def mutual_loss(modality_attention: Tensor, similarity: str = "mse", alpha: float = 0.5) -> Tensor:
    """Mutual learning loss L_ml, Eq. 6: each modality's attention is the other's pseudo label, without gradient.

    Args:
        modality_attention: attention of both modalities (B, 2, T).
        similarity: delta, a name of SIMILARITIES.
    """
    first, second = modality_attention.unbind(dim=1)
    distance = SIMILARITIES[similarity]
    return alpha * distance(first, second.detach()) + (1 - alpha) * distance(second, first.detach())


def opposition_loss(attentions: Tensor, cas: Tensor) -> Tensor:
    """L_oppo, Eq. 7: attention is the opposite of the background probability.

    Args:
        attentions: the two modalities' and the fused attention (B, 3, T).
        cas: T-CAM logits (B, T, C + 1); s_{c+1} of the paper is their softmax's last column (release).
    """
    background = cas.softmax(dim=-1)[..., -1].unsqueeze(1)  # (B, 1, T)
    return (attentions + background - 1).abs().mean()


def norm_loss(attentions: Tensor) -> Tensor:
    """L_norm, Eq. 8: L1 norm (release: mean over snippets) of the three attentions (B, 3, T), which are >= 0."""
    return attentions.abs().mean()


class CO2Loss(nn.Module):
    """The full objective, Eq. 10.

    Args:
        topk_ratio: divisor of T in the top-k of L_mil (7 THUMOS14, 5 ActivityNet1.2).
        weights: weights by term, over the published ones in WEIGHTS; `mil` stands for `mil_org` and
            `mil_supp` together. A weight of 0 removes the term from the result, and its cost.
        shifted_suppression: S_bar as in the release; False is the paper's plain product, Eq. 9.
        mutual: the similarity of L_ml, one of SIMILARITIES (Table 4).

    Raises:
        ValueError: for a name that is no term or no similarity.
    """

    def __init__(
        self,
        topk_ratio: int = 7,
        weights: Mapping[str, float] | None = None,
        shifted_suppression: bool = True,
        mutual: str = "mse",
    ):
        super().__init__()
        if mutual not in SIMILARITIES:
            raise ValueError(f"mutual is {mutual!r}, expected one of {', '.join(SIMILARITIES)}")
        self.topk_ratio = topk_ratio
        self.weights = self.resolve_weights(weights or {})
        self.shifted_suppression = shifted_suppression
        self.mutual = mutual

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        """Each active term, unweighted, and their weighted sum `total`; all scalars.

        Args:
            outputs: what CO2Net returns.
            labels: multi-hot video labels (B, C).
            pairs: rows of the batch that share a class (P, 2).
        """
        cas, modality_attention = outputs["cas"], outputs["modality_attention"]
        suppressed = suppress(cas, outputs["attention"], self.shifted_suppression)
        attentions = torch.cat([modality_attention, outputs["attention"].unsqueeze(1)], dim=1)  # (B, 3, T)
        terms = {
            "mil_org": lambda: mil_loss(cas, labels, 1.0, self.topk_ratio),
            "mil_supp": lambda: mil_loss(suppressed, labels, 0.0, self.topk_ratio),
            "cas": lambda: co_activity_loss(outputs["features"], suppressed, labels, pairs),
            "ml": lambda: mutual_loss(modality_attention, self.mutual),
            "oppo": lambda: opposition_loss(attentions, cas),
            "norm": lambda: norm_loss(attentions),
        }
        return weighted_sum(terms, self.weights)

    @staticmethod
    def resolve_weights(weights: Mapping[str, float]) -> dict[str, float]:
        """Weights of all six terms from those that differ from the published ones; ValueError for another name."""
        given = dict(weights)
        if "mil" in given:
            given["mil_org"] = given["mil_supp"] = given.pop("mil")
        return resolve_weights(given, WEIGHTS, "mil, ")


def weighted_sum(terms: Mapping[str, Callable[[], Tensor]], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Each term whose weight is not 0, and their weighted sum `total`; the others are not even computed."""
    values = {name: terms[name]() for name, weight in weights.items() if weight}
    first, *others = [weights[name] * value for name, value in values.items()] or [torch.zeros(())]
    return {**values, "total": sum(others, first)}


def resolve_weights(weights: Mapping[str, float], published: Mapping[str, float], more: str = "") -> dict[str, float]:
    """The published weights with those given in their place; ValueError for a name that is no term.

    more: further names that the message offers.
    """
    unknown = sorted(set(weights) - set(published))
    if unknown:
        raise ValueError(f"no loss term is called {', '.join(unknown)}; the terms are {more}{', '.join(published)}")
    return {**published, **weights}
