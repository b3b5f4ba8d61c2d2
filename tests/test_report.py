"""The HTML report: its numbers, its escaping, and what the command refuses."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from eval.detection import evaluate_detections
from eval.diagnosis import KINDS
from eval.html_report import videos
from eval.html_report.finished_run import read_runs
from eval.html_report.page import render_report
from eval.html_report.page_tables import results_tables
from eval.outputs import write_outputs
from eval.tables import read_ground_truth
from utils.datasets import DATASETS

ROOT = Path(__file__).resolve().parent.parent
RATE = 25 / 16
EVIL = "<script>alert(1)</script>"  # a video_id
CLASSES = ["Dive", "<b onclick=alert(2)>Jump</b>", "Throw"]
DATABASE = {
    "plain": [("Dive", 2.0, 9.0), ("Dive", 20.0, 26.0), ("Throw", 40.0, 49.0)],
    EVIL: [(CLASSES[1], 5.0, 15.0), ("Dive", 30.0, 40.0)],
    '" onload="alert(3)': [("Throw", 10.0, 30.0)],
    "no detections": [("Dive", 1.0, 4.0)],
}
DURATION = 60.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Return the folder of an annotated dataset without features."""
    folder = tmp_path_factory.mktemp("dataset")
    database = {
        video: {
            "subset": "test",
            "duration": DURATION,
            "annotations": [{"label": label, "segment": [start, end]} for label, start, end in rows],
            "ambiguous": [[50.0, 55.0]],
        }
        for video, rows in DATABASE.items()
    }
    (folder / "annotations.json").write_text(json.dumps({"classes": CLASSES, "database": database}))
    return folder


def make_run(folder: Path, dataset: Path, seed: int = 0, dataset_name: str = "demo") -> Path:
    """Write a run folder like main.py, with random detections and outputs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    options = {"seed": seed, "path_dataset": str(dataset), "dataset": dataset_name, "modalities": ["rgb", "flow"]}
    (folder / "options.yaml").write_text(yaml.safe_dump({**options, "max_iter": 200, "loss_weights": {"oppo": 0.5}}))
    environment = {"command": ["python", "main.py", "--note", EVIL], "python": "3.11", "torch": "2.9", "numpy": "2.4"}
    (folder / "environment.json").write_text(json.dumps({**environment, "revision": "abc123"}))
    detections = random_detections(rng)
    (folder / "detections.json").write_text(json.dumps({"results": detections}))
    metrics = {"last": scored(dataset, detections, dataset_name, 200)}
    metrics["best"] = scored(dataset, random_detections(rng), dataset_name, 100)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "log.jsonl").write_text("".join(json.dumps(log_record(metrics, at, rng)) + "\n" for at in (100, 200)))
    write_outputs(folder / "outputs.h5", [random_outputs(video, rng) for video in DATABASE], CLASSES, RATE)
    return folder


def random_outputs(video: str, rng: np.random.Generator) -> SimpleNamespace:
    length = int(DURATION * RATE)
    cas, modality_attention = rng.normal(size=(length, len(CLASSES) + 1)), rng.random((2, length)).astype(np.float16)
    attention = modality_attention.mean(axis=0)
    return SimpleNamespace(video_id=video, cas=cas, modality_attention=modality_attention, attention=attention)


def random_detections(rng: np.random.Generator) -> dict[str, list]:
    """Return noisy copies of the segments and some background, on the snippet grid."""
    detections = {video: [] for video in DATABASE}
    for video, rows in DATABASE.items():
        for label, start, end in [] if video == "no detections" else rows * 3:
            times = np.round((np.array([start, end]) + rng.normal(0, 2, 2)).clip(0, DURATION) * RATE)
            segment = sorted((times / RATE).tolist())
            label = label if rng.random() < 0.8 else CLASSES[rng.integers(3)]
            detections[video].append({"label": label, "score": float(rng.random()), "segment": segment})
    return detections


def scored(dataset: Path, detections: dict, dataset_name: str, iteration: int) -> dict:
    """Return one checkpoint of metrics.json."""
    metrics = {"iteration": iteration, "classification_map": 0.987654321}
    for protocol in ("snippet", "seconds"):
        result = evaluate_detections(
            read_ground_truth(dataset, "test"),
            {"results": detections},
            DATASETS[dataset_name].tiou_thresholds,
            protocol=protocol,
            classes=CLASSES,
        )
        metrics[protocol] = result.as_dict()
    return metrics


def log_record(metrics: dict, iteration: int, rng: np.random.Generator) -> dict:
    scores = {"classification_mAP": 0.9, "holdout/classification_mAP": 0.8, "holdout/loss": 2.5}
    for protocol in ("snippet", "seconds"):
        result = metrics["last"][protocol]
        for threshold, value in zip(result["tiou_thresholds"], result["map"], strict=True):
            scores[f"{protocol}/mAP@{threshold:g}"] = value
    return {"iteration": iteration, "losses": {"mil_org": rng.random(), "total": rng.random()}, "scores": scores}


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run & co", dataset)


@pytest.fixture(scope="module")
def page(run) -> str:
    return render_report(read_runs([run]))


class _Cells(HTMLParser):
    """Full-precision values of the results tables: {(protocol, run, checkpoint): values}."""

    def __init__(self, page: str):
        super().__init__()
        self.rows, self._protocol, self._row = {}, None, None
        self.feed(page[: page.index('<script type="application/json"')])

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self._protocol = attributes.get("data-protocol")
        if tag == "tr":
            key = (self._protocol, attributes.get("data-run"), attributes.get("data-checkpoint"))
            self._row = self.rows.setdefault(key, []) if all(key) else None
        if tag == "data" and self._row is not None:
            self._row.append(float(attributes["value"]))


def test_numbers_are_those_of_metrics_json(page, run):
    metrics = json.loads((run / "metrics.json").read_text())
    rows = _Cells(page).rows
    assert len(rows) == 4
    for (protocol, name, checkpoint), values in rows.items():
        result = metrics[checkpoint][protocol]
        assert name == "run & co"
        assert values[:9] == result["map"]
        assert values[9:12] == pytest.approx([np.mean(result["map"][:count]) for count in (5, 7, 9)])
        assert values[12] == metrics[checkpoint]["classification_map"]


def test_data_of_the_charts_are_those_of_metrics_json(page, run):
    data = page_data(page)
    metrics = json.loads((run / "metrics.json").read_text())
    for checkpoint, protocols in data["runs"][0]["checkpoints"].items():
        assert protocols == {name: metrics[checkpoint][name] for name in ("snippet", "seconds")}
    assert {video["id"] for video in data["videos"]} == set(DATABASE)


def page_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_nothing_from_files_becomes_markup(page):
    own = page[: page.index("/**\n* plotly.js")]
    assert "<script>alert" not in own
    assert "<b onclick" not in own
    assert len(re.findall("<script", own)) == 2  # the data, and the start of Plotly


def test_page_loads_nothing(page):
    own = page[: page.index("/**\n* plotly.js")]
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)|url\(|@import""", own)
    assert "default-src 'none'" in own


def test_page_explains_best_and_names_unknown_features(page):
    assert "<code>best</code> was chosen on the test subset" in page
    assert "unknown whether simulated" in page
    assert "differs from metrics.json" not in page


def test_simulated_features_are_marked(dataset, tmp_path):
    run = make_run(tmp_path / "a", dataset)
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "features": {"simulated": True}}))
    page = render_report(read_runs([run]))
    assert "<strong>SIMULATED features</strong>" in page
    assert "SIMULATED</td>" in page


def test_detections_that_contradict_the_metrics_are_reported(dataset, tmp_path):
    run = make_run(tmp_path / "a", dataset)
    (run / "detections.json").write_text(json.dumps({"results": random_detections(np.random.default_rng(9))}))
    assert "the mAP of detections.json differs from metrics.json" in render_report(read_runs([run]))


def test_published_rows_appear_under_their_protocol(dataset, tmp_path):
    run = make_run(tmp_path / "a", dataset, dataset_name="thumos14")
    tables = {table["protocol"]: table for table in results_tables(read_runs([run]))}
    (row,) = tables["snippet"]["published"]
    assert (row["method"], row["map"][4], row["averages"]) == ("CO₂-Net", "38.3", ["54.4", "44.6", "35.7"])
    assert {row["method"] for row in tables["seconds"]["published"]} == {"HAM-Net", "UM"}
    assert "BaS-Net" in {row["method"] for row in tables[None]["published"]}
    assert not tables[None]["runs"]
    doubtful = {row["method"] for table in tables.values() for row in table["published"] if row["doubtful"]}
    assert doubtful == {"S-CNN", "STAR", "PreTrimNet", "HAM-Net"}


def test_published_rows_of_activitynet(dataset, tmp_path):
    run = make_run(tmp_path / "a", dataset, dataset_name="activitynet12")
    (row,) = results_tables(read_runs([run]))[0]["published"]
    assert row["map"] == ["43.3", *[None] * 4, "26.3", *[None] * 3, "5.2"]
    assert row["averages"] == ["26.4"]


def test_log_and_environment_may_be_missing(dataset, tmp_path):
    run = make_run(tmp_path / "a", dataset)
    (run / "log.jsonl").unlink()
    (run / "environment.json").unlink()
    assert page_data(render_report(read_runs([run])))["runs"][0]["log"] == []


def test_undefined_numbers_are_dashes(dataset, tmp_path):
    run = make_run(tmp_path / "a", dataset)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["last"]["classification_map"] = None
    metrics["best"]["classification_map"] = float("nan")
    metrics["best"]["snippet"]["map"][8] = None
    (run / "metrics.json").write_text(json.dumps(metrics))
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    records[0]["losses"]["total"] = float("inf")
    records[0]["scores"]["classification_mAP"] = None
    records[1]["scores"]["snippet/mAP@0.1"] = float("nan")
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = render_report(read_runs([run]))
    rows = {key: len(values) for key, values in _Cells(page).rows.items()}
    assert rows["snippet", "a", "last"] == 12  # 9 thresholds and 3 ranges, without the classification mAP
    assert rows["snippet", "a", "best"] == 10  # and without the last threshold and its range
    assert page.count('<span class="none" aria-label="not given">–</span>') >= 6
    first, second = page_data(page)["runs"][0]["log"]
    assert first["losses"]["total"] is None and first["scores"]["classification mAP"] is None
    assert second["scores"]["mAP@0.1:0.7, snippet"] is None and second["scores"]["mAP@0.5, snippet"] > 0


def test_summary_of_a_video():
    """Two segments of a class; by score: a match, its double, a wrong label, and background below the limit of two."""
    truth = {"database": {"v": {"subset": "test", "annotations": [
        {"label": "a", "segment": [0, 10]}, {"label": "a", "segment": [20, 30]}, {"label": "b", "segment": [40, 50]},
    ]}}}  # fmt: skip
    rows = [("a", 9, 0, 10), ("a", 8, 0, 9), ("b", 7, 20, 30), ("a", 1, 60, 70)]
    detections = {"results": {"v": [{"label": x, "score": s, "segment": [b, e]} for x, s, b, e in rows]}}
    result = evaluate_detections(truth, detections, [0.5])
    verdicts = videos.judge(result)
    assert [KINDS[kind] for kind in verdicts.kinds] == [
        "true positive", "double detection", "wrong label", "background",
    ]  # fmt: skip
    assert verdicts.counts.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert verdicts.missed.tolist() == [2]
    assert verdicts.ap == pytest.approx([1 / 3])
    shown = videos.shown_detections(result.detections, verdicts.kinds, 1.0)
    assert shown["v"][0] == [0, 0.0, 10.0, 9.0, 0]


def test_curves_are_packed_without_loss():
    values = np.random.default_rng(0).normal(size=100).astype(np.float16)
    packed = videos._pack(values)
    steps = np.frombuffer(base64.b64decode(packed["steps"]), "<u2")
    unpacked = packed["low"] + steps * (packed["high"] - packed["low"]) / 65535
    np.testing.assert_allclose(unpacked, values, atol=1e-4)


def run_script(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_script_compares_runs_in_one_page(run, dataset, tmp_path):
    other = make_run(tmp_path / "other", dataset, seed=1)
    done = run_script(run, other, "--out", tmp_path / "both.html")
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert {name for _, name, _ in _Cells(page).rows} == {"run & co", "other"}
    assert all(len(video["runs"]) == 2 for video in page_data(page)["videos"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "run folder not found"),
        (lambda run: (run / "metrics.json").unlink(), "metrics.json not found"),
        (lambda run: (run / "outputs.h5").write_text("not HDF5"), "not the outputs of a run"),
        (lambda run: (run / "metrics.json").write_text("{}"), "not the metrics of a run"),
        (lambda run: (run / "metrics.json").write_text('{"last": '), "not valid JSON"),
        (lambda run: (run / "log.jsonl").write_text("{}\n"), "log.jsonl: expected iteration, losses and scores"),
        (
            lambda run: (run / "log.jsonl").write_text('{"iteration": 1, "losses": {"a": "b"}, "scores": {}}\n'),
            "log.jsonl: expected iteration, losses and scores",
        ),
        (lambda run: (run / "options.yaml").write_text("[1, 2"), "options.yaml: not a YAML file"),
        (lambda run: (run / "options.yaml").write_text("[1, 2]"), "not the options of a run"),
        (lambda run: (run / "options.yaml").write_text("dataset: demo"), "--path-dataset"),
        (
            lambda run: (run / "options.yaml").write_text("{dataset: demo, path_dataset: gone}"),
            "dataset folder gone not found",
        ),
    ],
)
def test_errors_are_one_line(dataset, tmp_path, spoil, message):
    run = make_run(tmp_path / "run", dataset)
    spoil(run)
    done = run_script(run)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_wrong_option_is_one_line(run):
    done = run_script(run, "--nothing")
    assert done.returncode == 2
    assert done.stderr == "error: unrecognized arguments: --nothing (see scripts/report.py --help)\n"


def test_runs_of_different_datasets_are_refused(run, dataset, tmp_path):
    done = run_script(run, make_run(tmp_path / "other", dataset, dataset_name="thumos14"))
    assert done.returncode == 2 and "make a report of each" in done.stderr


@pytest.fixture
def detections(tmp_path) -> Path:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"results": random_detections(np.random.default_rng(3))}))
    return path


def report_page(*arguments) -> tuple[str, dict]:
    done = run_script(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    page = Path(done.stdout.rpartition(" (")[0]).read_text(encoding="utf-8")
    return page, page_data(page)


def test_detections_of_a_file_are_scored_with_ground_truth(dataset, detections):
    page, data = report_page(detections, "--ground-truth", dataset)
    result = evaluate_detections(dataset, detections, DATASETS["thumos14"].tiou_thresholds, subset="test")
    values = _Cells(page).rows["seconds", "theirs", "detections"]
    assert values[:9] == result.map.tolist() and len(values) == 12
    assert 'id="training"' not in page and 'id="diagnosis"' in page
    (run,) = data["runs"]
    assert run["checkpoints"]["detections"]["seconds"]["ap"] == result.as_dict()["ap"]
    assert {video["id"] for video in data["videos"]} == set(DATABASE)
    assert all(row[4] is not None for video in data["videos"] for row in video["runs"][0]["detections"])


def test_detections_of_a_file_are_shown_without_ground_truth(detections):
    page, data = report_page(detections)
    assert not data["isScored"] and 'id="results"' not in page and "detections without ground truth" in page
    rows = json.loads(detections.read_text())["results"]
    assert {video["id"]: video["runs"][0]["total"] for video in data["videos"]} == {v: len(rows[v]) for v in rows}
    best = max(rows["plain"], key=lambda row: row["score"])
    label, start, end, *_ = data["videos"][0]["runs"][0]["detections"][0]
    assert [data["classes"][label], start, end] == [best["label"], *(round(time, 2) for time in best["segment"])]
    assert data["videos"][0]["duration"] >= end


def test_detections_whose_names_differ_are_refused_with_advice(dataset, detections):
    results = json.loads(detections.read_text())["results"]
    detections.write_text(json.dumps({"results": {f"v_{name}": rows for name, rows in results.items()}}))
    done = run_script(detections, "--ground-truth", dataset)
    assert done.returncode == 2 and "expected 'plain' (prefix 'v_'); --strip v_ makes them match" in done.stderr
    page, _ = report_page(detections, "--ground-truth", dataset, "--strip", "v_")
    assert ("seconds", "theirs", "detections") in _Cells(page).rows


def test_runs_and_files_of_detections_have_pages_of_their_own(run, dataset, detections):
    assert "make a report of each" in run_script(run, detections).stderr
    assert "--ground-truth is for detection files" in run_script(run, "--ground-truth", dataset).stderr


def test_thresholds_without_one_half(dataset, detections, tmp_path):
    _, data = report_page(detections, "--ground-truth", dataset, "--tiou-thresholds", 0.3, 0.45)
    assert (data["verdictTiou"], data["mainRange"]) == (0.45, "0.3:0.45")
    config = "{dataset: mine, train_subset: a, test_subset: test, tiou_thresholds: [0.3], average_ranges: ['0.3:0.3']}"
    (tmp_path / "mine.yaml").write_text(config)
    _, data = report_page(detections, "--ground-truth", dataset, "--dataset", tmp_path / "mine.yaml")
    assert data["verdictTiou"] == 0.3


# ---- in a browser ----
