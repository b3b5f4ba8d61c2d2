"""Each loss term against its formula, its limits, and the sum of all."""

import math

import pytest
import torch

from utils.losses import (
    WEIGHTS,
    CO2Loss,
    co_activity_loss,
    mil_loss,
    mutual_loss,
    norm_loss,
    opposition_loss,
    suppress,
)


def outputs(batch=4, snippets=15, classes=3, dim=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    modality_attention = torch.rand(batch, 2, snippets, generator=g, dtype=torch.float64)
    values = {
        "cas": torch.randn(batch, snippets, classes + 1, generator=g, dtype=torch.float64),
        "modality_attention": modality_attention,
        "features": torch.rand(batch, snippets, dim, generator=g, dtype=torch.float64),
    }
    values = {name: value.requires_grad_() for name, value in values.items()}
    return {**values, "attention": values["modality_attention"].mean(dim=1)}


LABELS = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 1, 1]], dtype=torch.float64)
PAIRS = torch.tensor([[0, 1], [2, 3]])


def test_suppression():
    cas, attention = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[0.25]])
    torch.testing.assert_close(suppress(cas, attention), torch.tensor([[[-0.25, -1.0]]]))
    torch.testing.assert_close(suppress(cas, attention, shifted=False), torch.tensor([[[0.5, -0.25]]]))


def test_mil_by_hand():
    """T = 4, ratio 2: the two highest logits of each class; labels (1, 0) and background 1 share the target."""
    cas = torch.tensor([[[3.0, 0.0, 1.0], [1.0, 0.0, 1.0], [-9.0, 0.0, -9.0], [-9.0, 0.0, -9.0]]])
    logits = [2.0, 0.0, 1.0]
    log_sum = math.log(sum(math.exp(x) for x in logits))
    expected = -((logits[0] - log_sum) + (logits[2] - log_sum)) / (2 + 1e-4)
    loss = mil_loss(cas, torch.tensor([[1.0, 0.0]]), background=1.0, topk_ratio=2)
    torch.testing.assert_close(loss.item(), expected, rtol=1e-6, atol=0)


def test_mil_keeps_at_least_one_snippet():
    cas = torch.tensor([[[0.0, 5.0]]])
    loss = mil_loss(cas, torch.tensor([[1.0]]), background=0.0, topk_ratio=7)
    torch.testing.assert_close(loss.item(), math.log(1 + math.exp(5)) / (1 + 1e-4), rtol=1e-5, atol=0)


def plain_co_activity(features, suppressed, labels, pairs):
    """The same, one pair and one class at a time, as W-TALC writes it."""
    total, count = 0.0, 0
    snippets, classes = features.shape[1], labels.shape[1]
    distance = lambda a, b: 1 - (a @ b) / (a.norm() * b.norm())  # noqa: E731
    for first, second in pairs.tolist():
        for c in range(classes):
            if labels[first, c] and labels[second, c]:
                high, low = [], []
                for row in (first, second):
                    a = suppressed[row, :, c].softmax(dim=0)
                    high.append(features[row].T @ a)
                    low.append(features[row].T @ (1 - a) / (snippets - 1))
                near = distance(high[0], high[1])
                total += 0.5 * max(near - distance(high[0], low[1]) + 0.5, 0)
                total += 0.5 * max(near - distance(low[0], high[1]) + 0.5, 0)
                count += 1
    return total / count


@pytest.mark.parametrize("seed", range(5))
def test_co_activity_equals_the_plain_loops(seed):
    values = outputs(seed=seed)
    suppressed = suppress(values["cas"], values["attention"])
    loss = co_activity_loss(values["features"], suppressed, LABELS, PAIRS)
    expected = plain_co_activity(values["features"], suppressed, LABELS, PAIRS)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "case",
    ["one snippet", "no shared class", "no pairs", "zero features"],
)
def test_safe_limits(case):
    """The release gives NaN or crashes in each of these."""
    values = outputs(snippets=1 if case == "one snippet" else 15)
    labels, pairs = LABELS, PAIRS
    if case == "no shared class":
        pairs = torch.tensor([[1, 3]])
    if case == "no pairs":
        pairs = torch.zeros(0, 2, dtype=torch.long)
    if case == "zero features":
        values["features"] = torch.zeros_like(values["features"]).requires_grad_()
    terms = CO2Loss()(values, labels, pairs)
    assert all(torch.isfinite(term) for term in terms.values())
    if case in ("no shared class", "no pairs"):
        assert terms["cas"] == 0
    terms["total"].backward()
    for name in ("cas", "modality_attention", "features"):
        assert torch.isfinite(values[name].grad).all()


def test_mutual_learning_stops_the_pseudo_labels_gradient():
    first = torch.tensor([[0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([[0.6, 0.5]], dtype=torch.float64, requires_grad=True)
    loss = mutual_loss(torch.stack([first, second], dim=1), alpha=0.25)
    torch.testing.assert_close(loss.item(), (0.4**2 + 0.4**2) / 2)
    loss.backward()
    torch.testing.assert_close(first.grad, 0.25 * (first - second).detach())
    torch.testing.assert_close(second.grad, 0.75 * (second - first).detach())


def test_opposition_and_norm_by_hand():
    attentions = torch.tensor([[[0.2], [0.6], [0.4]]])
    cas = torch.tensor([[[0.0, math.log(3.0)]]])  # background probability 3/4
    torch.testing.assert_close(opposition_loss(attentions, cas).item(), (0.05 + 0.35 + 0.15) / 3)
    torch.testing.assert_close(norm_loss(attentions).item(), 0.4)


def test_total_is_equation_10():
    terms = CO2Loss()(outputs(), LABELS, PAIRS)
    assert set(terms) == {*WEIGHTS, "total"}
    torch.testing.assert_close(terms["total"], sum(WEIGHTS[name] * terms[name] for name in WEIGHTS))


def test_a_weight_of_zero_removes_the_term_and_its_cost(monkeypatch):
    def fail(*arguments):
        raise AssertionError("computed all the same")

    monkeypatch.setattr("utils.losses.co_activity_loss", fail)
    monkeypatch.setattr("utils.losses.mil_loss", fail)
    terms = CO2Loss(weights={"cas": 0, "mil": 0})(outputs(), LABELS, PAIRS)
    assert set(terms) == {"ml", "oppo", "norm", "total"}


def test_an_unknown_term_is_refused():
    with pytest.raises(ValueError, match="unknown loss term mi; the terms are mil_org"):
        CO2Loss(weights={"mi": 1})


def test_pairs_may_lie_anywhere_in_the_batch():
    values = outputs()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {name: value[order] for name, value in values.items()}
    place = order.argsort()
    loss = CO2Loss()(values, LABELS, PAIRS)["total"]
    torch.testing.assert_close(CO2Loss()(shuffled, LABELS[order], place[PAIRS])["total"], loss)
