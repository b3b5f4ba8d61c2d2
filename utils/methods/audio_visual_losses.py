"""The audio-visual paper's objective: log probabilities of snippets and video labels -> named loss terms.

"Cross-attentional audio-visual fusion for weakly-supervised action localization" (ICLR 2021), Section 3.3 and
Appendix C; equation numbers are that paper's. MIL and co-activity similarity are those of utils/losses.py. What the
paper leaves open is an argument, with the reason for its default beside it. All terms are finite for T = 1, for videos
without an action and for probabilities of 0.

Shapes: B videos, T snippets, D channels, C action classes (background is class C of a T-CAM), P pairs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.losses import co_activity_loss, mil_loss, resolve_weights, weighted_sum

WEIGHTS = {"mil": 1.0, "cas": 0.8, "cont": 0.8, "pseu": 1.0}  # Eq. 10 with alpha, beta and gamma of Section 4.2
WINDOW = 4  # B of Eq. 6 and 7: snippets beside the middle one


def window_mean(values: Tensor, window: Tensor) -> Tensor:
    """Means over time, weighted by a window (odd) around each snippet: (B, T, K) -> (B, T, K).

    At the ends of a video the weights inside it count alone, so that a constant stays what it is.
    """
    columns = values.transpose(1, 2)  # (B, K, T)
    kernel, margin = window.to(values)[None, None], len(window) // 2
    sums = F.conv1d(columns.flatten(0, 1).unsqueeze(1), kernel, padding=margin).view_as(columns)
    weights = F.conv1d(torch.ones_like(columns[:1, :1]), kernel, padding=margin)  # (1, 1, T)
    return (sums / weights).transpose(1, 2)


def gaussian_window(sigma: float, width: int = WINDOW) -> Tensor:
    """G of Eq. 6 and 7 at -B/2, ..., B/2, with `sigma` in snippets: (B + 1,)."""
    offsets = torch.arange(width + 1) - width // 2
    return torch.exp(-0.5 * (offsets / sigma) ** 2)


def foreground_continuity_loss(cas: Tensor, labels: Tensor, sigma: float = 1.0, stop_gradient: bool = False) -> Tensor:
    """Foreground continuity loss L_cont, Eq. 6 to 8: mu is near its own mean and near that of the video's action.

    The paper does not scale G. Here the mean's weights add up to 1, in its terms sum G = B + 1: with a smaller sum an
    even foreground would cost more the surer it is. p(c^) of a video with several actions is the sum of theirs, since
    mu is the probability of any; of a video without one it is 0, so mu is drawn to 0.

    Args:
        cas: log p (B, T, C + 1).
        labels: multi-hot video labels (B, C).
        sigma: of the Gaussian window, in snippets; 1 puts 0.40 on the snippet and 0.05 on those B/2 away.
        stop_gradient: take the means as fixed targets; the paper writes Eq. 8 without, so by default both sides learn.
    """
    probabilities = cas.exp()
    reliability = 1 - probabilities[..., -1]  # mu (B, T)
    of_actions = (probabilities[..., :-1] * labels.unsqueeze(1)).sum(dim=-1)
    smooth = window_mean(torch.stack([reliability, of_actions], dim=-1), gaussian_window(sigma))  # Eq. 6 and 7
    smooth = smooth.detach() if stop_gradient else smooth
    return (reliability.unsqueeze(-1) - smooth).abs().sum(dim=-1).mean()  # Eq. 8


def pseudo_localization_loss(cas: Tensor, neighbors: int = 4, threshold: float = 0.7) -> Tensor:
    """Pseudo localization loss L_pseu, Eq. 9: a snippet agrees with the class that its neighborhood is sure of.

    The mean prediction q of a snippet and its N neighbors gives the pseudo label argmax q where max q >= tau. As an
    index the label carries no gradient; the snippets without one count in the mean as 0.

    Args:
        cas: log p (B, T, C + 1).
        neighbors: N, even; 4, as the continuity loss has it with B.
        threshold: tau. Above 1/2, which an untrained mu gives to the background everywhere.
    """
    q = window_mean(cas.detach().exp(), torch.ones(neighbors + 1))
    confidence, pseudo_labels = q.max(dim=-1)  # (B, T)
    surprise = -cas.gather(-1, pseudo_labels.unsqueeze(-1)).squeeze(-1)
    return torch.where(confidence >= threshold, surprise, 0.0).mean()


class AudioVisualLoss(nn.Module):
    """The full objective, Eq. 10.

    MIL and co-activity similarity see log p in the place of W-TALC's logits. The softmax over time that weighs a
    class's snippets is then p divided by its sum. L_mil takes no softmax over classes, since p is a distribution
    already: it asks k snippets for the video's action, or, in a video without one, for the background, and nothing of
    the others.

    Args:
        topk_ratio: divisor of T in the top-k of L_mil.
        weights: weights by term, over the published ones in WEIGHTS. A weight of 0 removes the term, and its cost.
        continuity_sigma, continuity_stop_gradient: see foreground_continuity_loss.
        pseudo_neighbors, pseudo_threshold: see pseudo_localization_loss.

    Raises:
        ValueError: for a name that is no term, or an odd number of neighbors.
    """

    def __init__(
        self,
        topk_ratio: int = 7,
        weights: Mapping[str, float] | None = None,
        continuity_sigma: float = 1.0,
        continuity_stop_gradient: bool = False,
        pseudo_neighbors: int = 4,
        pseudo_threshold: float = 0.7,
    ):
        super().__init__()
        if pseudo_neighbors < 0 or pseudo_neighbors % 2:
            raise ValueError(f"pseudo_neighbors is {pseudo_neighbors}, expected as many before a snippet as after it")
        self.weights = self.resolve_weights(weights or {})
        self.topk_ratio = topk_ratio
        self.continuity = {"sigma": continuity_sigma, "stop_gradient": continuity_stop_gradient}
        self.pseudo = {"neighbors": pseudo_neighbors, "threshold": pseudo_threshold}

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        """Each active term, unweighted, and their weighted sum `total`; all scalars.

        Args:
            outputs: what AudioVisualNet returns.
            labels: multi-hot video labels (B, C).
            pairs: rows of the batch that share a class (P, 2).
        """
        cas = outputs["cas"]
        background = (~labels.any(dim=1)).to(labels)
        terms = {
            "mil": lambda: mil_loss(cas, labels, background, self.topk_ratio, normalized=True),
            "cas": lambda: co_activity_loss(outputs["features"], cas, labels, pairs),
            "cont": lambda: foreground_continuity_loss(cas, labels, **self.continuity),
            "pseu": lambda: pseudo_localization_loss(cas, **self.pseudo),
        }
        return weighted_sum(terms, self.weights)

    @staticmethod
    def resolve_weights(weights: Mapping[str, float]) -> dict[str, float]:
        """Weights of all four terms from those that differ from the published ones; ValueError for another name."""
        return resolve_weights(weights, WEIGHTS)
