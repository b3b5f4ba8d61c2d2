"""The other methods equal their releases: outputs, loss terms, gradients, Adam trajectories, localization."""

import json

import numpy as np
import pytest
import torch

from options import method_options, parse_args
from tests.conftest import ROOT
from tests.golden_cases import AMBIGUOUS, GoldenCase, assert_golden, golden_arrays, rng
from utils.methods import build_method
from utils.methods.ddg_net import build_graph, snippet_kinds
from utils.methods.delu import course_weights
from utils.segments import seconds_to_snippets

CASES = [
    *("hamnet_model_a", "hamnet_model_b", "hamnet_model_c", "um_model_a", "um_model_b"),
    *("tfedcn_model_a", "tfedcn_model_b"),
    *("delu_model_a", "delu_model_b", "delu_model_act"),
    *("ddgnet_model_a", "ddgnet_model_b", "ddgnet_model_act", "ddgnet_model_padded"),
]
DDG_NET = [name for name in CASES if name.startswith("ddgnet")]
CONFIGS = {
    "TFEDCN": "tfe_dcn_thumos14",
    "DELU": "delu_thumos14",
    "DELU_ACT": "delu_activitynet12",
    "DDG": "ddg_net_thumos14",
    "DDG_ACT": "ddg_net_activitynet12",
}
TERMS = {  # ours: theirs; other terms are `loss_` and our name
    "mil_org": "loss_mil_orig",
    "mil_supp": "loss_mil_supp",
    "ml": "loss_mutual",
    "oppo_first": "loss_oppo_v",
    "oppo_second": "loss_oppo_f",
    "total": "total",
}
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
SECONDS_PER_SNIPPET = 16 / 25
LARGE = 100  # snippets in a batch; larger cases check one course of DELU and DDG-Net


class EarlyFusionCase(GoldenCase):
    """A golden case of HAM-Net or UM."""

    pairs = torch.zeros(0, 2, dtype=torch.long)
    courses = (None,)

    def build(self):
        meta, options = self.meta, {}
        if meta.get("kind") == "anet":
            p, (first, second) = meta["drop_prob"], (meta["lm_1"], meta["lm_2"])
            weights = {"bcl": first * (1 - p), "hal": first * p, "sal": second * (1 - p), "ssal": second * p}
            weights |= {"norm": meta["alpha"], "guide": meta["beta"]}
            options = {"temporal_pool": meta["pool"], "topk_ratio": meta["rat"], "weights": weights}
        self.prefix = {"hamnet": "net.", "um": "module."}[meta["method"]]
        return build_method(meta["method"], meta["classes"], (1024, 1024), **options)

    def shapes(self):
        rows = {"hamnet": self.meta["classes"] + 1, "um": self.meta["classes"]}[self.meta["method"]]
        shapes = {}
        for name, (out, *others) in RELEASED_SHAPES[self.meta["method"]].items():
            shapes[f"{name}.weight"] = (out or rows, *others)
            if name != "cas_module.classifier.0":
                shapes[f"{name}.bias"] = (out or rows,)
        return shapes

    def scaled(self, name, value):
        return value * self.meta.get("gains", {}).get(name, 1.0) + self.meta.get("shifts", {}).get(name, 0.0)

    def features(self, seed):
        batch, snippets, scene = (self.meta[name] for name in ("batch", "snippets", "scene"))
        features = rng(seed, "features").standard_normal((batch, snippets, 2048))
        scenes = rng(seed, "scenes").standard_normal((batch, -(-snippets // scene), 2048))
        features = np.maximum(features + scenes[:, np.arange(snippets) // scene], 0.0)
        features *= np.reshape(self.meta.get("feature_scale", 1.0), (-1, 1, 1))
        return torch.from_numpy(features)

    def outputs(self, seed):
        outputs = super().outputs(seed)
        if self.meta.get("masked"):  # by the recipe instead of dropout
            kept = rng(seed, "mask").random(tuple(outputs["mask"].shape)) >= 0.7
            outputs["mask"] = torch.from_numpy(kept / 0.3)
        return outputs

    def set_course(self, course):
        return ""

    def assert_outputs(self, outputs):
        arrays = self.arrays
        if self.meta["method"] == "hamnet":
            assert_golden(outputs["attention"], arrays["attn"][..., 0])
            return
        magnitude, low, high = (arrays[name] for name in ("magnitude", "low", "high"))
        assert_golden(outputs["magnitude"], magnitude)
        if not self.meta["masked"]:  # attention selects without the mask
            normalized = (magnitude - low[:, None]) / (high - low)[:, None]
            assert_golden(outputs["attention"], normalized.clip(0, 1))


class LateFusionCase(GoldenCase):
    """A golden case of TFE-DCN, DELU or DDG-Net, with the options of its config file."""

    def build(self):
        config = ROOT / "configs" / f"{CONFIGS[self.meta['kind']]}.yaml"
        args = parse_args(["--config", str(config), "--path-dataset", "."])
        return build_method(args.method, self.meta["classes"], (1024, 1024), **method_options(args))

    def shapes(self):
        return self.meta["names"]

    def scaled(self, name, value):
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
            spread = rng(seed, "spread").uniform(0.1, 0.9, (*size, 1))
            values = np.take_along_axis(centers, scene, axis=1) + spread * values
        values = np.maximum(values, 0.0)
        for row, num_real in enumerate(self.meta["real"] or []):
            values[row, num_real:] = 0
        return torch.from_numpy(values)

    def assert_outputs(self, outputs):
        assert_golden(outputs["attention"], self.arrays["attn"][..., 0])
        for row, name in enumerate(("v_atn", "f_atn")):
            assert_golden(outputs["modality_attention"][:, row], self.arrays[name][..., 0])

    @property
    def courses(self):
        """Courses whose gradients and trajectories are compared."""
        if "loss_uct" not in self.arrays:
            return (None,)
        return ("release", "rank") if self.meta["batch"] * self.meta["snippets"] < LARGE else ("release",)

    def set_course(self, course):
        """Set the course of the objective, and return the suffix of its arrays."""
        if course:
            self.method.objective.course["course"] = course
        return "_rank" if course == "rank" else ""


@pytest.fixture(scope="module", params=CASES)
def case(request):
    kind = EarlyFusionCase if request.param.startswith(("hamnet", "um")) else LateFusionCase
    return kind(request.param)


def test_outputs_terms_and_gradients(case):
    case.net.zero_grad()
    outputs = case.outputs(case.meta["seed"])
    detached = {name: value.detach() for name, value in outputs.items()}
    assert_golden(detached["cas"], case.arrays["cas"])
    projection = rng("projection").standard_normal((2048, 8))
    assert_golden(detached["features"].numpy() @ projection, case.arrays["feat_projected"])
    case.assert_outputs(detached)

    labels = torch.from_numpy(case.arrays["labels"].astype(float))
    shares = case.meta.get("progress") or [0.3]
    for course in ("release", "rank") if case.courses[0] else case.courses:
        suffix = case.set_course(course)
        own_names = {**TERMS, "total": f"total{suffix}", "uct": f"loss_uct{suffix}"}
        for index, progress in enumerate(shares):
            terms = case.method.objective(outputs, labels, case.pairs, progress=progress)
            for name, value in terms.items():
                expected = np.atleast_1d(case.arrays[own_names.get(name, f"loss_{name}")])
                assert_golden(value.item(), expected[index if len(expected) > 1 else 0])
            if course in case.courses and index == len(shares) // 2:
                case.net.zero_grad()
                terms["total"].backward(retain_graph=True)
                case.assert_gradients(suffix, index)


@pytest.mark.parametrize("case", [name for name in CASES if name != "ddgnet_model_b"], indirect=True)
def test_adam_trajectory(case):
    for course in case.courses:
        iterations = case.meta.get("trajectory_iterations")
        progress = [iteration / case.meta["max_iter"] for iteration in iterations] if iterations else None
        case.assert_trajectory(case.set_course(course), progress)


@pytest.mark.parametrize("case", DDG_NET, indirect=True)
def test_graph_of_ddg_net(case):
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


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_localization_of_hamnet(name):
    arrays = golden_arrays(f"hamnet_localize_{name}")
    meta = json.loads(str(arrays["meta"]))
    method = build_method("hamnet", meta["classes"], (4, 4), topk_divisor=meta["k_ratio"])
    outputs = {"cas": arrays["cas"], "attention": arrays["attn"]}
    np.testing.assert_allclose(method.video_scores(outputs)[:-1], arrays["video_score"], rtol=1e-9)
    assert_detections(method.localize(outputs), arrays, SECONDS_PER_SNIPPET)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_localization_of_um(name):
    arrays = golden_arrays(f"um_localize_{name}")
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


@pytest.mark.parametrize(
    "name", ["all_single", "ambiguous", "anet_t75", "noclass", "nothing", "t150", "t40_two_classes", "t700"]
)
def test_localization_of_delu(name):
    arrays = golden_arrays(f"delu_proposals_{name}")
    ambiguous = AMBIGUOUS[json.loads(str(arrays["meta"]))["video_id"]]
    method = build_method("delu", arrays["cas"].shape[1] - 1, (2, 2))
    video = {"cas": arrays["cas"], "attention": arrays["attn"]}
    for suffix, changes in (("", {}), ("_all", {"min_length": 1})):
        snippets = seconds_to_snippets(ambiguous, snippet_rate=25 / 16)
        detections = method.localize(video, ambiguous=snippets, **changes)
        for field in ("label", "start", "end"):
            np.testing.assert_array_equal(detections[field], arrays[f"{field}{suffix}"])
        np.testing.assert_allclose(detections["score"], arrays[f"score{suffix}"], atol=1e-6)
