"""CO2Net: shapes, ranges, gradients everywhere, and what its units do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import CO2Net, ConsensusModule
from utils.losses import CO2Loss

LABELS = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
PAIRS = torch.tensor([[0, 1], [2, 3]])


@settings(max_examples=15)
@given(
    num_classes=st.integers(1, 30),
    dims=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    snippets=st.integers(1, 40),
    pool=st.sampled_from([None, 1, 13]),
)
def test_any_sizes(num_classes, dims, snippets, pool):
    net = CO2Net(num_classes, dims, temporal_pool=pool).eval()
    outputs = net(torch.rand(2, snippets, sum(dims)))
    assert outputs["cas"].shape == (2, snippets, num_classes + 1)
    assert outputs["attention"].shape == (2, snippets)
    assert outputs["modality_attention"].shape == (2, 2, snippets)
    assert outputs["features"].shape == (2, snippets, sum(dims))
    assert all(torch.isfinite(value).all() for value in outputs.values())
    attention = outputs["modality_attention"]
    assert ((attention >= 0) & (attention <= 1)).all()
    torch.testing.assert_close(outputs["attention"], attention.mean(dim=1))


@pytest.mark.parametrize("pool", [None, 13])
def test_every_parameter_has_a_gradient_after_one_step(pool):
    torch.manual_seed(0)
    net = CO2Net(3, (20, 12), temporal_pool=pool)
    CO2Loss()(net(torch.rand(4, 30, 32)), LABELS, PAIRS)["total"].backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    # Nor is any tap of a kernel dead, as the outer taps of the release's F^G are.
    for name, parameter in net.named_parameters():
        if parameter.ndim == 3:
            assert parameter.grad.any(dim=0).any(dim=0).all(), name


def test_parameters_are_the_releases_less_its_dead_ones():
    unused_layer, unused_taps = 2048 * 2048 * 3 + 2048, 2 * (2 * 1024 * 1024)
    count = sum(parameter.numel() for parameter in CO2Net(20).parameters())
    assert count == 46_717_975 - unused_layer - unused_taps


def test_batched_equals_single():
    net = CO2Net(3, (20, 12)).double().eval()
    features = torch.rand(3, 17, 32, dtype=torch.float64)
    together = net(features)
    for row in range(3):
        alone = net(features[row : row + 1])
        for name in together:
            torch.testing.assert_close(together[name][row], alone[name][0])


def test_consensus_recalibrates_by_both_descriptors():
    """With M^G = 1 and M^L = the auxiliary modality, Eq. 3 is sigmoid(auxiliary) * main."""
    unit = ConsensusModule(1, 1).eval()
    for parameter in unit.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(unit.global_context[0].bias)
    unit.cross_modal[0].weight.data[0, 0, 1] = 1
    main, auxiliary = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[0.0, 1.0, 2.0]]])
    torch.testing.assert_close(unit(main, auxiliary), torch.sigmoid(auxiliary) * main)


def test_first_modality_comes_first():
    """The second modality's own attention unit sees the second modality: scaled away, its attention is constant."""
    net = CO2Net(3, (20, 12)).eval()
    features = torch.rand(1, 9, 32)
    features[..., 20:] = 0
    first, second = net(features)["modality_attention"][0]
    assert first.std() > 1e-4
    assert second.std() < 1e-6


def test_logit_dropout_is_the_releases_and_can_be_off():
    features = torch.rand(2, 400, 32)
    attention = CO2Net(3, (20, 12)).train()(features)["modality_attention"]
    assert 0.4 < (attention == 0.5).float().mean() < 0.6
    attention = CO2Net(3, (20, 12), attention_logit_dropout=0.0).train()(features)["modality_attention"]
    assert not (attention == 0.5).any()


def test_initialization_is_kaiming_uniform_of_the_three_tap_kernels():
    net = CO2Net(3, (64, 48))
    for module, fan_in in [
        (net.consensus[0].global_context[0], 3 * 64),
        (net.consensus[0].cross_modal[0], 3 * 48),
        (net.fusion[0], 112),
        (net.classifier[1], 3 * 112),
    ]:
        bound = (6 / fan_in) ** 0.5
        assert 0.95 * bound < module.weight.abs().max() <= bound
        assert not module.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 2, "modality_dims": (4,)}, "of 2 modalities"),
        ({"num_classes": 2, "temporal_pool": 4}, "odd"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CO2Net(**arguments)


@pytest.mark.parametrize("shape", [(2, 9, 31), (2, 0, 32), (9, 32)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        CO2Net(3, (20, 12))(torch.rand(shape))
