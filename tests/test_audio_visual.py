"""The audio-visual paper: its network and losses against transcriptions of its equations in float64 numpy; AVE."""

import json
import math

import h5py
import numpy as np
import pytest
import torch

import main
from eval.localize_two_stage import localize_two_stage, probability_scores
from eval.outputs import open_outputs
from eval.snippet_accuracy import accuracy_note, snippet_accuracy, snippet_classes
from model import CO2Net
from scripts.report import main as report
from scripts.simulate_features import main as simulate
from test import main as evaluate
from tests.ave_release import CLASSES, make_release, write_array
from utils import fusion
from utils.annotations import load_annotations, parse_annotations
from utils.errors import InputError
from utils.features.simulate import prototypes
from utils.features.simulate_ave import simulate_ave, simulate_clip
from utils.features.store import open_features
from utils.fusion import CrossAttention, CrossAttentionStage, consensus_factory
from utils.losses import co_activity_loss, mil_loss
from utils.methods.audio_visual import (
    WEIGHTS,
    AudioVisualLoss,
    AudioVisualNet,
    foreground_continuity_loss,
    gaussian_window,
    open_max,
    pseudo_localization_loss,
)
from utils.segments import aligned_snippets

torch.set_num_threads(1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(x, axis):
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# The equations, as the paper writes them: columns are snippets, one video.


def cross_attention(x_u, x_v, w):
    """Eq. 1 and 2: X_u (D1, L), X_v (D2, L) -> X~_u, X~_v."""
    unit_u, unit_v = (x / np.linalg.norm(x, axis=0) for x in (x_u, x_v))
    correlation = unit_u.T @ w @ unit_v  # Eq. 1
    a_u, a_v = softmax(correlation, axis=0), softmax(correlation.T, axis=0)
    return x_u @ a_u, x_v @ a_v  # Eq. 2


def multi_stage(x_u, x_v, weights):
    """Eq. 3."""
    us, vs = [x_u], [x_v]
    for w in weights:
        tilde_u, tilde_v = cross_attention(us[-1], vs[-1], w)
        us.append(np.tanh(sum(us) + tilde_u))
        vs.append(np.tanh(sum(vs) + tilde_v))
    return us[-1], vs[-1]


def openmax(h, foreground):
    """Eq. 5, the background last: h (L, C), foreground (L,)."""
    mu = sigmoid(foreground)[:, None]
    return np.concatenate([mu * softmax(h, axis=1), 1 - mu], axis=1)


def smoothed(values, weights, window):
    """Weighted means of values (L,) over those snippets of the window that the video has."""
    half, result = window // 2, []
    for place in range(len(values)):
        inside = [i for i in range(-half, half + 1) if 0 <= place - i < len(values)]
        total = sum(weights[i + half] for i in inside)
        result.append(sum(weights[i + half] * values[place - i] for i in inside) / total)
    return np.array(result)


def weights_of(consensus):
    return [stage.weight.detach().numpy() for stage in consensus.stages]


def test_eq_1_and_2_one_cross_attention():
    torch.manual_seed(0)
    stage = CrossAttentionStage(5, 7).double()
    stage.weight.data *= 20  # far from an even average
    first, second = random(3, 9, 5), random(3, 9, 7, seed=1)
    ours = stage(first, second)
    for video in range(3):
        expected = cross_attention(first[video].T.numpy(), second[video].T.numpy(), stage.weight.detach().numpy())
        for modality in (0, 1):
            np.testing.assert_allclose(ours[modality][video].detach().T, expected[modality], rtol=1e-12, atol=1e-13)
    assert (ours[0] - first.mean(dim=1, keepdim=True)).abs().max() > 0.1


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_eq_3_stages_with_dense_skip_connections(stages):
    torch.manual_seed(0)
    consensus = CrossAttention(6, 6, stages).double()
    first, second = random(2, 6, 8), random(2, 6, 8, seed=1)
    ours = consensus(first, second)
    for video in range(2):
        expected = multi_stage(first[video].numpy(), second[video].numpy(), weights_of(consensus))
        for modality in (0, 1):
            np.testing.assert_allclose(ours[modality][video].detach(), expected[modality], rtol=1e-12, atol=1e-13)


def network(modality_dims=(6, 4), **more):
    torch.manual_seed(0)
    net = AudioVisualNet(3, modality_dims, width=8, **more).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():  # biases too, which start at 0
            parameter.copy_(torch.randn_like(parameter))
    return net


def embed(layer, x):
    """Fully connected layer and LeakyReLU of one video (L, D) -> (width, L)."""
    weight, bias = (p.detach().numpy() for p in layer[0].parameters())
    raw = weight[:, :, 0] @ x.T + bias[:, None]
    return np.where(raw > 0, raw, 0.2 * raw)


@pytest.mark.parametrize("stages", [0, 2])
def test_the_whole_network_is_its_equations(stages):
    net, features = network(stages=stages), random(2, 7, 10)
    outputs = net(features)
    weight, bias = (p.detach().numpy() for p in net.classifier.parameters())
    for video, x in enumerate(features.numpy()):
        x_u, x_v = (embed(net.embeddings[i], part) for i, part in enumerate((x[:, :6], x[:, 6:])))
        attended = np.concatenate(multi_stage(x_u, x_v, weights_of(net.consensus)))  # Eq. 4
        np.testing.assert_allclose(outputs["features"][video].detach().T, attended, rtol=1e-10)
        scores = attended.T @ weight.T + bias
        p = openmax(scores[:, :3], scores[:, 3])
        np.testing.assert_allclose(outputs["cas"][video].detach().exp(), p, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(outputs["attention"][video].detach(), sigmoid(scores[:, 3]), rtol=1e-9)


def test_eq_5_open_max_is_a_distribution_and_keeps_gradients_where_it_is_sure():
    scores = random(4, 6).mul(3)
    np.testing.assert_allclose(open_max(scores).exp(), openmax(scores[:, :-1].numpy(), scores[:, -1].numpy()))
    sure = torch.tensor([[0.0, 900.0, 800.0], [0.0, 1.0, -800.0]], dtype=torch.float64, requires_grad=True)
    cas = open_max(sure)
    torch.testing.assert_close(cas.exp().sum(dim=-1), torch.ones(2, dtype=torch.float64))
    cas[0, -1].backward()
    assert torch.isfinite(cas).all() and sure.grad[0, -1] == -1


def test_stage_0_is_the_concatenation():
    net, plain = network(stages=0), network(consensus="concat")
    features = random(2, 7, 10)
    for name, value in net(features).items():
        assert torch.equal(value, plain(features)[name]), name
    embedded = [layer(x.transpose(1, 2)) for layer, x in zip(net.embeddings, features.split((6, 4), -1), strict=True)]
    assert torch.equal(net(features)["features"], torch.cat(embedded, dim=1).transpose(1, 2))


@pytest.mark.parametrize("stages", [1, 3])
def test_permuting_the_snippets_permutes_the_output(stages):
    net, features, order = network(stages=stages), random(2, 9, 10), torch.randperm(9)
    together = net(features)
    for name, value in net(features[:, order]).items():
        torch.testing.assert_close(value, together[name][:, order], msg=name)


def test_the_correlation_in_parts_is_the_correlation(monkeypatch):
    stage, first, second = CrossAttentionStage(5, 7).double(), random(2, 23, 5), random(2, 23, 7, seed=1)
    whole = stage(first, second)
    expected = torch.nn.functional.scaled_dot_product_attention(
        torch.nn.functional.normalize(second, dim=-1) @ stage.weight.T,
        torch.nn.functional.normalize(first, dim=-1),
        first,
        scale=1.0,
    )
    torch.testing.assert_close(whole[0], expected)
    monkeypatch.setattr(fusion, "QUERY_CHUNK", 4)
    for one, other in zip(stage(first, second), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)


def test_the_correlation_of_a_long_video_is_never_held_whole(monkeypatch):
    largest = []
    softmax_of = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, **more: largest.append(x.numel()) or softmax_of(x, **more))
    with torch.no_grad():
        AudioVisualNet(2, (3, 3), stages=1, width=4).eval()(torch.rand(1, 5000, 6))
    assert max(largest) <= fusion.QUERY_CHUNK * 5000


@pytest.mark.parametrize("stages", [0, 2])
def test_one_snippet_and_silence_are_safe(stages):
    net = AudioVisualNet(3, (6, 4), stages=stages, width=8)
    for features in (torch.rand(2, 1, 10), torch.zeros(2, 4, 10)):
        outputs = net(features.requires_grad_())
        labels, pairs = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]), torch.tensor([[0, 1]])
        AudioVisualLoss()(outputs, labels, pairs)["total"].backward()
        assert torch.isfinite(features.grad).all()
    if stages:  # at one snippet every softmax is 1: X~ = X
        one = torch.rand(1, 5, 1)
        attended, _ = CrossAttention(5, 5, 1)(one, one)
        torch.testing.assert_close(attended, torch.tanh(2 * one))


@pytest.mark.parametrize("more", [{}, {"stages": 3}, {"classifier": "softmax"}, {"consensus": "ccm"}])
def test_every_parameter_learns(more):
    net = AudioVisualNet(3, (6, 4), width=8, **more).train()
    labels = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 1.0], [0, 0, 0]])
    terms = AudioVisualLoss(pseudo_threshold=0.1)(net(torch.rand(4, 12, 10)), labels, torch.tensor([[0, 1]]))
    assert set(terms) == {*WEIGHTS, "total"}
    terms["total"].backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_one_modality_is_an_embedding_and_the_classifier():
    net, features = network((6,)), random(2, 5, 6)
    outputs = net(features)
    assert net.consensus is None
    np.testing.assert_allclose(outputs["features"][1].detach().T, embed(net.embeddings[0], features[1].numpy()))
    assert outputs["cas"].shape == (2, 5, 4)


def test_the_softmax_classifier():
    outputs = network(classifier="softmax")(random(2, 5, 10))
    torch.testing.assert_close(outputs["cas"].exp().sum(dim=-1), torch.ones(2, 5, dtype=torch.float64))
    torch.testing.assert_close(outputs["attention"], 1 - outputs["cas"][..., -1].exp())


def test_xavier():
    net = AudioVisualNet(5, (64, 48), width=32)
    for weight, fans in [
        (net.embeddings[1][0].weight, 48 + 32),
        (net.consensus.stages[0].weight, 32 + 32),
        (net.classifier.weight, 64 + 6),
    ]:
        bound = math.sqrt(6 / fans)
        assert 0.9 * bound < weight.abs().max() <= bound


def test_cross_attention_in_co2net_and_the_ccm_in_the_audio_visual_network():
    """The two extra rows of Table 6."""
    net = CO2Net(3, (12, 20), consensus=consensus_factory("cross_attention", stages=1))
    assert [layer[0].out_channels for layer in net.consensus.embeddings] == [12, 20]  # each of its own width
    assert isinstance(net.consensus.attention, CrossAttention) and len(net.consensus.attention.stages) == 1
    assert net(torch.rand(2, 9, 32))["features"].shape == (2, 9, 32)
    other = AudioVisualNet(3, (12, 20), consensus="ccm", width=8)
    assert type(other.consensus[0]).__name__ == "ConsensusModule"
    assert other(torch.rand(2, 9, 32))["features"].shape == (2, 9, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 2, "modality_dims": (4, 4, 4)}, "of 1 or 2 modalities"),
        ({"num_classes": 2, "classifier": "argmax"}, "expected one of openmax, softmax"),
        ({"num_classes": 2, "consensus": "sum"}, "expected one of ccm"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AudioVisualNet(**arguments)


LABELS = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=torch.float64)


def test_eq_6_to_8_foreground_continuity():
    cas = open_max(random(3, 8, 4))
    window = np.exp(-0.5 * (np.arange(-2, 3) / 1.5) ** 2)
    np.testing.assert_allclose(gaussian_window(1.5), window, rtol=1e-6)
    expected = 0.0
    for p, labels in zip(cas.exp().numpy(), LABELS.numpy(), strict=True):
        mu = 1 - p[:, -1]
        mu_ag = smoothed(mu, window, 4)  # Eq. 6
        mu_sp = smoothed((p[:, :-1] * labels).sum(axis=1), window, 4)  # Eq. 7
        expected += (np.abs(mu - mu_ag) + np.abs(mu - mu_sp)).mean() / 3  # Eq. 8
    assert foreground_continuity_loss(cas, LABELS, sigma=1.5).item() == pytest.approx(expected, rel=1e-6)


def certain(foreground, action):
    """log p of one video with two classes: mu a snippet, and the share of class 0 in it."""
    mu, share = torch.tensor(foreground, dtype=torch.float64), torch.tensor(action, dtype=torch.float64)
    return torch.stack([mu * share, mu * (1 - share), 1 - mu], dim=-1).log()[None]


def test_continuity_by_hand():
    even = certain([0.8] * 6, [0.75] * 6)
    labels = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    # mu is even: only |mu - mu_sp| = 0.8 - 0.6 is left; where both classes are labels nothing is, without one all of mu
    assert foreground_continuity_loss(even, labels).item() == pytest.approx(0.2)
    assert foreground_continuity_loss(even, torch.ones_like(labels)).item() == pytest.approx(0)
    assert foreground_continuity_loss(even, torch.zeros_like(labels)).item() == pytest.approx(0.8)
    # one of three snippets, seen through a very wide window: mean 1/3, so (2/3 + 1/3 + 1/3) / 3, twice
    spike = certain([1.0, 0.0, 0.0], [1.0] * 3)
    assert foreground_continuity_loss(spike, labels, sigma=1e6).item() == pytest.approx(8 / 9)


def test_a_fixed_target_takes_its_gradient_away():
    gradients = []
    for stop in (False, True):
        cas = open_max(random(1, 6, 4)).requires_grad_()
        foreground_continuity_loss(cas, LABELS[:1], stop_gradient=stop).backward()
        gradients.append(cas.grad)
    assert gradients[0][..., :-1].any() and not gradients[1][..., :-1].any()


def test_eq_9_pseudo_localization():
    cas = open_max(random(3, 8, 4).mul(2))
    expected, labeled = 0.0, 0
    for p in cas.exp().numpy():
        q = np.stack([smoothed(column, np.ones(5), 4) for column in p.T], axis=1)
        sure = q.max(axis=1) >= 0.45
        labeled += sure.sum()
        expected += (sure * -np.log(p[np.arange(8), q.argmax(axis=1)])).mean() / 3
    assert 0 < labeled < 24
    assert pseudo_localization_loss(cas, 4, 0.45).item() == pytest.approx(expected, rel=1e-9)


def test_pseudo_localization_by_hand():
    # q of the middle snippet is (0.6, 0, 0.4), of the first and last (0.8, 0, 0.2) and (0.55, 0, 0.45)
    cas = certain([0.9, 0.7, 0.2], [1.0] * 3)
    both = -(math.log(0.9) + math.log(0.7)) / 3
    assert pseudo_localization_loss(cas, 2, 0.6 - 1e-9).item() == pytest.approx(both)
    assert pseudo_localization_loss(cas, 2, 0.7).item() == pytest.approx(-math.log(0.9) / 3)
    assert pseudo_localization_loss(cas, 2, 0.9).item() == 0
    assert pseudo_localization_loss(cas, 0, 0.75).item() == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 3)


def test_eq_10_and_the_shared_terms():
    net, features, pairs = network(), random(3, 14, 10), torch.tensor([[0, 1]])
    labels = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.float64)
    outputs = net(features)
    terms = AudioVisualLoss(topk_ratio=5)(outputs, labels, pairs)
    assert WEIGHTS == {"mil": 1.0, "cas": 0.8, "cont": 0.8, "pseu": 1.0}
    torch.testing.assert_close(terms["total"], sum(WEIGHTS[name] * terms[name] for name in WEIGHTS))
    with_background = torch.tensor([0.0, 0.0, 1.0])  # only the video without an action
    assert torch.equal(terms["mil"], mil_loss(outputs["cas"], labels, with_background, 5, normalized=True))
    top = np.sort(outputs["cas"].detach().numpy(), axis=1)[:, -2:].mean(axis=1)  # k = 14 // 5, of each class
    expected = -(top[0, 1] + (top[1, 1] + top[1, 2]) / 2 + top[2, 3]) / 3
    assert terms["mil"].item() == pytest.approx(expected, rel=1e-4)  # the release's 1e-4 in the labels' sum
    assert torch.equal(terms["cas"], co_activity_loss(outputs["features"], outputs["cas"], labels, pairs))
    assert set(AudioVisualLoss(weights={"cont": 0})(outputs, labels, pairs)) == {"mil", "cas", "pseu", "total"}
    with pytest.raises(ValueError, match="unknown loss term oppo; the terms are mil, cas, cont, pseu"):
        AudioVisualLoss(weights={"oppo": 1})
    with pytest.raises(ValueError, match="pseudo_neighbors is 3"):
        AudioVisualLoss(pseudo_neighbors=3)


# Two-stage thresholding.


def test_two_stage_thresholding_by_hand():
    p = np.array([[0.1, 0.2, 0.7], [0.6, 0.2, 0.2], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7], [0.4, 0.2, 0.4], [0.3, 0.1, 0.6]])
    np.testing.assert_allclose(probability_scores(np.log(p), p[:, 0]), [0.6, 0.2, 0.7])
    # class 1 is below the mean 0.4; class 0 runs from 0.1 to 0.6, half-way is 0.35
    found = localize_two_stage(np.log(p), p[:, 0])
    assert found[["label", "start", "end"]].tolist() == [(0, 1, 3), (0, 4, 5)]
    np.testing.assert_allclose(found["score"], [0.6 + 0.7 * 0.6, 0.4 + 0.7 * 0.6])
    found = localize_two_stage(np.log(p), p[:, 0], ambiguous=np.array([[4, 6]]))
    assert found["start"].tolist() == [1]
    even = localize_two_stage(np.log(p[:1]), p[:1, 0])
    assert even[["label", "start", "end"]].tolist() == [(1, 0, 1)]
    with pytest.raises(InputError, match="not finite at snippet 2"):
        localize_two_stage(np.where(np.arange(6)[:, None] == 2, np.nan, p), p[:, 0])


# Streams of different rates.


def test_snippets_are_aligned_by_time():
    # 2 Hz beside 1 Hz: middles at 0.25, 0.75, 1.25, 1.75; and the other way round, middles on a border
    assert aligned_snippets(4, 2.0, 2, 1.0).tolist() == [0, 0, 1, 1]
    assert aligned_snippets(2, 1.0, 4, 2.0).tolist() == [1, 3]
    assert aligned_snippets(3, 1.0, 2, 1.0).tolist() == [0, 1, 1]  # the other one ended
    visual, audio = 25 / 16, 1 / 0.96
    indices = aligned_snippets(180, visual, 120, audio)
    middle = (np.arange(180) + 0.5) / visual
    assert ((indices / audio <= middle + 1e-9) & (middle < (indices + 1) / audio + 1e-9)).all()


def two_rates(folder, audio_snippets):
    """Ten seconds of `visual` at 2 Hz and of `audio` at 1 Hz, which hold the second that they are of."""
    path = folder / f"{audio_snippets}.h5"
    with h5py.File(path, "w") as file:
        file["visual/v"] = np.arange(20, dtype=np.float32)[:, None] // 2 * [1, 1]
        file["audio/v"] = np.arange(audio_snippets, dtype=np.float32)[:, None]
        file["visual"].attrs.update(fps=30, stride=15)
        file["audio"].attrs.update(fps=100, stride=100)
    return open_features(path, ("visual", "audio"))


def test_streams_of_different_rates_lie_on_the_first_ones_grid(tmp_path):
    store = two_rates(tmp_path, 10)
    assert (store.snippet_rate, store.num_snippets("v"), store.modality_dims) == (2.0, 20, (2, 1))
    np.testing.assert_array_equal(store["v"], np.repeat(np.arange(10), 2)[:, None] * [1, 1, 1])
    store = open_features(tmp_path / "10.h5", ("audio", "visual"))
    assert (store.snippet_rate, store.num_snippets("v")) == (1.0, 10)
    np.testing.assert_array_equal(store["v"], np.arange(10)[:, None] * [1, 1, 1])
    features = two_rates(tmp_path, 9)["v"]  # an extractor drops an unfinished second
    assert (len(features), features[-1].tolist()) == (18, [8, 8, 8])
    with pytest.raises(InputError, match=r"visual 20 snippets at 2 Hz, audio 5 snippets at 1 Hz"):
        two_rates(tmp_path, 5)["v"]


# AVE.


def test_the_release_is_read_as_it_is(tmp_path):
    lines = make_release(tmp_path)
    annotations = load_annotations(tmp_path)
    assert annotations.classes == CLASSES
    assert [len(annotations.subset(name)) for name in ("train", "val", "test", "val+test", "background")] == [
        12,
        3,
        6,
        9,
        2,
    ]
    videos = list(annotations.videos.values())
    assert [video.video_id for video in videos[:3]] == ["video-1", "video-1#2", "video-2"]
    for video, (name, _, start, end) in zip(videos, lines, strict=False):
        assert (video.labels, video.segments.tolist(), video.duration) == ((name,), [[start, end]], 10)
    assert (videos[-1].video_id, videos[-1].labels) == ("background_0001", ())


def test_maps_are_pooled_as_they_are_read(tmp_path):
    count = len(make_release(tmp_path))
    generator = np.random.default_rng(0)
    audio, maps = generator.random((count, 10, 3)), generator.random((count, 10, 7, 7, 4), dtype=np.float32)
    write_array(tmp_path / "audio_feature.h5", audio)
    write_array(tmp_path / "visual_feature.h5", maps)
    store = open_features(tmp_path, ("visual", "audio"))
    assert (store.snippet_rate, store.modality_dims, store.source.form) == (1.0, (4, 3), "AVE release")
    assert "background_0000" not in store and not store.source.simulated
    np.testing.assert_allclose(store["video-1#2"][:, :4], maps[1].mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(store["video-1#2"][:, 4:], audio[1], rtol=1e-6)
    write_array(tmp_path / "visual_feature.h5", maps.mean(axis=(2, 3)))  # as of a network's last pooling layer
    np.testing.assert_allclose(open_features(tmp_path, ("visual",))["video-1"], maps[0].mean(axis=(1, 2)), rtol=1e-5)
    write_array(tmp_path / "visual_feature.h5", maps[:5])
    with pytest.raises(InputError, match=r"expected shape \(21, 10, .* got \(5, 10, 7, 7, 4\)"):
        open_features(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("Annotations.txt", "Bark&v&good&0\n", "line 1: expected 'class&YouTube id&quality&start&end'"),
        ("Annotations.txt", "Bark&v&good&0&11\n", "line 1: expected seconds from 0 to 10, got 0 to 11"),
        ("Annotations.txt", "Category&VideoID&Quality&StartTime&EndTime\n", "expected at least one clip, got none"),
        ("train_order.h5", [0, 1], "row 2 is in no subset, expected train, val, test"),
        ("test_order.h5", [0], "row 0 is in 'train' already"),
        ("val_order.h5", [99], "expected rows below 21 as in Annotations.txt, got 99"),
        ("val_order.h5", None, "not a readable HDF5 file with the array 'order'"),
    ],
)
def test_a_damaged_release_is_one_line(tmp_path, name, content, says):
    make_release(tmp_path)
    (tmp_path / name).unlink()
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif content:
        write_array(tmp_path / name, np.array(content), "order")
    with pytest.raises(InputError, match=says):
        load_annotations(tmp_path)


def test_labels_rebuilt_from_the_text_are_the_released_ones(reference):
    """Labels of the 4,143 rows follow from Annotations.txt alone."""
    folder = reference / "data" / "ave"
    annotations = load_annotations(folder)
    sizes = {name: len(annotations.subset(name)) for name in ("train", "val", "test", "background")}
    assert sizes == {"train": 3339, "val": 402, "test": 402, "background": 178}
    videos = [video for video in annotations.videos.values() if video.subset != "background"]
    rebuilt = np.stack([snippet_classes(video, annotations.classes, 10, rate=1.0) for video in videos])
    with h5py.File(folder / "labels_closs.h5") as file, h5py.File(folder / "mil_labels.h5") as weak:
        np.testing.assert_array_equal(rebuilt < 28, file["avadataset"][()] == 1)
        classes = weak["avadataset"][()].argmax(axis=1)
    assert rebuilt.shape == (4143, 10)
    np.testing.assert_array_equal(rebuilt, np.where(rebuilt < 28, classes[:, None], 28))
    background = open_features(folder, ("audio",))  # the only real features here
    assert background["background_0177"].shape == (10, 128)
    perfect = {video.video_id: np.eye(29)[row] for video, row in zip(videos, rebuilt, strict=True)}
    scores = snippet_accuracy(perfect, annotations, ("val+test", "test"), 1.0)
    assert [score["videos"] for score in scores.values()] == [804, 402]
    assert all(score["accuracy"] == 1 for score in scores.values())
    assert round(100 * scores["test"]["class_everywhere"], 1) == 82.2


def test_snippet_accuracy_by_hand():
    entry = {"subset": "test", "annotations": [{"label": "b", "segment": [1, 3]}, {"label": "a", "segment": [2, 4]}]}
    other = {"subset": "val", "annotations": [{"label": "a", "segment": [0, 1]}]}
    annotations = parse_annotations({"classes": ["a", "b"], "database": {"v": entry, "w": other}}, "made")
    truth = snippet_classes(annotations.videos["v"], annotations.classes, 5, rate=1.0)
    assert truth.tolist() == [2, 1, 1, 0, 2]  # where both are, the first one
    assert snippet_classes(annotations.videos["v"], annotations.classes, 5, rate=2.0).tolist() == [2, 2, 1, 1, 1]
    predicted = {"v": np.eye(3)[[2, 1, 0, 0, 0]], "w": np.eye(3)[[2]]}
    scores = snippet_accuracy(predicted, annotations, ("val+test", "test"), 1.0)
    assert scores["test"] == {"accuracy": 0.6, "class_everywhere": 0.6, "videos": 1, "snippets": 5}
    assert scores["val+test"]["accuracy"] == 0.5
    assert "val+test: 2 videos; test: 1 videos" in accuracy_note(scores)
    assert "scores 66.7 (val+test) and 60.0 (test)" in accuracy_note(scores)


def test_simulated_streams_complement_each_other(monkeypatch):
    """In kind: each class sounds like one other and looks like another. In time: what is not heard is seen."""
    entry = {"subset": "train", "duration": 10}
    database = {
        f"{name}{number}": {**entry, "annotations": [{"label": name, "segment": [2, 9]}]}
        for name in "abcd"
        for number in range(10)
    }
    annotations = parse_annotations({"classes": list("abcd"), "database": database}, "made")
    monkeypatch.setattr(
        "utils.features.simulate_ave.smooth_activity", lambda generator, length, count: np.zeros((length, count))
    )
    signs = []  # by stream and group: how much of the group's prototype is in each second
    for video in annotations.videos.values():
        audio, maps = simulate_clip(video, annotations.classes, 0, (128, 128))
        for values, kind in ((audio, "sound"), (maps.mean(axis=(1, 2)), "look")):
            groups = prototypes(0, kind, range(2), 128)
            signs.append(values.astype(float) @ (groups / (groups**2).sum(axis=1, keepdims=True)).T > 0.5)
    signs = np.array(signs).reshape(4, 10, 2, 10, 2)  # class, clip, stream, second, group
    heard, seen = signs[:, :, 0], signs[:, :, 1]
    groups = [[stream[c].mean(axis=(0, 1)).argmax() for c in range(4)] for stream in (heard, seen)]
    assert groups == [[0, 0, 1, 1], [0, 1, 1, 0]]
    heard, seen = heard.any(axis=-1), seen.any(axis=-1)  # class, clip, second
    event = np.s_[:, :, 2:9]
    assert (heard | seen)[event].mean() > 0.98 and (heard | seen).mean() < 0.75
    assert 0.1 < (heard & seen)[event].mean() < 0.35


@pytest.fixture(scope="module")
def ave(tmp_path_factory):
    """A small release with simulated features, made by the command."""
    release, folder = (tmp_path_factory.mktemp(name) for name in ("release", "ave"))
    make_release(release)
    simulate_ave(release, folder, dims=(12, 10))
    return folder


def test_the_command_simulates_and_replaces_nothing_real(tmp_path, ave, run_main):
    make_release(tmp_path / "release")
    status, printed, _ = run_main(simulate, "--ave", tmp_path / "release", "--out", tmp_path / "out")
    assert status == 0 and "23 clips" in printed
    store = open_features(tmp_path / "out", ("audio", "visual"))
    assert store.modality_dims == (128, 512) and store.source.simulated
    assert store["background_0001"].shape == (10, 640)
    write_array(tmp_path / "out" / "audio_feature.h5", np.zeros((21, 10, 128)))
    for out, says in ((tmp_path / "out", "not simulated"), (tmp_path / "release", "is the release itself")):
        status, _, error = run_main(simulate, "--ave", tmp_path / "release", "--out", out)
        assert status == 2 and says in error and error.count("\n") == 1
    status, _, error = run_main(simulate, "--ave", tmp_path, "--out", tmp_path / "new")
    assert status == 2 and "not an AVE release" in error


def test_ave_through_every_command(ave, tmp_path, run_main, monkeypatch):
    """main.py with every option of the method away from its default, test.py, and the report."""
    built = {}
    build = main.build_method
    monkeypatch.setattr(main, "build_method", lambda *given, **named: built.update(named) or build(*given, **named))
    words = "--dataset ave --method audio_visual --modalities visual audio --num-snippets 10 --max-iter 3 "
    words += "--eval-every 2 --stages 1 --classifier softmax --continuity-sigma 2 --continuity-stop-gradient "
    words += "--pseudo-neighbors 2 --pseudo-threshold 0.3 --topk-ratio 4 --loss-weights cont=0.1 --holdout 0.3 "
    words += f"--path-dataset {ave}"
    status, printed, error = run_main(main.main, *words.split(), "--run-dir", tmp_path / "run", "--device", "cpu")
    assert status == 0, error
    assert "SIMULATED visual + audio" in printed and "acc. val+test" in printed
    assert "val+test: 9 videos; test: 6 videos" in printed and "highest snippet accuracy (val+test)" in printed
    expected = {
        "consensus": "cross_attention",
        "localization": "two_stage",
        "stages": 1,
        "classifier": "softmax",
        "topk_ratio": 4,
        "weights": {"cont": 0.1},
        "continuity_sigma": 2.0,
        "continuity_stop_gradient": True,
        "pseudo_neighbors": 2,
        "pseudo_threshold": 0.3,
    }
    assert expected.items() <= built.items()
    with open_outputs(tmp_path / "run/outputs.h5") as outputs:
        assert outputs["video-20"]["modality_attention"].shape == (0, 10)
    status, _, error = run_main(
        evaluate,
        *("--checkpoint", tmp_path / "run/checkpoints/last.pt", "--path-dataset", ave),
        *("--output-dir", tmp_path / "out", "--device", "cpu"),
    )
    assert status == 0, error
    ours, again = (json.loads((tmp_path / name / "metrics.json").read_text())["last"] for name in ("run", "out"))
    assert ours == again and set(ours["snippet_accuracy"]) == {"val+test", "test"}
    status, _, error = run_main(report, tmp_path / "run", "--path-dataset", ave, "--out", tmp_path / "report.html")
    assert status == 0, error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--modalities audio", "--method co2net takes 2 modalities"),
        ("--model audio_visual --modalities a b c", "--method audio_visual takes 1 or 2 modalities"),
        (
            "--model audio_visual --loss-weights oppo=1",
            "unknown loss term oppo; the terms are mil, cas, cont, pseu",
        ),
        ("--loss-weights pseu=1", "unknown loss term pseu"),
        ("--pseudo-threshold 1.5", "is not a number in"),
        ("--model audio_visual --pseudo-neighbors 3", "expected an even number"),
    ],
)
def test_impossible_options_are_one_line(ave, tmp_path, run_main, words, says):
    more = ("--path-dataset", ave, "--run-dir", tmp_path / "run", "--dataset", "ave", "--num-snippets", "10")
    more += () if "--modalities" in words else ("--modalities", "visual", "audio")
    status, _, error = run_main(main.main, *words.split(), *more)
    assert status == 2 and says in error, error
