"""Equality with the release: outputs, losses, gradients, Adam trajectory, and localization."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.proposals import localize
from model import CO2Net
from utils.checkpoint import RELEASED_MODULES, load_weights
from utils.losses import CO2Loss
from utils.segments import seconds_to_snippets

MODEL_CASES = ["thumos14", "thumos14_short", "thumos14_two_snippets", "activitynet12"]
PROPOSAL_CASES = ["t12", "t60", "t150", "t333", "t1000", "t2615", "anet_t75", "noclass", "ambiguous"]
LOSS_NAMES = {
    "mil_org": "loss_mil_orig",
    "mil_supp": "loss_mil_supp",
    "cas": "loss_cas",
    "ml": "loss_mutual",
    "oppo": "loss_oppo",
    "norm": "loss_norm",
    "total": "total",
}
GOLDEN = Path(__file__).parent / "golden"
AMBIGUOUS = {  # of THUMOS14, in seconds
    "video_test_0000293": [
        [50.6, 54.6],
        [67.4, 71.7],
        [99.7, 106.4],
        [118.1, 126.4],
        [145.8, 149.8],
        [162.9, 168.2],
        [181.3, 184.0],
    ],
    "video_test_0000004": np.empty((0, 2)),
}
PAIRS = torch.tensor([[0, 1], [2, 3], [4, 5]])


def rng(*key):
    return np.random.Generator(np.random.PCG64(zlib.crc32("/".join(map(str, key)).encode())))


def recipe_features(seed, batch, snippets, dim=2048):
    return np.maximum(rng(seed, "features").standard_normal((batch, snippets, dim)), 0.0)


def recipe_labels(seed, batch, classes, multi):
    g, labels = rng(seed, "labels"), np.zeros((batch, classes))
    for pair in PAIRS.tolist():
        labels[pair, g.integers(classes)] = 1
    for row in range(6, batch):
        labels[row, g.integers(classes)] = 1
    for _ in range(multi):
        row = g.integers(batch)
        labels[row, g.integers(classes)] = 1
    return labels


def released_shapes(classes):
    shapes = {}
    for unit in ("vAttn", "fAttn"):
        shapes |= {
            f"{unit}.bit_wise_attn.0": (1024, 1024, 3),
            f"{unit}.channel_conv.0": (1024, 1024, 3),
            f"{unit}.attention.0": (512, 1024, 3),
            f"{unit}.attention.3": (512, 512, 3),
            f"{unit}.attention.5": (1, 512, 1),
        }
    shapes |= {
        "feat_encoder.0": (2048, 2048, 3),
        "fusion.0": (2048, 2048, 1),
        "classifier.1": (2048, 2048, 3),
        "classifier.4": (classes + 1, 2048, 1),
    }
    return shapes


def released_state(seed, classes):
    """The recipe's parameters under the released names."""
    state = {}
    for name, shape in released_shapes(classes).items():
        for entry, size in ((f"{name}.weight", shape), (f"{name}.bias", shape[:1])):
            if name == "feat_encoder.0":  # never used: its values do not matter, only that it is there
                state[entry] = torch.zeros(size)
                continue
            g = rng(seed, entry).standard_normal(size)
            g = 0.1 * g if len(size) == 1 else g * np.sqrt(1.0 / np.prod(size[1:]))
            state[entry] = torch.from_numpy(g)
    return state


class Case:
    """A golden case: its arrays, and our network with the recipe's weights in float64."""

    def __init__(self, path: Path, tmp_path: Path):
        self.arrays = np.load(path)
        self.meta = json.loads(str(self.arrays["meta"]))
        pooled = self.meta["kind"] == "ANT_CO2"
        self.net = CO2Net(self.meta["classes"], temporal_pool=13 if pooled else None).double()
        checkpoint = tmp_path / "released.pkl"
        torch.save(released_state(self.meta["seed"], self.meta["classes"]), checkpoint)
        load_weights(self.net, checkpoint)
        self.net.eval()
        self.loss = CO2Loss(topk_ratio=self.meta["k"])

    def run(self, seed, labels):
        features = torch.from_numpy(recipe_features(seed, self.meta["batch"], self.meta["snippets"]))
        outputs = self.net(features)
        return outputs, self.loss(outputs, torch.from_numpy(labels), PAIRS)


@pytest.fixture(scope="module", params=MODEL_CASES)
def case(request, tmp_path_factory):
    return Case(GOLDEN / f"model_{request.param}.npz", tmp_path_factory.mktemp("golden"))


def assert_golden(actual, expected):
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * scale)


def test_outputs(case):
    with torch.no_grad():
        outputs, _ = case.run(case.meta["seed"], case.arrays["labels"].astype(float))
    assert_golden(outputs["cas"], case.arrays["cas"])
    assert_golden(outputs["attention"], case.arrays["attn"][..., 0])
    assert_golden(outputs["modality_attention"][:, 0], case.arrays["v_atn"][..., 0])
    assert_golden(outputs["modality_attention"][:, 1], case.arrays["f_atn"][..., 0])
    projection = rng("projection").standard_normal((2048, 8))
    assert_golden(outputs["features"].numpy() @ projection, case.arrays["feat_projected"])


def test_losses_and_gradients(case):
    case.net.zero_grad()
    _, terms = case.run(case.meta["seed"], case.arrays["labels"].astype(float))
    for ours, theirs in LOSS_NAMES.items():
        assert_golden(terms[ours].item(), case.arrays[theirs])
    terms["total"].backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in case.net.named_parameters()}
    for released, ours in RELEASED_MODULES.items():
        for kind in ("weight", "bias"):
            gradient = gradients.pop(f"{ours}.{kind}")
            shape = released_shapes(case.meta["classes"])[released]
            direction = rng("direction", f"{released}.{kind}").standard_normal(shape if kind == "weight" else shape[:1])
            if gradient.shape != direction.shape:  # our F^G has the middle tap only; the others' gradient is zero
                direction = direction[:, :, 1:2]
            assert_golden(np.linalg.norm(gradient), case.arrays[f"grad_norm/{released}.{kind}"])
            product = (gradient * direction).sum()
            tolerance = 1e-9 * np.linalg.norm(gradient) * np.linalg.norm(direction)
            assert abs(product - case.arrays[f"grad_dot/{released}.{kind}"]) <= tolerance
    assert not gradients


@pytest.mark.parametrize("name", ["thumos14", "activitynet12"])
def test_adam_trajectory(name, tmp_path):
    case = Case(GOLDEN / f"model_{name}.npz", tmp_path)
    meta = case.meta
    optimizer = torch.optim.Adam(case.net.parameters(), lr=meta["lr"], weight_decay=meta["weight_decay"], fused=True)
    totals = []
    for step in range(meta["steps"]):
        seed = meta["seed"] * 1000 + step + 1
        labels = recipe_labels(seed, meta["batch"], meta["classes"], meta["multi"])
        _, terms = case.run(seed, labels)
        totals.append(terms["total"].item())
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    assert_golden(totals, case.arrays["trajectory"])


@pytest.mark.parametrize("name", PROPOSAL_CASES)
def test_localization(name):
    arrays = np.load(GOLDEN / f"proposals_{name}.npz")
    ambiguous = AMBIGUOUS[json.loads(str(arrays["meta"]))["video_id"]]
    detections = localize(arrays["cas"], arrays["attn"], ambiguous=seconds_to_snippets(ambiguous, snippet_rate=25 / 16))
    for field in ("label", "start", "end"):
        np.testing.assert_array_equal(detections[field], arrays[field])
    np.testing.assert_allclose(detections["score"], arrays["score"], atol=1e-6)
