"""Golden cases of the releases: their recipe (tests/golden/README.md), and the comparison with a method of ours."""

import json
import zlib

import numpy as np
import pytest
import torch

from tests.conftest import REFERENCE, ROOT
from utils.checkpoint import RELEASED_MODULES, load_state

GOLDEN = ROOT / "tests/golden"
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
STEPS = 4  # compared of a trajectory: all but those of the longest case


def rng(*key):
    return np.random.Generator(np.random.PCG64(zlib.crc32("/".join(map(str, key)).encode())))


def golden_arrays(name):
    """Read a golden file of the project, or of the reference data where it is too large for the project."""
    path = GOLDEN / f"{name}.npz"
    path = path if path.exists() else REFERENCE / "golden" / path.name
    if not path.exists():
        pytest.skip(f"{path}: reference data is absent")
    return np.load(path)


def assert_golden(actual, expected):
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * scale)


def released_shapes(classes, dim=1024):
    """Return the shapes of CO2-Net's released parameters by name, for modalities of `dim` channels."""
    weights = {}
    for unit in ("vAttn", "fAttn"):
        weights |= {
            f"{unit}.bit_wise_attn.0": (dim, dim, 3),
            f"{unit}.channel_conv.0": (dim, dim, 3),
            f"{unit}.attention.0": (512, dim, 3),
            f"{unit}.attention.3": (512, 512, 3),
            f"{unit}.attention.5": (1, 512, 1),
        }
    weights |= {
        "feat_encoder.0": (2 * dim, 2 * dim, 3),
        "fusion.0": (2 * dim, 2 * dim, 1),
        "classifier.1": (2 * dim, 2 * dim, 3),
        "classifier.4": (classes + 1, 2 * dim, 1),
    }
    kinds = (("weight", slice(None)), ("bias", slice(1)))
    return {f"{name}.{kind}": shape[part] for name, shape in weights.items() for kind, part in kinds}


def recipe_labels(seed, batch, classes, multi, pairs=PAIRS):
    g, labels = rng(seed, "labels"), np.zeros((batch, classes))
    for pair in pairs.tolist():
        labels[pair, g.integers(classes)] = 1
    for row in range(pairs.numel(), batch):
        labels[row, g.integers(classes)] = 1
    for _ in range(multi):
        row = g.integers(batch)
        labels[row, g.integers(classes)] = 1
    return labels


class GoldenCase:
    """A golden case, and a method with the recipe's weights in float64.

    Subclasses say how the release names and scales its parameters, and how a batch is made.
    """

    prefix = ""  # of the released names in a checkpoint
    pairs = PAIRS

    def __init__(self, name):
        self.arrays = golden_arrays(name)
        self.meta = json.loads(str(self.arrays["meta"]))
        self.method = self.build()
        self.net = self.method.network.double().eval()
        state = {self.prefix + name: self.parameter(name, shape) for name, shape in self.shapes().items()}
        load_state(self.net, state, "released.pkl")
        self.start = {name: value.clone() for name, value in self.net.state_dict().items()}

    def build(self):
        """Return the method with the options of the case."""
        raise NotImplementedError

    def shapes(self):
        """Return the shapes of the released parameters by name."""
        raise NotImplementedError

    def parameter(self, name, shape):
        if name.startswith("feat_encoder."):  # never used: only its name matters
            return torch.zeros(()).expand(shape)
        value = rng(self.meta["seed"], name).standard_normal(shape)
        value *= 0.1 if len(shape) == 1 else np.sqrt(1.0 / np.prod(shape[1:]))
        return torch.from_numpy(self.scaled(name, value))

    def scaled(self, name, value):
        """Return a parameter of the recipe with the gain that makes the case interesting."""
        return value

    def features(self, seed):
        size = (self.meta["batch"], self.meta["snippets"], 2048)
        return torch.from_numpy(np.maximum(rng(seed, "features").standard_normal(size), 0.0))

    def labels(self, seed):
        meta = self.meta
        return torch.from_numpy(recipe_labels(seed, meta["batch"], meta["classes"], meta["multi"], self.pairs))

    def outputs(self, seed):
        """Return the outputs of the network for the batch of a seed."""
        return self.net(self.features(seed))

    def run(self, seed, labels=None, progress=0.0):
        """Return outputs and terms of the batch of a seed."""
        outputs = self.outputs(seed)
        labels = self.labels(seed) if labels is None else torch.from_numpy(labels.astype(float))
        return outputs, self.method.objective(outputs, labels, self.pairs, progress=progress)

    def assert_gradients(self, suffix="", index=0):
        """Compare norm and direction of each gradient."""
        modules = getattr(self.net, "RELEASED_MODULES", RELEASED_MODULES)
        gradients = {name: parameter.grad.numpy() for name, parameter in self.net.named_parameters()}
        for released, shape in self.shapes().items():
            module, _, kind = released.rpartition(".")
            if module not in modules:
                continue
            gradient = gradients.pop(f"{modules[module]}.{kind}")
            direction = rng("direction", released).standard_normal(shape)
            if gradient.shape != direction.shape:  # our F^G has the middle tap only; the others' gradient is zero
                direction = direction[:, :, 1:2]
            norm, product = (
                np.atleast_1d(self.arrays[f"grad_{kind}{suffix}/{released}"])[index] for kind in ("norm", "dot")
            )
            assert_golden(np.linalg.norm(gradient), norm)
            assert abs(np.vdot(gradient, direction) - product) <= 1e-9 * norm * np.linalg.norm(direction)
        assert not gradients

    def assert_trajectory(self, suffix="", progress=None):
        """Compare the total loss before each of the first steps of Adam."""
        meta, expected = self.meta, self.arrays[f"trajectory{suffix}"][:STEPS]
        self.net.load_state_dict(self.start)
        optimizer = torch.optim.Adam(self.net.parameters(), meta["lr"], weight_decay=meta["weight_decay"], fused=True)
        totals = []
        for step in range(len(expected)):
            share = progress[step] if progress else 0.0
            total = self.run(meta["seed"] * 1000 + step + 1, progress=share)[1]["total"]
            totals.append(total.item())
            if step + 1 < len(expected):
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
        self.net.load_state_dict(self.start)
        assert_golden(totals, expected)
