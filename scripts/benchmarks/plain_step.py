"""Plain training step: network, losses and step as the paper states them, to measure the fast step against.

Layers are stock, channels first. Losses loop over videos and pairs of videos, as the code of this field does. Adam
updates one parameter after another, and the host reads every loss in every step. Parameters have CO2Net's names.

Shapes: B videos, T snippets, D channels (D1, D2 of the two modalities), C action classes, P pairs.
"""

import torch
from torch import Tensor, nn

WEIGHTS = {"mil_org": 1.0, "mil_supp": 1.0, "cas": 1.0, "ml": 1.0, "oppo": 0.8, "norm": 0.8}
LEAKY_SLOPE = 0.2
MARGIN = 0.5


class PlainConsensus(nn.Module):
    """Cross-modal consensus module, Eq. 1 to 3."""

    def __init__(self, main_dim: int, auxiliary_dim: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.global_context = _unit(main_dim, main_dim, taps=1)
        self.cross_modal = _unit(auxiliary_dim, main_dim, taps=3)

    def forward(self, main: Tensor, auxiliary: Tensor) -> Tensor:
        """Return the enhanced main features (B, D, T)."""
        return torch.sigmoid(self.global_context(self.pool(main)) * self.cross_modal(auxiliary)) * main


class PlainAttention(nn.Module):
    """Attention unit, Eq. 4."""

    def __init__(self, dim: int, hidden_dim: int = 512):
        super().__init__()
        convolutions = nn.Conv1d(dim, hidden_dim, 3, padding=1), nn.Conv1d(hidden_dim, hidden_dim, 3, padding=1)
        first, second = nn.LeakyReLU(LEAKY_SLOPE), nn.LeakyReLU(LEAKY_SLOPE)
        last = nn.Conv1d(hidden_dim, 1, 1), nn.Dropout(0.5)
        self.layers = nn.Sequential(convolutions[0], first, nn.Dropout(0.5), convolutions[1], second, *last)

    def forward(self, features: Tensor) -> Tensor:
        """Return the attention of features (B, D, T)."""
        return torch.sigmoid(self.layers(features))  # (B, 1, T)


class PlainCO2Net(nn.Module):
    """Network of Figure 2, from features (B, T, D1 + D2) to the outputs of model.CO2Net."""

    def __init__(self, num_classes: int, modality_dims: tuple[int, int]):
        super().__init__()
        first, second = self.modality_dims = modality_dims
        fused = first + second
        self.consensus = nn.ModuleList([PlainConsensus(first, second), PlainConsensus(second, first)])
        self.attention_units = nn.ModuleList([PlainAttention(first), PlainAttention(second)])
        self.fusion = nn.Sequential(nn.Conv1d(fused, fused, 1), nn.LeakyReLU(LEAKY_SLOPE), nn.Dropout(0.7))
        wide = nn.Conv1d(fused, fused, 3, padding=1), nn.LeakyReLU(LEAKY_SLOPE), nn.Dropout(0.7)
        self.classifier = nn.Sequential(nn.Dropout(0.7), *wide, nn.Conv1d(fused, num_classes + 1, 1))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return T-CAM, attention and fused features."""
        first, second = features.transpose(1, 2).split(self.modality_dims, dim=1)
        enhanced = self.consensus[0](first, second), self.consensus[1](second, first)
        attentions = [unit(x) for unit, x in zip(self.attention_units, enhanced, strict=True)]
        fused = self.fusion(torch.cat(enhanced, dim=1))
        modality_attention = torch.cat(attentions, dim=1)  # (B, 2, T)
        return {
            "cas": self.classifier(fused).transpose(1, 2),
            "attention": modality_attention.mean(dim=1),
            "modality_attention": modality_attention,
            "features": fused.transpose(1, 2),
        }


class PlainLoss(nn.Module):
    """Objective of Eq. 10 by loops, from outputs, labels (B, C) and pairs (P, 2) to the terms and `total`."""

    def forward(self, outputs: dict[str, Tensor], labels: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        """Return the loss terms and their weighted sum."""
        cas, attention = outputs["cas"], outputs["attention"].unsqueeze(2)
        first, second = outputs["modality_attention"].unbind(dim=1)
        floor = cas.min(dim=2, keepdim=True).values
        suppressed = attention * (cas - floor) + floor
        background = 1 - cas.softmax(dim=2)[..., -1]
        attentions = (first, second, outputs["attention"])
        terms = {
            "mil_org": _mil_loss(cas, labels, background=1.0),
            "mil_supp": _mil_loss(suppressed, labels, background=0.0),
            "cas": _co_activity_loss(outputs["features"], suppressed, labels, pairs),
            "ml": ((first - second.detach()) ** 2).mean() / 2 + ((second - first.detach()) ** 2).mean() / 2,
            "oppo": sum((one - background).abs().mean() for one in attentions) / 3,
            "norm": sum(one.mean() for one in attentions) / 3,
        }
        return {**terms, "total": sum(WEIGHTS[name] * term for name, term in terms.items())}


def plain_adam(net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Build Adam that updates one parameter after another."""
    return torch.optim.Adam(net.parameters(), lr=lr, weight_decay=weight_decay, foreach=False, fused=False)


def plain_train_step(
    net: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...], precision: str
) -> dict[str, float]:
    """Take one step on (features, labels, pairs) and return the terms. With `bf16` the network runs under autocast."""
    device = next(net.parameters()).device
    features, labels, pairs = (x.to(device) for x in batch)
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = net(features)
    terms = objective({name: value.float() for name, value in outputs.items()}, labels, pairs)
    terms["total"].backward()
    optimizer.step()
    return {name: term.item() for name, term in terms.items()}


def _unit(in_dim: int, out_dim: int, taps: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(in_dim, out_dim, taps, padding=taps // 2), nn.LeakyReLU(LEAKY_SLOPE), nn.Dropout(0.5)
    )


def _mil_loss(cas: Tensor, labels: Tensor, background: float, topk_divisor: int = 7) -> Tensor:
    """Return the softmax cross-entropy of top-k mean logits, one video after another."""
    labels = torch.cat([labels, torch.full_like(labels[:, :1], background)], dim=1)
    labels = labels / (labels.sum(dim=1, keepdim=True) + 1e-4)
    k = max(1, cas.shape[1] // topk_divisor)
    logits = []
    for video in range(len(cas)):
        top, _ = torch.topk(cas[video], k, dim=0)
        logits.append(top.mean(dim=0))
    return -(labels * torch.log_softmax(torch.stack(logits), dim=1)).sum(dim=1).mean()


def _co_activity_loss(features: Tensor, suppressed: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
    """Return the co-activity similarity loss, one pair and one shared class after another."""
    total, count = features.new_zeros(()), 0
    for first, second in pairs.tolist():
        for label in torch.nonzero(labels[first] * labels[second]).flatten().tolist():
            high_1, low_1 = _high_and_low(features[first], suppressed[first, :, label])
            high_2, low_2 = _high_and_low(features[second], suppressed[second, :, label])
            near = _distance(high_1, high_2)
            total = total + torch.relu(near - _distance(high_1, low_2) + MARGIN) / 2
            total = total + torch.relu(near - _distance(low_1, high_2) + MARGIN) / 2
            count += 1
    return total / max(count, 1)


def _high_and_low(features: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (T, D) weighted by the softmax of an activation (T,), and by the rest: (D,) each."""
    weight = torch.softmax(activation, dim=0)
    return features.T @ weight, features.T @ ((1 - weight) / max(len(weight) - 1, 1))


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return 1 - torch.dot(first, second) / (torch.norm(first) * torch.norm(second))
