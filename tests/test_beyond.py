"""Rows of scripts/reproduce.py that follow other rows: self-training, second stage, and pool of seeds."""

import json
import os
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import h5py
import pandas as pd
import pytest

from main import StopSignal
from main import main as train
from options import parse_args, resume_options
from scripts import reproduce
from scripts.reproduction import code_lines, execute, plan, rivals
from scripts.reproduction.ledger import append_runs, read_ledger
from scripts.reproduction.plan import Setting, planned_runs, read_tables
from scripts.second_stage import main as train_second_stage
from scripts.self_training import main as self_train
from test import main as evaluate
from tests.conftest import ROOT
from utils.annotations import parse_annotations
from utils.features.simulate import invent_timeline, simulate_features

CONFIG = "dataset: demo\nnum_snippets: 12\nlr: 1e-4\nmax_iter: 4\neval_every: 2\n"
TABLE = """\
beyond:
  title: Additions
  base: thumos14
  rows:
    - {name: CO2-Net}
    - {name: self-training, after: self_training, after_options: {relative: true}, code: [main.py]}
    - {name: second stage, after: second_stage}
    - {name: pool, after: pool}
"""


def train_briefly(argv):
    train_second_stage([*argv, "--max-iter", "10"])


COMMANDS = {
    "main.py": train,
    "self_training.py": self_train,
    "second_stage.py": train_briefly,
    "test.py": evaluate,
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulate_features(parse_annotations(invent_timeline(12, 3), "invented"), folder, (6, 5))
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


def setting_of(data, run_dir):
    return Setting(data / "tiny.yaml", data, run_dir, ("--device", "cpu"))


def words(data, run_dir, *more):
    base = ["beyond", "--config", data / "tiny.yaml", "--path-dataset", data, "--run-dir", run_dir]
    return [*map(str, [*base, "--ledger", run_dir / "runs.csv", "--budget", "1h", "--device", "cpu", *more])]


def run_in_process(runs, environments, record, *_):
    for run in runs:
        COMMANDS[Path(run.command[1]).name]([*run.command[2:]])
        record(run, 60.0, 1)
    return []


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """Replace the tables, the processes of the runs, and the measured cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "TABLES", tmp_path_factory.mktemp("tables") / "tables.yaml")
        plan.TABLES.write_text(TABLE)
        patch.setattr(execute, "run_here", run_in_process)
        patch.setattr(rivals, "cost", lambda run: {"parameters": 7, "gflops": 1.0, "step_seconds": 1.0})
        yield


@pytest.fixture(scope="module")
def finished(data, patched, tmp_path_factory):
    """Stop self-training after its first step, and run the same command again with two seeds."""
    run_dir = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:

        def stop(runs, environments, record, *_):
            run_in_process(runs[:1], environments, record)
            patch.setattr(StopSignal, "requested", lambda self: True)
            run_in_process(runs[1:], environments, record)

        patch.setattr(execute, "run_here", stop)
        with pytest.raises(SystemExit):
            reproduce.main(words(data, run_dir, "--seeds", "0"))
    folder = setting_of(data, run_dir).folder / "co2net_self_training_4_dc1ef1_s0"
    assert not (folder / "metrics.json").exists()
    labels = folder / "pseudo_labels.h5"
    before = labels.stat().st_mtime_ns
    reproduce.main(words(data, run_dir, "--seeds", "0", "1"))
    assert labels.stat().st_mtime_ns == before  # a resumed run has the labels that it began with
    return run_dir


def test_plan_of_the_table(data, tmp_path):
    table, setting = read_tables()["beyond"], setting_of(data, tmp_path)
    assert {row.first.key for row in table.rows if row.after} <= {row.key for row in table.rows if not row.after}
    runs = planned_runs([(table, setting)], [3, 1])
    names = [run.name for run in runs]
    local = "co2net_localization_4_ccf9e3"
    plain, recipe = (
        ["co2net", "co2net_self_training_4_dc1ef1", local, "co2net_second_stage_4"],
        "best_thumos14_r2plus1d",
    )
    for name in (*plain, recipe, f"{recipe}_self_training_4_dc1ef1", f"{recipe}_second_stage_4"):
        assert names.index(f"{name}_s3") < names.index(f"{name}_s1")
    assert [name for name in names if "pool" in name] == ["co2net_pool_4_s3_1", f"{recipe}_pool_4_s3_1"]
    for number, run in enumerate(runs):
        assert {first.name for first in run.after} <= set(names[:number])
    firsts = {run.name: [first.name for first in run.after] for run in runs if run.after}
    assert firsts["co2net_pool_4_s3_1"] == ["co2net_s3", "co2net_s1"]
    assert firsts["co2net_self_training_4_dc1ef1_s1"] == firsts["co2net_second_stage_4_s1"] == ["co2net_s1"]
    assert firsts[f"{local}_s1"] == ["co2net_s1"]
    assert len({tuple(run.identity.values()) for run in runs}) == len(runs)
    assert not any("pool" in run.name for run in planned_runs([(table, setting)], [0]))


def test_the_recipe_and_its_localization_are_rows_of_the_table(data, tmp_path):
    rows = {row.name: row for row in read_tables()["beyond"].rows}
    recipe = rows["recipe"]
    for base in ("thumos14_r2plus1d", "thumos14"):
        own = vars(parse_args(["--config", str(ROOT / f"configs/best_{base}.yaml"), "--path-dataset", str(data)]))
        (run,) = Setting(ROOT / f"configs/{base}.yaml", data, tmp_path).runs(recipe, [0])
        assert resume_options(Namespace(**own)) == resume_options(run.options)
        changed = rows["localization of the recipe"].after_options
        assert {name: own[name] for name in changed} == changed


def test_another_localization_is_another_run(data, tmp_path):
    setting = setting_of(data, tmp_path)
    row = read_tables()["beyond"].rows[0]
    rows = [replace(row, after=plan.LOCALIZATION, after_options={"min_length": n}) for n in (2, 3)]
    (two,), (three,) = (setting.runs(row, [0]) for row in rows)
    assert two.folder != three.folder and two.identity["options"] != three.identity["options"]
    assert two.command[-2:] == ("--min-length", "2")


def test_lines_of_code(monkeypatch, tmp_path):
    monkeypatch.setattr(code_lines, "ROOT", tmp_path)
    (tmp_path / "one.py").write_text("import os\n\n\nclass A:\n    x = 1\n\n    y = 2\n\n\ndef b():\n    return A\n")
    assert code_lines.count_lines(["one.py"]) == 6
    assert code_lines.count_lines(["one.py::A", "one.py::b"]) == 5
    assert code_lines.count_lines([]) == 0
    with pytest.raises(ValueError, match="one.py has no definition C"):
        code_lines.count_lines(["one.py::C"])


def test_places_of_code_exist():
    assert all(code_lines.count_lines(row.code) > 0 for row in read_tables()["beyond"].rows if row.code)


def fake(run, code):
    return replace(run, command=(sys.executable, "-c", code))


def test_a_run_waits_for_those_that_it_follows(data, tmp_path, capsys):
    row = next(row for row in read_tables()["beyond"].rows if row.after == plan.SECOND_STAGE)
    (run,) = setting_of(data, tmp_path).runs(row, [0])
    file = tmp_path / "done"
    first = fake(run.after[0], f"import time; time.sleep(1); open({str(file)!r}, 'w')")
    later = fake(run, f"open({str(file)!r})")
    recorded = []
    two = [ENVIRONMENT, ENVIRONMENT]
    assert execute.run_here([later, first], two, lambda run, *_: recorded.append(run)) == []
    assert recorded == [first, later]
    broken = fake(first, "exit('error: broken')")
    assert execute.run_here([broken, later], two, None) == [broken, later]
    assert "co2net_second_stage_4_s0 does not start, because it follows co2net_s0" in capsys.readouterr().out


def test_slurm_submits_following_runs_afterwards(data, tmp_path, monkeypatch):
    row = next(row for row in read_tables()["beyond"].rows if row.after == plan.SECOND_STAGE)
    runs = setting_of(data, tmp_path).runs(row, [0, 1])
    runs = [runs[0].after[0], runs[1].after[0], *runs]
    arrays = []

    def submit(commands, *_):
        arrays.append(commands)
        yield from [(0, "error: broken" if len(arrays) == 1 else None), *[(n, None) for n in range(1, len(commands))]]

    monkeypatch.setattr(execute, "run_jobs", submit)
    recorded = []
    failed = execute.run_on_slurm(runs, lambda run, *_: recorded.append(run), tmp_path, {})
    assert arrays == [[runs[0].command, runs[1].command], [runs[3].command]]
    assert (recorded, failed) == ([runs[1], runs[3]], [runs[0], runs[2]])


def test_a_stopped_table_continues(data, finished):
    folder, ledger = setting_of(data, finished).folder, read_ledger(finished / "runs.csv")
    expected = {"co2net": [0, 1], "co2net_pool": [0], "co2net_second_stage": [0, 1], "co2net_self_training": [0, 1]}
    assert ledger.groupby("key")["seed"].apply(list).to_dict() == expected
    log = folder / "co2net_self_training_4_dc1ef1_s0/log.jsonl"
    with h5py.File(log.with_name("pseudo_labels.h5")) as file:
        assert max(labels[:].max() for labels in file.values()) == 1  # relative labels
    assert [json.loads(line)["iteration"] for line in log.read_text().splitlines()] == [2, 4]
    scores = json.loads((folder / "co2net_pool_4_s0_1/metrics.json").read_text())["mean of 2"]["snippet"]["map"]
    row = ledger[ledger["key"] == "co2net_pool"].iloc[0]
    assert row["last/snippet/mAP@0.1"] == pytest.approx(100 * scores[0], abs=1e-4)
    assert row["options"].endswith("pooled_seeds=[0,1]") and row["iterations"] == 4
    second = json.loads((folder / "co2net_second_stage_4_s1/metrics.json").read_text())["last"]["snippet"]["map"]
    row = ledger[(ledger["key"] == "co2net_second_stage") & (ledger["seed"] == 1)].iloc[0]
    assert row["last/snippet/mAP@0.1"] == pytest.approx(100 * second[0], abs=1e-4)


def test_differences_and_page(data, finished, tmp_path):
    stored = rivals.read_comparisons(finished / "runs.csv").set_index("key")
    means = read_ledger(finished / "runs.csv").groupby("key")["last/snippet/mean"].mean()
    for key in ("co2net_pool", "co2net_second_stage", "co2net_self_training"):
        assert stored.loc[key, "seeds"] == "0 1"
        assert stored.loc[key, "difference"] == pytest.approx(means[key] - means["co2net"], abs=1e-3)
        assert pd.isna(stored.loc[key, "parameters"])
    assert stored.loc["co2net", "parameters"] == 7
    page = tmp_path / "results/beyond.md"
    results = ["results", "--ledger", str(tmp_path / "all.csv"), "--docs", str(tmp_path)]
    ledger = read_ledger(finished / "runs.csv")
    append_runs(tmp_path / "all.csv", ledger[ledger["key"] == "co2net"])
    reproduce.main(results)
    assert not page.exists() and "- Additions" in (tmp_path / "results.md").read_text()
    some = tmp_path / "other" / "runs.csv"  # of another machine, with its comparisons
    append_runs(some, ledger[ledger["key"] != "co2net_self_training"])
    (some.parent / rivals.FILE).write_bytes((finished / rivals.FILE).read_bytes())
    reproduce.main([*results, "--add", str(some)])
    cells = {}
    for line in page.read_text().splitlines():
        if line.startswith("| "):
            name, *rest = [cell.strip() for cell in line.strip("|").split("|")]
            cells[name] = rest
    head = cells[""]
    assert head[-2:] == ["minutes", "lines"] and "difference [95 %]" in head
    values = {name: dict(zip(head, cells[name], strict=True)) for name in ("CO2-Net", "second stage", "pool")}
    assert [row["minutes"] for row in values.values()] == ["1.0", "2.0", "3.0"]  # with the runs that they follow
    assert [row["seeds"] for row in values.values()] == ["0 1"] * 3
    assert "[" in values["pool"]["difference [95 %]"] and values["pool"]["parameters"] == ""
    assert "Not run: self-training (seed 0 1)." in page.read_text()


def test_runs_to_follow_are_trained_again_if_their_folders_are_missing(data, finished, tmp_path, capsys):
    ledger = read_ledger(finished / "runs.csv")
    append_runs(tmp_path / "runs.csv", ledger)
    reproduce.main(words(data, tmp_path, "--seeds", "0", "--plan"))
    assert "3 runs of 4 iterations, 0 to do" in capsys.readouterr().out
    (tmp_path / "runs.csv").unlink()
    append_runs(tmp_path / "runs.csv", ledger[ledger["key"] != "co2net_second_stage"])
    reproduce.main(words(data, tmp_path, "--seeds", "0", "--plan"))
    printed = capsys.readouterr().out
    assert "2 to do" in printed and "co2net, seeds to do: 0" in printed
    assert "self_training, seeds done: 0" in printed


def test_a_run_is_not_done_if_the_one_before_it_was_trained_again(data, finished):
    row = next(row for row in read_tables()["beyond"].rows if row.after == plan.SECOND_STAGE)
    (run,) = setting_of(data, finished).runs(row, [0])
    assert run.is_done()
    metrics, times = run.after[0].folder / "metrics.json", (run.folder / "metrics.json").stat()
    before = metrics.stat()
    os.utime(metrics, ns=(times.st_mtime_ns + 10**9,) * 2)
    assert not run.is_done()
    os.utime(metrics, ns=(before.st_mtime_ns, before.st_mtime_ns))


def test_folders_are_deleted_after_the_comparison(data, finished):
    folder = setting_of(data, finished).folder
    (finished / rivals.FILE).unlink()
    reproduce.main(words(data, finished, "--seeds", "0", "1", "--delete-runs"))
    assert "second_stage" in (finished / rivals.FILE).read_text()
    assert not list(folder.glob("*_s*"))
