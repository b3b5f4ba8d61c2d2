"""Many processes: what N ranks do is what one does. Processes on the CPU, over gloo, as torchrun starts them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import utils.errors
from main import main as train
from tests.conftest import ROOT
from tests.ranks import CASES, equality
from tests.test_train import (
    CONFIG,
    arguments,
    checkpoint,
    one_thread,  # noqa: F401 - a fixture for every test here
    records,
    same,
)
from utils.annotations import parse_annotations
from utils.errors import InputError, exit_on_input_error
from utils.features.simulate import invent_timeline, provide_demo, simulate_features
from utils.run.ranks import SINGLE_PROCESS, Ranks, join_ranks
from utils.sampler import rank_rows
from utils.training import Training, seed_everything
from wsad_dataset import BatchLoader

needs_processes = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this PyTorch has no torch.distributed with gloo",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    simulate_features(parse_annotations(invent_timeline(20, 3), "invented"), folder, (6, 6))
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def torchrun(size, *words, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", size]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*map(str, command), "--max-restarts", str(restarts), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def loaded(path):
    return torch.load(path, weights_only=False)  # of this test's own processes


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    return equality(SINGLE_PROCESS, dataset, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def many(dataset, tmp_path_factory):
    """What two ranks and three found, by their number."""
    out = tmp_path_factory.mktemp("many")
    for size, tasks in ((2, "equality"), (3, "equality+resumed")):
        done = torchrun(size, "tests/ranks.py", tasks, dataset, out)
        assert done.returncode == 0, done.stderr
    return {size: loaded(out / f"equality{size}.pt") for size in (2, 3)} | {"resumed": loaded(out / "resumed3.pt")}


@needs_processes
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_at_a_part_of_the_batch_equal_one_at_the_whole(alone, many, size, case):
    """Terms, gradients and, after three steps of Adam with weight decay, weights, to float noise."""
    expected, found = alone[case], many[size][case]
    torch.testing.assert_close(found["terms"], expected["terms"], rtol=1e-4, atol=1e-6)
    for name, gradient in expected["gradients"].items():
        of_ranks = found["gradients"][name]
        assert (of_ranks is None) == (gradient is None), name  # Adam's weight decay tells a zero from no gradient
        if gradient is not None:
            torch.testing.assert_close(of_ranks, gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_the_cases_have_parameters_without_a_gradient(alone):
    without = {case: any(gradient is None for gradient in alone[case]["gradients"].values()) for case in CASES}
    assert [case for case, any_without in without.items() if any_without] == [
        "parameters that nothing reaches",
        "classifier that nothing reaches",
    ]


@needs_processes
@pytest.mark.parametrize("size", [2, 3])
def test_a_shared_evaluation_is_that_of_one(alone, many, size):
    """The weights differ by float noise, so are those of each; videos and their order are the same."""
    expected, found = alone["evaluation"], many[size]["evaluation"]
    assert [result.video_id for result in found["results"]] == [result.video_id for result in expected["results"]]
    for one, other in zip(expected["results"], found["results"], strict=True):
        np.testing.assert_allclose(other.cas, one.cas, rtol=1e-3, atol=1e-3)
    assert found["metrics"].keys() == expected["metrics"].keys()


@needs_processes
@pytest.mark.parametrize("size", [2, 3])
def test_operations_over_ranks(many, size):
    assert many[size]["operations"] == {
        "gathered": [10, 11, 12][:size],
        "once": [0] * size,
        "largest": size - 1,
        "mean": [(size - 1) / 2, 2.0],
    }


@needs_processes
@pytest.mark.parametrize("size", [2, 3])
def test_a_nan_on_one_rank_is_no_step_on_any(many, size):
    assert many[size]["finite"] == [False] * size


@needs_processes
def test_three_ranks_resume_bit_for_bit_with_dropout_of_their_own(many):
    whole, parts = many["resumed"]["whole"], many["resumed"]["parts"]
    assert same(whole, parts)
    first, second, third = whole["random"]
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A run of two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = torchrun(2, "main.py", *arguments(dataset, folder, "--holdout", "0.2"))
    assert done.returncode == 0, done.stderr
    return folder, done


@needs_processes
def test_a_run_of_two_is_written_and_printed_once(run):
    folder, done = run
    assert done.stdout.count("all of it is in") == 1
    assert done.stdout.count("SIMULATED features") == 1
    assert "Warning" not in done.stderr
    assert [record["iteration"] for record in records(folder)] == [0, 2, 4, 6]
    assert len(list(folder.glob("events*"))) == 1
    assert list(json.loads((folder / "metrics.json").read_text())) == ["untrained", "last", "best", "selected"]
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["ranks"], environment["nodes"]) == (2, 1)
    assert not any(name.startswith("module.") for name in checkpoint(folder)["model"])


@needs_processes
def test_test_program_gives_the_numbers_of_two_ranks(dataset, run, tmp_path):
    """One process on their checkpoint: the detections of every video, and the metrics, are the same."""
    from test import main as evaluate

    argv = ["--checkpoint", run[0] / "checkpoints/last.pt", "--path-dataset", dataset, "--output-dir", tmp_path]
    evaluate([*map(str, argv), "--device", "cpu"])
    assert (tmp_path / "detections.json").read_text() == (run[0] / "detections.json").read_text()
    of_run = json.loads((run[0] / "metrics.json").read_text())["last"]
    assert json.loads((tmp_path / "metrics.json").read_text())["last"] == of_run


@needs_processes
def test_a_rank_that_stops_and_one_that_is_killed_change_nothing(dataset, run, tmp_path):
    """One rank gets SIGTERM: all stop after the same step. torchrun starts them again; one is killed; and again."""
    argv = arguments(dataset, tmp_path / "run", "--holdout", "0.2")
    done = torchrun(2, "tests/ranks.py", "interrupted", *argv, restarts=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stopped after iteration 3; run the same command with --resume to continue") == 1
    assert done.stderr.count("error: another process of this run was lost") <= 1
    assert "Traceback" not in done.stderr
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert len(environment["resumed"]) == 2
    assert records(tmp_path / "run") == records(run[0])
    for name in ("last", "best", "selected"):
        assert same(checkpoint(tmp_path / "run", name), checkpoint(run[0], name))
    assert (tmp_path / "run/metrics.json").read_text() == (run[0] / "metrics.json").read_text()


@needs_processes
def test_what_all_ranks_find_wrong_is_said_once(dataset, tmp_path):
    done = torchrun(2, "main.py", *arguments(dataset, tmp_path / "run", "--batch-size", "9"))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: a batch of 9 videos with 3 pairs cannot be divided among 2 processes; use --batch-size 8 or 10"
    ]
    assert done.returncode == 1  # torchrun's own
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", [{"LOCAL_RANK": "1", "RANK": "9"}, {"LOCAL_RANK": "0", "RANK": "8"}])
def test_a_rank_says_its_number(environment, monkeypatch, capsys):
    monkeypatch.setattr(utils.errors, "RANK_ZERO_HEAD_START", 0.0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def fail():
        raise InputError("a.h5: damaged")

    with pytest.raises(SystemExit) as end:
        exit_on_input_error(fail)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: rank {environment['RANK']}: a.h5: damaged\n"


def test_without_torchrun_there_is_one_rank_and_no_group(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "3")  # a cluster's
    with join_ranks() as ranks:
        assert ranks == SINGLE_PROCESS == Ranks()
        assert not torch.distributed.is_initialized()
        net, values = torch.nn.Linear(1, 1), torch.ones(2)
        assert ranks.share(net, ()) is net
        assert ranks.mean(values).data_ptr() == values.data_ptr()
        assert (ranks.gather(5), ranks.on_rank_zero(max, 1, 2), ranks.max(7)) == ([5], 2, 7)
        assert ranks.device(torch.device("cpu")) == torch.device("cpu")


def test_a_rank_without_a_gpu_of_its_own_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        InputError, match="process 3 of this machine needs a GPU of its own, but only 2 GPUs.*lower --nproc_per_node"
    ):
        Ranks(rank=2, size=4, local_rank=2).device(torch.device("cuda"))


@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 8))
def test_ranks_part_a_batch_evenly_and_no_pair(batch_size, num_pairs, size):
    if batch_size < 2 * num_pairs:
        return
    try:
        rows = [rank_rows(batch_size, num_pairs, rank, size) for rank in range(size)]
    except InputError as error:
        assert batch_size % size or 2 * -(-num_pairs // size) > batch_size // size
        for better in str(error).removesuffix(" can").rpartition("--batch-size ")[2].split(" or "):
            rank_rows(int(better), num_pairs, 0, size)
        return
    assert {len(own) for own in rows} == {batch_size // size}
    assert sorted(np.concatenate(rows)) == list(range(batch_size))
    for rank, own in enumerate(rows):
        pairs = range(rank, num_pairs, size)
        assert own[: 2 * len(pairs)].tolist() == [row for pair in pairs for row in (2 * pair, 2 * pair + 1)]
    if size == 1:
        assert rows[0].tolist() == list(range(batch_size))


def test_ranks_see_the_batches_that_one_sees(dataset):
    from tests.ranks import subset

    data = subset(dataset, "train")
    whole = BatchLoader(data, 12, 3, 9, seed=5)
    parts = [BatchLoader(data, 12, 3, 9, seed=5, rank=rank, num_ranks=2) for rank in range(2)]
    for _ in range(3):
        batch, own = next(whole), [next(part) for part in parts]
        for rank, part in enumerate(own):
            rows = rank_rows(12, 3, rank, 2)
            assert torch.equal(part.features, batch.features[rows])
            assert torch.equal(part.labels, batch.labels[rows])
            assert parts[rank].video_ids == [whole.video_ids[row] for row in rows]
            mine = torch.tensor(rows)[part.pairs].tolist()  # back to rows of the whole batch
            assert mine == batch.pairs[rank::2].tolist()
    assert same(whole.state_dict(), parts[1].state_dict())


def test_another_number_of_ranks_resumes_with_new_dropout(dataset, run, tmp_path, capsys):
    """Two processes' run, to be four steps longer, on one."""
    import shutil

    shutil.copytree(run[0], tmp_path / "run")
    train(arguments(dataset, tmp_path / "run", "--holdout", "0.2", "--max-iter", "8", "--resume"))
    assert (
        "number of processes changed from 2 to 1: the batches continue, dropout uses new random streams"
        in capsys.readouterr().out
    )
    assert records(tmp_path / "run")[:4] == records(run[0])
    assert records(tmp_path / "run")[-1]["iteration"] == 8


def test_streams_of_ranks_and_iterations_differ():
    numbers = []
    for rank, iteration in ((0, 0), (1, 0), (2, 0), (0, 5), (1, 5)):
        seed_everything(4, rank, iteration)
        numbers.append(torch.rand(1).item())
    assert len(set(numbers)) == 5
    torch.manual_seed(4)
    assert numbers[0] == torch.rand(1).item()  # one process's own, as it always was


def test_a_checkpoint_of_one_process_has_its_old_form(tmp_path):
    net = torch.nn.Linear(1, 1)
    loader = type("Loader", (), {"state_dict": lambda self: {}})()
    Training(net, torch.optim.Adam(net.parameters()), loader, {}, tmp_path, max_iter=1, eval_every=1).save_last()
    state = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["training"]
    assert set(state["random"]) >= {"python", "numpy", "torch"}
    assert state["random_of_other_ranks"] == []


def test_the_demo_is_simulated_in_its_place_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    provide_demo("data/other")
    assert not (tmp_path / "data").exists()
    provide_demo("data/demo")
    assert "simulating it" in capsys.readouterr().out
    made = (tmp_path / "data/demo/features.h5").stat()
    provide_demo(tmp_path / "data/demo")
    assert (tmp_path / "data/demo/features.h5").stat().st_mtime_ns == made.st_mtime_ns
