"""scripts/benchmark.py: every subject runs, prints its table, and counts what it says it counts. Nothing is timed."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import CO2Net
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks.made import SCALES, made_detections, made_ground_truth  # noqa: E402
from benchmarks.table import Column, format_table  # noqa: E402
from benchmarks.training import step_flops  # noqa: E402


def benchmark(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts/benchmark.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_every_subject_prints_its_table_and_agrees_with_the_plain_code(tmp_path):
    done = benchmark("all", "--quick", "--device", "cpu", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for subject in ("evaluation", "localisation", "sampling", "training"):
        assert f"\n{subject}: " in done.stdout
        assert figures[subject]
    assert [row["detections"] for row in figures["evaluation"]] == [2000, 2000]
    results = [row["results"] for name in ("evaluation", "localisation", "sampling") for row in figures[name]]
    assert set(results) == {"equal"}
    assert figures["machine"]["threads"] == 1


def test_one_subject_alone():
    done = benchmark("localisation", "--quick")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") < 15
    assert "evaluation" not in done.stdout


@pytest.mark.parametrize("arguments", [["everything"], ["--threads", "0"], ["localisation", "--quick", "--json", "/"]])
def test_a_bad_argument_is_one_clear_line(arguments):
    done = benchmark(*arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_counted_operations_are_those_that_pytorch_counts():
    net = CO2Net(4, (8, 12))
    with FlopCounterMode(display=False) as counter:
        outputs = net(torch.randn(3, 7, 20))
        sum(value.sum() for value in outputs.values()).backward()
    convolutions = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
    counted = sum(counter.flop_counts["Global"].get(operation, 0) for operation in convolutions)
    assert step_flops(net, batch_size=3, num_snippets=7) == counted


@pytest.mark.parametrize("name", SCALES)
def test_made_lists_have_the_size_of_their_data_set(name):
    scale = SCALES[name]
    truth = made_ground_truth(scale)
    assert (len(truth), len(truth.videos), len(truth.classes)) == (scale.instances, scale.videos, scale.classes)
    found = made_detections(truth, 1000)
    assert len(found) == len(set(found.score.tolist())) == 1000
    for table in (truth, found):
        assert (table.end > table.start).all()


def test_a_missing_value_is_a_dash():
    table = format_table([Column("a", "first", ".1f"), Column("b", "second")], [{"a": 12.34, "b": "x"}, {"a": None}])
    assert table.splitlines() == ["first  second", " 12.3       x", "    -       -"]
