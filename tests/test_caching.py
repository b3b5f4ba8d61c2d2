"""Tests that every --cache, with or without prefetching, gives the same features, batches and trainings."""

import json
import threading
import time

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from main import main as train
from tests.test_dataset import LENGTHS, MemoryStore, assert_equal, timeline
from tests.test_features import write_folders, write_hdf5, write_joint
from tests.test_train import one_thread  # noqa: F401 - a fixture for every test here
from utils.annotations import parse_annotations
from utils.errors import InputError
from utils.features.simulate import invent_timeline, simulate_features
from utils.features.store import FeatureStore, open_features
from utils.formats.rows import iter_blocks, read_rows
from wsad_dataset import BatchLoader, WeakVideoDataset

LENGTH = 700  # more than a block and more than a chunk
LAYOUTS = {
    "contiguous": {},
    "chunks": {"chunks": (64, 8)},
    "checksums": {"chunks": (100, 8), "fletcher32": True},
    "gzip": {"chunks": (64, 5), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (700, 8), "compression": "lzf"},
}
VARIANTS = [(layout, dtype) for layout in LAYOUTS for dtype in ("<f2", "<f4", ">f4", "<f8")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, FeatureStore]:
    """One video in every layout and format; `flow` has half the rate of `rgb`."""
    generator, stores = np.random.default_rng(0), {}
    rgb, flow = generator.random((LENGTH, 150)), generator.random((LENGTH // 2, 7))
    for layout, dtype in VARIANTS:
        folder = tmp_path_factory.mktemp("hdf5")
        with h5py.File(folder / "features.h5", "w", userblock_size=512) as file:
            for name, values, fps in (("rgb", rgb, 30), ("flow", flow, 15)):
                options = dict(LAYOUTS[layout])
                if "chunks" in options:
                    options["chunks"] = tuple(np.minimum(options["chunks"], values.shape).tolist())
                file.create_dataset(f"{name}/v", data=values.astype(dtype), **options)
                file[name].attrs.update(fps=fps, stride=15)
        stores[f"{layout} {dtype}"] = open_features(folder, ("rgb", "flow_diff", "flow", "rgb_diff"))
    for order in "CF":
        folder = write_folders(tmp_path_factory.mktemp("npy"), {"rgb": {"v": np.asarray(rgb, order=order)}})
        stores[f".npy {order}"] = open_features(folder, ("rgb", "rgb_diff"))
    return stores


wanted = st.lists(st.integers(0, LENGTH - 1), max_size=40).map(sorted)


@given(st.data(), wanted)
def test_rows_equal_those_of_the_whole_video_bit_for_bit(sources, data, snippets):
    """In every layout, also for differences (which need neighbors) and modalities with another rate."""
    store = sources[data.draw(st.sampled_from(sorted(sources)))]
    rows = store.rows("v", np.array(snippets, dtype=np.int64))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, store["v"][snippets])


def test_pytorch_converts_every_dtype_as_numpy_does(sources):
    """Batches are converted by PyTorch, whole videos by NumPy."""
    rows = np.repeat(np.arange(0, LENGTH, 3), 2)
    for store in sources.values():
        parts = [torch.empty(len(rows), width) for width in store.modality_dims]
        for part, values in zip(parts, store.parts("v", rows), strict=True):
            part.copy_(torch.from_numpy(values))
        np.testing.assert_array_equal(torch.cat(parts, dim=1), store["v"][rows])


@pytest.mark.parametrize("write", [write_hdf5, write_folders, write_joint])
@pytest.mark.parametrize("modalities", [("rgb", "flow"), ("rgb_diff", "flow"), ("flow", "flow_diff")])
def test_rows_of_short_videos_in_every_format(tmp_path, write, modalities):
    generator = np.random.default_rng(1)
    streams = {
        name: {f"v{n}": generator.random((t, 4)) for n, t in ((1, 5), (2, 1), (3, 2))} for name in ("rgb", "flow")
    }
    store = open_features(write(tmp_path, streams), modalities)
    for video_id in store.video_ids:
        every = np.repeat(np.arange(store.num_snippets(video_id)), 2)
        np.testing.assert_array_equal(store.rows(video_id, every), store[video_id][every])


@pytest.mark.parametrize("snippets", [[-1, 3], [3, LENGTH], [5, 4]])
def test_rows_outside_the_video_are_refused(sources, snippets):
    """Past the last row of a video lies the first row of another."""
    for store in sources.values():
        with pytest.raises(IndexError, match="expected sorted snippets"):
            store.rows("v", np.array(snippets))


@pytest.mark.parametrize("options", [{}, {"chunks": (3, 4), "fletcher32": True}])
def test_the_first_read_of_a_video_checks_all_of_it(tmp_path, options):
    values = np.ones((9, 4), dtype=np.float32)
    values[6, 2] = np.nan
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file.create_dataset("rgb/v", data=values, **options)
    store = open_features(tmp_path, ("rgb",))
    for _ in range(2):
        with pytest.raises(InputError, match=r"features\.h5: 'rgb' of video 'v' has NaN .* first in row 6"):
            store.rows("v", np.array([1, 2]))


@pytest.mark.parametrize("options", [{}, {"chunks": (3, 4), "fletcher32": True}])
def test_later_reads_take_only_the_rows(tmp_path, monkeypatch, options):
    values = np.random.default_rng(0).random((9, 4)).astype(np.float32)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file.create_dataset("rgb/v", data=values, **options)
    store = open_features(tmp_path, ("rgb",))
    store.rows("v", np.array([8]))
    monkeypatch.setattr(store.source, "read", None)
    np.testing.assert_array_equal(store.rows("v", np.array([1, 6, 6, 8])), values[[1, 6, 6, 8]])


def test_damage_in_a_chunk_is_reported(tmp_path):
    values = np.random.default_rng(0).random((9, 4)).astype(np.float32)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file.create_dataset("rgb/v", data=values, chunks=(3, 4), fletcher32=True)
    path = tmp_path / "features.h5"
    content = path.read_bytes()
    place = content.index(values[7].tobytes())
    path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    store = open_features(tmp_path, ("rgb",))
    with pytest.raises(InputError, match=r"features\.h5: 'rgb/v' cannot be read"):
        store.rows("v", np.array([1]))


def test_a_truncated_file_gives_no_rows(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((9, 4), dtype=np.float32))
    message = "row 9 ends at byte 288, after the end of the file"
    with (tmp_path / "x.npy").open("rb") as file, pytest.raises(ValueError, match=message):
        read_rows(file.fileno(), 128, np.array([2, 9]), np.empty((2, 4), np.float32))


@given(st.lists(st.integers(0, 500)).map(sorted), st.integers(1, 90))
def test_blocks_contain_all_rows_in_order(rows, length):
    rows, result = np.array(rows, dtype=np.int64), []
    for places, first, last in iter_blocks(rows, length):
        assert (first, last) == (rows[places][0], rows[places][-1])
        assert first // length == last // length
        result += rows[places].tolist()
    assert result == rows.tolist()


class RowStore(MemoryStore):
    """A MemoryStore with `parts`, which counts its reads."""

    def __init__(self, lengths):
        super().__init__(lengths)
        self.whole = self.partial = 0

    def __getitem__(self, video_id):
        self.whole += 1
        return super().__getitem__(video_id)

    def parts(self, video_id, snippets):
        self.partial += 1
        return np.split(MemoryStore.__getitem__(self, video_id)[snippets], [self.modality_dims[0]], axis=1)

    def multiply(self, features, video_id): ...


def dataset(device="cpu", store=None) -> WeakVideoDataset:
    annotations = parse_annotations(timeline(), "x")
    return WeakVideoDataset(annotations, store or RowStore(LENGTHS), "train", missing_features="skip", device=device)


def loader(device="cpu", store=None, **options) -> BatchLoader:
    return BatchLoader(dataset(device, store), **{"batch_size": 6, "num_pairs": 2, "num_snippets": 8, **options})


def drawn(batches: BatchLoader, count: int) -> list:
    return [[part.clone().cpu() for part in next(batches)] for _ in range(count)]


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
cuda = pytest.param("cuda", marks=(pytest.mark.gpu, NO_GPU))


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("device", ["cpu", None, cuda])
def test_every_cache_gives_the_same_batches(device, prefetch):
    store = RowStore(LENGTHS)
    batches = loader(device, store, prefetch=prefetch)
    expected = loader()
    for _ in range(9):
        first, second = next(batches), next(expected)
        assert first.features.device.type == (device or "cpu")
        assert_equal([[part.cpu() for part in first]], [second])
        assert batches.video_ids == expected.video_ids
    batches.close()
    assert (store.whole, store.partial > 0) == ((0, True) if device is None else (5, False))


@pytest.mark.parametrize("device", ["cpu", None, cuda])
def test_videos_are_the_same_from_every_cache(device):
    first, second = dataset(device), dataset()
    for index in range(len(first)):
        np.testing.assert_array_equal(first[index], second[index])


def test_an_error_of_memory_names_the_option_that_helps():
    with pytest.raises(InputError, match="GB of features do not fit into cpu memory; use --cache none"):
        dataset(store=RowStore({"v0": 2**45, "v1": 2**45}))


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("device", ["cpu", None])
def test_a_batch_stays_valid_while_the_next_is_used(device, prefetch):
    batches = loader(device, prefetch=prefetch)
    returned = []
    for _ in range(12):
        features = next(batches).features
        if prefetch:
            batches._prefetched.result()  # worst case: the next batch is complete
        returned.append((features, features.clone()))
        for earlier, copy in returned[-2:]:
            assert torch.equal(earlier, copy)
    batches.close()


@pytest.mark.parametrize("device", ["cpu", None])
def test_a_resumed_loader_with_prefetching_returns_the_same_batches(device):
    batches = loader(device, seed=3, prefetch=True)
    begin = json.loads(json.dumps(batches.state_dict()))
    every = drawn(batches, 3)
    state = json.loads(json.dumps(batches.state_dict()))
    every += drawn(batches, 4)
    plain = loader(seed=3)
    assert_equal(drawn(plain, 3), every[:3])
    assert plain.state_dict() == state
    for seed, prefetch in ((99, True), (99, False), (3, True)):
        resumed = loader(device, seed=seed, prefetch=prefetch)
        drawn(resumed, 2)  # so that a batch is being prefetched
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert_equal(drawn(resumed, 4), every[3:])
        resumed.load_state_dict(begin)
        assert_equal(drawn(resumed, 7), every)


class DamagedStore(RowStore):
    def parts(self, video_id, snippets):
        if self.partial >= 9:  # in the second batch of six
            raise InputError("features.h5: damaged")
        return super().parts(video_id, snippets)


@pytest.mark.parametrize("prefetch", [False, True])
def test_an_error_in_the_thread_is_raised_with_its_batch(prefetch):
    batches = loader(None, DamagedStore(LENGTHS), prefetch=prefetch)
    next(batches)
    state = batches.state_dict()
    for _ in range(2):
        with pytest.raises(InputError, match="features.h5: damaged"):
            next(batches)
        assert batches.state_dict() == state
    batches.close()


def batch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_the_thread_ends_with_its_loader():
    closed, forgotten = loader(prefetch=True), loader(prefetch=True)
    next(closed), next(forgotten)
    assert len(batch_threads()) == 2
    closed.close()
    assert len(batch_threads()) == 1
    del forgotten
    deadline = time.monotonic() + 300
    while batch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not batch_threads()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    simulate_features(parse_annotations(invent_timeline(16, 3, 0), "x"), folder, (8, 8))
    return folder


def arguments(demo, run, *more) -> list[str]:
    words = ["--dataset", "demo", "--path-dataset", demo, "--run-dir", run, "--device", "cpu", "--num-snippets", 30]
    return [str(word) for word in [*words, "--max-iter", 4, "--eval-every", 2, "--holdout", 0.3, *more]]


def test_trainings_with_every_cache_are_equal_also_after_resuming_with_another(demo, tmp_path):
    for cache in ("host", "device"):
        train(arguments(demo, tmp_path / cache, "--cache", cache))
    train(arguments(demo, tmp_path / "resumed", "--cache", "host", "--max-iter", 2))
    train(arguments(demo, tmp_path / "resumed", "--cache", "none", "--resume"))
    metrics = [(tmp_path / name / "metrics.json").read_text() for name in ("host", "device", "resumed")]
    assert metrics[1:] == metrics[:1] * 2
    assert not batch_threads()


def test_a_damaged_video_ends_a_training_in_one_line(demo, tmp_path, run_main):
    """The thread reads the damaged video in the middle of training."""
    copy = tmp_path / "data"
    copy.mkdir()
    for name in ("features.h5", "annotations.json"):
        (copy / name).write_bytes((demo / name).read_bytes())
    with h5py.File(copy / "features.h5", "r+") as file:
        for values in file["rgb"].values():
            values[...] = np.nan
    status, _, printed = run_main(lambda: train(arguments(copy, tmp_path / "run", "--cache", "none")))
    assert status == 2
    assert "error: " in printed
    assert "has NaN or infinite values" in printed.splitlines()[-1]
