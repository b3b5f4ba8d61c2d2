"""The ledger of runs, and the tables and pages that scripts/reproduce.py makes from it."""

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from scripts import reproduce
from scripts.reproduction import plan, render, results
from scripts.reproduction.ledger import LEDGER, append_runs, read_ledger
from scripts.reproduction.plan import read_tables
from tests.conftest import ROOT
from utils.datasets import DATASETS
from utils.errors import InputError


def ledger_row(base, key, seed, last, dataset="thumos14", simulated=1, **facts):
    """Return a row of a ledger whose scores are one number."""
    row = {"base": base, "key": key, "seed": seed, "iterations": 9, "features_hash": "abc", "numerics": plan.NUMERICS}
    row |= {"revision": "0123", "device": "cpu", "data": "data", "dataset": dataset, "features": "rgb + flow"}
    row |= {"simulated": simulated, "precision": "float32", "finished": "2026-01-01T00:00:00Z"}
    measures = DATASETS[dataset].accuracy_subsets or ("snippet", "seconds")
    scores = {f"{checkpoint}/{measure}/mean": last for checkpoint in ("last", "best") for measure in measures}
    return {**row, **scores, **facts}


@pytest.fixture
def read_groups(tmp_path):
    """Return a function that writes rows to a ledger, and returns them by setting."""

    def read(rows):
        append_runs(tmp_path / "rows.csv", rows)
        return results.by_setting(read_ledger(tmp_path / "rows.csv"))

    return read


def test_a_ledger_adds_up(tmp_path):
    path, row = tmp_path / "new" / "runs.csv", ledger_row("a", "co2net", 0, 40.00004)
    append_runs(path, [row, {**row, "seed": 1, "last/snippet/mean": 41.0, "selected/snippet/mean": 39.0}])
    before = path.read_bytes()
    append_runs(path, [row])  # the same run of the same revision
    append_runs(path, read_ledger(path))
    assert path.read_bytes() == before
    append_runs(path, [{**row, "device": "GPU"}, {**row, "revision": "4567"}, {**row, "last/snippet/mean": 42.0}])
    ledger = read_ledger(path)
    assert len(ledger) == 4
    assert sorted(ledger["last/snippet/mean"]) == [40, 40, 41, 42]
    assert ledger.loc[ledger["selected/snippet/mean"].notna(), "seed"].tolist() == [1]
    assert list(ledger)[-5:] == [
        "last/seconds/mean",
        "last/snippet/mean",
        "best/seconds/mean",
        "best/snippet/mean",
        "selected/snippet/mean",
    ]


def test_processes_append_at_once(tmp_path):
    path = tmp_path / "runs.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: append_runs(path, [ledger_row("a", "co2net", seed, 40)]), range(24)))
    assert sorted(read_ledger(path)["seed"]) == list(range(24))


@pytest.mark.parametrize("text", ["", "base,key\na,b\n", "<<<<<<< HEAD\n", "\0"])
def test_a_file_that_is_no_ledger_is_one_line(tmp_path, text):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(InputError, match="not a ledger of runs") as error:
        read_ledger(tmp_path / "runs.csv")
    assert "\n" not in str(error.value)


def test_only_the_newest_run_of_a_seed_counts(read_groups):
    old, new = (ledger_row("a", "co2net", 0, score, finished=day, revision=day) for score, day in ((1, "1"), (2, "2")))
    changed = ledger_row("a", "co2net", 1, 9, finished="0", options="lr=1")  # its config has changed since
    (group,) = read_groups([new, old, changed, ledger_row("a", "table6_se", 1, 3)])
    assert dict(zip(group["key"], group["last/snippet/mean"], strict=True)) == {"co2net": 2, "table6_se": 3}


def test_simulated_settings_come_last(read_groups):
    rows = [ledger_row(base, "co2net", 0, 1, simulated=int(base == "b")) for base in "bca"]
    assert [group.iloc[0]["base"] for group in read_groups(rows)] == ["a", "c", "b"]


def test_accuracy_tables_show_both_subsets(read_groups):
    table = read_tables()["av-table1"]
    values = {"av_table1_audio": 10, "av_table1_visual": 20, "av_table1_stages_0": 30}
    values |= {"av_table1_stages_1": 40, "audio_visual": 60, "av_table1_stages_3": 50}
    note = "predicting a video's true class scores 80.0 (val+test)"
    (group,) = read_groups([ledger_row("ave", key, 0, value, "ave", note=note) for key, value in values.items()])
    text = render.table_text(table, group).splitlines()
    assert "SIMULATED features rgb + flow of data" in text[0]
    assert text[1] == note
    head, row = (next(line for line in text if word in line) for word in ("paper  ", "2-stage"))
    assert head.split() == ["paper", "seeds", *["last", "val+test", "last", "test", "best", "val+test", "best", "test"]]
    assert row.split() == ["2-stage", "77.1", "0", "60.0", "60.0", "60.0", "60.0"]
    assert any("15 of 15 pairs" in line and "One seed says nothing" in line for line in text)
    assert not results.belongs(read_tables()["table6"], group)  # accuracy and mAP do not share a table


def test_methods_with_their_own_iterations_share_a_setting(read_groups):
    keys = {"co2net": 5000, "delu": 5000, "tfe_dcn": 3010}  # as published
    rows = [ledger_row("thumos14", key, 0, 4, iterations=number) for key, number in keys.items()]
    (published,) = read_groups(rows)
    assert set(published["key"]) == set(keys)
    rows += [ledger_row("thumos14", key, 0, 4, iterations=3010) for key in ("co2net", "delu")]
    short, published = read_groups(rows)
    assert set(short["key"]) == set(published["key"]) == set(keys)
    assert set(short["iterations"]) == {3010} and set(published["iterations"]) == {3010, 5000}
    assert results.heading(published) == "SIMULATED thumos14 on data, 3,010 or 5,000 iterations"


def test_spread_over_seeds():
    texts = [results.spread(pd.Series(values, dtype=float)) for values in ([40, 42], [40], [])]
    assert texts == ["41.0 ± 1.4", "40.0", ""]


def test_collapsed_runs_are_named(read_groups):
    rows = [ledger_row("a", "table6_add", seed, 9.0 * seed, collapsed="" if seed else "last best") for seed in (0, 1)]
    (group,) = read_groups([*rows, ledger_row("a", "co2net", 0, 5)])
    text = render.table_text(read_tables()["table6"], group)
    assert text.count("4.5 ± 6.4 (1 of 2 collapsed)") == 4
    assert "below every threshold" in text


def test_order_of_rows(read_groups):
    table = read_tables()["table6"]
    values = {"table6_ssma": 1, "table6_concat": 2, "table6_add": 3, "table6_se": 9, "co2net": 5}
    # all rows share the seed's effect, which cancels; Add has its own
    noise = {("table6_add", 0): 8.0, ("table6_add", 2): -7.0}
    rows = [
        ledger_row("a", key, seed, value + 10 * seed + noise.get((key, seed), 0) + 0.01 * seed * value)
        for key, value in values.items()
        for seed in (0, 1, 2)
    ]
    (group,) = read_groups(rows)
    pairs = {(pair.higher.name, pair.lower.name): pair for pair in results.ordered_pairs(table, group)}
    assert len(pairs) == 10 and all(len(pair.differences) == 3 for pair in pairs.values())
    assert pairs["Concat", "SSMA"].verdict == 1 and pairs["CCM", "SE"].verdict == -1
    assert pairs["CCM", "Add"].verdict == 0
    sentences = " ".join(results.order_sentences(list(pairs.values())))
    assert "9 of 10 pairs of rows have the paper's order" in sentences
    assert "The opposite order is certain for 1: SE above CCM." in sentences
    pair, test = pairs["CCM", "Add"], ttest_1samp(pairs["CCM", "Add"].differences, 0).confidence_interval()
    assert pair.interval == pytest.approx((test.low, test.high))


def test_pages_list_finished_and_missing_runs(tmp_path, read_groups):
    rows = []
    for simulated in (1, 0):
        for key, seed, value in (("table6_se", 0, 4), ("table6_se", 1, 5), ("co2net", 0, 5)):
            base = "simulated" if simulated else "thumos14"
            rows.append(ledger_row(base, key, seed, value, simulated=simulated))
    groups = read_groups(rows)
    tables = list(read_tables().values())
    render.write_pages(tmp_path / "docs", tables, groups)
    page = (tmp_path / "docs/results/table6.md").read_text()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    assert cells.count(["SE", "43.0", "0 1", *["4.5 ± 0.7"] * 4]) == 2
    assert "## SIMULATED simulated on data, 9 iterations" in page and "## thumos14 on data, 9 iterations" in page
    assert "CCM (seed 1)" in page.split("Not run: ")[1]
    assert "–" not in page and "| Add" not in page
    assert page.count(".svg)") == len(list((tmp_path / "docs/results").glob("table6_*.svg"))) == 2
    index = (tmp_path / "docs/results.md").read_text()
    assert "- Table 3: terms of the objective" in index
    assert "`table3`" in index and "`table6`" not in index.split("On the paper's own features")[1]


def test_pages_are_the_same_bytes_each_time(tmp_path, read_groups):
    groups = read_groups([ledger_row("a", key, seed, 4 + seed) for key in ("co2net", "table6_se") for seed in (0, 1)])
    tables = list(read_tables().values())
    first, second = (
        {path.name: path.read_bytes() for path in render.write_pages(tmp_path / name, tables, groups)} for name in "ab"
    )
    assert first == second and len(first) == 5  # with those of Table 1
    render.write_pages(tmp_path / "a", tables, [])  # pages of runs that have left the ledger go
    assert list((tmp_path / "a/results").iterdir()) == []


def test_docs_are_those_of_the_ledger(tmp_path):
    """Fails after a change of the ledger or of tables.yaml until `python scripts/reproduce.py results` has run."""
    reproduce.main(["results", "--docs", str(tmp_path), "--ledger", str(LEDGER)])
    expected = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.md")}
    docs = ROOT / "docs"
    pages = [docs / "results.md", *(docs / "results").glob("*.md")]
    assert {path.relative_to(docs): path.read_bytes() for path in pages} == expected
    assert {path.name for path in docs.rglob("results/*.svg")} == {path.name for path in tmp_path.rglob("*.svg")}
