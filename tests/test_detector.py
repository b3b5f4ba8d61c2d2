"""Detector from a checkpoint, scripts/detect.py, settings of localization, and the tutorial."""

import csv
import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from eval.localizations import LOCALIZATION_SETTINGS
from main import main as train
from options import parse_args
from scripts.detect import main as detect
from test import main as evaluate
from tests.conftest import ROOT
from utils.annotations import load_annotations, parse_annotations
from utils.detector import load_detector
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features

RATE = 25 / 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    simulate_features(parse_annotations(invent_timeline(20, 3), "invented"), folder, (6, 5))
    return folder


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    """Checkpoint of a run of two iterations; its attention is near 0.5, so that every video has detections."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(
        f"--config configs/demo.yaml --path-dataset {dataset} --run-dir {run} --num-snippets 12 --max-iter 2 "
        "--eval-every 2 --no-evaluate-untrained --device cpu".split()
    )
    return run / "checkpoints/last.pt"


@pytest.fixture(scope="module")
def features(dataset):
    with h5py.File(dataset / "features.h5") as file:
        return {name: file[name]["test_0015"][:] for name in ("rgb", "flow")}


@pytest.fixture
def own_video(tmp_path, features):
    """A folder of features only: no annotations, no snippet rate."""
    for name, values in features.items():
        (tmp_path / "own" / name).mkdir(parents=True)
        np.save(tmp_path / "own" / name / "my video.npy", values)
    return tmp_path / "own"


def changed(checkpoint, path, change):
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def localized_by_test(checkpoint, dataset, out, *more):
    evaluate(
        ["--checkpoint", str(checkpoint), "--path-dataset", str(dataset), "--output-dir", str(out), *more]
        + ["--device", "cpu"]
    )
    return json.loads((out / "detections.json").read_text())["results"]


def test_every_form_of_features_gives_the_same_detections(checkpoint, dataset, features, own_video, tmp_path):
    detector = load_detector(checkpoint, "cpu")
    expected = detector(dataset, video_id="test_0015")
    assert list(expected.columns) == ["label", "start", "end", "score"] and len(expected) > 0
    assert expected["score"].is_monotonic_decreasing and set(expected["label"]) <= set(detector.classes)
    joint = np.concatenate(list(features.values()), axis=1)
    np.save(tmp_path / "joint.npy", joint)
    for form in (features, joint, torch.from_numpy(joint), tmp_path / "joint.npy", str(own_video)):
        pd.testing.assert_frame_equal(detector(form, RATE), expected)
    with pytest.warns(UserWarning, match="no snippet rate; assuming 1.5625 snippets per second"):
        pd.testing.assert_frame_equal(detector(joint), expected)
    half = detector(joint, RATE / 2)
    np.testing.assert_allclose(half["start"], 2 * expected["start"])


def test_test_program_and_detector_agree(checkpoint, dataset, tmp_path):
    results = localized_by_test(checkpoint, dataset, tmp_path / "tested")
    detector = load_detector(checkpoint, "cpu")
    for video_id in ("test_0015", "test_0019"):
        rows = sorted(results[video_id], key=lambda row: -row["score"])
        frame = detector(dataset / "features.h5", video_id=video_id)
        assert frame["score"].tolist() == [row["score"] for row in rows]
        assert frame[["start", "end"]].values.tolist() == [row["segment"] for row in rows]


def test_plot_draws_one_video(checkpoint, features, tmp_path):
    figure = load_detector(checkpoint, "cpu").plot(features, RATE, path=tmp_path / "video.png")
    bars = figure.subfigs[1].axes[0]  # below the title
    assert (tmp_path / "video.png").stat().st_size > 0 and bars.get_ylim()[1] < 1  # no row for the ground truth


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda f: f["rgb"], r"features: has shape \(\d+, 6\), expected \(snippets, 11\): rgb 6 \+ flow 5"),
        (lambda f: {"rgb": f["rgb"]}, "modality 'flow' not found"),
        (lambda f: {"rgb": f["flow"], "flow": f["rgb"]}, "'rgb' has 5 channels, .*last.pt was trained on 6"),
        (lambda f: {**f, "rgb": f["rgb"] * np.nan}, "NaN"),
        (lambda f: {name: values[:0] for name, values in f.items()}, "snippets"),
        (lambda f: "nowhere/video.npy", "nowhere/video.npy"),
    ],
)
def test_unusable_features_are_one_line(checkpoint, features, form, message):
    with pytest.raises(InputError, match=message):
        load_detector(checkpoint, "cpu")(form(features), RATE)


def test_video_and_rate_must_be_clear(checkpoint, dataset):
    detector = load_detector(checkpoint, "cpu")
    with pytest.raises(InputError, match=r"has 20 videos \(.*\.\.\.\); choose one with video_id="):
        detector(dataset)
    with pytest.raises(InputError, match="store 1.5625 snippets per second, the rate given is 2"):
        detector(dataset, 2.0, "test_0015")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("options"), "has no options"),
        (lambda c: c.pop("classes"), "no class names"),
        (lambda c: c.pop("architecture"), "modality_dims"),
        (lambda c: c["architecture"].update(modality_dims=[10**9, 10**9]), "cannot be built"),
        (lambda c: c["architecture"].update(modality_dims=[10**6, 10**6]), "are the features of another width"),
        (lambda c: c["architecture"].update(modality_dims=["6", 5]), "modality_dims"),
        (lambda c: c["options"].update(class_threshold="many"), "class_threshold is not valid"),
        (lambda c: c["options"].update(attention_thresholds=0.5), "attention_thresholds is not valid"),
        (lambda c: c["options"].update(nms="medium"), "nms is not valid: 'medium' is not one of soft, hard"),
        (lambda c: c["options"].update(nms_sigma=0.0), "nms_sigma is not valid: '0.0' is not a number above 0"),
    ],
)
def test_unusable_checkpoints_are_one_line(checkpoint, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_detector(changed(checkpoint, tmp_path / "changed.pt", change), "cpu")


def test_detect_needs_features_and_a_checkpoint_only(checkpoint, own_video, features, tmp_path, run_main):
    out = tmp_path / "out"
    status, text, error = run_main(detect, own_video, "--checkpoint", checkpoint, "--output-dir", out)
    assert (status, error) == (0, "")
    assert (
        "no snippet rate; assuming 1.5625" in text
        and "[1/1] my video: " in text
        and f"the results are in {out}" in text
    )
    frame = load_detector(checkpoint, "cpu")(features, RATE)
    with (out / "detections.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["score"]))
    assert [float(row["score"]) for row in rows] == pytest.approx(frame["score"].tolist())
    assert {row["video-id"] for row in rows} == {"my video"}
    assert len(json.loads((out / "detections.json").read_text())["results"]["my video"]) == len(frame)
    assert (out / "outputs.h5").exists() and (out / "pictures/my video.png").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    (video,) = data["videos"]
    assert (video["id"], video["truth"], data["isScored"]) == ("my video", [], False)
    (answer,) = video["runs"]
    assert answer["total"] == len(frame) and answer["snippets"] == len(features["rgb"])
    best = [frame["label"][0], frame["start"][0], frame["end"][0]]
    assert [data["classes"][answer["detections"][0][0]], *answer["detections"][0][1:3]] == best
    assert 'id="results"' not in page and "detections without ground truth" in page


def test_detect_takes_several_sources(checkpoint, dataset, own_video, tmp_path, run_main):
    words = "--checkpoint", checkpoint, "--output-dir", tmp_path / "out"
    (own_video / "flow" / "my video.npy").rename(own_video / "flow" / "other.npy")
    (own_video / "rgb" / "other.npy").write_bytes((own_video / "rgb" / "my video.npy").read_bytes())
    status, text, _ = run_main(detect, dataset, own_video, *words)
    assert status == 0 and "1 video without all of rgb, flow, left out (my video)" in text and "[21/21]" in text
    assert json.loads((tmp_path / "out/detections.json").read_text())["results"].keys() > {"other", "test_0015"}
    status, _, error = run_main(detect, dataset, dataset / "features.h5", *words)
    assert status == 2 and "give it once" in error
    status, _, error = run_main(detect, dataset, own_video, *words, "--snippet-rate", "2")
    assert status == 2 and "store 1.5625" in error
    status, _, error = run_main(detect, dataset, "--checkpoint", checkpoint, "--output-dir", checkpoint.parents[1])
    assert status == 2 and "folder of a run" in error


def test_settings_are_the_same_on_every_command(checkpoint, dataset, tmp_path, run_main):
    settings = ["--class-threshold=0", "--attention-thresholds", "0.3", "0.45", "--nms-sigma=0.6", "--outer-margin=0.5"]
    default = localized_by_test(checkpoint, dataset, tmp_path / "default")
    results = localized_by_test(checkpoint, dataset, tmp_path / "tested", *settings)
    assert results != default
    out = tmp_path / "out"
    status, *_ = run_main(detect, dataset, "--checkpoint", checkpoint, "--output-dir", out, *settings)
    detected = json.loads((out / "detections.json").read_text())["results"]
    videos = load_annotations(dataset).videos
    clear = [video_id for video_id in results if not len(videos[video_id].ambiguous)]  # test.py drops more in others
    assert status == 0 and clear and all(detected[video_id] == results[video_id] for video_id in clear)
    hard = localized_by_test(checkpoint, dataset, tmp_path / "hard", "--nms", "hard", "--nms-tiou=0.3")
    assert 0 < sum(map(len, hard.values())) < sum(map(len, default.values()))
    # the same settings in training, and from there in the checkpoint
    run = tmp_path / "run"
    train(
        f"--config configs/demo.yaml --path-dataset {dataset} --run-dir {run} --num-snippets 12 --max-iter 2 "
        "--eval-every 2 --no-evaluate-untrained --device cpu".split()
        + settings
    )
    assert json.loads((run / "detections.json").read_text())["results"] == results
    assert localized_by_test(run / "checkpoints/last.pt", dataset, tmp_path / "again") == results


def test_checkpoints_without_settings_have_the_published_ones(checkpoint, dataset, tmp_path):
    older = changed(
        checkpoint, tmp_path / "older.pt", lambda c: [c["options"].pop(name) for name in LOCALIZATION_SETTINGS]
    )
    assert localized_by_test(older, dataset, tmp_path / "older") == localized_by_test(
        checkpoint, dataset, tmp_path / "new"
    )
    assert parse_args(["--path-dataset", "."]).class_score_weight == 0.2
    assert parse_args(["--path-dataset", ".", "--method", "audio_visual"]).class_score_weight == 0.7


def test_a_saved_config_repeats_the_settings(checkpoint, tmp_path):
    saved = checkpoint.parents[1] / "options.yaml"
    args = parse_args(["--config", str(saved), "--nms-sigma", "0.5"])
    assert args.attention_thresholds == np.linspace(0.1, 0.9, 10).tolist()  # bit for bit
    assert (args.class_threshold, args.nms_sigma) == (0.2, 0.5)
    (tmp_path / "mine.yaml").write_text(f"base: {saved}\nattention_thresholds: [0.2, 0.4]\nouter_margin: 0\n")
    args = parse_args(["--config", str(tmp_path / "mine.yaml")])
    assert (args.attention_thresholds, args.outer_margin) == ([0.2, 0.4], 0.0)


def test_settings_out_of_range_are_one_line(checkpoint, dataset, tmp_path, run_main):
    words = "--checkpoint", checkpoint, "--output-dir", tmp_path / "out"
    status, _, error = run_main(detect, dataset, *words, "--class-threshold", "2")
    assert status == 2 and error.startswith("error: argument --class-threshold: '2' is not a number in [0, 1]")
    with pytest.raises(InputError, match="unknown setting 'threshold'"):
        load_detector(checkpoint, "cpu", threshold=0.1)
    with pytest.raises(InputError, match="nms_sigma is not valid"):
        load_detector(checkpoint, "cpu", nms_sigma=-1)


def test_detect_runs_as_a_command(checkpoint, own_video, tmp_path):
    words = [own_video, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out"]
    command = [sys.executable, ROOT / "scripts/detect.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_tutorial_runs():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs/tutorial.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "docs")}})
    client.execute()
    tables = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("text/html" in table["data"] for table in tables) == 2  # detections of two detectors
    assert sum("image/png" in table["data"] for table in tables) == 1
