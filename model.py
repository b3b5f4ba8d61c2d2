"""CO2-Net: snippet features of two modalities -> T-CAM and attention.

Hong et al., "Cross-modal Consensus Network for Weakly Supervised Temporal Action Localization", ACM MM 2021
(arXiv:2107.12589), Sections 3.3 and 3.4; equation numbers are the paper's. Where the paper is silent the
authors' implementation ("release") is followed, because the published numbers came from it.

Shapes: B videos, T snippets, D channels (D1, D2 of the two modalities), C action classes; the background class
is class C, the last. Features come as (B, T, D); inside, convolutions see (B, D, T).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.fusion import ALTERNATIVES, CONSENSUS, GlobalContext, LocalContext, PerModality, activation
from utils.run.fast_dropout import Dropout, Layers, without_padding


class ConsensusModule(nn.Module):
    """Cross-modal consensus module (CCM): re-calibrates the main modality, Section 3.3."""

    def __init__(self, main_dim: int, auxiliary_dim: int, dropout: float = 0.5):
        super().__init__()
        self.global_context = GlobalContext(main_dim, main_dim, dropout)
        self.cross_modal = LocalContext(auxiliary_dim, main_dim, dropout)

    def forward(self, main: Tensor, auxiliary: Tensor, valid: Tensor | None = None) -> Tensor:
        """main (B, D1, T), auxiliary (B, D2, T) -> re-calibrated main modality (B, D1, T)."""
        global_descriptor = self.global_context(main, valid)  # M^G (B, D1, 1), Eq. 1
        local_descriptor = self.cross_modal(auxiliary, valid)  # M^L (B, D1, T), Eq. 2
        return torch.sigmoid(global_descriptor * local_descriptor) * main  # Eq. 3


class AttentionUnit(nn.Module):
    """Modality-specific attention unit F^A: how much each snippet is foreground, Section 3.4, Eq. 4."""

    def __init__(self, dim: int, hidden_dim: int = 512, dropout: float = 0.5, logit_dropout: float = 0.5):
        super().__init__()
        self.layers = Layers(
            nn.Conv1d(dim, hidden_dim, 3, padding=1),
            activation(),
            Dropout(dropout),
            nn.Conv1d(hidden_dim, hidden_dim, 3, padding=1),
            activation(),
            nn.Conv1d(hidden_dim, 1, 1),
            Dropout(logit_dropout),
        )

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """features (B, D, T) -> attention (B, T) in [0, 1]."""
        return torch.sigmoid(self.layers(features, valid).squeeze(1))


class CO2Net(nn.Module):
    """Two CCMs, two attention units, and a classifier over the fused features (Figure 2).

    Args:
        num_classes: action classes C; the network adds the background class itself.
        modality_dims: channels (D1, D2) of the two modalities, in the order the features hold them.
        temporal_pool: odd kernel, in snippets, of an average pool over time on T-CAM and attention, in training
            and at test (release, ActivityNet1.2 only: 13), or None.
        attention_logit_dropout: dropout on the attention logit in training (release: 0.5, so that half of the
            snippets get attention 0.5; paper: 0).
        consensus: `ccm`, or one of utils.fusion.ALTERNATIVES in its place (Tables 5 and 6).
        stages: of the cross attention, where that is the consensus.

    Raises:
        ValueError: for fewer than one class, not two modalities, an even kernel, or an unknown consensus.
    """

    CLASS_LAYER = "classifier.4.weight"  # the parameter that has a row a class, and one for the background

    def __init__(
        self,
        num_classes: int,
        modality_dims: Sequence[int] = (1024, 1024),
        temporal_pool: int | None = None,
        attention_logit_dropout: float = 0.5,
        consensus: str = "ccm",
        stages: int = 2,
    ):
        super().__init__()
        _check_sizes(num_classes, modality_dims, temporal_pool)
        first_dim, second_dim = self.modality_dims = tuple(modality_dims)
        fused_dim = first_dim + second_dim
        self.num_classes = num_classes
        self.temporal_pool = temporal_pool
        self.consensus = build_consensus(consensus, first_dim, second_dim, stages)
        self.attention_units = nn.ModuleList(
            [AttentionUnit(dim, logit_dropout=attention_logit_dropout) for dim in self.modality_dims]
        )
        self.fusion = Layers(nn.Conv1d(fused_dim, fused_dim, 1), activation(), Dropout(0.7))
        self.classifier = Layers(
            Dropout(0.7),
            nn.Conv1d(fused_dim, fused_dim, 3, padding=1),
            activation(),
            Dropout(0.7),
            nn.Conv1d(fused_dim, num_classes + 1, 1),
        )
        self.apply(_initialize)
        for module in self.consensus.modules():
            if isinstance(module, GlobalContext):
                _initialize(module[0], taps=module.INITIAL_TAPS)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Snippet features (B, T, D1 + D2), first modality first, T >= 1, to a dict of

        * `cas` (B, T, C + 1): T-CAM logits S, background last
        * `attention` (B, T): fused attention A, Eq. 5
        * `modality_attention` (B, 2, T): A of each modality, Eq. 4
        * `features` (B, T, D1 + D2): fused features X_bar, which the co-activity similarity loss sees

        valid (B, T): True for snippets, False for padding, which then changes nothing at the snippets; what comes out
        for padding means nothing. None: all are snippets.

        Raises:
            ValueError: if the features are not of that shape.
        """
        if features.ndim != 3 or features.shape[1] < 1 or features.shape[2] != sum(self.modality_dims):
            expected = f"(videos, snippets >= 1, {sum(self.modality_dims)})"
            raise ValueError(f"features have shape {tuple(features.shape)}, expected {expected}")
        # (B, D1, T), (B, D2, T), laid out as the convolutions take them, or each would do it again.
        first, second = (x.transpose(1, 2).contiguous() for x in features.split(self.modality_dims, dim=-1))
        enhanced = torch.cat(self.consensus(first, second, valid), dim=1)  # (B, D1 + D2, T)
        modalities = enhanced.split(self.modality_dims, dim=1)  # which are not kept a second time for the gradient
        modality_attention = torch.stack(
            [unit(x, valid) for unit, x in zip(self.attention_units, modalities, strict=True)], dim=1
        )  # (B, 2, T)
        fused = self.fusion(enhanced)  # (B, D1 + D2, T)
        cas = self.classifier(fused, valid)  # (B, C + 1, T)
        if self.temporal_pool is not None:
            cas, modality_attention = (self._pool(without_padding(x, valid)) for x in (cas, modality_attention))
        return {
            "cas": cas.transpose(1, 2),
            "attention": modality_attention.mean(dim=1),
            "modality_attention": modality_attention,
            "features": fused.transpose(1, 2),
        }

    def _pool(self, x: Tensor) -> Tensor:
        # Zero padding counts in the mean, as in the release.
        return F.avg_pool1d(x, self.temporal_pool, stride=1, padding=self.temporal_pool // 2)


def build_consensus(name: str, first_dim: int, second_dim: int, stages: int = 2) -> nn.Module:
    """What enhances two modalities, by its name in utils.fusion.CONSENSUS; `stages` is of the cross attention."""
    if name not in CONSENSUS:
        raise ValueError(f"consensus is {name!r}, expected one of {', '.join(CONSENSUS)}")
    if name == "ccm":
        return PerModality(ConsensusModule, first_dim, second_dim)
    more = {"stages": stages} if name == "cross_attention" else {}
    return ALTERNATIVES[name](first_dim, second_dim, **more)


def _check_sizes(num_classes: int, modality_dims: Sequence[int], temporal_pool: int | None) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    if len(modality_dims) != 2 or min(modality_dims) < 1:
        raise ValueError(f"modality_dims is {tuple(modality_dims)}, expected the widths of two modalities")
    if temporal_pool is not None and (temporal_pool < 1 or temporal_pool % 2 == 0):
        raise ValueError(f"temporal_pool is {temporal_pool}, expected an odd number of snippets or None")


def _initialize(module: nn.Module, taps: int | None = None) -> None:
    """Kaiming uniform (a = 0, fan in) weights and zero biases for a convolution (release)."""
    if isinstance(module, nn.Conv1d):
        fan_in = module.in_channels * (taps or module.kernel_size[0])
        bound = math.sqrt(6 / fan_in)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
