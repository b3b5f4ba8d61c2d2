"""The audio-visual network: snippet features of one or two modalities -> class probabilities of every snippet.

"Cross-attentional audio-visual fusion for weakly-supervised action localization" (ICLR 2021), Sections 3.1 and 3.2;
equation numbers are that paper's. There is no code of its authors: what the paper leaves open is said where it is
decided, and docs/audio_visual.md lists it.

Shapes: B videos, T snippets, D channels (D1, D2 of the modalities), C action classes; the background class is class C,
the last, as everywhere here (the paper puts it first).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import build_consensus
from utils.fusion import CrossAttention, Embedding
from utils.run.fast_dropout import Dropout

CLASSIFIERS = ("openmax", "softmax")


class AudioVisualNet(nn.Module):
    """Embedding of each modality, multi-stage cross attention, concatenation, classifier (Figure 1).

    Args:
        num_classes: action classes C; the network adds the background itself.
        modality_dims: channels of each modality, in the order the features hold them: of two, or of one alone, which
            is the paper's uni-modal variant (embedding, then classifier).
        consensus: `cross_attention`, or another of utils.fusion.CONSENSUS in its place: `ccm` is CO2-Net's.
        stages: t_e, how often the cross attention is applied; 0 leaves the plain concatenation.
        classifier: `openmax` (Eq. 5), or the `softmax` over C + 1 classes that Tables 2 and 5 compare it with.
        width: d_x, channels of an embedded modality.
        dropout: on the attended features, before the classifier.

    Raises:
        ValueError: for fewer than one class, not one or two modalities, or an unknown consensus or classifier.
    """

    CLASS_LAYER = "classifier.weight"  # the parameter that has a row a class, and one for the background

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
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        if len(modality_dims) not in (1, 2) or min(modality_dims) < 1:
            raise ValueError(f"modality_dims is {tuple(modality_dims)}, expected the widths of one or two modalities")
        if classifier not in CLASSIFIERS:
            raise ValueError(f"classifier is {classifier!r}, expected one of {', '.join(CLASSIFIERS)}")
        self.num_classes, self.modality_dims = num_classes, tuple(modality_dims)
        self.open_set = classifier == "openmax"
        self.embeddings = nn.ModuleList([Embedding(dim, width) for dim in self.modality_dims])  # f_u, f_v
        self.consensus = _build_fusion(consensus, width, stages) if len(self.modality_dims) == 2 else None
        self.dropout = Dropout(dropout)
        # Open-max: the two parallel layers, of the C actions and of the foreground (last), side by side in one.
        self.classifier = nn.Linear(width * len(self.modality_dims), num_classes + 1)
        self.apply(_initialize)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Snippet features (B, T, sum of modality_dims), T >= 1, to a dict of

        * `cas` (B, T, C + 1): log p, log probabilities of the classes (Eq. 5), background last
        * `attention` (B, T): 1 - p_bg, which for the open-max classifier is the foreground reliability mu
        * `features` (B, T, D): X_att (Eq. 4) before the dropout, which the co-activity similarity loss sees

        valid (B, T): True for snippets, False for padding, which then changes nothing at the snippets; None: all are
        snippets.

        Raises:
            ValueError: if the features are not of that shape.
        """
        if features.ndim != 3 or features.shape[1] < 1 or features.shape[2] != sum(self.modality_dims):
            expected = f"(videos, snippets >= 1, {sum(self.modality_dims)})"
            raise ValueError(f"features have shape {tuple(features.shape)}, expected {expected}")
        modalities = features.transpose(1, 2).split(self.modality_dims, dim=1)
        embedded = [layer(x) for layer, x in zip(self.embeddings, modalities, strict=True)]  # (B, width, T) each
        attended = torch.cat(self._enhance(embedded, valid), dim=1).transpose(1, 2)  # Eq. 4, (B, T, D)
        scores = self.classifier(self.dropout(attended))  # (B, T, C + 1)
        cas = open_max(scores) if self.open_set else scores.log_softmax(dim=-1)
        return {"cas": cas, "attention": -torch.expm1(cas[..., -1]), "features": attended}

    def _enhance(self, embedded: list[Tensor], valid: Tensor | None) -> Sequence[Tensor]:
        if self.consensus is None:
            return embedded
        return self.consensus(*embedded, valid)


def _build_fusion(consensus: str, width: int, stages: int) -> nn.Module:
    """What fuses the embedded modalities; the embedding that comes with the cross attention elsewhere is there."""
    if consensus == "cross_attention":
        return CrossAttention(width, width, stages)
    return build_consensus(consensus, width, width)


def open_max(scores: Tensor) -> Tensor:
    """Eq. 5: scores (..., C + 1) of the actions h and, last, of the foreground -> log p, background last.

    p = [mu * softmax(h), 1 - mu] with mu the sigmoid of the foreground score, in logarithms, so that neither a sure
    foreground nor a sure background loses its gradient.
    """
    reliability = F.pad(scores[..., -1:], (0, 1)).log_softmax(dim=-1)  # log mu = log sigmoid, log(1 - mu)
    actions = scores[..., :-1].log_softmax(dim=-1) + reliability[..., :1]
    return torch.cat([actions, reliability[..., 1:]], dim=-1)


def _initialize(module: nn.Module) -> None:
    """Xavier (Section 4.2) weights and zero biases; the W of a cross attention has them from the start."""
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
