"""Tests of scripts/reproduce.py: it plans, stops, continues, repeats no run, and reports the results."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from scripts import reproduce
from scripts.reproduction import execute, render, results
from scripts.reproduction.cost import format_duration, last_line
from scripts.reproduction.figure5 import draw_figure5
from scripts.reproduction.plan import Setting, planned_runs, read_tables
from utils.annotations import parse_annotations
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features
from utils.run.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "dataset: demo\nnum_snippets: 12\nlr: 1e-3\nmax_iter: 40\neval_every: 20\nevaluate_untrained: true\n"
TIMEOUT = 600  # seconds; generous, because the machine may be busy
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with a simulated dataset and a config."""
    folder = tmp_path_factory.mktemp("simulated")
    simulate_features(parse_annotations(invent_timeline(20, 3), "invented"), folder, (6, 6))
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


def command(data, run_dir, table, *more):
    base = [table, "--base", data / "tiny.yaml", "--path-dataset", data, "--run-dir", run_dir]
    return [sys.executable, ROOT / "scripts/reproduce.py", *map(str, [*base, "--device", "cpu", *more])]


def run(*argv):
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """Stop Table 5 in its first run; return the parent of its run folders, the exit status, and the output."""
    run_dir = tmp_path_factory.mktemp("runs")
    process = subprocess.Popen(
        command(data, run_dir, "table5", "--seeds", "0"), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    folder = run_dir / "tiny" / data.name
    while not (folder / "table5_local_local_s0/log.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=TIMEOUT)
    return folder, process.returncode, printed


@pytest.fixture(scope="module")
def finished(data, stopped):
    """Run the same command again, to its end."""
    folder = stopped[0]
    (folder / "other_s0").mkdir()  # its cost is known, so that nothing is measured again
    (folder / "other_s0/cost.json").write_text(json.dumps({"iterations": 40, "seconds": 2.0}))
    done = run(*command(data, folder.parent.parent, "table5", "--seeds", "0", "--jobs", "2"))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_stop_is_safe(stopped):
    folder, status, printed = stopped
    assert status == 1
    assert "3 runs of 40 iterations" in printed
    assert "measured on 10 steps and an evaluation" in printed
    assert "stopping: each run in progress saves its state" in printed
    assert not (folder / "table5_local_global_s0").exists()


def test_the_same_command_continues(stopped, finished):
    folder, printed = finished
    assert "3 to do" in printed
    assert "(2 s per run, 2 at a time; measured on 1 finished run)" in printed
    assert "SIMULATED features rgb + flow" in printed
    for row in ("local / local", "local / global", "global / local"):
        assert row in printed
    assert "of 3 pairs of rows are ordered as in the paper" in printed
    assert sorted(path.parent.name for path in folder.glob("*/metrics.json")) == [
        "co2net_s0",
        "table5_local_global_s0",
        "table5_local_local_s0",
    ]
    for path in folder.glob("*_s0/log.jsonl"):  # of the interrupted run, too
        assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [0, 20, 40]
    rows = list(csv.DictReader((folder / "table5.csv").open()))
    assert len(rows) == 3 + 3 * 2 * 2  # the paper's rows; both checkpoints of each run under both protocols
    assert (rows[0]["source"], rows[0]["mean"], rows[0]["mAP@0.1"]) == ("paper", "43.0", "68.1")
    assert all("SIMULATED" in row["features"] for row in rows[3:])
    assert "| local / local" in (folder / "table5.md").read_text()


def test_a_finished_table_repeats_nothing(data, finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.setattr(execute, "run_here", None)
    reproduce.main(command(data, folder.parent.parent, "table5", "--seeds", "0")[2:])
    assert "0 to do" in capsys.readouterr().out
    # a table that has the base's run in common does not repeat it
    reproduce.main(command(data, folder.parent.parent, "table4", "--seeds", "0", "--plan")[2:])
    printed = capsys.readouterr().out
    assert "4 runs of 40 iterations" in printed and "co2net_s0: done" in printed and "table4_kl_s0: to do" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lr", "1e-4"], "was run with lr = 0.001, not 0.0001"),
        (["--max-iter", "20"], "has 40 iterations, expected at most 20"),
    ],
)
def test_a_different_run_in_the_folder_is_an_error(data, finished, more, message):
    argv = command(data, finished[0].parent.parent, "table5", "--seeds", "0", *more)[2:]
    with pytest.raises(InputError, match=message):
        reproduce.main(argv)


def test_a_failed_run_is_reported_and_the_others_continue(data, tmp_path, capsys):
    setting = Setting(data / "tiny.yaml", data, tmp_path, ("--device", "cpu"))
    (one,) = planned_runs(read_tables()["table1"], setting, [0])
    broken = replace(one, command=(sys.executable, "-c", "exit('error: broken')"))
    assert execute.run_here([broken, broken], [ENVIRONMENT]) == [broken, broken]
    assert "FAILED: error: broken" in capsys.readouterr().out


def test_slurm_local_executor_gets_the_missing_runs(data, finished, capsys):
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


def test_one_run_per_gpu_and_shared_threads(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in execute.job_environments(1, False)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in execute.job_environments(1, False)] == ["5", "7"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in execute.job_environments(2, False)] == ["5", "7", "5", "7"]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [place["OMP_NUM_THREADS"] for place in execute.job_environments(3, True)] == ["2"] * 3
    assert [place["OMP_NUM_THREADS"] for place in execute.job_environments(1, True)] == ["8"]


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


@pytest.fixture
def write_run(tmp_path):
    """Return a function that writes the result files of one run without training it."""

    def write(base, key, seed, last, best=None, dataset="thumos14", simulated=True, modalities=("rgb", "flow")):
        folder = tmp_path / base / "data" / f"{key}_s{seed}"
        folder.mkdir(parents=True)
        options = {"dataset": dataset, "modalities": list(modalities), "seed": seed}
        (folder / "options.yaml").write_text(json.dumps(options))
        environment = {"features": {"simulated": simulated}, "device": "cpu", "revision": "0123456789abc"}
        (folder / "environment.json").write_text(json.dumps(environment))
        metrics = {"last": scores(last, dataset), "best": scores(last if best is None else best, dataset)}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return write


def scores(percent, dataset):
    """Return one checkpoint of metrics.json with a constant score; on the subset `test` one point less."""
    spec = DATASETS[dataset]
    result = {"tiou_thresholds": list(spec.tiou_thresholds), "map": [percent / 100] * len(spec.tiou_thresholds)}
    metrics = {"iteration": 9, "snippet": result, "seconds": result}
    if spec.accuracy_subsets:
        sizes = {"class_everywhere": 0.8, "videos": 4, "snippets": 40}
        accuracies = {"val+test": percent / 100, "test": percent / 100 - 0.01}
        metrics["snippet_accuracy"] = {subset: {**sizes, "accuracy": value} for subset, value in accuracies.items()}
    return metrics


def group_of(folders):
    (group,) = results.by_setting(results.read_results(folders))
    return group


def test_accuracy_tables_show_both_subsets(tmp_path, write_run):
    table = read_tables()["av-table1"]
    values = {"av_table1_audio": 10, "av_table1_visual": 20, "av_table1_stages_0": 30}
    values |= {"av_table1_stages_1": 40, "audio_visual": 60, "av_table1_stages_3": 50}
    folders = []
    for key, value in values.items():
        alone = key.removeprefix("av_table1_")
        modalities = [alone] if alone in ("audio", "visual") else ["visual", "audio"]
        folders.append(write_run("ave", key, 0, value, dataset="ave", modalities=modalities))
    group = group_of(folders)
    text = render.table_text(table, group, "snippet").splitlines()
    assert "SIMULATED features visual + audio of data" in text[0]
    assert "80.0 (val+test)" in text[1]
    head, row = (next(line for line in text if word in line) for word in ("paper  ", "2-stage"))
    assert head.split() == ["paper", "seeds", "last", "val+test", "best", "val+test", "last", "test", "best", "test"]
    assert row.split() == ["2-stage", "77.1", "0", "60.0", "60.0", "59.0", "59.0"]
    assert any("15 of 15 pairs" in line for line in text)
    results.write_csv(tmp_path / "a.csv", [table], [group])
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    audio = [line for line in lines if line["row"] == "audio" and line["source"] == "ours"]
    expected = {"snippet": "10.0", "seconds": "10.0", "val+test": "10.0", "test": "9.0"}
    assert {line["protocol"]: line["mean"] for line in audio} == expected
    page = render.results_page(list(read_tables().values()), [group], "snippet", ["results"])
    assert "### Audio-visual paper, Table 1" in page
    assert "### Table 6" not in page  # accuracy and mAP do not share a table


def test_a_table_of_one_method_is_not_run_with_another(data, tmp_path, run_main):
    words = ("av-table1", "--base", data / "tiny.yaml", "--path-dataset", data, "--run-dir", tmp_path)
    status, _, error = run_main(reproduce.main, *words)
    assert status == 2 and "av-table1 is about --method audio_visual" in error


def test_spread_over_seeds():
    texts = [results.spread(pd.Series(values, dtype=float)) for values in ([40, 42], [40], [])]
    assert texts == ["41.0 ± 1.4", "40.0", "–"]


def test_order_of_rows(write_run):
    table = read_tables()["table6"]
    values = {"table6_ssma": 1, "table6_concat": 2, "table6_add": 3, "table6_se": 4, "co2net": 5}
    folders = [write_run("a", key, seed, value + seed / 2) for key, value in values.items() for seed in (0, 1)]
    line = results.order_line(table, group_of(folders), "last", "snippet")
    assert "10 of 10 pairs" in line and line.endswith("all pairs agree in 2 of 2 seeds")
    values["table6_se"] = 8  # with the second seed, better than the CCM
    folders = [
        write_run("b", key, seed, value if seed or value < 8 else 4) for key, value in values.items() for seed in (0, 1)
    ]
    line = results.order_line(table, group_of(folders), "last", "snippet")
    assert "9 of 10 pairs" in line and line.endswith("all pairs agree in 1 of 2 seeds")
    incomplete = group_of([write_run("c", "co2net", 0, 5)])
    assert results.order_line(table, incomplete, "last", "snippet") is None


def test_results_are_one_row_per_run(write_run):
    runs = results.read_results([write_run("a", "co2net", seed, 40 + seed, best=50) for seed in (0, 1)])
    assert len(runs) == 2
    assert list(runs["seed"]) == [0, 1] and set(runs["key"]) == {"co2net"}
    assert list(runs["last/snippet/mean"]) == pytest.approx([40, 41])
    assert list(runs["best/seconds/mAP@0.5"]) == pytest.approx([50, 50])


def test_results_page_lists_finished_and_missing_runs(tmp_path, write_run):
    for simulated in (True, False):
        base = "simulated" if simulated else "thumos14"
        for key, seed, value in (("table6_se", 0, 4), ("table6_se", 1, 5), ("co2net", 0, 5)):
            write_run(base, key, seed, value, simulated=simulated)
    real, simulated = results.by_setting(results.read_results(results.find_runs(tmp_path)))[::-1]
    assert not real["simulated"].any() and simulated["simulated"].all()
    tables = list(read_tables().values())
    page = render.results_page(tables, [simulated], "snippet", ["python", "scripts/reproduce.py", "results"])
    assert "Written by `python scripts/reproduce.py results`" in page
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    assert ["SE", "43.0", "0 1", "4.5 ± 0.7", "4.5 ± 0.7"] in cells
    assert "**SIMULATED simulated on data, 9 iterations**: mean mAP@0.1:0.7 in percent" in page
    assert "`python scripts/reproduce.py table6 --path-dataset DIR" in page
    assert "CCM (seed 1)" in page.split("## Missing runs")[1]
    assert "### Table 3" not in page and "- Table 3: terms of the objective, the paper's I3D features" in page
    page = render.results_page(tables, [real], "snippet", ["results"])
    assert "SIMULATED" not in page and "scripts/reproduce.py table6 " not in page


def test_format_duration_and_last_line():
    assert [format_duration(seconds) for seconds in (12, 600, 7200)] == ["12 s", "10 min", "2.0 h"]
    assert last_line("x\rerror: bad\nbar 100%\n") == "error: bad"
    assert last_line("") == "no output"
