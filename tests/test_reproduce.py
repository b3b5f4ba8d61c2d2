"""scripts/reproduce.py: plans, stops, continues, repeats nothing, and says what came out."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts import reproduce
from scripts.reproduction import execute, render, results
from scripts.reproduction.cost import as_time, last_line
from scripts.reproduction.figure5 import draw_figure5
from scripts.reproduction.plan import Setting, planned_runs, read_tables
from utils.annotations import parse_annotations
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features
from utils.run.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "dataset: demo\nnum_snippets: 12\nlr: 1e-3\nmax_iter: 40\neval_every: 20\nevaluate_untrained: true\n"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a made data set and a config."""
    folder = tmp_path_factory.mktemp("made")
    simulate_features(parse_annotations(invent_timeline(20, 3), "invented"), folder, (6, 6))
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


def command(data, run_dir, table, *more):
    base = [table, "--base", data / "tiny.yaml", "--path-dataset", data, "--run-dir", run_dir]
    return [sys.executable, ROOT / "scripts/reproduce.py", *map(str, [*base, "--device", "cpu", *more])]


def run(*argv):
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """Table 5, stopped in its first run: the run folders, and what was printed."""
    run_dir = tmp_path_factory.mktemp("runs")
    process = subprocess.Popen(
        command(data, run_dir, "table5", "--seeds", "0"), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    folder = run_dir / "tiny" / data.name
    deadline = time.monotonic() + 60
    while not (folder / "table5_local_local_s0/log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    return folder, process.returncode, printed


@pytest.fixture(scope="module")
def finished(data, stopped):
    """The same command again, to its end."""
    folder = stopped[0]
    (folder / "other_s0").mkdir()  # a run that tells the cost, so that nothing is measured again
    (folder / "other_s0/cost.json").write_text(json.dumps({"iterations": 40, "seconds": 2.0}))
    done = run(*command(data, folder.parent.parent, "table5", "--seeds", "0", "--jobs", "2"))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_stop_is_safe(stopped):
    folder, status, printed = stopped
    assert status == 1
    assert "3 runs of 40 iterations" in printed
    assert "measured on 10 steps and an evaluation" in printed
    assert "stopping: each run in progress saves itself" in printed
    assert not (folder / "table5_local_global_s0").exists()


def test_the_same_command_continues(stopped, finished):
    folder, printed = finished
    assert "3 to do" in printed
    assert "(2 s a run, 2 at a time; measured on 1 finished run)" in printed
    assert "SIMULATED features rgb + flow" in printed
    for row in ("local / local", "local / global", "global / local"):
        assert row in printed
    assert "last: the paper's order of rows" in printed
    assert sorted(path.parent.name for path in folder.glob("*/metrics.json")) == [
        "co2net_s0",
        "table5_local_global_s0",
        "table5_local_local_s0",
    ]
    for path in folder.glob("*_s0/log.jsonl"):  # the stopped run's too
        assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [0, 20, 40]
    rows = list(csv.DictReader((folder / "table5.csv").open()))
    assert len(rows) == 3 + 3 * 2 * 2  # the paper's, and each run's checkpoints under both protocols
    assert (rows[0]["source"], rows[0]["mean"], rows[0]["mAP@0.1"]) == ("paper", "43.0", "68.1")
    assert all("SIMULATED" in row["features"] for row in rows[3:])
    assert "| local / local | 43.0 | 0 |" in (folder / "table5.md").read_text()


def test_a_finished_table_repeats_nothing(data, finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.setattr(execute, "run_here", None)
    reproduce.main(command(data, folder.parent.parent, "table5", "--seeds", "0")[2:])
    assert "0 to do" in capsys.readouterr().out
    # and a table that shares the base's run does not do it again
    reproduce.main(command(data, folder.parent.parent, "table4", "--seeds", "0", "--plan")[2:])
    printed = capsys.readouterr().out
    assert "4 runs of 40 iterations" in printed and "co2net_s0: done" in printed and "table4_kl_s0: to do" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lr", "1e-4"], "was run with lr = 0.001, not 0.0001"),
        (["--max-iter", "20"], "has 40 iterations, 20 were asked for"),
    ],
)
def test_another_run_is_not_taken_for_this_one(data, finished, more, message):
    argv = command(data, finished[0].parent.parent, "table5", "--seeds", "0", *more)[2:]
    with pytest.raises(InputError, match=message):
        reproduce.main(argv)


def test_a_failed_run_is_told_and_the_others_go_on(data, tmp_path, capsys):
    setting = Setting(data / "tiny.yaml", data, tmp_path, ("--device", "cpu"))
    (one,) = planned_runs(read_tables()["table1"], setting, [0])
    broken = replace(one, command=(sys.executable, "-c", "exit('error: so it is')"))
    assert execute.run_here([broken, broken], [ENVIRONMENT]) == [broken, broken]
    assert "FAILED: error: so it is" in capsys.readouterr().out


def test_slurms_local_executor_gets_what_is_not_done(data, finished, capsys):
    argv = command(data, finished[0].parent.parent, "table1", "--seeds", "0", "1", "--slurm", "cluster=local")
    reproduce.main(argv[2:])
    printed = capsys.readouterr().out
    assert "submitted 1 jobs" in printed
    assert "co2net_s1 is done" in printed
    assert "2 of 2 runs" in printed


def test_slurm_without_submitit_or_cluster_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--slurm: "):
        execute.run_on_slurm([], tmp_path, {"cluster": "local", "color": "red"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="pip install submitit"):
        execute.run_on_slurm([], tmp_path, {})


def test_one_run_a_gpu_and_threads_divided(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in execute.slots(1, False)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in execute.slots(1, False)] == ["5", "7"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in execute.slots(2, False)] == ["5", "7", "5", "7"]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [place["OMP_NUM_THREADS"] for place in execute.slots(3, True)] == ["2"] * 3
    assert [place["OMP_NUM_THREADS"] for place in execute.slots(1, True)] == ["8"]


def test_two_processes_do_not_train_the_same_run(tmp_path):
    run = tmp_path / "run"
    with RunFolder(run, {}, False, {}), pytest.raises(InputError, match="trained by another process"):
        RunFolder(run, {}, False, {}).__enter__()
    with RunFolder(run, {}, False, {}):
        pass


def test_figure5(data, finished, tmp_path):
    folders = {name: finished[0] / f"{name}_s0" for name in ("table5_local_local", "co2net")}
    paths = draw_figure5(folders, data, ["test_0012"], tmp_path / "figure5", "SIMULATED")
    assert [path.name for path in paths] == ["figure5.png", "figure5.pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)
    with pytest.raises(InputError, match="train_0003: not a test video of the run"):
        draw_figure5(folders, data, ["train_0003"], tmp_path / "figure5", "")


def made_column(values, simulated=True):
    """{row: {seed: mean mAP in percent}} -> a column of Table 6 without any training."""
    made = []
    for key, seeds in values.items():
        for seed, value in seeds.items():
            scores = {"tiou_thresholds": [t / 10 for t in range(1, 10)], "map": [value / 100] * 9}
            metrics = {"iteration": 9, "snippet": scores, "seconds": scores}
            options = {"dataset": "thumos14", "modalities": ["rgb", "flow"], "seed": seed}
            environment = {"features": {"simulated": simulated}, "device": "cpu", "revision": "0123456789abc"}
            folder = Path(f"runs/thumos14/made/{key}_s{seed}")
            made.append(results.Result(key, folder, options, environment, {"last": metrics, "best": metrics}))
    (column,) = results.columns_of(made)
    return column


def made_accuracies(values):
    """{row: accuracy on val+test in percent} -> a column of runs on AVE, on `test` a point less."""
    made = []
    for key, value in values.items():
        sizes = {"class_everywhere": 0.8, "videos": 4, "snippets": 40}
        accuracy = {s: {**sizes, "accuracy": value / 100 - d} for s, d in (("val+test", 0), ("test", 0.01))}
        scores = {"tiou_thresholds": [0.5], "map": [0.1]}
        metrics = {"iteration": 9, "snippet": scores, "seconds": scores, "snippet_accuracy": accuracy}
        alone = key.removeprefix("av_table1_")
        modalities = [alone] if alone in ("audio", "visual") else ["visual", "audio"]
        options = {"dataset": "ave", "modalities": modalities, "seed": 0}
        environment = {"features": {"simulated": True}, "device": "cpu", "revision": "0123456789abc"}
        folder = Path(f"runs/ave/made/{key}_s0")
        made.append(results.Result(key, folder, options, environment, {"last": metrics, "best": metrics}))
    (column,) = results.columns_of(made)
    return column


def test_accuracies_are_shown_on_both_counts_of_test_videos(tmp_path):
    table = read_tables()["av-table1"]
    values = {"av_table1_audio": 10, "av_table1_visual": 20, "av_table1_stages_0": 30}
    values |= {"av_table1_stages_1": 40, "audio_visual": 60, "av_table1_stages_3": 50}
    column = made_accuracies(values)
    text = render.as_text(table, column, "snippet").splitlines()
    assert "SIMULATED features visual + audio of made" in text[0]
    assert "scores 80.0 (val+test)" in text[1]
    assert text[2].split() == ["paper", "seeds", "last", "val+test", "best", "val+test", "last", "test", "best", "test"]
    assert text[7].split() == ["2-stage", "77.1", "0", "60.0", "60.0", "59.0", "59.0"]
    assert "holds for the mean (15 of 15 pairs" in text[9]
    results.write_csv(tmp_path / "a.csv", [table], [column])
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert {
        line["protocol"]: line["mean"] for line in lines if line["row"] == "audio" and line["source"] == "ours"
    } == {
        "snippet": "10.0000",
        "seconds": "10.0000",
        "val+test": "10.0000",
        "test": "9.0000",
    }
    page = render.results_page(list(read_tables().values()), [column], "snippet", ["results"])
    assert "AVE's real features: seeds" in page and "### Audio-visual paper, Table 1" in page
    assert "### Table 6" not in page  # accuracies and mAPs do not stand in one table


def test_a_table_of_one_model_is_not_run_with_another(data, tmp_path, run_main):
    words = ("av-table1", "--base", data / "tiny.yaml", "--path-dataset", data, "--run-dir", tmp_path)
    status, _, error = run_main(reproduce.main, *words)
    assert status == 2 and "av-table1 is about --model audio_visual" in error


def test_mean_spread_and_order():
    assert results.spread({0: 40.0, 1: 42.0}) == "41.0 ± 1.4"
    assert (results.spread({0: 40.0}), results.spread({})) == ("40.0", "–")
    table = read_tables()["table6"]
    values = {"table6_ssma": 1, "table6_concat": 2, "table6_add": 3, "table6_se": 4, "co2net": 5}
    column = made_column({key: {0: value, 1: value + 0.5} for key, value in values.items()})
    line = results.order_line(table, column, "last", "snippet")
    assert "holds for the mean (10 of 10 pairs" in line and line.endswith("whole order: 2 of 2")
    values["table6_se"] = 6  # above the CCM, with the second seed
    column = made_column({key: {0: v if v < 6 else 4, 1: v} for key, v in values.items()})
    line = results.order_line(table, column, "last", "snippet")
    assert "(9 of 10 pairs" in line or "(10 of 10 pairs" in line
    assert line.endswith("whole order: 1 of 2")
    assert results.order_line(table, made_column({"co2net": {0: 5}}), "last", "snippet") is None


def test_results_page_says_what_ran_and_what_did_not():
    simulated, real = (
        made_column({"table6_se": {0: 4, 1: 5}, "co2net": {0: 5}}, simulated=simulated) for simulated in (True, False)
    )
    tables = list(read_tables().values())
    page = render.results_page(tables, [simulated], "snippet", ["python", "scripts/reproduce.py", "results"])
    assert "Written by `python scripts/reproduce.py results`" in page
    assert "| SE | 43.0 | – | – | – | 0 1 | 4.5 ± 0.7 | 4.5 ± 0.7 |" in page
    assert "SIMULATED thumos14 on made, 9 iterations: last" in page
    assert "The empty column is filled by `python scripts/reproduce.py table6 --path-dataset DIR" in page
    assert "CCM (seed 1)" in page  # has not run
    assert "### Table 3" not in page and "- Table 3: terms of the objective, the paper's I3D features" in page
    page = render.results_page(tables, [real], "snippet", ["results"])
    assert "SIMULATED" not in page and "The empty column" not in page.split("### Table 6")[1]


def test_small_words():
    assert [as_time(seconds) for seconds in (12, 600, 7200)] == ["12 s", "10 min", "2.0 h"]
    assert last_line("x\rerror: bad\nbar 100%\n") == "error: bad"
    assert last_line("") == "no output"
