"""Equality of CO2-Net with its release: outputs, losses, gradients, Adam trajectory, and localization."""

import json

import numpy as np
import pytest
import torch

from eval.proposals import localize
from tests.golden_cases import AMBIGUOUS, GoldenCase, assert_golden, golden_arrays, released_shapes, rng
from utils.methods import build_method
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


class CO2NetCase(GoldenCase):
    """A golden case of CO2-Net."""

    def build(self):
        pool = 13 if self.meta["kind"] == "ANT_CO2" else None
        return build_method("co2net", self.meta["classes"], (1024, 1024), temporal_pool=pool, topk_ratio=self.meta["k"])

    def shapes(self):
        return released_shapes(self.meta["classes"])


@pytest.fixture(scope="module", params=MODEL_CASES)
def case(request):
    return CO2NetCase(f"model_{request.param}")


def test_outputs(case):
    with torch.no_grad():
        outputs, _ = case.run(case.meta["seed"])
    assert_golden(outputs["cas"], case.arrays["cas"])
    assert_golden(outputs["attention"], case.arrays["attn"][..., 0])
    assert_golden(outputs["modality_attention"][:, 0], case.arrays["v_atn"][..., 0])
    assert_golden(outputs["modality_attention"][:, 1], case.arrays["f_atn"][..., 0])
    projection = rng("projection").standard_normal((2048, 8))
    assert_golden(outputs["features"].numpy() @ projection, case.arrays["feat_projected"])


def test_losses_and_gradients(case):
    case.net.zero_grad()
    _, terms = case.run(case.meta["seed"], case.arrays["labels"])
    for ours, theirs in LOSS_NAMES.items():
        assert_golden(terms[ours].item(), case.arrays[theirs])
    terms["total"].backward()
    case.assert_gradients()


@pytest.mark.parametrize("case", ["thumos14", "activitynet12"], indirect=True)
def test_adam_trajectory(case):
    case.assert_trajectory()


@pytest.mark.parametrize("name", PROPOSAL_CASES)
def test_localization(name):
    arrays = golden_arrays(f"proposals_{name}")
    ambiguous = AMBIGUOUS[json.loads(str(arrays["meta"]))["video_id"]]
    detections = localize(arrays["cas"], arrays["attn"], ambiguous=seconds_to_snippets(ambiguous, snippet_rate=25 / 16))
    for field in ("label", "start", "end"):
        np.testing.assert_array_equal(detections[field], arrays[field])
    np.testing.assert_allclose(detections["score"], arrays["score"], atol=1e-6)
