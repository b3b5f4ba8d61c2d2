"""Equality of HAM-Net and UM with their releases, as in test_golden.py; tests/golden/README.md has the recipe."""

import json

import numpy as np
import pytest
import torch

from eval.outputs import open_outputs
from main import main as train
from scripts.detect import main as detect
from scripts.report import main as report
from test import main as evaluate
from tests.test_golden import GOLDEN, assert_golden, rng
from utils.annotations import parse_annotations
from utils.checkpoint import load_weights
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features
from utils.methods import build_method

PAIRS = torch.zeros(0, 2, dtype=torch.long)
RELEASED_SHAPES = {
    "hamnet": {
        "classifier.0": (2048, 2048, 3),
        "classifier.2": (2048, 2048, 3),
        "classifier.5": (None, 2048, 1),
        "attention.0": (512, 2048, 3),
        "attention.2": (512, 512, 3),
        "attention.4": (1, 512, 1),
    },
    "um": {"cas_module.conv.0": (2048, 2048, 3), "cas_module.classifier.0": (None, 2048, 1)},
}
LOSS_NAMES = {"hamnet": ("bcl", "hal", "sal", "ssal", "norm", "guide"), "um": ("cls", "be", "um")}
SECONDS_PER_SNIPPET = 16 / 25


def released_shapes(method: str, classes: int) -> dict[str, tuple]:
    """Shapes of the released parameters by name."""
    rows = {"hamnet": classes + 1, "um": classes}[method]
    shapes = {}
    for name, (out, *others) in RELEASED_SHAPES[method].items():
        shapes[f"{name}.weight"] = (out or rows, *others)
        if name != "cas_module.classifier.0":
            shapes[f"{name}.bias"] = (out or rows,)
    return shapes


def released_state(meta: dict) -> dict[str, torch.Tensor]:
    """Parameters of the recipe under their released names."""
    state = {}
    for name, shape in released_shapes(meta["method"], meta["classes"]).items():
        g = rng(meta["seed"], name).standard_normal(shape)
        g = 0.1 * g if len(shape) == 1 else g * np.sqrt(1.0 / np.prod(shape[1:]))
        g = g * meta.get("gains", {}).get(name, 1.0) + meta.get("shifts", {}).get(name, 0.0)
        state[name] = torch.from_numpy(g)
    return state


def recipe_batch(meta: dict, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (B, T, 2048), labels (B, C) and UM's mask (B, T) of a seed."""
    batch, snippets, scene = meta["batch"], meta["snippets"], meta["scene"]
    features = rng(seed, "features").standard_normal((batch, snippets, 2048))
    scenes = rng(seed, "scenes").standard_normal((batch, -(-snippets // scene), 2048))
    features = np.maximum(features + scenes[:, np.arange(snippets) // scene], 0.0)
    features *= np.reshape(meta.get("feature_scale", 1.0), (-1, 1, 1))
    g, labels = rng(seed, "labels"), np.zeros((batch, meta["classes"]))
    for row in range(batch):
        labels[row, g.integers(meta["classes"])] = 1
    for _ in range(meta["multi"]):
        row = g.integers(batch)
        labels[row, g.integers(meta["classes"])] = 1
    mask = np.ones((batch, snippets))
    if meta.get("masked"):
        mask = (rng(seed, "mask").random((batch, snippets)) >= 0.7) / 0.3
    return torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(mask)


def method_options(meta: dict) -> dict:
    """Options of the method in a case, where they are not the published ones of THUMOS14."""
    if meta.get("kind") != "anet":
        return {}
    p, (first, second) = meta["drop_prob"], (meta["lm_1"], meta["lm_2"])
    weights = {"bcl": first * (1 - p), "hal": first * p, "sal": second * (1 - p), "ssal": second * p}
    weights |= {"norm": meta["alpha"], "guide": meta["beta"]}
    return {"temporal_pool": meta["pool"], "topk_ratio": meta["rat"], "weights": weights}


class Case:
    """A golden case, and our method with the recipe's weights in float64."""

    def __init__(self, name: str, tmp_path):
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        self.meta = json.loads(str(self.arrays["meta"]))
        name, classes = self.meta["method"], self.meta["classes"]
        self.method = build_method(name, classes, (1024, 1024), **method_options(self.meta))
        self.network = self.method.network.double().eval()
        checkpoint = tmp_path / "released.pkl"
        prefix = {"hamnet": "net.", "um": "module."}[name]
        torch.save({prefix + key: value for key, value in released_state(self.meta).items()}, checkpoint)
        load_weights(self.network, checkpoint)

    def run(self, seed: int) -> tuple[dict, dict]:
        features, labels, mask = recipe_batch(self.meta, seed)
        outputs = self.network(features)
        if "mask" in outputs:
            outputs["mask"] = mask
        return outputs, self.method.objective(outputs, labels, PAIRS, progress=0.3)


@pytest.fixture(
    scope="module", params=["hamnet_model_a", "hamnet_model_b", "hamnet_model_c", "um_model_a", "um_model_b"]
)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("golden"))


def test_outputs(case):
    with torch.no_grad():
        outputs, _ = case.run(case.meta["seed"])
    assert_golden(outputs["cas"], case.arrays["cas"])
    projection = rng("projection").standard_normal((2048, 8))
    assert_golden(outputs["features"].numpy() @ projection, case.arrays["feat_projected"])
    if case.meta["method"] == "hamnet":
        assert_golden(outputs["attention"], case.arrays["attn"][..., 0])
    else:
        magnitude, low, high = (case.arrays[name] for name in ("magnitude", "low", "high"))
        assert_golden(outputs["magnitude"], magnitude)
        if not case.meta["masked"]:  # attention selects without the mask
            normalized = (magnitude - low[:, None]) / (high - low)[:, None]
            assert_golden(outputs["attention"], normalized.clip(0, 1))


def test_losses_and_gradients(case):
    case.network.zero_grad()
    _, terms = case.run(case.meta["seed"])
    for name in LOSS_NAMES[case.meta["method"]]:
        assert_golden(terms[name].item(), case.arrays[f"loss_{name}"])
    assert_golden(terms["total"].item(), case.arrays["total"])
    terms["total"].backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in case.network.named_parameters()}
    for released, shape in released_shapes(case.meta["method"], case.meta["classes"]).items():
        module, _, kind = released.rpartition(".")
        gradient = gradients.pop(f"{case.network.RELEASED_MODULES[module]}.{kind}")
        direction = rng("direction", released).standard_normal(shape)
        assert_golden(np.linalg.norm(gradient), case.arrays[f"grad_norm/{released}"])
        tolerance = 1e-9 * np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs((gradient * direction).sum() - case.arrays[f"grad_dot/{released}"]) <= tolerance
    assert not gradients


def test_adam_trajectory(case):
    meta, state = case.meta, case.network.state_dict()
    start = {name: value.clone() for name, value in state.items()}
    optimizer = torch.optim.Adam(case.network.parameters(), meta["lr"], weight_decay=meta["weight_decay"], fused=True)
    totals = []
    for step in range(meta["steps"] + 1):
        _, terms = case.run(meta["seed"] * 1000 + step + 1)
        totals.append(terms["total"].item())
        if step < meta["steps"]:
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
    case.network.load_state_dict(start)  # the fixture is shared
    assert_golden(totals, case.arrays["trajectory"])


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_localization_of_hamnet(name):
    arrays = np.load(GOLDEN / f"hamnet_localize_{name}.npz")
    meta = json.loads(str(arrays["meta"]))
    method = build_method("hamnet", meta["classes"], (4, 4), topk_divisor=meta["k_ratio"])
    outputs = {"cas": arrays["cas"], "attention": arrays["attn"]}
    np.testing.assert_allclose(method.video_scores(outputs)[:-1], arrays["video_score"], rtol=1e-9)
    assert_detections(method.localize(outputs), arrays, SECONDS_PER_SNIPPET)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_localization_of_um(name):
    arrays = np.load(GOLDEN / f"um_localize_{name}.npz")
    meta = json.loads(str(arrays["meta"]))
    method = build_method("um", meta["classes"], (4, 4))
    outputs = {"cas": arrays["cas"], "magnitude": arrays["magnitude"]}
    np.testing.assert_allclose(method.video_scores(outputs), arrays["video_score"], rtol=1e-9)
    seconds = SECONDS_PER_SNIPPET * meta["original_snippets"] / meta["snippets"]  # the release subsamples long videos
    assert_detections(method.localize(outputs, snippet_rate=1 / seconds), arrays, seconds)


def assert_detections(detections: np.ndarray, arrays: dict, seconds_per_snippet: float):
    np.testing.assert_array_equal(detections["label"], arrays["label"])
    for field in ("start", "end"):
        np.testing.assert_allclose(detections[field] * seconds_per_snippet, arrays[field], rtol=0, atol=1e-9)
    np.testing.assert_allclose(detections["score"], arrays["score"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["hamnet", "um"])
def test_every_command_takes_the_method(name, tmp_path, run_main):
    """Train with a holdout, resume, test, detect and report, without modality attention; UM also without background."""
    simulate_features(parse_annotations(invent_timeline(12, 3), "invented"), tmp_path / "data", (6, 5))
    words = f"--config configs/demo.yaml --method {name} --path-dataset {tmp_path}/data --run-dir {tmp_path}/run"
    words += " --num-snippets 12 --eval-every 2 --no-evaluate-untrained --device cpu --holdout 0.3"
    train([*words.split(), "--max-iter", "2"])
    train([*words.split(), "--max-iter", "4", "--resume"])
    checkpoint = ["--checkpoint", tmp_path / "run/checkpoints/last.pt", "--device", "cpu"]
    tested = run_main(evaluate, *checkpoint, "--path-dataset", tmp_path / "data", "--output-dir", tmp_path / "tested")
    assert tested[0] == 0 and "mAP" in tested[1]
    expected, again = ((tmp_path / folder / "detections.json").read_bytes() for folder in ("run", "tested"))
    assert expected == again
    with open_outputs(tmp_path / "run/outputs.h5") as outputs:
        for video in outputs.video_ids:
            snippets, columns = outputs[video]["cas"].shape
            assert columns == {"hamnet": 4, "um": 3}[name]
            assert outputs[video]["attention"].shape == (snippets,)
            assert outputs[video]["modality_attention"].shape == (0, snippets)
    source = tmp_path / "data/features.h5"
    assert run_main(detect, source, *checkpoint, "--output-dir", tmp_path / "detected", "--class-threshold", 0)[0] == 0
    assert json.loads((tmp_path / "detected/detections.json").read_text())["results"]
    assert run_main(report, tmp_path / "run")[0] == 0


def test_weights_of_another_method_are_refused_in_one_line(tmp_path):
    torch.save({"cas_module.classifier.0.weight": torch.zeros(3, 2048, 1)}, tmp_path / "um.pkl")
    with pytest.raises(InputError, match="not the weights of this network .* missing, 1 unknown: no embedding"):
        load_weights(build_method("hamnet", 3, (4, 4)).network, tmp_path / "um.pkl")
