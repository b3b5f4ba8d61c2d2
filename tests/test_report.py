"""Tests of the HTML report: its numbers, its escaping, and its behavior in headless Chromium (skipped if missing)."""

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
from tests.browser import open_browser, press, script, wait_until
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
        (lambda run: (run / "outputs.h5").unlink(), "outputs.h5 not found"),
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


@pytest.fixture(scope="module")
def browser(run, dataset, tmp_path_factory):
    """Headless Chromium on the report of two runs."""
    folder = tmp_path_factory.mktemp("browser")
    driver = open_browser(folder / "profile")
    try:
        other = make_run(folder / "other", dataset, seed=1)
        page = folder / "report.html"
        page.write_text(render_report(read_runs([run, other])), encoding="utf-8")
        for name, words in {"scored": ["--ground-truth", str(dataset)], "unscored": []}.items():
            assert run_script(run / "detections.json", *words, "--out", folder / f"{name}.html").returncode == 0
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def shown_video(browser) -> str:
    return script(browser, "document.getElementById('timeline').dataset.video")


def shown_range(browser) -> list[float]:
    return script(browser, "document.getElementById('timeline').layout.xaxis.range")


def click(browser, name: str) -> None:
    script(browser, "document.getElementById(arguments[0]).click()", name)


def to_viewer(browser) -> None:
    script(browser, "document.getElementById('videos').scrollIntoView({behavior: 'instant'})")


def test_browser_opens_the_page_without_an_error(browser):
    wait_until(lambda: script(browser, "document.querySelectorAll('.chart .main-svg').length") > 10)
    assert script(browser, "performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_browser_shows_the_numbers_of_metrics_json(browser, run):
    metrics = json.loads((run / "metrics.json").read_text())
    for protocol in ("snippet", "seconds"):
        for checkpoint, scores in metrics.items():
            row = f"table[data-protocol={protocol}] tr[data-run='run & co'][data-checkpoint={checkpoint}] td"
            cells = script(browser, "[...document.querySelectorAll(arguments[0])].map((cell) => cell.innerText)", row)
            assert cells[:9] == [f"{100 * value:.2f}" for value in scores[protocol]["map"]]


def test_browser_class_bars_are_metrics_json(browser, run):
    result = json.loads((run / "metrics.json").read_text())["last"]["snippet"]
    at = result["tiou_thresholds"].index(0.5)
    bars = script(browser, "document.getElementById('class-chart').data[0].x")
    assert sorted(bars) == pytest.approx(sorted(100 * value for value in result["ap"][at]))


def test_browser_viewer_switches_the_video(browser):
    names, right, left = list(DATABASE), "\ue014", "\ue012"
    to_viewer(browser)
    assert shown_video(browser) == names[0]
    click(browser, "next")
    assert shown_video(browser) == names[1] == EVIL
    assert EVIL in browser.find_element("id", "video-summary").text
    press(browser, right)
    assert shown_video(browser) == names[2]
    press(browser, left)
    click(browser, "previous")
    assert shown_video(browser) == names[0]
    browser.find_element("css selector", "#video option[value='3']").click()
    assert shown_video(browser) == "no detections"
    script(browser, "document.querySelector('#video-table tr[data-video=\"0\"]').click()")
    assert shown_video(browser) == names[0]


def test_browser_viewer_zooms(browser):
    to_viewer(browser)
    click(browser, "whole")
    assert shown_range(browser) == [0, DURATION]
    click(browser, "zoom-in")
    assert shown_range(browser) == [DURATION / 4, 3 * DURATION / 4]
    press(browser, "+")
    start, end = shown_range(browser)
    assert end - start == DURATION / 4
    click(browser, "later")
    assert shown_range(browser)[0] > start
    press(browser, "0")
    assert shown_range(browser) == [0, DURATION]


def test_browser_viewer_zooms_by_the_mouse(browser):
    chains = pytest.importorskip("selenium.webdriver.common.action_chains", reason="selenium is not installed")
    timeline = browser.find_element("id", "timeline")
    script(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", timeline)
    mouse = chains.ActionChains(browser)
    mouse.move_to_element_with_offset(timeline, -200, 100).click_and_hold().move_by_offset(150, 0).release().perform()
    start, end = shown_range(browser)
    assert 0 < start < end < DURATION

    def zooms_out() -> bool:  # the clicks of a slow browser may be too far apart
        if shown_range(browser) != [0, DURATION]:
            mouse = chains.ActionChains(browser)
            mouse.move_to_element_with_offset(timeline, -200, 100).double_click().perform()
        return shown_range(browser) == [0, DURATION]

    wait_until(zooms_out)


def test_browser_viewer_draws_the_outputs_of_the_run(browser):
    to_viewer(browser)
    traces = script(browser, "document.getElementById('timeline').data.map((t) => [t.type || 'line', t.x.length])")
    dives = [row for row in DATABASE["plain"] if row[0] == "Dive"]
    assert ["bar", len(dives)] in traces
    lines = [count for kind, count in traces if count == int(DURATION * RATE)]
    assert len(lines) == 2 * (3 + 2)  # two runs, each with three attentions and the T-CAM of two classes
    script(browser, "document.querySelector('#class-choice input:checked').click()")
    fewer = script(browser, "document.getElementById('timeline').data.length")
    assert fewer < len(traces)
    script(browser, "document.querySelector('#class-choice input:not(:checked)').click()")


def test_browser_list_sorts(browser):
    def column(place: int) -> list[str]:
        code = "[...document.querySelectorAll('#video-table tbody tr')].map((row) => row.cells[arguments[0]].innerText)"
        return script(browser, code, place)

    click_heading = "document.querySelector(`#video-table button[data-column='${arguments[0]}']`).click()"
    script(browser, click_heading, "ap0")
    values = [float(text) for text in column(3)]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    script(browser, click_heading, "ap0")
    assert [float(text) for text in column(3)] == sorted(values)
    script(browser, click_heading, "missed")
    missed = [int(text) for text in column(5)]
    assert missed == sorted(missed, reverse=True)
    script(browser, click_heading, "position")
    assert column(0) == list(DATABASE)


def assert_fits_a_phone(browser) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        # charts follow the window with a delay
        wait_until(lambda: script(browser, "document.documentElement.scrollWidth") <= 390)
        wide = "[...document.querySelectorAll('main *')].filter((node) => node.getBoundingClientRect().right > 391)"
        outside = f"{wide}.filter((node) => !node.closest('.table-box')).map((node) => node.outerHTML.slice(0, 200))"
        wait_until(lambda: script(browser, outside) == [])
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_browser_fits_a_phone_and_prints(browser):
    assert_fits_a_phone(browser)
    assert len(browser.print_page()) > 10_000
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("name", ["scored", "unscored"])
def test_browser_shows_files_of_detections(browser, name):
    address = browser.current_url
    browser.get(address.replace("report.html", f"{name}.html"))
    try:
        wait_until(lambda: shown_video(browser) == "plain")
        click(browser, "next")
        wait_until(lambda: shown_video(browser) == EVIL)
        heads = script(browser, "[...document.querySelectorAll('#video-table th')].map((head) => head.innerText)")
        assert ("best class" in heads, "missed" in heads) == ((False, True) if name == "scored" else (True, False))
        bars = script(
            browser, "document.getElementById('timeline').data.filter((trace) => trace.type === 'bar').length"
        )
        assert bars >= (2 if name == "scored" else 1)
        assert_fits_a_phone(browser)
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        browser.get(address)
