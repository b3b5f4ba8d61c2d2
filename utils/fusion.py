"""What turns the features of two modalities into the enhanced ones: parts of the CCM, what Tables 5 and 6 of
arXiv:2107.12589 put in its place, and the multi-stage cross attention of the audio-visual paper.

Each alternative maps (first (B, D1, T), second (B, D2, T)) to two tensors of the same shapes, so attention units,
classifier and losses stay as they are. The paper names its alternatives and describes none; how each was read, and
after which source, is said in its docstring.

Shapes: B videos, T snippets, D channels (D1, D2 of the two modalities). `valid` (B, T), everywhere, is True for
snippets and False for the padding behind a shorter video of a batch; None: all are snippets (utils/run/fast_dropout.py).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.run.fast_dropout import Dropout, Layers, mean_over_time, without_padding

LEAKY_SLOPE = 0.2
QUERIES_AT_ONCE = 512  # of the T x T cross-correlation, rows held at a time
REDUCTION = 16  # of the bottlenecks of SE (its paper's r) and SSMA (its paper's eta at the encoder's end)


def activation() -> nn.Module:
    """What follows a convolution; in its place, since no gradient needs what was there."""
    return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


class GlobalContext(Layers):
    """F^G, Eq. 1: the mean over time of a modality (B, D_in, T) -> descriptor (B, D_out, 1)."""

    # One pooled vector needs one tap. The release gives it three, of which the outer two only ever see zero padding;
    # the initialization (model.py) still counts them.
    INITIAL_TAPS = 3

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.5):
        super().__init__(nn.Conv1d(in_dim, out_dim, 1), activation(), Dropout(dropout))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return super().forward(mean_over_time(x, valid))


class LocalContext(Layers):
    """F^L, Eq. 2: a modality (B, D_in, T) -> descriptor (B, D_out, T)."""

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.5):
        super().__init__(nn.Conv1d(in_dim, out_dim, 3, padding=1), activation(), Dropout(dropout))


class PerModality(nn.ModuleList):
    """Two units with parameters of their own: each has one modality as main and the other as auxiliary (Figure 2)."""

    def __init__(self, unit: Callable[[int, int], nn.Module], first_dim: int, second_dim: int):
        super().__init__([unit(first_dim, second_dim), unit(second_dim, first_dim)])

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self[0](first, second, valid), self[1](second, first, valid)


class DescriptorPair(nn.Module):
    """Table 5: Eq. 3 with a global or a local descriptor of either modality; global / local is the CCM.

    "Local" is a convolution over time without the pooling, as Table 5's caption has it: the same layer as F^L.

    Args:
        main_dim, auxiliary_dim: channels of the two modalities.
        main, auxiliary: the kinds of descriptors.
    """

    def __init__(self, main_dim: int, auxiliary_dim: int, main: type[nn.Module], auxiliary: type[nn.Module]):
        super().__init__()
        self.main_context = main(main_dim, main_dim)
        self.auxiliary_context = auxiliary(auxiliary_dim, main_dim)

    def forward(self, main: Tensor, auxiliary: Tensor, valid: Tensor | None = None) -> Tensor:
        """main (B, D1, T), auxiliary (B, D2, T) -> re-calibrated main modality (B, D1, T)."""
        return torch.sigmoid(self.main_context(main, valid) * self.auxiliary_context(auxiliary, valid)) * main


class SqueezeExcitation(nn.Module):
    """Table 6, SE: squeeze-and-excitation of one modality by itself (Hu et al., CVPR 2018, Eq. 2 to 4).

    s = sigmoid(W2 relu(W1 z)) with z the mean over time; each channel is scaled by its s. The other modality has no
    say in it, which is what sets it apart from the CCM.
    """

    def __init__(self, main_dim: int, auxiliary_dim: int, reduction: int = REDUCTION):
        super().__init__()
        hidden_dim = max(1, main_dim // reduction)
        self.excitation = nn.Sequential(
            nn.Conv1d(main_dim, hidden_dim, 1), nn.ReLU(), nn.Conv1d(hidden_dim, main_dim, 1), nn.Sigmoid()
        )

    def forward(self, main: Tensor, auxiliary: Tensor, valid: Tensor | None = None) -> Tensor:
        """main (B, D1, T), auxiliary (ignored) -> re-calibrated main modality (B, D1, T)."""
        return self.excitation(mean_over_time(main, valid)) * main


class SSMA(nn.Module):
    """Table 6, SSMA: self-supervised model adaptation block (Valada et al., IJCV 2019, Section 3).

    A bottleneck over the concatenation, convolution, ReLU, convolution, sigmoid, gates the concatenation, and a last
    convolution without activation fuses it; all of them three taps wide, over time instead of over the image.
    There the fused map has the width of one modality. Here the last convolution keeps D1 + D2 channels, and its two
    parts stand for the two modalities: a shared gate, and a fusion of both modalities for each attention unit.
    The batch normalization that follows the deepest of the source's three fusions is left out, as in its other two.
    """

    def __init__(self, first_dim: int, second_dim: int, reduction: int = REDUCTION):
        super().__init__()
        self.dims = (first_dim, second_dim)
        both, hidden_dim = sum(self.dims), max(1, sum(self.dims) // reduction)
        self.gate = Layers(
            nn.Conv1d(both, hidden_dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(hidden_dim, both, 3, padding=1),
            nn.Sigmoid(),
        )
        self.fuse = nn.Conv1d(both, both, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        both = torch.cat([first, second], dim=1)  # (B, D1 + D2, T)
        return self.fuse(without_padding(self.gate(both, valid) * both, valid)).split(self.dims, dim=1)


class Add(nn.Module):
    """Table 6, Add: early fusion by a sum, which takes the place of both modalities; no parameters.

    Raises:
        ValueError: for modalities of different widths.
    """

    def __init__(self, first_dim: int, second_dim: int):
        super().__init__()
        if first_dim != second_dim:
            raise ValueError(f"consensus 'add' needs modalities of one width, these have {first_dim} and {second_dim}")

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return first + second, first + second


class Concat(nn.Module):
    """Table 6, Concat: "the original features" (Section 4.4), which the network concatenates anyway; no parameters."""

    def __init__(self, first_dim: int, second_dim: int):
        super().__init__()

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return first, second


class Embedding(nn.Sequential):
    """A modality-specific fully connected layer and LeakyReLU, f_u or f_v of the audio-visual paper (Section 3.1).

    (B, D_in, T) -> (B, D_out, T), each snippet by itself.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(nn.Conv1d(in_dim, out_dim, 1), activation())


class CrossAttentionStage(nn.Module):
    """One cross attention, Eq. 1 and 2 of "Cross-attentional audio-visual fusion for weakly-supervised action
    localization" (ICLR 2021).

    Lambda = X_u^T W X_v of the l2-normalized snippets; each modality is averaged over time by the column-wise softmax
    of Lambda (u) or of its transpose (v). So at snippet l the snippets of one modality are weighted by how well they
    fit snippet l of the *other*. What is averaged is X itself, not normalized (our reading: the paper normalizes
    "before computing the cross-correlation"). For modalities of different widths W is rectangular.
    """

    def __init__(self, first_dim: int, second_dim: int):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(first_dim, second_dim)))  # W

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """first (B, T, D1), second (B, T, D2) -> the two averaged over time, of the same shapes."""
        unit_first, unit_second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
        return (
            attend(unit_second @ self.weight.T, unit_first, first, valid),
            attend(unit_first @ self.weight, unit_second, second, valid),
        )


def attend(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
    """softmax(queries keys^T) values, all (B, T, D), in memory that grows with T and not with its square.

    The correlation is made QUERIES_AT_ONCE rows at a time, and its softmax is over whole rows, so the result is the
    same. (A training step, whose T is small, keeps all of them for the gradient.)
    """
    parts = []
    for part in queries.split(QUERIES_AT_ONCE, dim=1):
        correlation = part @ keys.transpose(1, 2)  # (B, part, T)
        if valid is not None:
            correlation = correlation.masked_fill(~valid.unsqueeze(1), -torch.inf)
        parts.append(correlation.softmax(dim=-1) @ values)
    return torch.cat(parts, dim=1)


class CrossAttention(nn.Module):
    """Multi-stage cross attention with dense skip connections, Eq. 3 of the audio-visual paper (Section 3.1).

    X_att^(t) = tanh(X_att^(0) + ... + X_att^(t-1) + X~^(t)), where X~^(t) is the cross attention of X_att^(t-1). Each
    stage has a W of its own (the paper does not say whether they share one); without a stage the modalities stay as
    they are.
    """

    def __init__(self, first_dim: int, second_dim: int, stages: int = 2):
        super().__init__()
        self.stages = nn.ModuleList([CrossAttentionStage(first_dim, second_dim) for _ in range(stages)])

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """first (B, D1, T), second (B, D2, T) -> both attended, of the same shapes."""
        attended = sums = first.transpose(1, 2), second.transpose(1, 2)  # X_att^(0), and the sums of Eq. 3
        for stage in self.stages:
            averages = stage(*attended, valid)
            attended = tuple(torch.tanh(skip + x) for skip, x in zip(sums, averages, strict=True))
            sums = tuple(skip + x for skip, x in zip(sums, attended, strict=True))
        return attended[0].transpose(1, 2), attended[1].transpose(1, 2)


class EmbeddedCrossAttention(nn.Module):
    """The audio-visual paper's whole fusion in place of the CCM: an extra row of Table 6, which neither paper has.

    The embedding is part of it. Raw features are non-negative and far from zero: without a layer that centers and
    scales them, tanh of their sums saturates (on R(2+1)D features three of four values are above 0.95, and hardly
    change over time). Each modality keeps its width.
    """

    def __init__(self, first_dim: int, second_dim: int, stages: int = 2):
        super().__init__()
        self.embeddings = nn.ModuleList([Embedding(dim, dim) for dim in (first_dim, second_dim)])
        self.attention = CrossAttention(first_dim, second_dim, stages)

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.attention(self.embeddings[0](first), self.embeddings[1](second), valid)


def _pair(main: type[nn.Module], auxiliary: type[nn.Module]) -> Callable[[int, int], nn.Module]:
    return partial(PerModality, partial(DescriptorPair, main=main, auxiliary=auxiliary))


# Name -> what makes the module from (D1, D2); in model.py the CCM joins them.
ALTERNATIVES: dict[str, Callable[[int, int], nn.Module]] = {
    "local_local": _pair(LocalContext, LocalContext),  # main_auxiliary
    "local_global": _pair(LocalContext, GlobalContext),
    "add": Add,
    "concat": Concat,
    "ssma": SSMA,
    "se": partial(PerModality, SqueezeExcitation),
    "cross_attention": EmbeddedCrossAttention,  # also takes its number of stages
}
CONSENSUS = ("ccm", *ALTERNATIVES)
