"""CO2-Net: snippet features of two modalities to T-CAM and attention.

Hong et al., "Cross-modal Consensus Network for Weakly Supervised Temporal Action Localization", ACM MM 2021
(arXiv:2107.12589), Sections 3.3 and 3.4. Equation numbers are the paper's. Where the paper is silent, the network
follows the authors' code ("release"), which produced the published numbers.

Shapes: B videos, T snippets, D channels (D1, D2 of the two modalities), C action classes. The background class is
class C, the last one. Features are (B, T, D); inside the network, convolutions see (B, D, T).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def activation() -> nn.Module:
    """Return the LeakyReLU that follows a convolution. It works in place: its gradient needs only its output."""
    return nn.LeakyReLU(0.2, inplace=True)


class GlobalContext(nn.Sequential):
    """Global-context-aware unit F^G of Eq. 1: mean over time of a modality to a channel descriptor."""

    # The release uses kernel 3 on one pooled vector, so the outer taps only see padding. Kernel 1 is equal, but the
    # bound of the initial weights still counts the fan-in of kernel 3.
    INITIAL_TAPS = 3

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.5):
        super().__init__(nn.Conv1d(in_dim, out_dim, 1), activation(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Return the descriptor (B, D_out, 1) of a modality (B, D_in, T)."""
        return super().forward(x.mean(dim=2, keepdim=True))


class LocalContext(nn.Sequential):
    """Cross-modal-aware unit F^L of Eq. 2: a modality (B, D_in, T) to a descriptor per snippet (B, D_out, T)."""

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.5):
        super().__init__(nn.Conv1d(in_dim, out_dim, 3, padding=1), activation(), nn.Dropout(dropout))


class ConsensusModule(nn.Module):
    """Cross-modal consensus module (CCM), Section 3.3: re-calibrates the main modality."""

    def __init__(self, main_dim: int, auxiliary_dim: int, dropout: float = 0.5):
        super().__init__()
        self.global_context = GlobalContext(main_dim, main_dim, dropout)
        self.cross_modal = LocalContext(auxiliary_dim, main_dim, dropout)

    def forward(self, main: Tensor, auxiliary: Tensor) -> Tensor:
        """Return the re-calibrated main modality (B, D1, T) from main (B, D1, T) and auxiliary (B, D2, T)."""
        global_descriptor = self.global_context(main)  # M^G, Eq. 1: (B, D1, 1)
        local_descriptor = self.cross_modal(auxiliary)  # M^L, Eq. 2: (B, D1, T)
        return torch.sigmoid(global_descriptor * local_descriptor) * main  # Eq. 3


class PerModality(nn.ModuleList):
    """Two units with separate parameters: each enhances one modality with the help of the other (Figure 2)."""

    def __init__(self, unit: Callable[[int, int], nn.Module], first_dim: int, second_dim: int):
        super().__init__([unit(first_dim, second_dim), unit(second_dim, first_dim)])

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return both enhanced modalities, (B, D1, T) and (B, D2, T)."""
        return self[0](first, second), self[1](second, first)


CCM = partial(PerModality, ConsensusModule)


class AttentionUnit(nn.Module):
    """Modality-specific attention unit F^A, Section 3.4: the foreground probability of each snippet."""

    def __init__(self, dim: int, hidden_dim: int = 512, dropout: float = 0.5, logit_dropout: float = 0.5):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(dim, hidden_dim, 3, padding=1),
            activation(),
            nn.Dropout(dropout),
            nn.Conv1d(hidden_dim, hidden_dim, 3, padding=1),
            activation(),
            nn.Conv1d(hidden_dim, 1, 1),
            nn.Dropout(logit_dropout),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return attention (B, T) in [0, 1] from features (B, D, T), Eq. 4."""
        return torch.sigmoid(self.layers(features).squeeze(1))


class CO2Net(nn.Module):
    """CO2-Net (Figure 2): two CCMs, two attention units, and a classifier over the fused features.

    Args:
        num_classes: Number of action classes C. The network adds the background class.
        modality_dims: Channels (D1, D2) of the two modalities, in the order of the features.
        temporal_pool: Odd kernel, in snippets, of an average pool over time on T-CAM and attention, or None. The
            release pools on ActivityNet1.2 (kernel 13), in training and at test.
        attention_logit_dropout: Dropout on the attention logit in training. The release has 0.5, so half of the
            snippets get attention 0.5. The paper has none.
        consensus: Factory of the module that enhances both modalities, from (D1, D2). The default is the CCM;
            utils/fusion.py has the alternatives of Tables 5 and 6.

    Raises:
        ValueError: If there is no class, not exactly two modalities, or an even kernel.
    """

    CLASS_LAYER = "classifier.4.weight"  # the parameter with one row per class, background last

    def __init__(
        self,
        num_classes: int,
        modality_dims: Sequence[int] = (1024, 1024),
        temporal_pool: int | None = None,
        attention_logit_dropout: float = 0.5,
        consensus: Callable[[int, int], nn.Module] = CCM,
    ):
        super().__init__()
        check_sizes(num_classes, modality_dims, (2,))
        check_temporal_pool(temporal_pool)
        self.num_classes = num_classes
        self.modality_dims = tuple(modality_dims)
        self.temporal_pool = temporal_pool
        self.channels_last = False  # memory order (B, T, D) in training; see utils/run/fast_cpu.py
        dim = sum(self.modality_dims)
        self.consensus = consensus(*self.modality_dims)
        self.attention_units = nn.ModuleList(
            [AttentionUnit(d, logit_dropout=attention_logit_dropout) for d in self.modality_dims]
        )
        self.fusion = nn.Sequential(nn.Conv1d(dim, dim, 1), activation(), nn.Dropout(0.7))
        self.classifier = nn.Sequential(
            nn.Dropout(0.7),
            nn.Conv1d(dim, dim, 3, padding=1),
            activation(),
            nn.Dropout(0.7),
            nn.Conv1d(dim, num_classes + 1, 1),
        )
        self.apply(init_conv)
        for module in self.consensus.modules():
            if isinstance(module, GlobalContext):
                init_conv(module[0], taps=module.INITIAL_TAPS)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return T-CAM and attention.

        Args:
            features: Snippet features (B, T, D1 + D2), first modality first, T >= 1.

        Returns:
            A dict of

            * `cas` (B, T, C + 1): T-CAM logits S, background last
            * `attention` (B, T): fused attention A, Eq. 5
            * `modality_attention` (B, 2, T): attention of each modality, Eq. 4
            * `features` (B, T, D1 + D2): fused features X_bar, the input of the co-activity similarity loss

        Raises:
            ValueError: If the features have another shape.
        """
        enhanced = join(self.consensus(*self.split(features)))  # (B, D1 + D2, T)
        return self.outputs(enhanced, self.attend(enhanced))

    def split(self, features: Tensor) -> list[Tensor]:
        """Return both modalities (B, D1, T) and (B, D2, T); ValueError if the features have another shape."""
        check_shape(features, sum(self.modality_dims))
        # Contiguous once: otherwise every convolution copies its input.
        modalities = features.split(self.modality_dims, dim=-1)
        if self.channels_last and self.training:
            return [x.contiguous().transpose(1, 2) for x in modalities]
        return [x.transpose(1, 2).contiguous() for x in modalities]

    def attend(self, enhanced: Tensor) -> Tensor:
        """Return the attention of each modality (B, 2, T), Eq. 4, from both (B, D1 + D2, T)."""
        # The attention units see views of `enhanced`, so autograd stores it only once.
        modalities = separate(enhanced, self.modality_dims)
        return torch.stack([unit(x) for unit, x in zip(self.attention_units, modalities, strict=True)], dim=1)

    def outputs(self, enhanced: Tensor, modality_attention: Tensor) -> dict[str, Tensor]:
        """Return the outputs of `forward`, from enhanced modalities (B, D1 + D2, T) and their attention (B, 2, T)."""
        fused = self.fusion(enhanced)  # (B, D1 + D2, T)
        cas = self.classifier(fused)  # (B, C + 1, T)
        if self.temporal_pool is not None:
            cas, modality_attention = (pool_over_time(x, self.temporal_pool) for x in (cas, modality_attention))
        return {
            "cas": cas.transpose(1, 2),  # (B, T, C + 1)
            "attention": modality_attention.mean(dim=1),  # Eq. 5
            "modality_attention": modality_attention,
            "features": fused.transpose(1, 2),  # (B, T, D1 + D2)
        }


def join(modalities: Sequence[Tensor]) -> Tensor:
    """Return both modalities (B, D1, T) and (B, D2, T) as one (B, D1 + D2, T), in the same memory order."""
    if modalities[0].is_contiguous():
        return torch.cat(modalities, dim=1)
    return torch.cat([x.transpose(1, 2) for x in modalities], dim=-1).transpose(1, 2)


def separate(joined: Tensor, dims: Sequence[int]) -> Sequence[Tensor]:
    """Return views of both modalities (B, D1, T) and (B, D2, T); the gradient has the memory order of `joined`."""
    if joined.is_contiguous():
        return joined.split(dims, dim=1)
    return [x.transpose(1, 2) for x in joined.transpose(1, 2).split(dims, dim=-1)]


def pool_over_time(x: Tensor, kernel: int) -> Tensor:
    """Return the means (..., T) of x over an odd window of snippets; zero padding counts, as in the release."""
    return F.avg_pool1d(x, kernel, stride=1, padding=kernel // 2)


def check_temporal_pool(kernel: int | None) -> None:
    """Raise ValueError unless the kernel of the average pool over time is odd or None."""
    if kernel is not None and (kernel < 1 or kernel % 2 == 0):
        raise ValueError(f"temporal_pool is {kernel}, expected an odd number of snippets or None")


def check_sizes(num_classes: int, modality_dims: Sequence[int], counts: Sequence[int] = (1, 2)) -> None:
    """Raise ValueError unless there is a class, and one of these numbers of modalities, each with a channel."""
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    if len(modality_dims) not in counts or min(modality_dims) < 1:
        expected = " or ".join(map(str, counts))
        raise ValueError(f"modality_dims is {tuple(modality_dims)}, expected the channels of {expected} modalities")


def check_shape(features: Tensor, dim: int) -> None:
    """Raise ValueError unless features are (B, T, dim) with T >= 1."""
    if features.ndim != 3 or features.shape[1] < 1 or features.shape[2] != dim:
        raise ValueError(f"features have shape {tuple(features.shape)}, expected (videos, snippets >= 1, {dim})")


def init_conv(module: nn.Module, taps: int | None = None) -> None:
    """Initialize a convolution as the release does: Kaiming uniform weights (a = 0, fan in), zero biases.

    Args:
        module: Any module; all but `nn.Conv1d` stay as they are.
        taps: Kernel size that the fan-in counts. By default the convolution's own. `nn.init.kaiming_uniform_` has no
            such argument.
    """
    if isinstance(module, nn.Conv1d):
        bound = math.sqrt(6 / (module.in_channels * (taps or module.kernel_size[0])))
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
