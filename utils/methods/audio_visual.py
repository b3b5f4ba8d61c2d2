"""Audio-visual method: "Cross-attentional audio-visual fusion for weakly-supervised action localization" (ICLR 2021).

Network (Sections 3.1 and 3.2) and objective (Section 3.3, Appendix C); equation numbers are that paper's. Its authors
published no code. Each choice that the paper leaves open is explained where it is made; docs/audio_visual.md lists
them. MIL and co-activity similarity come from utils/losses.py. All loss terms are finite for T = 1, for videos
without an action, and for probabilities of 0.

Shapes: B videos, T snippets, D channels (D1, D2 of the modalities), C action classes, P pairs. The background class is
class C, the last one; the paper puts it first.
"""

from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import check_shape, check_sizes
from utils.fusion import CrossAttention, Embedding, consensus_factory
from utils.losses import Objective, co_activity_loss, mil_loss
from utils.methods.base import Definition
from utils.number_types import fraction, non_negative_int, positive_float

CLASSIFIERS = ("openmax", "softmax")
WEIGHTS = {"mil": 1.0, "cas": 0.8, "cont": 0.8, "pseu": 1.0}  # Eq. 10 with alpha, beta and gamma of Section 4.2
WINDOW = 4  # number of neighbors in the window: B of Eq. 6 and 7, not the batch size


class AudioVisualNet(nn.Module):
    """Network of Figure 1: embeddings, multi-stage cross attention, concatenation, classifier.

    Args:
        num_classes: Number of action classes C. The network adds the background class.
        modality_dims: Channels of one or two modalities, in the order of the features. One is the paper's uni-modal
            variant (embedding, then classifier).
        consensus: `cross_attention`, or another key of utils.fusion.CONSENSUS; `ccm` is CO2-Net's.
        stages: Number of cross attention stages t_e; 0 is plain concatenation.
        classifier: `openmax` (Eq. 5), or `softmax` over C + 1 classes, its baseline in Tables 2 and 5.
        width: Channels d_x of an embedded modality.
        dropout: Dropout on the attended features, before the classifier.

    Raises:
        ValueError: If there is no class, not one or two modalities, an unknown classifier, or, with two modalities, an
            unknown consensus.
    """

    CLASS_LAYER = "classifier.weight"  # the parameter with one row per class, background last

    def __init__(
        self,
        num_classes: int,
        modality_dims: Sequence[int] = (512, 128),
        consensus: str = "cross_attention",
        stages: int = 2,
        classifier: str = "openmax",
        width: int = 1024,
        dropout: float = 0.7,
    ):
        super().__init__()
        check_sizes(num_classes, modality_dims)
        if classifier not in CLASSIFIERS:
            raise ValueError(f"classifier is {classifier!r}, expected one of {', '.join(CLASSIFIERS)}")
        self.num_classes, self.modality_dims = num_classes, tuple(modality_dims)
        self.open_set = classifier == "openmax"
        self.embeddings = nn.ModuleList([Embedding(dim, width) for dim in self.modality_dims])  # f_u, f_v
        self.consensus = None
        if len(self.modality_dims) == 2:
            # The embedding precedes every consensus module here, so cross attention needs none of its own.
            is_attention = consensus == "cross_attention"
            self.consensus = (
                CrossAttention(width, width, stages) if is_attention else consensus_factory(consensus)(width, width)
            )
        self.dropout = nn.Dropout(dropout)
        # Open-max has two parallel layers, for the C actions and the foreground (last); here they are one layer.
        self.classifier = nn.Linear(width * len(self.modality_dims), num_classes + 1)
        self.apply(init_xavier)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return class probabilities of every snippet.

        Args:
            features: Snippet features (B, T, sum of modality_dims), T >= 1.

        Returns:
            A dict of

            * `cas` (B, T, C + 1): log probabilities log p of the classes (Eq. 5), background last
            * `attention` (B, T): 1 - p_bg; for the open-max classifier this is the foreground reliability mu
            * `features` (B, T, D): X_att (Eq. 4) before the dropout, the input of the co-activity similarity loss

        Raises:
            ValueError: If the features have another shape.
        """
        check_shape(features, sum(self.modality_dims))
        modalities = features.transpose(1, 2).split(self.modality_dims, dim=1)
        embedded = [layer(x) for layer, x in zip(self.embeddings, modalities, strict=True)]  # (B, width, T) each
        if self.consensus is not None:
            embedded = self.consensus(*embedded)
        attended = torch.cat(embedded, dim=1).transpose(1, 2)  # Eq. 4, (B, T, D)
        scores = self.classifier(self.dropout(attended))  # (B, T, C + 1)
        cas = open_max(scores) if self.open_set else scores.log_softmax(dim=-1)
        return {"cas": cas, "attention": -torch.expm1(cas[..., -1]), "features": attended}


def open_max(scores: Tensor) -> Tensor:
    """Return log p (..., C + 1), background last, from scores (..., C + 1) of the actions h and the foreground, Eq. 5.

    p = [mu * softmax(h), 1 - mu], where mu is the sigmoid of the foreground score. Logarithms keep the gradient of a
    certain foreground or background.
    """
    reliability = F.pad(scores[..., -1:], (0, 1)).log_softmax(dim=-1)  # log mu = log sigmoid, log(1 - mu)
    actions = scores[..., :-1].log_softmax(dim=-1) + reliability[..., :1]
    return torch.cat([actions, reliability[..., 1:]], dim=-1)


def init_xavier(module: nn.Module) -> None:
    """Initialize a layer with Xavier weights (Section 4.2) and zero biases."""
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def window_mean(values: Tensor, window: Tensor) -> Tensor:
    """Return the mean over time (B, T, K) of values (B, T, K), weighted by an odd window around each snippet.

    At the ends of a video only the weights inside it count, so a constant stays constant.
    """
    columns = values.transpose(1, 2)  # (B, K, T)
    kernel, margin = window.to(values)[None, None], len(window) // 2
    sums = F.conv1d(columns.flatten(0, 1).unsqueeze(1), kernel, padding=margin).view_as(columns)
    weights = F.conv1d(torch.ones_like(columns[:1, :1]), kernel, padding=margin)  # (1, 1, T)
    return (sums / weights).transpose(1, 2)


def gaussian_window(sigma: float, width: int = WINDOW) -> Tensor:
    """Return the weights G (width + 1,) of Eq. 6 and 7 at offsets -width/2 to width/2; `sigma` is in snippets."""
    offsets = torch.arange(width + 1) - width // 2
    return torch.exp(-0.5 * (offsets / sigma) ** 2)


def foreground_continuity_loss(cas: Tensor, labels: Tensor, sigma: float = 1.0, stop_gradient: bool = False) -> Tensor:
    """Compute the foreground continuity loss L_cont, Eq. 6 to 8.

    mu should equal its smoothed value and the smoothed probability of the video's actions. The paper does not scale
    G. Here the window weights sum to 1 (sum G = B + 1 in the paper's terms). With a smaller sum, even a confident
    constant foreground would have a loss. For several actions, p(c^) is the sum over them, because mu is the
    probability of any action. Without an action it is 0, so mu tends to 0.

    Args:
        cas: Log probabilities log p (B, T, C + 1).
        labels: Multi-hot video labels (B, C).
        sigma: Width of the Gaussian window, in snippets. With 1, the snippet has weight 0.40 and those B/2 away 0.05.
        stop_gradient: Use the smoothed values as fixed targets. The paper writes Eq. 8 without, so by default both
            sides learn.
    """
    probabilities = cas.exp()
    reliability = 1 - probabilities[..., -1]  # mu (B, T)
    of_actions = (probabilities[..., :-1] * labels.unsqueeze(1)).sum(dim=-1)
    smooth = window_mean(torch.stack([reliability, of_actions], dim=-1), gaussian_window(sigma))  # Eq. 6 and 7
    smooth = smooth.detach() if stop_gradient else smooth
    return (reliability.unsqueeze(-1) - smooth).abs().sum(dim=-1).mean()  # Eq. 8


def pseudo_localization_loss(cas: Tensor, neighbors: int = 4, threshold: float = 0.7) -> Tensor:
    """Compute the pseudo localization loss L_pseu, Eq. 9.

    A snippet should have the class that its neighborhood predicts with certainty. q is the mean prediction over a
    snippet and its N neighbors. Where max q >= tau, the pseudo label is argmax q, an index without gradient. Snippets
    without a pseudo label count as 0 in the mean.

    Args:
        cas: Log probabilities log p (B, T, C + 1).
        neighbors: Number of neighbors N, even; 4, as B in the continuity loss.
        threshold: Confidence threshold tau. It must exceed 1/2: an untrained network predicts the
            background with 1/2 everywhere.
    """
    q = window_mean(cas.detach().exp(), torch.ones(neighbors + 1))
    confidence, pseudo_labels = q.max(dim=-1)  # (B, T)
    surprise = -cas.gather(-1, pseudo_labels.unsqueeze(-1)).squeeze(-1)
    return torch.where(confidence >= threshold, surprise, 0.0).mean()


class AudioVisualLoss(Objective):
    """Objective of the audio-visual paper, Eq. 10.

    MIL and co-activity similarity get log p instead of W-TALC's logits. The softmax over time that weights the
    snippets of a class is then p divided by its sum. L_mil has no softmax over classes, because p is a distribution
    already. It asks k snippets for the video's action, or for the background in a video without one.

    Args:
        topk_ratio: Divisor of T in the top-k of L_mil.
        weights: Weights by term that differ from WEIGHTS. A weight of 0 removes a term, and its cost.
        continuity_sigma: `sigma` of `foreground_continuity_loss`.
        continuity_stop_gradient: `stop_gradient` of `foreground_continuity_loss`.
        pseudo_neighbors: `neighbors` of `pseudo_localization_loss`.
        pseudo_threshold: `threshold` of `pseudo_localization_loss`.

    Raises:
        ValueError: If a term is unknown or the number of neighbors is odd.
    """

    WEIGHTS = WEIGHTS

    def __init__(
        self,
        topk_ratio: int = 7,
        weights: Mapping[str, float] | None = None,
        continuity_sigma: float = 1.0,
        continuity_stop_gradient: bool = False,
        pseudo_neighbors: int = 4,
        pseudo_threshold: float = 0.7,
    ):
        super().__init__(weights)
        if pseudo_neighbors < 0 or pseudo_neighbors % 2:
            raise ValueError(f"pseudo_neighbors is {pseudo_neighbors}, expected an even number")
        self.topk_ratio = topk_ratio
        self.continuity = {"sigma": continuity_sigma, "stop_gradient": continuity_stop_gradient}
        self.pseudo = {"neighbors": pseudo_neighbors, "threshold": pseudo_threshold}

    def terms(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return a function per term; see `Objective.terms`. `progress` is not used."""
        cas = outputs["cas"]
        background = (~labels.any(dim=1)).to(labels)
        return {
            "mil": lambda: mil_loss(cas, labels, background, self.topk_ratio, normalized=True),
            "cas": lambda: co_activity_loss(outputs["features"], cas, labels, pairs),
            "cont": lambda: foreground_continuity_loss(cas, labels, **self.continuity),
            "pseu": lambda: pseudo_localization_loss(cas, **self.pseudo),
        }


def add_options(parser: ArgumentParser) -> None:
    """Add the options of this method alone. The paper leaves all but the first open (docs/audio_visual.md)."""
    add = parser.add_argument_group("audio_visual").add_argument
    add(
        "--classifier",
        choices=CLASSIFIERS,
        default="openmax",
        help="classifier: Eq. 5 (openmax), or the baseline S-I of Table 2 (softmax)",
    )
    add(
        "--continuity-sigma",
        type=positive_float,
        default=1.0,
        metavar="SNIPPETS",
        help="width of the Gaussian window in L_cont, in snippets",
    )
    add(
        "--continuity-stop-gradient",
        action=BooleanOptionalAction,
        default=False,
        help="treat the smoothed sequences of L_cont as fixed targets",
    )
    add(
        "--pseudo-neighbors",
        "--pseudo-neighbours",
        type=non_negative_int,
        default=4,
        metavar="N",
        help="even number of neighbors of a snippet in L_pseu",
    )
    add("--pseudo-threshold", type=fraction, default=0.7, metavar="TAU", help="confidence threshold of L_pseu")


DEFINITION = Definition(
    network=AudioVisualNet,
    objective=AudioVisualLoss,
    num_modalities=(1, 2),
    consensus="cross_attention",
    localization="two_stage",
    add_options=add_options,
)
