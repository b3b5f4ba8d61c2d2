"""P-MIL: RoI features, network, objective and localization of the second stage (Ren et al., CVPR 2023).

"Proposal-based multiple instance learning for weakly-supervised temporal action localization." A proposal is a segment
[start, end) in snippets. Its features are pooled from the snippets in and around it, and classified. "Release" marks
constants that come from the authors' code. Equation numbers P1 to P7 are those of docs/beyond.md.

Shapes: B videos, T snippets, M proposals, D channels, C action classes (background is class C), 2 modalities.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.proposals import FRACTIONAL, class_detections, predicted_classes, without_ambiguous
from model import check_sizes
from utils.losses import complete_weights, mil_loss, weighted_sum
from utils.segments import hard_nms, soft_nms

NUM_BINS = 12
MARGIN = 0.25  # extension on either side of a proposal, as a share of its length
OUTPUTS = ("cas", "attention", "completeness")  # of the network
PARTS = (slice(0, 2), slice(2, 10), slice(10, 12))  # bins before, inside and after the proposal


def roi_features(features: Tensor, proposals: Tensor) -> Tensor:
    """Pool the features of each extended proposal to NUM_BINS bins: RoIAlign in one dimension, P1.

    A bin is the mean of ceil(length / NUM_BINS) samples at equal distances. A sample is linear between the centers of
    two snippets. Outside the video the features are 0. The extended length is at least one snippet (release).

    Args:
        features: Snippets of one video (T, D).
        proposals: Start and end in snippets (M, 2); fractions are allowed.

    Returns:
        (M, NUM_BINS, D).
    """
    proposals = proposals.double()  # the number of samples jumps at whole lengths
    length = proposals[:, 1] - proposals[:, 0]
    start, length = proposals[:, 0] - MARGIN * length, ((1 + 2 * MARGIN) * length).clamp(min=1)
    per_bin = (length / NUM_BINS).ceil().long()  # samples, (M,)
    row = torch.arange(len(proposals), device=proposals.device).repeat_interleave(NUM_BINS * per_bin)  # (N,)
    first = (NUM_BINS * per_bin).cumsum(0) - NUM_BINS * per_bin
    number = torch.arange(len(row), device=row.device) - first[row]  # of the sample in its proposal
    position = start[row] - 0.5 + (number + 0.5) * (length / (NUM_BINS * per_bin))[row]
    left = position.floor()
    right_share = position - left
    snippets = torch.stack([left, left + 1], dim=1).long()  # (N, 2)
    weights = torch.stack([1 - right_share, right_share], dim=1) / per_bin[row, None]
    inside = (snippets >= 0) & (snippets < len(features))
    bins = torch.arange(NUM_BINS, device=row.device)
    offsets = 2 * (first[:, None] + bins * per_bin[:, None])  # first entry of each bin, (M, NUM_BINS)
    pooled = F.embedding_bag(
        snippets.clamp(0, len(features) - 1).flatten(),
        features,
        offsets.flatten(),
        mode="sum",
        per_sample_weights=(weights * inside).to(features).flatten(),
    )
    return pooled.view(len(proposals), NUM_BINS, -1)


def pool_parts(roi: Tensor) -> Tensor:
    """Return the maxima over the bins before, inside and after the proposals: (M, NUM_BINS, D) to (M, 3, D), P2."""
    return torch.stack([roi[:, part].amax(dim=1) for part in PARTS], dim=1)


class ProposalHead(nn.Module):
    """Classifier of proposals from one modality, P3; dropout 0.5 and widths of the release."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.fusion = nn.Sequential(nn.Linear(3 * dim, dim), nn.ReLU(), nn.Dropout(0.5))
        hidden = max(1, dim // 2)

        def layers(outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv1d(dim, hidden, 1), nn.ReLU(), nn.Conv1d(hidden, outputs, 1))

        self.classifier, self.attention, self.completeness = layers(num_classes + 1), layers(1), layers(1)

    def forward(self, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits (M, C + 1), attention (M,) and completeness (M,) from parts (M, 3, D)."""
        before, inside, after = parts.unbind(dim=1)
        fused = self.fusion(torch.cat([inside - before, inside, inside - after], dim=1)).T  # (D, M)
        attention, completeness = self.attention(fused).squeeze(0), self.completeness(fused).squeeze(0)
        return self.classifier(fused).T, attention.sigmoid(), completeness.sigmoid()


class ProposalNet(nn.Module):
    """Network of P-MIL: one head per modality.

    Args:
        num_classes: Number of action classes C. The network adds the background class.
        modality_dims: Channels (D1, D2) of the two modalities, in the order of the features.

    Raises:
        ValueError: If there is no class, or not exactly two modalities.
    """

    CLASS_LAYER = "heads.0.classifier.2.weight"  # a parameter with one row per class
    RELEASED_MODULES = {
        f"prop_{modality}_backbone.prop_{module}": f"heads.{head}.{module}"
        for head, modality in enumerate("vf")
        for module in (
            "fusion.0",
            *(f"{name}.{layer}" for name in ("classifier", "attention", "completeness") for layer in (0, 2)),
        )
    }

    def __init__(self, num_classes: int, modality_dims: Sequence[int] = (1024, 1024)):
        super().__init__()
        check_sizes(num_classes, modality_dims, counts=(2,))
        self.num_classes, self.modality_dims = num_classes, tuple(modality_dims)
        self.heads = nn.ModuleList(ProposalHead(num_classes, dim) for dim in modality_dims)

    def forward(self, parts: Tensor) -> dict[str, Tensor]:
        """Return the outputs of both modalities for the proposals of one or more videos.

        Args:
            parts: Pooled features (M, 3, D1 + D2) of `pool_parts`.

        Returns:
            A dict of `cas` (2, M, C + 1), logits with the background last; `attention` (2, M) and `completeness`
            (2, M), both in [0, 1].
        """
        modalities = zip(self.heads, parts.split(self.modality_dims, dim=2), strict=True)
        outputs = zip(*(head(x) for head, x in modalities), strict=True)
        return dict(zip(OUTPUTS, map(torch.stack, outputs), strict=True))


def fuse_modalities(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `probabilities` (M, C + 1), `attention` (M,) and `completeness` (M,), means over the modalities."""
    means = {name: outputs[name].mean(dim=0) for name in ("attention", "completeness")}
    return {"probabilities": outputs["cas"].softmax(dim=-1).mean(dim=0), **means}


class _Video(NamedTuple):
    """Outputs of one video for all its proposals."""

    cas: Tensor  # (2, M, C + 1)
    attention: Tensor  # (2, M)
    completeness: Tensor  # (2, M)
    proposals: Tensor  # (M, 2)
    tiou: Tensor  # (M, M)
    labels: Tensor  # (C,)


class PMILLoss(nn.Module):
    """Objective of P-MIL, P6: video labels, and two terms in which each modality teaches the other one.

    Args:
        weights: Weights by term that differ from WEIGHTS. A weight of 0 removes a term.
        topk_ratio: Divisor of M in the number of proposals of top-k MIL.
        instance_threshold: Share of the highest attention that a pseudo instance must exceed.
        ramp_epochs: Epoch from which the terms in RAMPED have their full weight.

    Raises:
        ValueError: If a term is unknown, or none is left.
    """

    WEIGHTS = {"mil_org": 2.0, "mil_supp": 1.0, "irc": 2.0, "comp": 20.0}
    RAMPED = ("irc", "comp")

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        topk_ratio: int = 8,
        instance_threshold: float = 0.8,
        ramp_epochs: int = 30,
    ):
        super().__init__()
        self.weights = complete_weights(weights or {}, self.WEIGHTS)
        self.topk_ratio, self.instance_threshold, self.ramp_epochs = topk_ratio, instance_threshold, ramp_epochs

    def forward(
        self, outputs: Mapping[str, Tensor], proposals: Sequence[Tensor], labels: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Return the terms, unweighted means over videos and modalities, and their weighted sum `total`.

        Args:
            outputs: Outputs of the network for the proposals of all videos, one video after another.
            proposals: Proposals (M, 2) of each video.
            labels: Multi-hot video labels (B, C).
            epoch: Number of the epoch, from 1.
        """
        counts = [len(segments) for segments in proposals]
        columns = [outputs[name].split(counts, dim=1) for name in OUTPUTS]
        videos = [
            _Video(*of_video, segments, pairwise_tiou(segments), row)
            for *of_video, segments, row in zip(*columns, proposals, labels, strict=True)
        ]
        return weighted_sum(
            {
                "mil_org": lambda: _mean(self._mil, videos),
                "mil_supp": lambda: _mean(self._suppressed_mil, videos),
                "irc": lambda: _mean(_rank_consistency, videos),
                "comp": lambda: _mean(self._completeness, videos),
            },
            {name: weight * (self.ramp(epoch) if name in self.RAMPED else 1) for name, weight in self.weights.items()},
        )

    def ramp(self, epoch: int) -> float:
        """Return the share of the full weight of the terms in RAMPED."""
        return math.exp(-5 * (1 - min(epoch, self.ramp_epochs) / self.ramp_epochs) ** 2)

    def _mil(self, video: _Video, student: int, teacher: int) -> Tensor:
        return mil_loss(video.cas[None, student], video.labels[None], 1.0, self.topk_ratio)

    def _suppressed_mil(self, video: _Video, student: int, teacher: int) -> Tensor:
        suppressed = video.attention[student, :, None] * video.cas[student]
        return mil_loss(suppressed[None], video.labels[None], 0.0, self.topk_ratio)

    def _completeness(self, video: _Video, student: int, teacher: int) -> Tensor:
        """Compute P5: completeness should be the tIoU with the best pseudo instance of the other modality."""
        attention = video.attention[teacher].detach()
        candidates = (attention > self.instance_threshold * attention.max()).nonzero().squeeze(1)
        # NMS at threshold 0 deletes all that overlap a better candidate, and always ends.
        segments = video.proposals[candidates].cpu().numpy()
        kept, _ = hard_nms(segments, attention[candidates].cpu().numpy(), 0.0)
        instances = candidates[torch.from_numpy(kept).to(candidates)]
        return F.mse_loss(video.completeness[student], video.tiou[:, instances].amax(dim=1))


def _mean(term: Callable[[_Video, int, int], Tensor], videos: Sequence[_Video]) -> Tensor:
    """Return the mean of a term over videos, and over the modalities in the role of the student."""
    return torch.stack([term(video, student, 1 - student) for video in videos for student in (0, 1)]).mean()


def _rank_consistency(video: _Video, student: int, teacher: int) -> Tensor:
    """Compute the instance rank consistency, P4: overlapping proposals should rank as in the other modality.

    It is 0 for a video without a label, and where no attention is above the mean: one proposal, or equal attentions
    (the release has NaN there).
    """
    classes = video.labels.nonzero().squeeze(1)
    attention = video.attention[teacher].detach()
    anchors = (attention > attention.mean()).nonzero().squeeze(1)
    if len(classes) == 0 or len(anchors) == 0:
        return video.cas.new_zeros(())
    p = video.cas[student][:, classes].T.unsqueeze(1)  # (K, 1, M)
    q = video.cas[teacher][:, classes].detach().T.unsqueeze(1)
    apart = video.tiou[anchors] == 0  # (R, M)
    apart[torch.arange(len(anchors)), anchors] = False  # a proposal of no length overlaps itself, too
    p_masked, q_masked = (logits.masked_fill(apart, -math.inf) for logits in (p, q))  # (K, R, M)
    # KL(softmax(q) || softmax(p)), without the difference of two infinite logarithms.
    return ((q_masked.softmax(dim=-1) * (q - p)).sum(dim=-1) - q_masked.logsumexp(-1) + p_masked.logsumexp(-1)).mean()


def pairwise_tiou(proposals: Tensor) -> Tensor:
    """Return the tIoU of all pairs of proposals (M, 2), (M, M), with 1e-6 in the denominator (release)."""
    start, end = proposals.T
    inter = torch.minimum(end[:, None], end) - torch.maximum(start[:, None], start)
    length = end - start
    inter = inter.clamp(min=0)
    return inter / (length[:, None] + length - inter + 1e-6)


def proposal_scores(probabilities: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Compute class scores of one video: the mean of its proposals' probabilities, weighted by their attention.

    Args:
        probabilities: (M, C + 1) class probabilities of M proposals, background last.
        attention: (M,) in [0, 1].

    Returns:
        (C,) scores.
    """
    return attention @ probabilities[:, :-1] / (attention.sum() + 1e-6)  # 1e-6: release


def localize_proposals(
    probabilities: np.ndarray,
    attention: np.ndarray,
    completeness: np.ndarray,
    segments: np.ndarray,
    *,
    class_threshold: float = 0.2,
    class_score_weight: float = 0.2,
    nms_sigma: float = 0.3,
    ambiguous: np.ndarray | None = None,
) -> np.ndarray:
    """Detect the actions of one video among given proposals (P7).

    Every proposal is a detection of every predicted class. Its score is the product of probability, attention and
    completeness, plus the weighted class score of the video.

    Args:
        probabilities: (M, C + 1) class probabilities of the proposals, background last.
        attention: (M,) in [0, 1].
        completeness: (M,) in [0, 1].
        segments: (M, 2) proposals in snippets.
        class_threshold: Lowest score of a class that is localized. If none reaches it, the best class is.
        class_score_weight: Weight of the class score in the score of a detection.
        nms_sigma: Width of soft-NMS, which pads each segment by one snippet.
        ambiguous: (K, 2) segments in whole snippets. Detections that share a whole snippet with one are deleted.

    Returns:
        Structured array (N,) as from `eval.proposals.localize`, with fractions of snippets as start and end.
    """
    scores = proposal_scores(probabilities, attention)  # (C,)
    detections = [np.empty(0, dtype=FRACTIONAL)]
    for label in predicted_classes(scores, class_threshold):
        of_proposals = probabilities[:, label] * attention * completeness + class_score_weight * scores[label]  # (M,)
        order, score = soft_nms(segments, of_proposals, nms_sigma)
        detections.append(class_detections(label, np.asarray(segments, dtype=np.float64)[order], score))
    return without_ambiguous(np.concatenate(detections), ambiguous, whole_snippets=True)
