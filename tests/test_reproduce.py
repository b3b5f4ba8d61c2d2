"""scripts/reproduce.py plans, stops, continues, repeats no run, and spreads runs over processors."""

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
from scripts.reproduction import execute, gpu, plan, rivals
from scripts.reproduction.cost import format_duration, last_line, parse_duration
from scripts.reproduction.figure5 import draw_figure5
from scripts.reproduction.ledger import append_runs, contains, read_ledger
from scripts.reproduction.plan import Row, Setting, planned_runs, read_tables
from tests.test_results import ledger_row
from utils.annotations import parse_annotations
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features
from utils.methods import build_method
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
    base = [table, "--config", data / "tiny.yaml", "--path-dataset", data, "--run-dir", run_dir]
    base += ["--ledger", run_dir / "runs.csv", "--device", "cpu"]
    return [sys.executable, ROOT / "scripts/reproduce.py", *map(str, [*base, *more])]


def setting_of(data, run_dir, *more):
    return Setting(data / "tiny.yaml", data, run_dir, ("--device", "cpu", *more))


def run(*argv):
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """Stop Table 5 in its first run; return the parent of its run folders, the exit status, and the output."""
    run_dir = tmp_path_factory.mktemp("runs")
    process = subprocess.Popen(
        command(data, run_dir, "table5", "--seeds", "0"), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    folder = setting_of(data, run_dir).folder
    while not (folder / "table5_local_local_s0/log.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=TIMEOUT)
    return run_dir, folder, process.returncode, printed


@pytest.fixture(scope="module")
def finished(data, stopped):
    """Run the same command again, to its end; return the parent of its run folders, and the output."""
    run_dir = stopped[0]
    other = setting_of(data, run_dir).run(Row("", "other"), 0).identity  # of known cost, so that nothing is measured
    append_runs(run_dir / "runs.csv", [{**other, "device": "cpu", "seconds": 2.0}])
    done = run(*command(data, run_dir, "table5", "--seeds", "0", "--jobs", "2"))
    assert done.returncode == 0, done.stderr
    return run_dir, done.stdout


def test_a_stop_is_safe(stopped):
    run_dir, folder, status, printed = stopped
    assert status == 1
    assert "3 runs of 40 iterations" in printed
    assert "measured on 10 steps and an evaluation" in printed
    assert "stopping: each run in progress saves its state" in printed
    assert not (folder / "table5_local_global_s0").exists()


def test_the_same_command_continues(stopped, finished):
    folder, printed = stopped[1], finished[1]
    assert "3 to do" in printed
    assert "(2 s per run, 2 at a time; measured on 1 finished run)" in printed
    assert "SIMULATED features rgb + flow" in printed
    for row in ("local / local", "local / global", "global / local"):
        assert row in printed
    assert "of 3 pairs of rows have the paper's order" in printed
    assert sorted(path.parent.name for path in folder.glob("*/metrics.json")) == [
        "co2net_s0",
        "table5_local_global_s0",
        "table5_local_local_s0",
    ]
    for path in folder.glob("*_s0/log.jsonl"):  # of the interrupted run, too
        assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [0, 20, 40]


def test_every_finished_run_is_a_row_of_the_ledger(data, stopped, finished):
    ledger = read_ledger(finished[0] / "runs.csv").set_index("key").drop("other")
    assert set(ledger["experiment"]) == {f"table5: {row.name}" for row in read_tables()["table5"].rows}
    metrics = json.loads((stopped[1] / "co2net_s0/metrics.json").read_text())
    run = ledger.loc["co2net"]
    for checkpoint in ("last", "best"):
        for protocol in ("snippet", "seconds"):
            expected = 100 * metrics[checkpoint][protocol]["map"][4]
            assert run[f"{checkpoint}/{protocol}/mAP@0.5"] == pytest.approx(expected, abs=1e-4)
    assert (run["device"], run["precision"], run["eval_every"], run["threads"]) == ("cpu", "float32", 20, 1)
    assert (run["seed"], run["iterations"], run["numerics"], run["jobs"]) == (0, 40, plan.NUMERICS, 2)
    assert (
        run["options"]
        == "dataset=demo eval_every=20 evaluate_untrained=true lr=0.001 num_snippets=12 train_subset=train"
    )
    assert run["seconds"] > 0 and run["features_hash"] == plan.sha256_of(data / "features.h5")[:12]


def test_a_finished_table_repeats_nothing(data, finished, monkeypatch, capsys):
    run_dir, _ = finished
    monkeypatch.setattr(execute, "run_here", None)
    reproduce.main(command(data, run_dir, "table5", "--seeds", "0")[2:])
    assert "0 to do" in capsys.readouterr().out
    # a table that has the base's run in common does not repeat it
    reproduce.main(command(data, run_dir, "table4", "--seeds", "0", "--plan")[2:])
    printed = capsys.readouterr().out
    assert "4 runs of 40 iterations, 3 to do" in printed
    assert "co2net, seeds done: 0" in printed and "table4_kl, seeds to do: 0" in printed
    # other options, or one more config, are other runs
    reproduce.main(command(data, run_dir, "table5", "--seeds", "0", "--lr", "1e-4", "--plan", "--budget", "1m")[2:])
    assert "3 to do" in capsys.readouterr().out
    # a ledger that lacks the runs takes them from their folders
    reproduce.main([*command(data, run_dir, "table5", "--seeds", "0")[2:], "--ledger", str(run_dir / "other.csv")])
    assert "0 to do" in capsys.readouterr().out
    assert len(read_ledger(run_dir / "other.csv")) == 3


def test_no_run_starts_that_does_not_fit_into_the_budget(data, finished, capsys):
    reproduce.main(command(data, finished[0], "table4", "--seeds", "0", "--budget", "11s")[2:])
    printed = capsys.readouterr().out
    assert "3 of 3 runs do not fit into the budget; the same command continues" in printed
    assert "1 of 4 runs in " in printed


def test_the_end_of_the_budget_stops_a_run_that_continues_later(data, tmp_path, monkeypatch, capsys):
    (one,) = planned_runs([(read_tables()["table1"], setting_of(data, tmp_path))], [0])
    wait = "import time, signal, sys; signal.signal(15, lambda *_: sys.exit('saved')); print(1); time.sleep(60)"
    slow = replace(one, command=(sys.executable, "-u", "-c", wait))
    monkeypatch.setattr(execute, "STOP_SECONDS", 0)
    assert execute.run_here([slow, slow], [ENVIRONMENT], None, time.monotonic() + 2) == []
    printed = capsys.readouterr().out
    assert "the budget ends: 1 runs save their state" in printed
    assert "1 of 2 runs do not fit" in printed


def test_tables_run_in_several_settings_seed_by_seed(data, tmp_path):
    settings = [setting_of(data, tmp_path), setting_of(data, tmp_path, "--max-iter", "30", "--lr", "1e-4")]
    pairs = [(read_tables()[name], setting) for name in ("table5", "table1") for setting in settings]
    runs = planned_runs(pairs, [0, 1])
    assert len(runs) == 12  # table 1 has the base's run in common with table 5
    assert [run.identity["seed"] for run in runs] == [0] * 6 + [1] * 6
    assert {run.folder.parts[-3] for run in runs} == {"tiny", "tiny_lr_0.0001"}
    assert {run.identity["overrides"] for run in runs} == {"", "lr=0.0001"}


def test_a_longer_run_in_the_folder_is_an_error(data, finished):
    argv = command(data, finished[0], "table5", "--seeds", "0", "--max-iter", "20")[2:]
    with pytest.raises(InputError, match="has 40 iterations, expected at most 20"):
        reproduce.main(argv)


def test_a_failed_run_is_reported_and_the_others_continue(data, tmp_path, capsys):
    (one,) = planned_runs([(read_tables()["table1"], setting_of(data, tmp_path))], [0])
    broken = replace(one, command=(sys.executable, "-c", "exit('error: broken')"))
    assert execute.run_here([broken, broken], [ENVIRONMENT], None) == [broken, broken]
    assert "FAILED: error: broken" in capsys.readouterr().out


def test_slurm_local_executor_gets_the_runs(data, tmp_path, capsys):
    (one,) = planned_runs([(read_tables()["table1"], setting_of(data, tmp_path))], [0])
    works, fails = (replace(one, command=(sys.executable, "-c", code)) for code in ("", "exit('error: broken')"))
    recorded = []
    failed = execute.run_on_slurm(
        [works, fails], lambda run, seconds, jobs: recorded.append((run, seconds)), tmp_path, {"cluster": "local"}
    )
    assert recorded == [(works, None)] and failed == [fails]
    printed = capsys.readouterr().out
    assert "submitted 2 jobs" in printed and "co2net_s0 is done" in printed and "co2net_s0 FAILED" in printed


def test_slurm_without_submitit_or_cluster_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--slurm: "):
        execute.run_on_slurm([], None, tmp_path, {"cluster": "local", "color": "red"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="pip install submitit"):
        execute.run_on_slurm([], None, tmp_path, {})


def test_runs_per_gpu_and_shared_threads(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in execute.job_environments(1, 1, False)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    places = execute.job_environments(1, 2, False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["5", "7", "5", "7"]
    assert [place["OMP_NUM_THREADS"] for place in places] == ["2"] * 4
    assert [place["OMP_NUM_THREADS"] for place in execute.job_environments(3, 1, True)] == ["2"] * 3
    assert [place["OMP_NUM_THREADS"] for place in execute.job_environments(1, 1, True)] == ["8"]


def test_two_processes_do_not_train_the_same_run(tmp_path):
    run = tmp_path / "run"
    with RunFolder(run, {}, False, {}), pytest.raises(InputError, match="trained by another process"):
        RunFolder(run, {}, False, {}).__enter__()
    with RunFolder(run, {}, False, {}):
        pass


def test_figure5(data, finished, tmp_path):
    parent = setting_of(data, finished[0]).folder
    folders = {name: parent / f"{name}_s0" for name in ("table5_local_local", "co2net")}
    paths = draw_figure5(folders, data, ["test_0012"], tmp_path / "figure5", "SIMULATED")
    assert [path.name for path in paths] == ["figure5.png", "figure5.pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)
    with pytest.raises(InputError, match="train_0003: not a test video of the run"):
        draw_figure5(folders, data, ["train_0003"], tmp_path / "figure5", "")


def test_rows_have_options_of_their_own(data, tmp_path):
    content = {"method": "co2net", "lr": 0.1}
    row = Row(
        "mine", plan._row_key({"options": content, "config": "table6_se"}, "co2net"), "table6_se", options=content
    )
    run = setting_of(data, tmp_path).run(row, 0)
    assert run.folder.name == "table6_se_lr_0.1_s0"
    assert (run.options.lr, run.options.consensus, run.identity["overrides"]) == (0.1, "se", "")


def test_a_table_of_one_method_is_not_run_with_another(data, tmp_path, run_main):
    words = ("av-table1", "--base", data / "tiny.yaml", "--path-dataset", data, "--run-dir", tmp_path)
    status, _, error = run_main(reproduce.main, *words)
    assert status == 2 and "av-table1 is about --method audio_visual" in error


RIVALS = """\
rivals:
  title: Methods
  base: thumos14
  rows:
    - {name: CO2-Net, paper: 44.6}
    - {name: TFE-DCN, method: tfe_dcn, paper: 46.9}
"""


def test_methods_are_compared_beyond_their_scores(data, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "TABLES", tmp_path / "tables.yaml")
    plan.TABLES.write_text(RIVALS)
    path = tmp_path / "runs.csv"
    path.write_bytes((finished[0] / "runs.csv").read_bytes())
    words = [*command(data, finished[0], "rivals", "--seeds", "0")[2:], "--ledger", str(path)]
    reproduce.main(words)
    printed = capsys.readouterr().out.splitlines()
    words_of_rows = ("difference [95 %]", "CO2-Net   ", "TFE-DCN   ")
    head, base, rival = (next(line for line in printed if word in line) for word in words_of_rows)
    assert "parameters" in head and "ms per step" in head
    assert "[" not in base and "[" in rival
    (table,) = read_tables().values()
    stored = rivals.read_comparisons(path).set_index("key")
    setting = setting_of(data, tmp_path)
    for row in table.rows:
        options = setting.run(row, 0).options
        network = build_method(options.method, 3, (6, 6)).network
        assert stored.loc[row.key, "parameters"] == sum(parameter.numel() for parameter in network.parameters())
        assert stored.loc[row.key, "gflops"] > 0 and stored.loc[row.key, "step_seconds"] > 0
    ledger = read_ledger(path).query("seed == 0").set_index("key")["last/snippet/mean"]
    expected = ledger["tfe_dcn"] - ledger["co2net"]
    assert stored.loc["tfe_dcn", "difference"] == pytest.approx(expected, abs=1e-3)
    assert stored.loc["tfe_dcn", "low"] <= expected <= stored.loc["tfe_dcn", "high"]
    monkeypatch.setattr(rivals, "cost", None)  # it is not measured again
    reproduce.main(words)
    reproduce.main(["results", "--ledger", str(path), "--docs", str(tmp_path / "docs")])
    assert "difference [95 %]" in (tmp_path / "docs/results/rivals.md").read_text()


def test_a_method_has_its_own_config_for_a_base(data, tmp_path):
    row = Row("DELU", "delu", method="delu")
    own = Setting(ROOT / "configs/thumos14.yaml", data, tmp_path).run(row, 0).options
    assert (own.method, own.num_snippets, own.eval_every) == ("delu", 320, 50)
    other = setting_of(data, tmp_path).run(row, 0)
    assert (other.options.method, other.options.num_snippets, other.options.max_iter) == ("delu", 12, 40)
    assert (other.identity["base"], other.identity["overrides"]) == ("tiny", "")


def test_results_adds_ledgers_of_other_machines(data, finished, tmp_path, capsys):
    ledger = tmp_path / "all.csv"
    append_runs(ledger, [ledger_row("a", "co2net", 0, 4)])
    words = ["results", "--ledger", str(ledger), "--docs", str(tmp_path), "--add", str(finished[0] / "runs.csv")]
    reproduce.main(words)
    assert f"results.md: {1 + len(read_ledger(finished[0] / 'runs.csv'))} runs" in capsys.readouterr().out
    (one, _) = planned_runs([(read_tables()["table1"], setting_of(data, tmp_path))], [0, 1])
    assert contains(read_ledger(ledger), one)
    with pytest.raises(InputError, match="not found"):
        reproduce.main([*words, "none.csv"])


def test_a_stage_that_hangs_or_fails_does_not_stop_the_next(tmp_path, capsys):
    def stage(*codes):
        commands = [[sys.executable, "-u", "-c", code] for code in codes]
        return gpu.Stage("name", lambda _: commands, lambda output: output.splitlines()[-1])

    hangs, fails, works = (
        stage("import time; print(1); time.sleep(600)", "print(2)"),
        stage("exit('bad')", "print(2)"),
        stage("print(1)", "print(2)"),
    )
    for number, (one, seconds) in enumerate([(hangs, 4), (fails, 600), (works, 600)]):
        one.run(tmp_path / f"{number}.txt", seconds)
    assert [(one.status, one.text) for one in (hangs, fails, works)] == [
        ("timeout", "1"),
        ("failed", "bad"),
        ("ok", "2"),
    ]
    assert hangs.seconds < 600
    assert "name: timeout after" in capsys.readouterr().out


def test_gpu_stages_take_the_options_of_the_command(data, tmp_path, monkeypatch, run_main):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, error = run_main(gpu.main, "10")
    assert status == 2 and "--rehearse" in error
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    status, _, error = run_main(gpu.main, "10", "--path-dataset", tmp_path)
    assert status == 2 and "no annotations.json" in error
    words = ["10", "--path-dataset", str(data), "--tables", "table3", "--seeds", "4", "--precision", "float32"]
    stages = {stage.name: stage for stage in gpu.make_stages(*gpu._parse_args(words), tmp_path)}
    (command,) = stages["tables"].commands(100)
    text = " ".join(command)
    for part in ("--budget 90s", "--seeds 4", "--cache device --config configs/thumos14_r2plus1d.yaml --config"):
        assert part in text
    assert text.endswith("--precision float32")
    (tests,) = stages["tests"].commands(1)
    assert any(word.endswith("test_caching.py") for word in tests)


def test_durations_and_last_line():
    assert [format_duration(seconds) for seconds in (12, 600, 7200)] == ["12 s", "10 min", "2.0 h"]
    assert [parse_duration(text) for text in ("45s", "90m", "1.5h")] == [45, 5400, 5400]
    with pytest.raises(ValueError, match="is not a duration such as 90m"):
        parse_duration("90")
    assert last_line("x\rerror: bad\nbar 100%\n") == "error: bad"
    assert last_line("") == "no output"
