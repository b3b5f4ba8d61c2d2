"""Options reach the training and the evaluation."""

import numpy as np
import pytest
import torch

import main
from model import CO2Net
from utils.annotations import parse_annotations
from utils.datasets import DATASETS, DatasetSpec
from utils.engine import BatchLoss, Evaluation, Evaluator, holdout_scores, predict, selection_scores
from utils.features.simulate import invent_timeline, simulate_features
from utils.losses import CO2Loss
from utils.methods import Method, build_method
from utils.run.ranks import Ranks
from utils.subsets import split_holdout
from utils.training import Training
from wsad_dataset import Batch, WeakVideoDataset


class Store:
    """Random features in memory, at 30 / 16 snippets a second."""

    snippet_rate = 30 / 16

    def __init__(self, lengths: dict[str, int], dims: tuple[int, int] = (4, 3)):
        self.counts, self.modality_dims = lengths, dims

    def __contains__(self, video_id):
        return video_id in self.counts

    def lengths(self, video_ids):
        return np.array([self.counts[video_id] for video_id in video_ids])

    def __getitem__(self, video_id):
        generator = np.random.default_rng(len(video_id))
        return generator.random((self.counts[video_id], sum(self.modality_dims)), dtype=np.float32)


def dataset_of(videos: dict[str, int], ambiguous=(), min_snippets=1, classes=("a", "b"), dims=(4, 3)):
    """Annotations of test videos of these lengths in snippets, and the dataset of them."""
    database = {
        video_id: {
            "subset": "test",
            "labels": ["a"],
            "annotations": [{"label": "a", "segment": [1.0, 3.0]}],
            "ambiguous": [list(segment) for segment in ambiguous],
        }
        for video_id in videos
    }
    annotations = parse_annotations({"classes": list(classes), "database": database}, "made")
    return annotations, WeakVideoDataset(annotations, Store(videos, dims), "test", min_snippets=min_snippets)


def attentive_method() -> Method:
    """CO2-Net with high attention everywhere and class `a` the likeliest: every video has a detection of it."""
    torch.manual_seed(0)
    method = build_method("co2net", 2, (4, 3))
    method.network.classifier[4].bias.data[0] = 50.0
    for unit in method.network.attention_units:
        torch.nn.init.constant_(unit.layers[5].bias, 9.0)
    return method


def test_ambiguous_segments_are_in_snippets_of_the_features_own_rate():
    """Seconds 16 to 17 are snippets 30 to 32 at 30/16 Hz, and 25 to 27 at 25/16: of 29 snippets only the latter
    would delete the one detection, which covers them all."""
    annotations, dataset = dataset_of({"v": 29}, ambiguous=[(16.0, 17.0)])
    (result,) = predict(attentive_method(), dataset, annotations, snippet_rate=30 / 16)
    assert len(result.detections) > 0
    annotations, dataset = dataset_of({"v": 29}, ambiguous=[(5.0, 6.0)])
    (result,) = predict(attentive_method(), dataset, annotations, snippet_rate=30 / 16)
    assert len(result.detections) == 0


def test_evaluation_uses_the_features_own_rate():
    annotations, dataset = dataset_of({"v": 30})
    evaluation = Evaluator(dataset, annotations, DATASETS["demo"])(attentive_method())
    assert evaluation.detections.end.max() == pytest.approx(30 * 16 / 30)


def test_ranks_send_detections_and_no_curves():
    sent = []
    annotations, dataset = dataset_of({"v": 30, "w": 20})

    class Listening(Ranks):
        def gather(self, value):
            sent.extend(value)
            return super().gather(value)

    evaluation = Evaluator(dataset, annotations, DATASETS["demo"], Listening())(attentive_method())
    assert [video.video_id for video in sent] == ["v", "w"]
    for video, result in zip(sent, evaluation.results, strict=True):
        assert (video.cas, video.peak) == (None, result.attention.max())
        arrays = [value for value in vars(video).values() if isinstance(value, np.ndarray)]
        assert all(array is result.detections or array is result.scores for array in arrays)


def test_ground_truth_of_videos_too_short_to_test_counts():
    spec = DatasetSpec("made", "test", "test", (0.1,), ((0.1, 0.1),), (0.1, 0.1), min_snippets=5)
    annotations, dataset = dataset_of({"long": 5, "short": 2}, min_snippets=5)
    evaluation = Evaluator(dataset, annotations, spec)(attentive_method())
    assert [result.video_id for result in evaluation.results] == ["long"]
    assert evaluation.metrics["seconds"]["map"] == [0.5]  # one of two instances found
    assert evaluation.detections.videos == ("long", "short")  # so that whoever scores the list counts both


def test_the_network_comes_back_in_training_mode_and_is_tested_without_dropout():
    annotations, dataset = dataset_of({"v": 30})
    method = attentive_method()
    method.network.train()
    first, second = (predict(method, dataset, annotations, 30 / 16)[0].cas for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert method.network.training


def test_bf16_is_the_networks_and_not_the_losses():
    net, seen = CO2Net(2, (4, 3)), []
    net.fusion[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    batch = Batch(torch.rand(2, 9, 7), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0, 1]]))
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        terms = BatchLoss(net, CO2Loss(), precision)(*batch)
        assert seen.pop() == dtype
        assert all(term.dtype == torch.float32 for term in terms.values())


def test_holdout_scores_without_pairs_and_restores_training():
    _, dataset = dataset_of({"v": 30, "w": 20})
    method = build_method("co2net", 2, (4, 3))
    scores = holdout_scores(method, dataset)
    assert scores["classification_mAP"] == 1.0  # every video has the one label
    assert 0 < scores["loss"] < 20
    assert method.network.training


def test_split_is_random_by_seed_and_complete():
    annotations = parse_annotations(invent_timeline(40, 3), "made")
    train, held_out = split_holdout(annotations, "train", 0.25, seed=0)
    assert len(held_out) == 6
    assert sorted(train + held_out) == [video.video_id for video in annotations.subset("train")]
    assert split_holdout(annotations, "train", 0.25, seed=1)[1] != held_out
    assert split_holdout(annotations, "train", 0.0, seed=0)[1] == []


def test_selection_prefers_high_map_then_low_loss():
    def score(mean_ap, loss):
        evaluation = Evaluation([], None, {"snippet": {}}, 0.5)
        return selection_scores(evaluation, {"classification_mAP": mean_ap, "loss": loss})["selected"]

    assert score(0.9, 5.0) > score(0.8, 1.0)
    assert score(0.9, 1.0) > score(0.9, 5.0)
    assert score(0.1, 9.0) > score(None, 1.0)


def test_an_evaluation_off_the_schedule_is_no_candidate(tmp_path):
    net = torch.nn.Linear(1, 1)
    loader = type("Loader", (), {"state_dict": lambda self: {}})()
    training = Training(net, torch.optim.Adam(net.parameters()), loader, {}, tmp_path, max_iter=9, eval_every=2)
    for iteration, score, best in [(2, 0.1, 2), (3, 0.9, 2), (4, 0.05, 2), (6, 0.2, 6)]:
        training.iteration = iteration
        training.save({}, {"best": [score]})
        assert training.chosen["best"]["iteration"] == best


def test_options_reach_what_is_built(tmp_path, monkeypatch):
    """Every option of the method and of the optimizer, away from its default."""
    simulate_features(parse_annotations(invent_timeline(8, 2), "made"), tmp_path, (4, 3))
    built = {}

    def spy(name, kind):
        def build(*arguments, **named):
            built[name] = (arguments, named)
            return kind(*arguments, **named)

        return build

    for name in ("build_method", "BatchLoader", "BatchLoss", "FusedAdam"):
        monkeypatch.setattr(main, name, spy(name, getattr(main, name)))
    options = "--dataset demo --lr 0.002 --weight-decay 0.03 --batch-size 5 --num-pairs 2 --num-snippets 11 --seed 4 "
    options += "--consensus se --mutual kl "
    options += "--topk-ratio 3 --loss-weights oppo=0.1 --suppression product --attention-logit-dropout 0.25 "
    options += f"--precision bf16 --max-iter 1 --path-dataset {tmp_path} --run-dir {tmp_path}/run --device cpu"
    main.main(options.split())
    arguments, options = built["build_method"]
    assert arguments == ("co2net", 2, (4, 3))
    expected = {
        "attention_logit_dropout": 0.25,
        "temporal_pool": None,
        "consensus": "se",
        "stages": 2,
        "topk_ratio": 3,
        "weights": {"oppo": 0.1},
        "suppression": "product",
        "mutual": "kl",
        "localization": "outer_inner",
    }
    assert expected.items() <= options.items()
    assert built["FusedAdam"][0][1] == 0.002
    assert built["FusedAdam"][1]["weight_decay"] == 0.03
    assert built["BatchLoader"][0][1:] == (5, 2, 11, 4)
    assert built["BatchLoss"][0][2:] == ("bf16", False)


def test_temporal_pool_follows_the_dataset_and_the_snippets(tmp_path, monkeypatch):
    timeline = invent_timeline(8, 2)
    for video in timeline["database"].values():
        video["subset"] = {"train": "training", "test": "validation"}[video["subset"]]
    simulate_features(parse_annotations(timeline, "made"), tmp_path, (4, 3))
    pools = []
    build = main.build_method
    monkeypatch.setattr(
        main, "build_method", lambda *given, **named: pools.append(named["temporal_pool"]) or build(*given, **named)
    )
    options = f"--dataset activitynet12 --max-iter 1 --device cpu --path-dataset {tmp_path} --num-snippets"
    for snippets in ("60", "20"):
        main.main([*options.split(), snippets, "--run-dir", str(tmp_path / snippets)])
    main.main([*options.split(), "60", "--temporal-pool", "7", "--run-dir", str(tmp_path / "own")])
    assert pools == [13, 5, 7]
