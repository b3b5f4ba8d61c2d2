"""Several processes train as one does. The processes run on the CPU over gloo, started by torchrun."""

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
from eval.outputs import CURVES
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
from utils.run.random_states import seed_everything
from utils.run.ranks import SINGLE_PROCESS, Ranks, join_ranks
from utils.sampler import rank_rows
from utils.training import Training
from wsad_dataset import BatchLoader

SIZE = 3  # ranks
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
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def load(path):
    return torch.load(path, weights_only=False)  # written by this test's own processes


@pytest.fixture(scope="module")
def single(dataset, tmp_path_factory):
    """Results of one process."""
    return equality(SINGLE_PROCESS, dataset, tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def many(dataset, tmp_path_factory):
    """Results of three ranks."""
    out = tmp_path_factory.mktemp("many")
    done = torchrun(SIZE, "tests/ranks.py", "equality+resumed", dataset, out)
    assert done.returncode == 0, done.stderr
    return load(out / f"equality{SIZE}.pt") | {"resumed": load(out / f"resumed{SIZE}.pt")}


@needs_processes
@pytest.mark.parametrize("case", CASES)
def test_ranks_on_parts_of_a_batch_equal_one_process_on_the_batch(single, many, case):
    """Terms, gradients, and weights after three steps of Adam with weight decay agree up to float rounding."""
    expected, result = single[case], many[case]
    torch.testing.assert_close(result["terms"], expected["terms"], rtol=1e-4, atol=1e-6)
    for name, gradient in expected["gradients"].items():
        of_ranks = result["gradients"][name]
        assert (of_ranks is None) == (gradient is None), name  # weight decay applies to a zero gradient only
        if gradient is not None:
            torch.testing.assert_close(of_ranks, gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(result["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_two_cases_have_parameters_without_a_gradient(single):
    without = {case: any(gradient is None for gradient in single[case]["gradients"].values()) for case in CASES}
    assert [case for case, any_without in without.items() if any_without] == [
        "parameters without a gradient",
        "classifier without a gradient",
    ]


@needs_processes
def test_shared_evaluation_equals_that_of_one_process(single, many):
    """Videos and their order are equal; outputs differ by the rounding of the weights."""
    expected, result = single["evaluation"], many["evaluation"]
    assert [result.video_id for result in result["results"]] == [result.video_id for result in expected["results"]]
    for one, other in zip(expected["results"], result["results"], strict=True):
        np.testing.assert_allclose(other.cas, one.cas, rtol=1e-3, atol=1e-3)
    assert result["metrics"].keys() == expected["metrics"].keys()


@needs_processes
def test_ranks_localize_their_own_videos_and_rank_zero_has_the_detections_of_one_process(single, many):
    """Bit for bit, with equal weights; the curves come on request, in the float16 of outputs.h5."""
    expected, result = single["untrained"], many["untrained"]
    assert sorted(sum(many["own videos"], [])) == sorted(single["own videos"][0])
    assert all(0 < len(own) < len(single["own videos"][0]) for own in many["own videos"])
    assert result.metrics == expected.metrics
    assert result.detections.videos == expected.detections.videos
    for name in ("video", "label", "start", "end", "score"):
        np.testing.assert_array_equal(getattr(result.detections, name), getattr(expected.detections, name))
    assert [video.video_id for video in result.results] == [video.video_id for video in expected.results]
    for one, other in zip(expected.results, result.results, strict=True):
        for name in CURVES:
            np.testing.assert_array_equal(getattr(other, name), getattr(one, name).astype(np.float16))


@needs_processes
def test_operations_over_ranks(many):
    assert many["operations"] == {
        "gathered": [10, 11, 12],
        "on_rank_zero": [0] * SIZE,
        "max": SIZE - 1,
        "mean": [(SIZE - 1) / 2, 2.0],
    }


@needs_processes
def test_nan_on_one_rank_skips_the_step_on_all(many):
    assert many["finite"] == [False] * SIZE


@needs_processes
def test_three_ranks_resume_bit_for_bit_with_separate_dropout(many):
    whole, parts = many["resumed"]["whole"], many["resumed"]["parts"]
    assert same(whole, parts)
    first, second, third = whole["random"]
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """Folder of a run of two processes, and the completed torchrun process."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = torchrun(2, "main.py", *arguments(dataset, folder, "--holdout", "0.2"))
    assert done.returncode == 0, done.stderr
    return folder, done


@needs_processes
def test_two_processes_write_and_print_once(run):
    folder, done = run
    assert done.stdout.count("results in") == 1
    assert done.stdout.count("SIMULATED features") == 1
    assert "Warning" not in done.stderr
    assert [record["iteration"] for record in records(folder)] == [0, 2, 4, 6]
    assert len(list(folder.glob("events*"))) == 1
    assert list(json.loads((folder / "metrics.json").read_text())) == ["untrained", "last", "best", "selected"]
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["ranks"], environment["nodes"]) == (2, 1)
    assert not any(name.startswith("module.") for name in checkpoint(folder)["model"])


@needs_processes
def test_test_program_reproduces_the_scores_of_two_ranks(dataset, run, tmp_path):
    """Detections and metrics of one process on their checkpoint are equal."""
    from test import main as evaluate

    argv = ["--checkpoint", run[0] / "checkpoints/last.pt", "--path-dataset", dataset, "--output-dir", tmp_path]
    evaluate([*map(str, argv), "--device", "cpu"])
    assert (tmp_path / "detections.json").read_text() == (run[0] / "detections.json").read_text()
    of_run = json.loads((run[0] / "metrics.json").read_text())["last"]
    assert json.loads((tmp_path / "metrics.json").read_text())["last"] == of_run


@needs_processes
def test_stopped_and_killed_ranks_change_nothing(dataset, run, tmp_path):
    """Ranks stop together after one gets SIGTERM; torchrun restarts them, also after one is killed."""
    argv = arguments(dataset, tmp_path / "run", "--holdout", "0.2")
    done = torchrun(2, "tests/ranks.py", "interrupted", *argv, restarts=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stopped after iteration 3; --resume continues the run") == 1
    assert done.stderr.count("error: another process of this run was lost") <= 1
    assert "Traceback" not in done.stderr
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert len(environment["resumed"]) == 2
    assert records(tmp_path / "run") == records(run[0])
    for name in ("last", "best", "selected"):
        assert same(checkpoint(tmp_path / "run", name), checkpoint(run[0], name))
    assert (tmp_path / "run/metrics.json").read_text() == (run[0] / "metrics.json").read_text()


@needs_processes
def test_error_of_all_ranks_is_reported_once(dataset, tmp_path):
    done = torchrun(2, "main.py", *arguments(dataset, tmp_path / "run", "--batch-size", "9"))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    message = "a batch of 9 videos with 3 pairs cannot be divided among 2 processes; use --batch-size 8 or 10"
    assert lines.count(f"error: {message}") == 1
    assert set(lines) <= {f"error: {message}", f"error: rank 1: {message}"}  # a very slow machine repeats it
    assert done.returncode == 1  # torchrun's own
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", [{"LOCAL_RANK": "1", "RANK": "9"}, {"LOCAL_RANK": "0", "RANK": "8"}])
def test_error_of_another_rank_names_the_rank(environment, monkeypatch, capsys):
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
    monkeypatch.setenv("RANK", "3")  # set by a cluster
    with join_ranks() as ranks:
        assert ranks == SINGLE_PROCESS == Ranks()
        assert not torch.distributed.is_initialized()
        net, values = torch.nn.Linear(1, 1), torch.ones(2)
        assert ranks.share(net, ()) is net
        assert ranks.mean(values).data_ptr() == values.data_ptr()
        assert (ranks.gather(5), ranks.on_rank_zero(max, 1, 2), ranks.max(7)) == ([5], 2, 7)
        assert ranks.device(torch.device("cpu")) == torch.device("cpu")


def test_ranks_without_enough_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        InputError, match="process 3 of this machine needs a GPU of its own, but only 2 GPUs.*lower --nproc_per_node"
    ):
        Ranks(rank=2, size=4, local_rank=2).device(torch.device("cuda"))


@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 8))
def test_ranks_share_a_batch_evenly_and_keep_pairs_together(batch_size, num_pairs, size):
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


def test_ranks_see_the_batches_of_one_process(dataset):
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


def test_resume_with_another_number_of_ranks_uses_new_dropout(dataset, run, tmp_path, capsys):
    """One process continues the run of two."""
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
    assert numbers[0] == torch.rand(1).item()  # a single process uses the seed itself


def test_checkpoint_of_one_process_lists_no_other_ranks(tmp_path):
    net = torch.nn.Linear(1, 1)
    loader = type("Loader", (), {"state_dict": lambda self: {}})()
    Training(net, torch.optim.Adam(net.parameters()), loader, {}, tmp_path, max_iter=1, eval_every=1).save_last()
    state = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["training"]
    assert set(state["random"]) >= {"python", "numpy", "torch"}
    assert state["random_of_other_ranks"] == []


def test_demo_is_simulated_only_in_its_default_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    provide_demo("data/other")
    assert not (tmp_path / "data").exists()
    provide_demo("data/demo")
    assert "simulating the demo dataset" in capsys.readouterr().out
    made = (tmp_path / "data/demo/features.h5").stat()
    provide_demo(tmp_path / "data/demo")
    assert (tmp_path / "data/demo/features.h5").stat().st_mtime_ns == made.st_mtime_ns
