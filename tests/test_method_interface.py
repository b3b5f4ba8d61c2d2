"""utils/methods: every method builds by name, trains and localizes by one interface."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from eval.outputs import open_outputs
from main import main as train
from options import complete_options, parse_args
from scripts.detect import main as detect
from scripts.report import main as report
from test import main as evaluate
from tests.test_engine import dataset_of
from utils.annotations import parse_annotations
from utils.checkpoint import load_weights
from utils.engine import BatchLoss, predict, train_step
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features
from utils.methods import METHODS, build_method
from utils.trained import load_method

FEATURES = torch.rand(4, 12, 10, generator=torch.Generator().manual_seed(0))
PAIRS = torch.tensor([[0, 1], [2, 3]])
DIMS = {"tfe_dcn": (5, 5)}  # modalities that share a gate; others (6, 4)
LABELS = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])


def built(name, **options):
    torch.manual_seed(0)
    return build_method(name, num_classes=3, modality_dims=DIMS.get(name, (6, 4)), **options)


def video_of(outputs, row=0):
    return {name: value[row].detach().numpy() for name, value in outputs.items()}


@pytest.mark.parametrize("snippets", [1, 3, 9, 40])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_localizes_at_every_length(name, snippets):
    """In training with dropout and in evaluation: finite terms, gradients of all parameters, finite detections."""
    method = built(name, class_threshold=0.0)
    for mode in (True, False):
        outputs = method.network.train(mode)(torch.rand(4, snippets, 10))
        assert outputs["cas"].shape[:2] == outputs["attention"].shape == (4, snippets)
        assert outputs["cas"].shape[2] in (3, 4)  # without or with background
        assert ((outputs["attention"] >= 0) & (outputs["attention"] <= 1)).all()
        method.network.zero_grad()
        terms = method.objective(outputs, LABELS, PAIRS)
        terms["total"].backward()
        assert all(term.isfinite() for term in terms.values())
        gradients = {key: parameter.grad for key, parameter in method.network.named_parameters()}
        assert not [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    video = video_of(outputs)
    scores = method.video_scores(video)
    assert scores.shape == (outputs["cas"].shape[2],) and np.isfinite(scores).all()
    detections = method.localize(video)
    assert detections.dtype.names == ("label", "start", "end", "score")
    assert set(detections["label"]) <= {0, 1, 2} and np.isfinite(detections["score"]).all()
    assert ((detections["start"] >= 0) & (detections["start"] < detections["end"])).all()
    assert (detections["end"] <= snippets).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_step_gives_every_parameter_a_gradient(name):
    method = built(name)
    optimizer = torch.optim.Adam(method.network.parameters(), 1e-3, fused=True)
    outcome = train_step(BatchLoss(method.network, method.objective), optimizer, (FEATURES, LABELS, PAIRS))
    assert outcome.finite
    gradients = {key: parameter.grad for key, parameter in method.network.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None]
    assert len(optimizer.state) == len(gradients)


@pytest.mark.parametrize("name", METHODS)
def test_videos_in_batches_of_their_length_give_what_single_videos_give(name):
    """The evaluation batches videos of equal length, without padding; nothing may leak between the rows."""
    method, lengths = built(name), {"a": 30, "b": 7, "c": 30, "d": 1, "e": 7, "f": 12}
    annotations, dataset = dataset_of(lengths, classes=("a", "b", "c"), dims=DIMS.get(name, (6, 4)))
    for result in predict(method, dataset, annotations, snippet_rate=2.0):
        features = torch.from_numpy(dataset[dataset.video_ids.index(result.video_id)])[None]
        with torch.no_grad():
            video = video_of(method.network.eval()(features))
        np.testing.assert_allclose(result.cas, video["cas"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(result.attention, video["attention"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(result.scores, method.video_scores(video)[:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_progress_is_a_number_or_a_tensor(name):
    method = built(name)
    outputs = method.network.eval()(FEATURES)
    number, tensor, default = (
        method.objective(outputs, LABELS, PAIRS, **given)["total"]
        for given in ({"progress": 0.25}, {"progress": torch.tensor(0.25)}, {})
    )
    torch.testing.assert_close(number, tensor)
    if name in ("co2net", "audio_visual", "hamnet", "um", "tfe_dcn"):
        assert torch.equal(number, default)


def test_training_passes_its_progress_to_the_objective_without_compiling_anew():
    """Progress is a tensor: a float would compile a new graph at each step."""
    network, graphs, counts, totals = built("co2net").network, [], [], []

    def objective(outputs, labels, pairs, progress):
        return {"total": 0 * outputs["cas"].sum() + progress}

    batch_loss = torch.compile(
        BatchLoss(network, objective), backend=lambda graph, inputs: graphs.append(graph) or graph.forward
    )
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    for step in range(4):
        outcome = train_step(batch_loss, optimizer, (FEATURES, LABELS, PAIRS), progress=step / 4)
        totals.append(outcome.terms["total"].item())
        counts.append(len(graphs))
    assert totals == [0, 0.25, 0.5, 0.75]
    assert counts[0] > 0 and counts == counts[:1] * 4


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


def test_defaults_of_a_method_reach_options_and_objective():
    assert build_method("hamnet", 3, (6, 4)).settings == {"fallback_class": False, "nms_padding": "second"}
    assert build_method("hamnet", 3, (6, 4), fallback_class=True).settings["fallback_class"]
    for name, ratio in (("co2net", 7), ("hamnet", 10), ("um", 9)):
        args = parse_args(["--method", name, "--path-dataset", "x"])
        assert args.topk_ratio == build_method(name, 3, (6, 4)).objective.topk_ratio == ratio
    assert (args.localization, args.nms_padding, args.topk_divisor) == ("um", "second", 9)
    assert len(args.attention_thresholds) == 9 and len(args.activation_thresholds) == 10
    args = parse_args(["--method", "hamnet", "--path-dataset", "x", "--fallback-class", "--nms-padding", "none"])
    assert (args.fallback_class, args.nms_padding) == (True, "none")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("co3net", {}, "unknown method 'co3net'; expected one of co2net, audio_visual"),
        ("co2net", {"classifier": "softmax"}, "unknown option 'classifier' of method co2net"),
        ("co2net", {"consensus": "sum"}, "method co2net cannot be built: consensus is 'sum'"),
        ("audio_visual", {"pseudo_neighbors": 3}, "expected an even number"),
        ("um", {"localization": "outer_inner"}, "method um has no localization 'outer_inner'; expected one of um"),
        ("co2net", {"localization": "um"}, "method co2net has no localization 'um'; expected one of outer_inner, "),
        ("hamnet", {"temporal_pool": 4}, "expected an odd number of snippets"),
        ("um", {"weights": {"bce": 1.0}}, "unknown loss term bce; the terms are cls, um, be"),
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
