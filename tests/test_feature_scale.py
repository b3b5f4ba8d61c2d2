"""Feature scale: values, the rule of `auto`, whole commands, and collapsed networks."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml

from eval.tables import results_table
from main import main as train
from options import parse_args
from test import main as evaluate
from utils.annotations import load_annotations, parse_annotations
from utils.datasets import dataset_spec
from utils.detector import load_detector
from utils.engine import collapse
from utils.errors import InputError
from utils.features import open_features
from utils.features.simulate import invent_timeline, simulate_features
from utils.methods import build_method
from utils.subsets import AUTO_RMS, auto_scale
from wsad_dataset import BatchLoader, WeakVideoDataset

OPTIONS = ["--num-snippets", "12", "--max-iter", "2", "--eval-every", "2", "--no-evaluate-untrained", "--device", "cpu"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    simulate_features(parse_annotations(invent_timeline(20, 3), "invented"), folder, (6, 5))
    return folder


def multiplied(dataset, folder, factor):
    """Copy a dataset with all features multiplied and stored as float32."""
    folder.mkdir()
    shutil.copy(dataset / "annotations.json", folder)
    with h5py.File(dataset / "features.h5") as source, h5py.File(folder / "features.h5", "w") as target:
        target.attrs.update(source.attrs)
        for modality, videos in source.items():
            for video_id, values in videos.items():
                target[f"{modality}/{video_id}"] = values[:].astype(np.float32) * np.float32(factor)
    return folder


def run_training(dataset, run, *more):
    train(["--config", "configs/demo.yaml", "--path-dataset", str(dataset), "--run-dir", str(run), *OPTIONS, *more])
    return run


def training_videos(dataset, store=None, **options):
    store = store or open_features(dataset)
    return WeakVideoDataset(load_annotations(dataset), store, "train", **options)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A run with `--feature-scale auto`."""
    return run_training(dataset, tmp_path_factory.mktemp("runs") / "auto", "--feature-scale", "auto")


def test_every_value_is_multiplied(dataset):
    plain = open_features(dataset, ("rgb", "rgb_diff"))
    scaled = plain.scaled(0.3)
    for video_id in plain.video_ids[:4]:
        expected = plain[video_id] * np.float32(0.3)
        np.testing.assert_array_equal(scaled[video_id], expected)
        rows = np.array([0, 0, 2, len(expected) - 1])
        np.testing.assert_array_equal(scaled.rows(video_id, rows), expected[rows])
    assert scaled.describe() == {**plain.describe(), "scale": 0.3}
    assert plain.scaled(1.0).describe() == plain.describe()
    assert plain.scale == 1


@pytest.mark.parametrize("device", ["cpu", None])
def test_batches_are_multiplied_from_memory_and_from_disk(dataset, device):
    plain = next(BatchLoader(training_videos(dataset), num_snippets=9))
    scaled = training_videos(dataset, open_features(dataset).scaled(0.3), device=device)
    batch = next(BatchLoader(scaled, num_snippets=9))
    torch.testing.assert_close(batch.features, plain.features * np.float32(0.3), rtol=0, atol=0)


def test_features_beyond_float32_are_refused(dataset, tmp_path):
    store = open_features(multiplied(dataset, tmp_path / "huge", 1e35)).scaled(1e6)
    with pytest.raises(InputError, match="times the feature scale 1e.06 is not finite as float32; lower"):
        store[store.video_ids[0]]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e7", "1e-7", "big", ""])
def test_a_scale_out_of_range_is_refused(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--path-dataset", "x", "--feature-scale", text])
    assert "is not auto or a number from 1e-6 to 1e6" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1e-3, 1.0, 40.0])
def test_auto_gives_the_training_features_one_root_mean_square(dataset, tmp_path, factor):
    store = open_features(multiplied(dataset, tmp_path / "other", factor))
    scale = auto_scale(training_videos(dataset, store, device=None))
    assert scale == float(f"{scale:.4g}")
    videos = training_videos(dataset, store.scaled(scale))
    values = np.concatenate([videos[index] for index in range(len(videos))])
    assert np.sqrt(np.square(values, dtype=np.float64).mean()) == pytest.approx(AUTO_RMS, rel=1e-3)


def test_auto_needs_features_other_than_zero(dataset, tmp_path):
    store = open_features(multiplied(dataset, tmp_path / "zero", 0.0))
    with pytest.raises(InputError, match="root mean square of the training features is 0"):
        auto_scale(training_videos(dataset, store, device=None))


def test_auto_ignores_test_and_holdout_videos(dataset, tmp_path):
    folder = multiplied(dataset, tmp_path / "other", 1.0)
    annotations = load_annotations(folder)
    chosen = [video.video_id for video in annotations.subset("train")][:3]
    with h5py.File(folder / "features.h5", "a") as file:
        for video_id in set(file["rgb"]) - set(chosen):
            file["rgb"][video_id][:] *= 9
    scales = [auto_scale(training_videos(f, video_ids=chosen, device=None)) for f in (dataset, folder)]
    assert scales[0] == scales[1]


def test_a_scaled_run_equals_a_run_on_multiplied_features(dataset, tmp_path):
    scaled = run_training(dataset, tmp_path / "a", "--feature-scale", "0.25")
    other = run_training(multiplied(dataset, tmp_path / "other", 0.25), tmp_path / "b")
    weights = [torch.load(r / "checkpoints/last.pt", weights_only=True)["model"] for r in (scaled, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (scaled / "metrics.json").read_text() == (other / "metrics.json").read_text()


def test_test_py_and_the_detector_apply_the_scale_of_the_run(dataset, run, tmp_path, run_main):
    checkpoint = run / "checkpoints/last.pt"
    scale = torch.load(checkpoint, weights_only=True)["options"]["feature_scale"]
    assert scale == auto_scale(training_videos(dataset, device=None)) != 1
    assert yaml.safe_load((run / "options.yaml").read_text())["feature_scale"] == "auto"
    assert json.loads((run / "environment.json").read_text())["features"]["scale"] == scale
    words = ["--checkpoint", checkpoint, "--path-dataset", dataset, "--output-dir", tmp_path / "out", "--device", "cpu"]
    assert run_main(evaluate, *words)[0] == 0
    trained, tested = (json.loads((folder / "metrics.json").read_text())["last"] for folder in (run, tmp_path / "out"))
    assert trained == tested
    detections = json.loads((run / "detections.json").read_text())["results"]
    video_id = max(detections, key=lambda video: len(detections[video]))
    found = load_detector(checkpoint, "cpu")(dataset, video_id=video_id)
    np.testing.assert_allclose(
        sorted(found["score"]), sorted(entry["score"] for entry in detections[video_id]), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "not valid"), ("nan", "not valid"), ([1], "not valid"), ("auto", "stores no feature scale")],
)
def test_a_checkpoint_with_another_scale_is_refused(run, tmp_path, value, message):
    checkpoint = torch.load(run / "checkpoints/last.pt", weights_only=True)
    checkpoint["options"]["feature_scale"] = value
    torch.save(checkpoint, tmp_path / "changed.pt")
    with pytest.raises(InputError, match=message):
        load_detector(tmp_path / "changed.pt", "cpu")


def test_a_checkpoint_without_a_scale_has_scale_1(run, tmp_path):
    checkpoint = torch.load(run / "checkpoints/last.pt", weights_only=True)
    del checkpoint["options"]["feature_scale"], checkpoint["options"]["sampling"]
    torch.save(checkpoint, tmp_path / "older.pt")
    assert load_detector(tmp_path / "older.pt", "cpu").scale == 1


def test_resuming_on_features_with_another_automatic_scale_is_refused(dataset, run, tmp_path, run_main):
    shutil.copytree(run, tmp_path / "run")
    other = multiplied(dataset, tmp_path / "other", 2.0)
    words = ["--config", "configs/demo.yaml", "--path-dataset", other, "--run-dir", tmp_path / "run", *OPTIONS]
    words += ["--feature-scale", "auto", "--resume", "--max-iter", 4]
    status, _, error = run_main(train, *words)
    assert status != 0
    assert "was trained with the feature scale" in error and len(error.strip().splitlines()) == 1


LOW, HIGH = np.array([0.02, 0.1]), np.array([0.02, 0.1001])


@pytest.mark.parametrize(
    ("attentions", "expected"),
    [
        ([LOW] * 20, "attention below every threshold in 20 of 20 videos"),
        ([LOW] * 19 + [HIGH], "attention below every threshold in 19 of 20 videos"),
        ([LOW] * 18 + [HIGH] * 2, None),
    ],
)
def test_a_network_has_collapsed_if_95_percent_of_the_videos_have_no_proposal(attentions, expected):
    assert collapse([attention.max() for attention in attentions], 0.1) == expected
    method = build_method("co2net", 1, (2, 2))
    assert method.lowest_threshold == 0.1
    proposals = [len(method.localize({"cas": np.ones((2, 2)), "attention": attention})) for attention in attentions]
    assert proposals.count(0) == sum(attention is LOW for attention in attentions)


def test_a_localization_without_attention_thresholds_never_collapses():
    method = build_method("audio_visual", 1, (2, 2))
    assert method.lowest_threshold is None
    assert collapse([LOW.max()], method.lowest_threshold) is None


def test_a_collapsed_run_says_so(dataset, tmp_path, capsys):
    run = run_training(dataset, tmp_path / "run", "--attention-thresholds", "0.99")
    out, error = capsys.readouterr()
    metrics = json.loads((run / "metrics.json").read_text())
    count = len(list(load_annotations(dataset).subset("test")))
    assert metrics["last"]["collapsed"] == f"attention below every threshold in {count} of {count} videos"
    assert f"`last` collapsed: {metrics['last']['collapsed']}" in out
    assert f"collapsed: {metrics['last']['collapsed']}" in error
    [record] = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    assert record["collapsed"] == metrics["last"]["collapsed"]


def test_a_table_names_only_the_collapsed_checkpoints(run):
    metrics = json.loads((run / "metrics.json").read_text())
    rows = [("good", 2, metrics["last"]), ("bad", 2, {**metrics["last"], "collapsed": "attention is low"})]
    options = yaml.safe_load((run / "options.yaml").read_text())
    table = results_table(rows, dataset_spec(options), ("snippet",))
    assert table.endswith("\n`bad` collapsed: attention is low")
    assert "`good` collapsed" not in table
