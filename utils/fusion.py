"""Alternatives to the CCM: the fusions of Tables 5 and 6, and the cross attention of the audio-visual paper.

Each one maps two modalities, (B, D1, T) and (B, D2, T), to two tensors of the same shapes. Attention units,
classifier and losses therefore stay the same. arXiv:2107.12589 names its alternatives without a description. Each
docstring names its source.

Shapes: B videos, T snippets, D channels (D1, D2 of the two modalities).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import CCM, GlobalContext, LocalContext, PerModality, activation

QUERY_CHUNK = 512  # rows of the T x T cross-correlation in memory at a time
REDUCTION = 16  # of the bottlenecks of SE (r in its paper) and SSMA (eta at the end of its encoder)


class DescriptorPair(nn.Module):
    """Table 5: Eq. 3 with a global or a local descriptor of either modality. Global / local is the CCM.

    "Local" is a convolution over time without pooling, as in the caption of Table 5: the layer F^L.

    Args:
        main_dim: Channels of the main modality.
        auxiliary_dim: Channels of the auxiliary modality.
        main: Unit that describes the main modality.
        auxiliary: Unit that describes the auxiliary modality.
    """

    def __init__(self, main_dim: int, auxiliary_dim: int, main: type[nn.Module], auxiliary: type[nn.Module]):
        super().__init__()
        self.main_context = main(main_dim, main_dim)
        self.auxiliary_context = auxiliary(auxiliary_dim, main_dim)

    def forward(self, main: Tensor, auxiliary: Tensor) -> Tensor:
        """Return the re-calibrated main modality (B, D1, T)."""
        return torch.sigmoid(self.main_context(main) * self.auxiliary_context(auxiliary)) * main


class SqueezeExcitation(nn.Module):
    """Table 6, SE: squeeze-and-excitation of one modality by itself (Hu et al., CVPR 2018, Eq. 2 to 4).

    s = sigmoid(W2 relu(W1 z)), where z is the mean over time. Each channel is scaled by its s. Unlike in the CCM, the
    other modality has no influence.
    """

    def __init__(self, main_dim: int, auxiliary_dim: int, reduction: int = REDUCTION):
        super().__init__()
        hidden_dim = max(1, main_dim // reduction)
        self.excitation = nn.Sequential(
            nn.Conv1d(main_dim, hidden_dim, 1), nn.ReLU(), nn.Conv1d(hidden_dim, main_dim, 1), nn.Sigmoid()
        )

    def forward(self, main: Tensor, auxiliary: Tensor) -> Tensor:
        """Return the re-calibrated main modality (B, D1, T); `auxiliary` is ignored."""
        return self.excitation(main.mean(dim=2, keepdim=True)) * main


class SSMA(nn.Module):
    """Table 6, SSMA: self-supervised model adaptation block (Valada et al., IJCV 2019, Section 3).

    A bottleneck (convolution, ReLU, convolution, sigmoid) gates the concatenated modalities, and a last convolution
    fuses them. All convolutions have three taps over time; the source has them over the image. There the fused map
    has the width of one modality. Here it keeps D1 + D2 channels, whose two parts stand for the two modalities. The
    batch normalization after the deepest of the source's three fusions is left out, as in its other two.
    """

    def __init__(self, first_dim: int, second_dim: int, reduction: int = REDUCTION):
        super().__init__()
        self.dims = (first_dim, second_dim)
        dim = first_dim + second_dim
        hidden_dim = max(1, dim // reduction)
        self.gate = nn.Sequential(
            nn.Conv1d(dim, hidden_dim, 3, padding=1), nn.ReLU(), nn.Conv1d(hidden_dim, dim, 3, padding=1), nn.Sigmoid()
        )
        self.fuse = nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return both fused modalities, (B, D1, T) and (B, D2, T)."""
        both = torch.cat([first, second], dim=1)  # (B, D1 + D2, T)
        return self.fuse(self.gate(both) * both).split(self.dims, dim=1)


class Add(nn.Module):
    """Table 6, Add: early fusion. The sum replaces both modalities; there are no parameters.

    Raises:
        ValueError: If the modalities have different widths.
    """

    def __init__(self, first_dim: int, second_dim: int):
        super().__init__()
        if first_dim != second_dim:
            raise ValueError(f"consensus 'add' needs modalities of one width, got {first_dim} and {second_dim}")

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum twice."""
        return first + second, first + second


class Concat(nn.Module):
    """Table 6, Concat: "the original features" (Section 4.4), which the network concatenates; no parameters."""

    def __init__(self, first_dim: int, second_dim: int):
        super().__init__()

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return both modalities unchanged."""
        return first, second


class Embedding(nn.Sequential):
    """Fully connected layer and LeakyReLU per snippet: f_u or f_v of the audio-visual paper (Section 3.1)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(nn.Conv1d(in_dim, out_dim, 1), activation())


class CrossAttentionStage(nn.Module):
    """One stage of cross attention, Eq. 1 and 2 of the audio-visual paper.

    Lambda = X_u^T W X_v correlates l2-normalized snippets. Each modality is averaged over time with the column-wise
    softmax of Lambda (u) or of its transpose (v). At snippet l, the snippets of one modality are weighted by how well
    they match snippet l of the *other*. The average is over X itself, not normalized (our reading: the paper
    normalizes "before computing the cross-correlation"). W is rectangular for modalities of different widths. Here u is
    `first` and v is `second`; they are interchangeable, with W transposed.
    """

    def __init__(self, first_dim: int, second_dim: int):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(first_dim, second_dim)))  # W

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return first (B, T, D1) and second (B, T, D2), both averaged over time."""
        unit_first, unit_second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
        return (
            attend(unit_second @ self.weight.T, unit_first, first),
            attend(unit_first @ self.weight, unit_second, second),
        )


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(queries keys^T) values, all (B, T, D).

    The correlation is computed QUERY_CHUNK rows at a time. Without autograd the memory is linear in T.
    """
    # A loop over chunks would fix the number of snippets of an exported network.
    chunks = [queries] if torch.compiler.is_compiling() else queries.split(QUERY_CHUNK, dim=1)
    return torch.cat([(chunk @ keys.transpose(1, 2)).softmax(dim=-1) @ values for chunk in chunks], dim=1)


class CrossAttention(nn.Module):
    """Multi-stage cross attention with dense skip connections, Eq. 3 of the audio-visual paper (Section 3.1).

    X_att^(t) = tanh(X_att^(0) + ... + X_att^(t-1) + X~^(t)), where X~^(t) is the cross attention of X_att^(t-1). Each
    stage has its own W; the paper does not say whether they share one. Without a stage the modalities are unchanged.
    """

    def __init__(self, first_dim: int, second_dim: int, stages: int = 2):
        super().__init__()
        self.stages = nn.ModuleList([CrossAttentionStage(first_dim, second_dim) for _ in range(stages)])

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return both attended modalities, (B, D1, T) and (B, D2, T)."""
        attended = sums = first.transpose(1, 2), second.transpose(1, 2)  # X_att^(0), and the sums of Eq. 3
        for stage in self.stages:
            averages = stage(*attended)
            attended = tuple(torch.tanh(skip + x) for skip, x in zip(sums, averages, strict=True))
            sums = tuple(skip + x for skip, x in zip(sums, attended, strict=True))
        return attended[0].transpose(1, 2), attended[1].transpose(1, 2)


class EmbeddedCrossAttention(nn.Module):
    """The audio-visual paper's fusion in place of the CCM: an extra row of Table 6, in neither paper.

    It includes the embedding. Raw features are non-negative and far from zero. Without a layer that centers and scales
    them, tanh of their sums saturates: on R(2+1)D features three of four values exceed 0.95 and hardly change over
    time. The widths of the modalities stay the same.
    """

    def __init__(self, first_dim: int, second_dim: int, stages: int = 2):
        super().__init__()
        self.embeddings = nn.ModuleList([Embedding(dim, dim) for dim in (first_dim, second_dim)])
        self.attention = CrossAttention(first_dim, second_dim, stages)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return both attended modalities, (B, D1, T) and (B, D2, T)."""
        return self.attention(self.embeddings[0](first), self.embeddings[1](second))


# Name of the option `consensus` to a factory from (D1, D2). Table 5's names are main_auxiliary.
CONSENSUS: dict[str, Callable[..., nn.Module]] = {
    "ccm": CCM,
    "local_local": partial(PerModality, partial(DescriptorPair, main=LocalContext, auxiliary=LocalContext)),
    "local_global": partial(PerModality, partial(DescriptorPair, main=LocalContext, auxiliary=GlobalContext)),
    "add": Add,
    "concat": Concat,
    "ssma": SSMA,
    "se": partial(PerModality, SqueezeExcitation),
    "cross_attention": EmbeddedCrossAttention,  # the audio-visual network has its own embeddings
}


def consensus_factory(name: str, stages: int = 2) -> Callable[[int, int], nn.Module]:
    """Return the factory of a consensus module from (D1, D2).

    Args:
        name: A key of CONSENSUS.
        stages: Number of stages of `cross_attention`; the others have none.

    Raises:
        ValueError: If there is no such consensus module.
    """
    if name not in CONSENSUS:
        raise ValueError(f"consensus is {name!r}, expected one of {', '.join(CONSENSUS)}")
    return partial(CONSENSUS[name], stages=stages) if name == "cross_attention" else CONSENSUS[name]
