"""A dataset that exists only in a YAML file goes through every command; a subset without segments is localized."""

import json

import pytest

import main
from eval.compare import main as compare
from eval.detection import main as detection
from eval.diagnosis import main as diagnosis
from scripts.report import main as report
from test import main as localize
from utils.annotations import parse_annotations
from utils.datasets import DATASETS, dataset_spec, find_dataset
from utils.errors import InputError
from utils.features.check import main as check
from utils.features.simulate import invent_timeline, simulate_features

CONFIG = """dataset: backyard
train_subset: seen
test_subset: unseen
tiou_thresholds: [0.25, 0.5]
average_ranges: ['0.25:0.5']
min_snippets: 2
max_iter: 2
eval_every: 2
num_snippets: 20
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backyard")
    timeline = invent_timeline(20, 3)
    for number, video in enumerate(timeline["database"].values()):
        video["subset"] = {"train": "seen", "test": "unseen"}[video["subset"]]
        if number == 19:
            video |= {"subset": "new", "annotations": [], "labels": []}
    simulate_features(parse_annotations(timeline, "timeline"), folder, (4, 3))
    (folder / "backyard.yaml").write_text(CONFIG)
    return folder


def test_every_command_knows_the_dataset_of_a_config(dataset, tmp_path, run_main):
    config, run = dataset / "backyard.yaml", tmp_path / "run"
    words = ("--config", config, "--path-dataset", dataset, "--run-dir", run, "--device", "cpu")
    status, printed, error = run_main(main.main, *words)
    assert status == 0, error
    assert "0.25:0.5" in printed and "highest mean mAP@0.25:0.5 (snippet)" in printed
    metrics = json.loads((run / "metrics.json").read_text())["last"]
    assert metrics["snippet"]["tiou_thresholds"] == [0.25, 0.5]

    words = ("--checkpoint", run / "checkpoints/last.pt", "--path-dataset", dataset, "--device", "cpu")
    status, printed, error = run_main(localize, *words, "--output-dir", tmp_path / "out")
    assert status == 0, error
    assert json.loads((tmp_path / "out/metrics.json").read_text())["last"] == metrics

    for command, path in ((detection, config), (diagnosis, run / "options.yaml")):
        words = ("--predictions", run / "detections.json", "--ground-truth", dataset / "annotations.json")
        status, printed, error = run_main(command, *words, "--dataset", path)
        assert status == 0, error
    words = (*[run / "detections.json"] * 2, "--ground-truth", dataset, "--dataset", config, "--resamples", 9)
    status, printed, error = run_main(compare, *words)
    assert status == 0 and "0.25:0.5" in printed, error
    status, printed, error = run_main(report, run / "detections.json", "--ground-truth", dataset, "--dataset", config)
    assert status == 0 and printed.startswith(f"{run / 'detections.html'} ("), error
    status, _, error = run_main(report, run, "--path-dataset", dataset, "--out", tmp_path / "report.html")
    assert status == 0, error
    status, printed, error = run_main(check, dataset, "--check", "--dataset", config)
    assert status == 0 and "0 errors" in printed, printed + error


def test_a_subset_without_segments_is_localized_and_not_scored(dataset, tmp_path, run_main):
    config, run = dataset / "backyard.yaml", tmp_path / "run"
    words = ("--config", config, "--path-dataset", dataset, "--device", "cpu")
    assert run_main(main.main, *words, "--run-dir", run)[0] == 0
    status, printed, error = run_main(
        localize,
        *("--checkpoint", run / "checkpoints/last.pt", "--path-dataset", dataset, "--device", "cpu"),
        *("--output-dir", tmp_path / "new", "--subset", "new"),
    )
    assert status == 0, error
    assert "subset 'new' has no annotated segments" in printed and "no scores" in printed
    assert (tmp_path / "new/detections.json").is_file() and (tmp_path / "new/videos.png").is_file()
    assert json.loads((tmp_path / "new/metrics.json").read_text()) == {}


def test_training_without_annotated_segments_ends_without_scores(dataset, tmp_path, run_main):
    run = tmp_path / "run"
    words = ("--config", dataset / "backyard.yaml", "--path-dataset", dataset, "--device", "cpu")
    words = (*words, "--test-subset", "new", "--run-dir", run, "--holdout", "0.2")
    status, printed, error = run_main(main.main, *words)
    assert status == 0, error
    assert "nothing is scored" in printed and "no scores" in printed and "`best`" not in printed
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.pt", "selected.pt"}
    assert json.loads((run / "metrics.json").read_text()) == {name: {"iteration": 2} for name in ("last", "selected")}
    status, trained, error = run_main(main.main, *words, "--resume", "--max-iter", 4)
    assert status == 0, error
    assert json.loads((run / "metrics.json").read_text())["last"] == {"iteration": 4}
    status, printed, error = run_main(report, run)
    assert status == 0 and f"scripts/report.py {run}\n" in trained, error
    page = (run / "report.html").read_text()
    assert "SIMULATED" in page and "mAP" not in page.split("<script")[0]
    words = ("--checkpoint", run / "checkpoints/selected.pt", "--path-dataset", dataset, "--device", "cpu")
    status, _, error = run_main(localize, *words, "--output-dir", tmp_path / "out", "--subset", "unseen")
    assert status == 0, error
    assert json.loads((tmp_path / "out/metrics.json").read_text())["selected"]["snippet"]["map"]


def test_published_values_are_defaults_that_options_override():
    assert dataset_spec({"dataset": "thumos14"}) == DATASETS["thumos14"]
    spec = dataset_spec({"dataset": "thumos14", "test_subset": "validation", "average_ranges": ["0.3:0.5"]})
    assert (spec.train_subset, spec.test_subset, spec.main_range) == ("validation", "validation", (0.3, 0.5))
    assert find_dataset("configs/activitynet13.yaml") == DATASETS["activitynet13"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "backyard"}, "has no published train_subset"),
        ({"dataset": "demo", "tiou_thresholds": [0]}, "cannot be used"),
        ({"dataset": "demo", "average_ranges": ["0.7:0.1"]}, "is not a range of tIoU"),
        ({"dataset": "demo", "tiou_thresholds": [0.3]}, "no tIoU threshold lies in the averaged range"),
    ],
)
def test_impossible_datasets_are_refused_in_one_line(options, message):
    if options.get("tiou_thresholds") == [0.3]:
        options["average_ranges"] = ["0.5:0.7"]
    with pytest.raises(InputError, match=message):
        dataset_spec(options)


def test_an_unknown_dataset_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="expected one of thumos14, multithumos"):
        find_dataset("thumos")
    (tmp_path / "empty.yaml").write_text("lr: 1\n")
    with pytest.raises(InputError, match="has no line 'dataset: NAME'"):
        find_dataset(str(tmp_path / "empty.yaml"))
