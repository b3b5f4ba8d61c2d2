"""TFE-DCN: CO2-Net with dilated convolutions and global gates in place of the CCM, and fewer loss terms.

Zhou and Wu, "Temporal feature enhancement dilated convolution network for weakly-supervised temporal action
localization" (WACV 2023). Equation numbers T1 to T4 are those of docs/methods.md. The published settings are in
configs/tfe_dcn_thumos14.yaml.

Shapes as in model.py. The first modality is RGB in the release, the second one optical flow.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from model import CO2Net, GlobalContext, activation, join
from utils.checkpoint import RELEASED_MODULES
from utils.losses import CO2Loss, mil_loss, mutual_loss, norm_loss, opposition_loss
from utils.methods.base import Definition

DILATIONS = (1, 2, 4)  # dilation of each layer; the receptive fields are 3, 7 and 15 snippets


class DilatedLayer(nn.Sequential):
    """Convolution over three snippets that lie `dilation` apart; (B, D, T) to (B, D, T)."""

    def __init__(self, dim: int, dilation: int, dropout: float = 0.5):
        convolution = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation)
        super().__init__(convolution, activation(), nn.Dropout(dropout))


class TemporalEnhancement(nn.Module):
    """Enhancement of both modalities, T1 and T2, in place of the consensus module.

    Raises:
        ValueError: If the modalities have different widths, because they share the global gate.
    """

    def __init__(self, first_dim: int, second_dim: int):
        super().__init__()
        if first_dim != second_dim:
            raise ValueError(f"expected modalities of one width, got {first_dim} and {second_dim} channels")
        self.layers = nn.ModuleList([DilatedLayer(second_dim, dilation) for dilation in DILATIONS])
        self.global_context = GlobalContext(first_dim, first_dim)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the enhanced first modality (B, D, T), and the second one after each layer, 3 times (B, D, T)."""
        hidden, enhanced = second, []
        for layer in self.layers:
            hidden = layer(hidden)
            enhanced.append(torch.sigmoid(hidden) * second)  # T1
        gate = torch.sigmoid(self.global_context(first)) * torch.sigmoid(self.global_context(enhanced[-1]))
        return gate * first, enhanced  # T2


class TFEDCN(CO2Net):
    """TFE-DCN, with the arguments of CO2Net except `consensus`, and its outputs."""

    RELEASED_MODULES = {
        **{theirs: ours for theirs, ours in RELEASED_MODULES.items() if not ours.startswith("consensus.")},
        **{f"fAttn.layer{number}.0": f"consensus.layers.{number - 1}.0" for number in (1, 2, 3)},
        "vAttn.channel_conv1.1": "consensus.global_context.0",
    }

    def __init__(
        self,
        num_classes: int,
        modality_dims: Sequence[int] = (1024, 1024),
        temporal_pool: int | None = None,
        attention_logit_dropout: float = 0.5,
    ):
        super().__init__(num_classes, modality_dims, temporal_pool, attention_logit_dropout, TemporalEnhancement)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the outputs of CO2Net.forward from features (B, T, D1 + D2)."""
        first, second = self.consensus(*self.split(features))
        attend_first, attend_second = self.attention_units
        second_attention = torch.stack([attend_second(x) for x in second]).mean(dim=0)  # T3
        attention = torch.stack([attend_first(first), second_attention], dim=1)  # (B, 2, T)
        return self.outputs(join([first, second[-1]]), attention)


class TFEDCNLoss(CO2Loss):
    """Objective of TFE-DCN, T4, with the arguments of CO2Loss.

    No term uses the fused attention, and there is no co-activity loss. `norm` is the sum of the means of both
    attentions (release).
    """

    WEIGHTS = {"mil_org": 1.0, "mil_supp": 1.0, "norm": 0.5, "oppo_first": 1.0, "oppo_second": 1.0, "ml": 0.8}

    def terms(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return a function per term; see `CO2Loss.terms`. `pairs` and `progress` are not used."""
        cas, attention = outputs["cas"], outputs["modality_attention"]
        first, second = attention.split(1, dim=1)  # (B, 1, T) each
        suppressed = self.suppress(cas, second.squeeze(1))
        return {
            "mil_org": lambda: mil_loss(cas, labels, 1.0, self.topk_ratio),
            "mil_supp": lambda: mil_loss(suppressed, labels, 0.0, self.topk_ratio),
            "norm": lambda: norm_loss(first) + norm_loss(second),
            "oppo_first": lambda: opposition_loss(first, cas),
            "oppo_second": lambda: opposition_loss(second, cas),
            "ml": lambda: mutual_loss(attention, self.mutual),
        }


DEFINITION = Definition(
    network=TFEDCN,
    objective=TFEDCNLoss,
    num_modalities=(2,),
    localization="outer_inner",
)
