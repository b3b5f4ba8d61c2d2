"""TFE-DCN, DELU and DDG-Net equal their releases: outputs, loss terms, gradients, Adam trajectories, localization."""

import json

import numpy as np
import pytest
import torch

from options import method_options, parse_args
from tests.conftest import REFERENCE, ROOT
from tests.test_golden import AMBIGUOUS, GOLDEN, PAIRS, assert_golden, recipe_labels, rng
from utils.checkpoint import RELEASED_MODULES, load_state
from utils.methods import build_method
from utils.methods.ddg_net import build_graph, snippet_kinds
from utils.segments import seconds_to_snippets

CASES = [
    *("tfedcn_model_a", "tfedcn_model_b"),
    *("delu_model_a", "delu_model_b", "delu_model_act"),
    *("ddgnet_model_a", "ddgnet_model_b", "ddgnet_model_act", "ddgnet_model_padded"),
]
CONFIGS = {
    "TFEDCN": "tfe_dcn_thumos14",
    "DELU": "delu_thumos14",
    "DELU_ACT": "delu_activitynet12",
    "DDG": "ddg_net_thumos14",
    "DDG_ACT": "ddg_net_activitynet12",
}
TERMS = {
    "mil_org": "loss_mil_orig",
    "mil_supp": "loss_mil_supp",
    "ml": "loss_mutual",
    "oppo_first": "loss_oppo_v",
    "oppo_second": "loss_oppo_f",
}
LOCALIZATIONS = ["all_single", "ambiguous", "anet_t75", "noclass", "nothing", "t150", "t40_two_classes", "t700"]
LARGE = 100  # snippets in a batch; larger cases check fewer points of training


def golden_file(name):
    """Open a golden file of the project, or of the reference data where it is too large for the project."""
    path = GOLDEN / f"{name}.npz"
    path = path if path.exists() else REFERENCE / "golden" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path}: reference data is absent")
    return np.load(path)


class Case:
    """A golden case: its arrays, and the method of a config file with the recipe's weights in float64."""

    def __init__(self, name):
        self.arrays = golden_file(name)
        self.meta = json.loads(str(self.arrays["meta"]))
        config = ROOT / "configs" / f"{CONFIGS[self.meta['kind']]}.yaml"
        self.args = parse_args(["--config", str(config), "--path-dataset", "."])
        self.method = build_method(self.args.method, self.meta["classes"], (1024, 1024), **method_options(self.args))
        self.net = self.method.network.double().eval()
        state = {name: torch.from_numpy(self.parameter(name, shape)) for name, shape in self.meta["names"].items()}
        load_state(self.net, state, "released.pkl")
        # Larger cases check one point of training and one course.
        self.courses = ["release", "rank"] if self.meta["batch"] * self.meta["snippets"] < LARGE else ["release"]
        if "loss_uct" not in self.arrays:
            self.courses = [None]

    def set_course(self, course):
        """Set the course of the objective, and return the suffix of its arrays."""
        if course:
            self.method.objective.course["course"] = course
        return "_rank" if course == "rank" else ""

    def parameter(self, name, shape):
        if name.startswith("feat_encoder."):  # never used: only its name matters
            return np.zeros(shape)
        value = rng(self.meta["seed"], name).standard_normal(shape)
        value *= 0.1 if len(shape) == 1 else np.sqrt(1.0 / np.prod(shape[1:]))
        if name == "classifier.4.weight":
            value *= self.meta["logit_gain"]
        if name == "classifier.4.bias":
            value += self.meta["logit_offset"]
        if name.startswith(("vAttn.", "fAttn.", "Attn.")) and name.endswith(".5.weight"):
            value *= self.meta["attention_gain"]
        return value

    def features(self, seed):
        size = (self.meta["batch"], self.meta["snippets"])
        values = rng(seed, "features").standard_normal((*size, 2048))
        if scenes := self.meta["scenes"]:  # snippets that resemble each other
            centers = rng(seed, "centres").standard_normal((size[0], scenes, 2048))
            num_runs = -(-size[1] // self.meta["run"])
            scene = rng(seed, "scene").integers(scenes, size=(size[0], num_runs))
            scene = np.repeat(scene, self.meta["run"], axis=1)[:, : size[1], None]
            values = (
                np.take_along_axis(centers, scene, axis=1) + rng(seed, "spread").uniform(0.1, 0.9, (*size, 1)) * values
            )
        values = np.maximum(values, 0.0)
        for row, num_real in enumerate(self.meta["real"] or []):
            values[row, num_real:] = 0
        return torch.from_numpy(values)

    def labels(self, seed):
        meta = self.meta
        return torch.from_numpy(recipe_labels(seed, meta["batch"], meta["classes"], meta["multi"]))

    def released_gradients(self):
        """Return the gradients under the released names."""
        gradients = {name: parameter.grad.numpy() for name, parameter in self.net.named_parameters()}
        modules = getattr(self.net, "RELEASED_MODULES", RELEASED_MODULES)
        names = {f"{theirs}.{k}": f"{ours}.{k}" for theirs, ours in modules.items() for k in ("weight", "bias")}
        assert set(names.values()) == set(gradients)
        return {theirs: gradients[ours] for theirs, ours in names.items()}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def test_outputs_terms_and_gradients(case):
    meta, arrays = case.meta, case.arrays
    outputs = case.net(case.features(meta["seed"]))
    assert_golden(outputs["cas"].detach(), arrays["cas"])
    assert_golden(outputs["attention"].detach(), arrays["attn"][..., 0])
    for row, name in enumerate(("v_atn", "f_atn")):
        assert_golden(outputs["modality_attention"][:, row].detach(), arrays[name][..., 0])
    projection = rng("projection").standard_normal((2048, 8))
    assert_golden(outputs["features"].detach().numpy() @ projection, arrays["feat_projected"])

    labels = torch.from_numpy(arrays["labels"].astype(float))
    for course in ("release", "rank") if case.courses[0] else case.courses:
        suffix = case.set_course(course)
        own_names = {"total": f"total{suffix}", "uct": f"loss_uct{suffix}", **TERMS}
        for index, progress in enumerate(meta["progress"]):
            terms = case.method.objective(outputs, labels, PAIRS, progress=progress)
            for name, value in terms.items():
                expected = np.atleast_1d(arrays[own_names.get(name, f"loss_{name}")])
                assert_golden(value.item(), expected[index if len(expected) > 1 else 0])
            if course in case.courses and index == len(meta["progress"]) // 2:
                case.net.zero_grad()
                terms["total"].backward(retain_graph=True)
                assert_gradients(case, suffix, index)


def assert_gradients(case, suffix, index):
    for name, gradient in case.released_gradients().items():
        direction = rng("direction", name).standard_normal(case.meta["names"][name])
        if gradient.shape != direction.shape:  # the outer taps of F^G, which only see padding, are absent here
            direction = direction[:, :, 1:2]
        norm, product = (np.atleast_1d(case.arrays[f"grad_{kind}{suffix}/{name}"])[index] for kind in ("norm", "dot"))
        assert_golden(np.linalg.norm(gradient), norm)
        assert abs(np.vdot(gradient, direction) - product) <= 1e-9 * norm * np.linalg.norm(direction)


def test_adam_trajectory(case):
    meta = case.meta
    start = {name: value.clone() for name, value in case.net.state_dict().items()}
    for course in case.courses if meta["steps"] else ():
        suffix = case.set_course(course)
        case.net.load_state_dict(start)
        optimizer = torch.optim.Adam(case.net.parameters(), meta["lr"], weight_decay=meta["weight_decay"], fused=True)
        totals = []
        for step, iteration in enumerate(meta["trajectory_iterations"]):
            seed = meta["seed"] * 1000 + step + 1
            outputs = case.net(case.features(seed))
            terms = case.method.objective(outputs, case.labels(seed), PAIRS, progress=iteration / meta["max_iter"])
            totals.append(terms["total"].item())
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
        assert_golden(totals, case.arrays[f"trajectory{suffix}"])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ddgnet")])
def test_graph_of_ddg_net(name):
    case = Case(name)
    arrays = case.arrays
    modalities = case.net.split(case.features(case.meta["seed"]))
    attention = case.net.first_pass(modalities)
    graph = build_graph(modalities, attention)
    is_action, is_background = snippet_kinds(attention)
    np.testing.assert_array_equal(is_action.int() - is_background.int(), arrays["snippet_kind"])
    assert_golden(graph.adjacency, arrays["adjacency"])
    projection = rng("projection1024").standard_normal((1024, 8))
    for row, (modality, x) in enumerate(zip("vf", modalities, strict=True)):
        assert_golden(attention[:, row], arrays[f"first_{modality}_atn"][..., 0])
        average, convolved = x @ graph.adjacency, case.net.consensus[row](x, graph).detach()
        for kind, value in (("avg", average), ("gcn", convolved)):
            assert_golden(value.transpose(1, 2).numpy() @ projection, arrays[f"{modality}_{kind}_projected"])


@pytest.mark.parametrize("name", LOCALIZATIONS)
def test_localization_of_delu(name):
    arrays = golden_file(f"delu_proposals_{name}")
    ambiguous = AMBIGUOUS[json.loads(str(arrays["meta"]))["video_id"]]
    method = build_method("delu", arrays["cas"].shape[1] - 1, (2, 2))
    video = {"cas": arrays["cas"], "attention": arrays["attn"]}
    for suffix, changes in (("", {}), ("_all", {"min_length": 1})):
        snippets = seconds_to_snippets(ambiguous, snippet_rate=25 / 16)
        detections = method.localize(video, ambiguous=snippets, **changes)
        for field in ("label", "start", "end"):
            np.testing.assert_array_equal(detections[field], arrays[f"{field}{suffix}"])
        np.testing.assert_allclose(detections["score"], arrays[f"score{suffix}"], atol=1e-6)
