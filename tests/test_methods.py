"""utils/methods: every method builds by name, trains and localizes by one interface."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from options import complete_options
from utils.detector import load_method
from utils.errors import InputError
from utils.methods import METHODS, build_method

FEATURES, PAIRS = torch.rand(4, 12, 10), torch.tensor([[0, 1], [2, 3]])
DIMS = {"tfe_dcn": (5, 5)}  # modalities that share a gate; others (6, 4)
LABELS = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_loss_terms_gradients_and_detections(name):
    torch.manual_seed(0)
    method = build_method(name, num_classes=3, modality_dims=DIMS.get(name, (6, 4)))
    outputs = method.network.eval()(FEATURES)
    assert outputs["cas"].shape == (4, 12, 4)
    assert outputs["attention"].shape == (4, 12)
    terms = method.objective(outputs, LABELS, PAIRS)
    terms["total"].backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(parameter.grad is not None for parameter in method.network.parameters())
    video = {name: value[0].detach().numpy() for name, value in outputs.items()}
    detections = method.localize(video)
    assert detections.dtype.names == ("label", "start", "end", "score")
    scores = method.video_scores(video)
    assert scores.shape in ((3,), (4,)) and np.isfinite(scores).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_stored_architecture_rebuilds_the_network(name):
    method = build_method(name, 3, DIMS.get(name, (6, 4)))
    again = build_method(name, **method.architecture)
    again.network.load_state_dict(method.network.state_dict())


def test_options_reach_network_objective_and_localization():
    method = build_method("co2net", 3, (6, 4), temporal_pool=3, topk_ratio=2, weights={"norm": 0}, mutual="kl")
    assert (method.network.temporal_pool, method.objective.topk_ratio, method.objective.mutual) == (3, 2, "kl")
    assert method.objective.weights["norm"] == 0
    other = build_method("co2net", 3, (6, 4), localization="two_stage")
    assert other.localization is not method.localization


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("co3net", {}, "unknown method 'co3net'; expected one of co2net, audio_visual"),
        ("co2net", {"classifier": "softmax"}, "unknown option 'classifier' of method co2net"),
        ("co2net", {"consensus": "sum"}, "method co2net cannot be built: consensus is 'sum'"),
        ("audio_visual", {"pseudo_neighbors": 3}, "expected an even number"),
        ("tfe_dcn", {}, "expected modalities of one width, got 6 and 4 channels"),
        ("delu", {"course": "steep"}, "course is 'steep', expected one of release, rank"),
    ],
)
def test_impossible_methods_are_refused_in_one_line(name, options, message):
    with pytest.raises(InputError, match=message):
        build_method(name, 3, (6, 4), **options)


def test_an_unknown_argument_of_a_stored_architecture_is_refused():
    options = Namespace(**complete_options({"dataset": "demo"}))
    with pytest.raises(InputError, match="best.pt: its architecture has the unknown argument 'color'"):
        load_method({"architecture": {"color": "red"}}, "best.pt", options, ("a", "b"), (4, 3))
