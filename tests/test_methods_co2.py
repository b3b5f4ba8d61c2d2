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
from utils.methods.delu import course_weights
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


def test_the_graph_is_that_of_three_matrices():
    """One matrix stands for those of the release: action, background, and what ambiguous snippets receive."""
    torch.manual_seed(0)
    centers = torch.rand(3, 4, 30)  # (videos, scenes, channels)
    features = centers.repeat_interleave(6, dim=1) + 0.2 * torch.rand(3, 24, 30)
    net = build_method("ddg_net", 5, (20, 10), first_pass_dropout=False).network.double().eval()
    first, second = net.split(features.double())
    attention = torch.rand(3, 2, 24, dtype=torch.float64)
    attention[:, :, 4:10] = 0.9
    attention[:, :, 14:20] = 0.1
    graph = build_graph([first, second], attention)
    is_action, is_background = ((a > 0.5).all(dim=1).double() for a in (attention, 1 - attention))
    is_ambiguous = 1 - is_action - is_background
    assert min(x.sum() for x in (is_action, is_background, is_ambiguous)) > 5
    unit = [x / x.norm(dim=1, keepdim=True) for x in (first, second)]
    similarity = sum(torch.einsum("bds,bdt->bst", x, x) for x in unit) / 2
    smallest = similarity.topk(2, dim=1).values[:, 1:]
    similarity = similarity * (similarity >= 0.8) * (similarity >= smallest)

    def matrix(senders, receivers):
        return similarity * senders.unsqueeze(2) * receivers.unsqueeze(1)

    loops = torch.diag_embed(is_ambiguous)
    parts = {
        "action": matrix(is_action, is_action),
        "background": matrix(is_background, is_background),
        "from_action": matrix(is_action, is_ambiguous),
        "from_background": matrix(is_background, is_ambiguous),
        "loops": similarity * loops,
    }
    sums = sum(parts.values()).sum(dim=1, keepdim=True).clamp(min=1e-12)
    parts = {name: part / sums for name, part in parts.items()}
    torch.testing.assert_close(graph.adjacency, sum(parts.values()))
    for x, unit in zip((first, second), net.consensus, strict=True):
        nodes = {"action": x, "background": x}
        for layer in range(2):
            for kind in nodes:
                messages = getattr(unit, kind)[layer](nodes[kind]) @ parts[kind]
                nodes[kind] = torch.where(messages > 0, messages, 0.2 * messages)
        action, background = nodes.values()
        expected = action + background + action @ parts["from_action"] + background @ parts["from_background"]
        torch.testing.assert_close(unit(x, graph), expected + x @ parts["loops"])


def test_course_by_rank_goes_from_certain_to_uncertain_snippets():
    suppressed = torch.tensor([[[3.0, 0.0], [9.0, 0.0], [-5.0, 0.0], [6.0, 0.0]]])  # certainty: 1 > 3 > 0 > 2
    early, late = (course_weights(suppressed, progress, 0.7, "rank")[0] for progress in (0.0, 1.0))
    assert early.argsort(descending=True).tolist() == late.argsort().tolist() == [1, 3, 0, 2]
    torch.testing.assert_close(early + late, torch.full((4,), 2.0))
    assert course_weights(suppressed, 0.5, 0.7, "rank").eq(1).all()
    released = course_weights(suppressed, 0.0, 0.7, "release")[0]  # the weight at the time of the k-th most certain one
    torch.testing.assert_close(released, early.sort().values[[1, 3, 0, 2]])


def test_dropped_logits_do_not_sort_the_snippets_if_asked():
    torch.manual_seed(0)
    features = torch.rand(2, 200, 8)
    for first_pass_dropout, share in ((True, 0.5), (False, 0.0)):
        net = build_method("ddg_net", 3, (4, 4), first_pass_dropout=first_pass_dropout).network.train()
        at_half = (net(features)["first_attention"] == 0.5).float().mean().item()
        assert at_half == pytest.approx(share, abs=0.06)


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
