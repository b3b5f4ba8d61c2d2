"""DDG-Net: a graph of similar snippets in place of the CCM, and two loss terms on top of DELU's.

Tang et al., "DDG-Net: Discriminability-driven graph network for weakly-supervised temporal action localization" (ICCV
2023). Equation numbers G1 to G8 are those of docs/methods.md. The published settings are in configs/ddg_net_*.yaml.

Shapes as in model.py. A matrix over snippets (B, T, T) has the sending snippet first, the receiving one last.
"""

from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import CO2Net, join
from utils.methods.base import Definition
from utils.methods.delu import DELULoss

ATTENTION_THRESHOLD = 0.5  # between action and background snippets
SIMILARITY_THRESHOLD = 0.8  # below it, two snippets have no edge
BUDGET_DIVISOR = 10  # a snippet receives from its T // 10 most similar ones
LAYERS = 2  # graph convolutions
INPUT_SHARE = 0.5  # share of the input features in the enhanced ones; 1 / `weight` of the release
TEMPERATURE = 0.5  # temperature of the confidence in L_fc


class Graph(NamedTuple):
    """Edges between the snippets of each video.

    An action snippet receives from action snippets, a background snippet from background snippets. An ambiguous snippet
    receives from both and from itself. No snippet receives from another ambiguous one.
    """

    adjacency: Tensor  # (B, T, T), columns with sum 1 or 0
    is_action: Tensor  # (B, 1, T)
    is_ambiguous: Tensor  # (B, 1, T)


def snippet_kinds(attention: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks (B, T) of action and background snippets, on which both modalities (B, 2, T) agree, G1."""
    is_foreground = attention >= ATTENTION_THRESHOLD
    return is_foreground.all(dim=1), ~is_foreground.any(dim=1)


@torch.no_grad()
def build_graph(modalities: Sequence[Tensor], attention: Tensor) -> Graph:
    """Connect similar snippets of each video, G1 to G3. The graph carries no gradient.

    Args:
        modalities: Features of both modalities, (B, D1, T) and (B, D2, T).
        attention: Attention of both modalities in the first pass (B, 2, T).
    """
    is_action, is_background = (mask.unsqueeze(1) for mask in snippet_kinds(attention))  # (B, 1, T)
    is_ambiguous = ~(is_action | is_background)
    num_snippets = attention.shape[-1]
    similarity = sum(cosine_matrix(x) for x in modalities) / len(modalities)
    # The budget counts all kinds of snippets, before the kinds decide on the edges (release).
    strongest, senders = similarity.topk(num_snippets // BUDGET_DIVISOR, dim=1)  # (B, T // 10, T)
    strongest = strongest.where(strongest >= SIMILARITY_THRESHOLD, 0)
    edges = torch.zeros_like(similarity).scatter_(1, senders, strongest)
    is_same_kind = is_action.transpose(1, 2) == is_action  # (B, T, T), if neither is ambiguous
    is_edge = ~is_ambiguous.transpose(1, 2) & (is_ambiguous | is_same_kind)
    is_edge |= torch.eye(num_snippets, dtype=torch.bool, device=edges.device)
    return Graph(F.normalize(edges * is_edge, p=1, dim=1), is_action, is_ambiguous)


def cosine_matrix(features: Tensor) -> Tensor:
    """Return the cosine similarity (B, T, T) of the snippets of each video, from features (B, D, T)."""
    with torch.autocast(features.device.type, enabled=False):  # bfloat16 is too coarse for the similarity threshold
        unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
        return unit.transpose(1, 2) @ unit


class GraphConvolutions(nn.Module):
    """Graph convolutions of one modality, with separate weights for action and background snippets."""

    def __init__(self, dim: int):
        super().__init__()
        self.action = nn.ModuleList([nn.Conv1d(dim, dim, 1) for _ in range(LAYERS)])
        self.background = nn.ModuleList([nn.Conv1d(dim, dim, 1) for _ in range(LAYERS)])

    def forward(self, features: Tensor, graph: Graph) -> Tensor:
        """Return convolved features (B, D, T) from features (B, D, T), G5.

        One product per layer serves both kinds, because they do not share an edge. Ambiguous snippets receive last: the
        result of the other snippets, and their own input.
        """
        nodes = features
        for action, background in zip(self.action, self.background, strict=True):
            messages = torch.where(graph.is_action, action(nodes), background(nodes))
            nodes = F.leaky_relu(messages @ graph.adjacency, 0.2).where(~graph.is_ambiguous, 0)
        loops = graph.adjacency.diagonal(dim1=1, dim2=2).unsqueeze(1)  # (B, 1, T)
        return nodes + (nodes @ graph.adjacency + features * loops).where(graph.is_ambiguous, 0)


class DDGNet(CO2Net):
    """DDG-Net: CO2-Net with a graph in place of the consensus module.

    Args:
        num_classes: As in CO2Net.
        modality_dims: As in CO2Net.
        first_pass_dropout: Also drop attention logits in the first pass (release). A dropped logit gives attention 0.5,
            so in training many snippets become action or ambiguous by chance.
        temporal_pool: As in CO2Net. The graph uses the attention before the pool.
        attention_logit_dropout: As in CO2Net.
    """

    RELEASED_MODULES = {
        **{f"Attn.action_graph.{m}.{n}": f"consensus.{m}.action.{n}" for m in (0, 1) for n in (0, 1)},
        **{f"Attn.background_graph.{m}.{n}": f"consensus.{m}.background.{n}" for m in (0, 1) for n in (0, 1)},
        **{f"Attn.attentions.{m}.{n}": f"attention_units.{m}.layers.{n}" for m in (0, 1) for n in (0, 3, 5)},
        **{layer: layer for layer in ("fusion.0", "classifier.1", "classifier.4")},
    }

    def __init__(
        self,
        num_classes: int,
        modality_dims: Sequence[int] = (1024, 1024),
        first_pass_dropout: bool = True,
        temporal_pool: int | None = None,
        attention_logit_dropout: float = 0.5,
    ):
        def graph_convolutions(*dims: int) -> nn.Module:
            return nn.ModuleList([GraphConvolutions(dim) for dim in dims])

        super().__init__(num_classes, modality_dims, temporal_pool, attention_logit_dropout, graph_convolutions)
        self.first_pass_dropout = first_pass_dropout

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return T-CAM and attention.

        Args:
            features: Snippet features (B, T, D1 + D2), T >= 1. Time and memory grow with T^2.

        Returns:
            The outputs of CO2Net.forward and

            * `first_attention` (B, 2, T): attention of each modality before the graph, without gradient
            * `graph_distance` (B, 2, T): distance of averaged and convolved features of each modality

        Raises:
            ValueError: If the features have another shape.
        """
        modalities = self.split(features)
        first_attention = self.first_pass(modalities)
        graph = build_graph(modalities, first_attention)
        enhanced, distances = [], []
        for x, convolutions in zip(modalities, self.consensus, strict=True):
            average, convolved = x @ graph.adjacency, convolutions(x, graph)  # G4, G5
            enhanced.append(INPUT_SHARE * x + (1 - INPUT_SHARE) * (average + convolved) / 2)  # G6
            distances.append(torch.linalg.vector_norm(average - convolved, dim=1))
        enhanced = join(enhanced)  # (B, D1 + D2, T)
        return {
            **self.outputs(enhanced, self.attend(enhanced)),
            "first_attention": first_attention,
            "graph_distance": torch.stack(distances, dim=1),
        }

    @torch.no_grad()
    def first_pass(self, modalities: Sequence[Tensor]) -> Tensor:
        """Return the attention (B, 2, T) of both modalities, (B, D1, T) and (B, D2, T), before the graph."""
        if self.first_pass_dropout:
            return self.attend(join(modalities))
        logits = [unit.layers[:-1](x) for unit, x in zip(self.attention_units, modalities, strict=True)]
        return torch.cat(logits, dim=1).sigmoid()


def consistency_loss(distance: Tensor, attention: Tensor) -> Tensor:
    """Compute the feature consistency loss L_fc, G7: averaged and convolved features should agree.

    Only action and background snippets count, because the ambiguous ones have no kind.

    Args:
        distance: Distance of averaged and convolved features of each modality (B, 2, T).
        attention: Attention of each modality in the first pass (B, 2, T).
    """
    fused = attention.mean(dim=1)  # (B, T)
    loss = 0
    for is_kind, confidence in zip(snippet_kinds(attention), (fused, 1 - fused), strict=True):
        weights = (is_kind * torch.exp(-(1 / confidence - 1) / TEMPERATURE)).unsqueeze(1)  # (B, 1, T)
        means = (weights * distance).sum(dim=2) / weights.sum(dim=2).clamp(min=1e-3)  # (B, 2)
        loss = loss + means.mean(dim=1).sum() / is_kind.any(dim=1).sum().clamp(min=1)
    return loss


def complementary_loss(cas: Tensor, labels: Tensor) -> Tensor:
    """Compute the complementary learning loss L_cl, G8: no snippet shows a class that its video does not have.

    The background counts as a class of every video.

    Args:
        cas: T-CAM logits (B, T, C + 1).
        labels: Multi-hot video labels (B, C).
    """
    absent = F.pad(1 - labels, (0, 1)).unsqueeze(1)  # (B, 1, C + 1)
    return -(absent * (1 - cas.softmax(dim=-1)).clamp(min=1e-6).log()).sum(dim=-1).mean()


class DDGNetLoss(DELULoss):
    """Objective of DDG-Net: DELU's, plus `fc` (G7) and `cl` (G8). Arguments are those of DELULoss."""

    WEIGHTS = {**DELULoss.WEIGHTS, "fc": 3.2, "cl": 1.0}

    def terms(
        self, outputs: Mapping[str, Tensor], labels: Tensor, pairs: Tensor, progress: float | Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return a function per term; see `CO2Loss.terms`."""
        return {
            **super().terms(outputs, labels, pairs, progress),
            "fc": lambda: consistency_loss(outputs["graph_distance"], outputs["first_attention"]),
            "cl": lambda: complementary_loss(outputs["cas"], labels),
        }


def add_options(parser: ArgumentParser) -> None:
    """Add the option of DDG-Net alone."""
    parser.add_argument_group("ddg_net").add_argument(
        "--first-pass-dropout",
        action=BooleanOptionalAction,
        default=True,
        help="drop attention logits in the pass that sorts the snippets of the graph, as in the release",
    )


DEFINITION = Definition(
    network=DDGNet,
    objective=DDGNetLoss,
    num_modalities=(2,),
    localization="outer_inner",
    add_options=add_options,
)
