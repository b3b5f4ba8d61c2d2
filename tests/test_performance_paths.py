"""Every fast path gives what the plain one gives: layers, padded batches, inference in buckets, the training step."""

import copy
import platform
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from model import CO2Net, separate
from scripts.benchmarks.plain_step import PlainCO2Net, PlainLoss, plain_adam, plain_train_step
from tests.conftest import ROOT
from tests.golden_cases import PAIRS, assert_golden
from tests.test_engine import attentive_method, dataset_of
from tests.test_golden import LOSS_NAMES, CO2NetCase
from utils.engine import BATCH_SNIPPETS, BatchLoss, equal_length_batches, network_outputs, predict, train_step
from utils.errors import InputError
from utils.fusion import CONSENSUS, consensus_factory
from utils.losses import CO2Loss
from utils.methods import METHODS as METHOD_NAMES
from utils.methods import build_method
from utils.methods.audio_visual import AudioVisualNet
from utils.optimizer import FusedAdam
from utils.run import fast_cpu
from utils.run.fast_cpu import LEVELS, ChannelsLastConv1d, FastDropout, use_channels_last, use_fast_dropout
from utils.training import StepOutcome, Training
from wsad_dataset import Batch

NETWORKS = {
    f"co2net_{name}": lambda name=name: CO2Net(3, (6, 6), consensus=consensus_factory(name)) for name in CONSENSUS
}
NETWORKS["co2net_pooled"] = lambda: CO2Net(3, (6, 6), temporal_pool=5)
NETWORKS["audio_visual"] = lambda: AudioVisualNet(3, (6, 6), width=8)
NETWORKS["audio_visual_ccm"] = lambda: AudioVisualNet(3, (6, 6), consensus="ccm", width=8)
METHODS = ["hamnet", "um", "tfe_dcn", "ddg_net"]


def made_batch(videos: int = 4, snippets: int = 9, channels: int = 7, classes: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    labels = nn.functional.one_hot(torch.arange(videos) % classes, classes).float()
    return Batch(torch.rand(videos, snippets, channels, generator=generator), labels, torch.tensor([[0, 2], [1, 3]]))


@given(
    probability=st.floats(0, 1),
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_dropout_keeps_or_zeroes_each_element_and_scales_what_it_keeps(probability, shape):
    x = torch.rand(shape) + 1
    y = FastDropout(probability)(x)
    kept = y != 0
    levels = round((1 - probability) * 2**16) / 2**16
    assert y.shape == x.shape
    if levels:
        torch.testing.assert_close(y[kept], x[kept] / levels)
    else:
        assert not kept.any()


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.7])
def test_dropout_drops_as_often_as_it_says_and_each_element_by_itself(probability):
    torch.manual_seed(0)
    kept = (FastDropout(probability)(torch.ones(400, 1000)) != 0).double()
    deviation = (probability * (1 - probability)) ** 0.5
    assert abs(kept.mean().item() - (1 - probability)) < 5 * deviation / 400_000**0.5
    for shift in (1, 2, 3, 4):  # four elements come from one draw
        together = (kept[:, shift:] * kept[:, :-shift]).mean().item()
        assert together == pytest.approx((1 - probability) ** 2, abs=0.005)


def test_dropout_is_repeatable_by_seed_and_off_in_evaluation():
    layer, x = FastDropout(0.5), torch.rand(3, 100)
    torch.manual_seed(4)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(4)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)


def test_the_gradient_of_dropout_goes_where_its_output_came_from():
    x = torch.rand(5, 40, requires_grad=True)
    y = FastDropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y / x).detach())


@pytest.mark.parametrize("probability", [0.3, 0.7])
def test_an_activation_and_its_dropout_in_one_are_the_two(probability):
    """Values and gradients, given what was dropped."""
    layers = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.LeakyReLU(0.2, inplace=True), nn.Dropout(probability))
    use_fast_dropout(layers)
    x, weights = torch.randn(4, 3, 30, requires_grad=True), torch.randn(4, 5, 30)
    y = layers(x)
    ours = torch.autograd.grad((weights * y).sum(), [x, *layers.parameters()])
    mask = (y != 0) * LEVELS / layers[2].keep_level
    two = nn.functional.leaky_relu(layers[0](x), 0.2) * mask
    torch.testing.assert_close(y, two)
    assert 0 < mask.count_nonzero() < mask.numel()
    for one, other in zip(ours, torch.autograd.grad((weights * two).sum(), [x, *layers.parameters()]), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_fast_dropout_changes_no_parameter_and_no_evaluation(name):
    net = NETWORKS[name]().eval()
    fast = copy.deepcopy(net)
    use_fast_dropout(fast)
    assert list(fast.state_dict()) == list(net.state_dict())
    assert not any(type(module) is nn.Dropout for module in fast.modules())
    features = torch.rand(2, 9, 12)
    for output, other in zip(net(features).values(), fast(features).values(), strict=True):
        assert torch.equal(output, other)
    assert all(torch.isfinite(value).all() for value in fast.train()(features).values())


@pytest.mark.parametrize("snippets", [1, 9])
@pytest.mark.parametrize("name", [*NETWORKS, *METHODS])
def test_channels_last_changes_memory_order_and_nothing_else(name, snippets):
    """Parameter names, outputs and gradients stay; features between convolutions are (B, T, D) in memory."""
    torch.manual_seed(0)
    net = NETWORKS[name]() if name in NETWORKS else build_method(name, 3, (6, 6)).network
    net.double()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fast = copy.deepcopy(net)
    use_channels_last(fast)
    assert list(fast.state_dict()) == list(net.state_dict())
    features = torch.rand(2, snippets, 12, dtype=torch.float64)
    outputs, fast_outputs = net.train()(features), fast.train()(features)
    for key, value in outputs.items():
        torch.testing.assert_close(fast_outputs[key], value, rtol=1e-9, atol=1e-9)
    results = [
        torch.autograd.grad(of["cas"].square().sum() + of["attention"].sum(), [*module.parameters()], allow_unused=True)
        for of, module in ((outputs, net), (fast_outputs, fast))
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_features_are_channels_last_in_training_and_not_in_evaluation():
    net = CO2Net(3, (6, 6))
    use_channels_last(net)
    inputs, layouts = [], []

    def note(_module, arguments, y):
        inputs.append(arguments[0].stride(1) == 1)
        layouts.append(y.transpose(1, 2).is_contiguous())

    for module in net.modules():
        if isinstance(module, ChannelsLastConv1d):
            module.register_forward_hook(note)
    features = torch.rand(2, 9, 12)
    net.train()(features)
    assert len(layouts) == 13
    assert all(layouts)
    assert all(inputs)  # or the convolution copies them
    layouts.clear()
    net.eval()(features)  # evaluation is float32, for which the usual order is faster
    assert layouts.count(False) == 9  # the other layers have one snippet or one channel, and both orders are the same


def test_dropout_of_channels_last_features_keeps_the_memory_order():
    x = torch.rand(3, 50, 40).transpose(1, 2).requires_grad_()
    y = FastDropout(0.3, slope=0.2)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.stride() == gradient.stride() == x.stride()
    torch.testing.assert_close(gradient, (y / x).detach())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_dropout_in_blocks_is_dropout_at_once(monkeypatch, kind):
    """One stream of draws, in memory order, whatever the size of the blocks and the order of the gradient."""
    x = torch.randn(3, 50, 41, dtype=kind).transpose(1, 2).requires_grad_()
    gradient = torch.randn(3, 41, 50, dtype=kind)
    torch.manual_seed(0)
    draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    for block in (x.numel(), 64):
        monkeypatch.setattr(fast_cpu, "BLOCK", block)
        torch.manual_seed(0)
        layer = FastDropout(0.3, slope=0.2)
        y = layer(x)
        kept = (draws[: x.numel()] < layer.keep_level - LEVELS // 2).view(3, 50, 41).transpose(1, 2)
        mask = kept.to(kind) * (LEVELS / layer.keep_level)
        assert torch.equal(y, nn.functional.leaky_relu(x, 0.2) * mask)
        (x_gradient,) = torch.autograd.grad(y, x, gradient)
        assert torch.equal(x_gradient, torch.where(x < 0, gradient * 0.2, gradient) * mask)


@pytest.mark.parametrize("order", [lambda x: x, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)])
def test_the_gradient_of_separated_modalities_has_their_memory_order(order):
    x = order(torch.rand(2, 5, 9)).requires_grad_()
    parts = separate(x, (2, 3))
    assert all(torch.equal(part, other) for part, other in zip(parts, (x[:, :2], x[:, 2:]), strict=True))
    (gradient,) = torch.autograd.grad(parts[0].sum() + 2 * parts[1].sum(), x)
    assert gradient.stride() == x.stride()


@given(lengths=st.lists(st.integers(1, 30), max_size=60), max_snippets=st.integers(1, 90))
def test_every_video_is_in_one_batch_of_its_length(lengths, max_snippets):
    lengths = np.array(lengths, dtype=np.int64)
    batches = list(equal_length_batches(lengths, max_snippets))
    assert sorted(np.concatenate([*batches, np.empty(0, np.int64)]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(set(lengths[batch])) == 1
        assert len(batch) == 1 or lengths[batch].sum() <= max_snippets


def test_batches_of_one_length_give_what_single_videos_give():
    lengths = {f"v{length}_{copy}": length for length in (1, 2, 3, 17, 40, 41, 44, 45, 200) for copy in range(2)}
    annotations, dataset = dataset_of(lengths)
    method = attentive_method()
    net = method.network.eval()
    assert any(len(batch) > 1 for batch in equal_length_batches(dataset.lengths, BATCH_SNIPPETS["cpu"]))
    results = predict(method, dataset, annotations, 30 / 16)
    assert [result.video_id for result in results] == dataset.video_ids
    for index, result in enumerate(results):
        with torch.no_grad():
            outputs = net(torch.tensor(dataset[index])[None])
        for name in ("cas", "attention", "modality_attention"):
            expected = outputs[name][0].numpy()
            np.testing.assert_allclose(getattr(result, name), expected, rtol=1e-4, atol=1e-5)
        assert len(result.detections) > 0
    chosen = predict(method, dataset, annotations, 30 / 16, indices=[7, 2])
    assert [result.video_id for result in chosen] == [dataset.video_ids[2], dataset.video_ids[7]]


def test_a_network_comes_back_in_training_mode_even_when_nobody_takes_all_of_it():
    _, dataset = dataset_of({"v": 9, "w": 90})
    net = attentive_method().network.train()
    videos = network_outputs(net, dataset, np.arange(2))
    next(videos)
    assert not net.training
    videos.close()
    assert net.training


class Plain:
    """The paper's network, losses and step as they read, with the weights of another network, without dropout."""

    def __init__(self, net: CO2Net):
        kind = next(net.parameters()).dtype
        self.net, self.criterion = PlainCO2Net(net.num_classes, net.modality_dims).to(kind).eval(), PlainLoss()
        self.net.load_state_dict(net.state_dict())
        self.optimizer = plain_adam(self.net, 1e-3, 1e-3)

    def step(self, batch: Batch) -> dict[str, float]:
        return plain_train_step(self.net, self.criterion, self.optimizer, batch, "float32")


def adam(net: CO2Net, weight_decay: float = 1e-3) -> FusedAdam:
    return FusedAdam(net.parameters(), 1e-3, weight_decay=weight_decay)


def trained(net: CO2Net, **options) -> list[dict[str, float]]:
    batch_loss, optimizer = BatchLoss(net, CO2Loss(), **options), adam(net)
    outcomes = [train_step(batch_loss, optimizer, made_batch()) for _ in range(3)]
    assert all(outcome.finite for outcome in outcomes)
    return [{name: value.item() for name, value in outcome.terms.items()} for outcome in outcomes]


def both_nets() -> tuple[CO2Net, CO2Net]:
    torch.manual_seed(0)
    net = CO2Net(2, (4, 3)).eval()  # without dropout
    return net, copy.deepcopy(net)


def test_the_plain_step_is_the_release_too():
    case = CO2NetCase("model_thumos14_short")
    plain = Plain(case.net)
    with torch.no_grad():
        outputs = plain.net(case.features(case.meta["seed"]))
        terms = plain.criterion(outputs, torch.from_numpy(case.arrays["labels"].astype(float)), PAIRS)
    assert_golden(outputs["cas"], case.arrays["cas"])
    for ours, released in LOSS_NAMES.items():
        assert_golden(terms[ours], case.arrays[released])


def assert_same_training(first: nn.Module, second: nn.Module, terms: list[dict], others: list[dict], tolerance: float):
    for ours, theirs in zip(terms, others, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    for parameter, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=tolerance, atol=tolerance)


def test_three_steps_are_those_of_the_plain_step():
    net, _ = both_nets()
    plain = Plain(net)
    assert_same_training(net, plain.net, trained(net), [plain.step(made_batch()) for _ in range(3)], 5e-5)


def test_bf16_is_near_float32():
    net, other = both_nets()
    for ours, theirs in zip(trained(net, precision="bf16"), trained(other), strict=True):
        assert ours["total"] == pytest.approx(theirs["total"], rel=0.03)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_step_is_the_plain_step():
    net, _ = both_nets()
    plain = Plain(net)
    terms = trained(net, compiled=True)
    assert_same_training(net, plain.net, terms, [plain.step(made_batch()) for _ in range(3)], 1e-4)


class HostReads(TorchDispatchMode):
    """Records the operations for which the host would wait for a GPU, because it needs their values."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in self.OPERATIONS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [Tensor.item, bool, Tensor.nonzero, Tensor.unique, lambda x: x[x > 1]])
def test_the_spy_sees_what_the_host_reads(read):
    with HostReads() as reads:
        read(torch.ones(()))
    assert len(reads.names) == 1


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_host_reads_nothing_during_a_step(name):
    method = build_method(name, 2, (4, 4))
    step = partial(train_step, BatchLoss(method.network.train(), method.objective), adam(method.network))
    batch = made_batch(channels=8)
    step(batch)  # creates the state of Adam
    with HostReads() as reads:
        step(batch, progress=0.5)
    assert reads.names == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_host_never_waits_for_a_gpu_during_a_step(name):
    method = build_method(name, 2, (4, 4))
    step = partial(train_step, BatchLoss(method.network.cuda().train(), method.objective), adam(method.network))
    batch = Batch(*(part.cuda() for part in made_batch(channels=8)))
    step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch, progress=0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_takes_the_steps_of_the_cpu(compiled):
    net, other = both_nets()
    terms = trained(net.cuda(), compiled=compiled)
    assert_same_training(net.cpu(), other, terms, trained(other), 1e-2)  # TF32


def test_a_step_that_is_not_finite_changes_neither_weights_nor_state():
    net, _ = both_nets()
    optimizer = adam(net)
    step = partial(train_step, BatchLoss(net, CO2Loss()), optimizer)
    assert step(made_batch()).finite
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"]))
    spoilt = made_batch()
    spoilt.features[0, 0, 0] = float("nan")
    outcome = step(spoilt)
    assert not outcome.finite and outcome.terms["total"].isnan()
    after = (net.state_dict(), optimizer.state_dict()["state"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert step(made_batch()).finite
    assert not torch.equal(net.state_dict()["fusion.0.weight"], before[0]["fusion.0.weight"])


def test_the_adam_of_a_training_is_pytorchs():
    """Also after its state went through the other one, and with a step left out."""
    net = both_nets()[0]
    nets, kinds = (net, copy.deepcopy(net)), (FusedAdam, partial(torch.optim.Adam, fused=True))
    optimizers = [kind(each.parameters(), 1e-2, weight_decay=0.1) for kind, each in zip(kinds, nets, strict=True)]
    for step in range(4):
        for optimizer, each in zip(optimizers, nets, strict=True):
            optimizer.zero_grad(set_to_none=True)
            each(made_batch().features)["cas"].square().sum().backward()
            optimizer.found_inf = torch.tensor(float(step == 1))
            optimizer.step()
        states = [optimizer.state_dict() for optimizer in optimizers]
        torch.testing.assert_close(*states, rtol=0, atol=0)
        torch.testing.assert_close(*(dict(each.state_dict()) for each in nets), rtol=0, atol=0)
        for optimizer, state in zip(optimizers, states[::-1], strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))
    assert not torch.equal(nets[0].state_dict()["fusion.0.weight"], both_nets()[0].state_dict()["fusion.0.weight"])


HELD = """
import re, sys, numpy as np
from pathlib import Path
from utils.run.fast_cpu import set_malloc_policy

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

set_malloc_policy(sys.argv[1] == "keep")
before = resident()
arrays = [np.ones(2**22) for _ in range(4)]  # 32 MB each
del arrays
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to do with freed memory")
@pytest.mark.parametrize(("policy", "least", "most"), [("keep", 100, 200), ("give", -20, 20)])
def test_freed_memory_is_kept_or_given_back(policy, least, most):
    done = subprocess.run([sys.executable, "-c", HELD, policy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most


class NoBatches:
    """Loader without batches, as far as Training uses one."""

    video_ids = ()

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...


def test_a_run_begun_with_another_adam_goes_on_with_the_one_that_can_leave_steps_out(tmp_path):
    net, _ = both_nets()
    identity = {"architecture": {}, "classes": ["a", "b"], "options": {}}
    before = torch.optim.Adam(net.parameters(), lr=1e-3, foreach=True)
    net(made_batch().features)["cas"].sum().backward()
    before.step()
    Training(net, before, NoBatches(), identity, tmp_path, max_iter=9, eval_every=1).save_last()
    optimizer = adam(net, weight_decay=0.0)
    Training(net, optimizer, NoBatches(), identity, tmp_path, max_iter=9, eval_every=1).resume(seed=0)
    step, spoilt = partial(train_step, BatchLoss(net, CO2Loss()), optimizer), made_batch()
    spoilt.features[0, 0, 0] = float("nan")
    weights = copy.deepcopy(net.state_dict())
    assert not step(spoilt).finite
    torch.testing.assert_close(net.state_dict(), weights, rtol=0, atol=0)
    assert step(made_batch()).finite


class OnGpu(torch.Tensor):
    """Tensor on the CPU that claims to be on a GPU."""

    is_cuda = True


def test_a_step_checked_late_is_reported_with_its_own_iteration_and_videos(tmp_path):
    net, _ = both_nets()
    identity = {"architecture": {}, "classes": ["a", "b"], "options": {}}
    optimizer, loader = adam(net, weight_decay=0.0), NoBatches()
    training = Training(net, optimizer, loader, identity, tmp_path, max_iter=9, eval_every=9)
    bad, good = (
        StepOutcome({"total": torch.tensor(value)}, torch.tensor(value < 1e9).as_subclass(OnGpu))
        for value in (1e10, 2.0)
    )
    loader.video_ids = ["first"]
    training.advance(good, made_batch())
    loader.video_ids = ["second"]
    training.advance(bad, made_batch())
    loader.video_ids = ["third"]
    with pytest.raises(InputError, match=r"not finite at iteration 2 \(total 1e\+10\) with the videos second;"):
        training.advance(good, made_batch())
    assert training.losses() == {"total": 2.0}  # mean of the two finite steps


def test_a_step_before_an_evaluation_or_a_save_is_checked_at_once(tmp_path):
    net, _ = both_nets()
    identity = {"architecture": {}, "classes": ["a", "b"], "options": {}}
    bad = StepOutcome({"total": torch.tensor(1e10)}, torch.tensor(False).as_subclass(OnGpu))
    optimizer = adam(net, weight_decay=0.0)
    training = Training(net, optimizer, NoBatches(), identity, tmp_path, max_iter=9, eval_every=1)
    with pytest.raises(InputError, match="not finite at iteration 1"):
        training.advance(bad, made_batch())
    training = Training(net, optimizer, NoBatches(), identity, tmp_path, max_iter=9, eval_every=9)
    training.advance(bad, made_batch())
    with pytest.raises(InputError, match="not finite at iteration 1"):
        training.save_last()
