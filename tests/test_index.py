"""The index of a dataset changes speed and memory only, and is never trusted further than the files."""

import json
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from main import main as train
from tests.test_caching import LAYOUTS, arguments, demo, wanted  # noqa: F401 - a fixture
from tests.test_train import one_thread  # noqa: F401 - a fixture for every test here
from tests.test_video_table import assert_same
from utils.annotations import load_annotations
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.features.check import _find_warnings, startup_warnings
from utils.features.convert import convert_features
from utils.features.index import INDEX, open_dataset, open_index
from utils.features.indexed import IndexedSource
from utils.features.store import open_features

LENGTH, OTHER = 700, 43
VARIANTS = [(layout, "<f2", block) for layout in LAYOUTS for block in (0, 512)]
VARIANTS += [(layout, dtype, 0) for layout in ("contiguous", "checksums") for dtype in ("<f4", ">f4", "<f8")]


def write(folder, name="features.h5", videos=("v", "w"), dtype="<f2", userblock_size=0, **options):
    """Write two modalities of videos, LENGTH and OTHER rows, and annotations."""
    generator = np.random.default_rng(0)
    with h5py.File(folder / name, "w", userblock_size=userblock_size) as file:
        for modality, width in (("rgb", 150), ("flow", 7)):
            for video_id, length in zip(videos, (LENGTH, OTHER), strict=True):
                values = generator.random((length, width)).astype(dtype)
                chosen = dict(options)
                if "chunks" in chosen:
                    chosen["chunks"] = tuple(np.minimum(chosen["chunks"], values.shape).tolist())
                file.create_dataset(f"{modality}/{video_id}", data=values, **chosen)
            file[modality].attrs.update(fps=30, stride=15)
    entries = {video_id: {"subset": "train", "labels": ["A", "B"][:count]} for count, video_id in enumerate(videos, 1)}
    (folder / "annotations.json").write_text(json.dumps({"classes": ["B", "A"], "database": entries}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of every layout and dtype, with and without a user block; the last one has shards."""
    folders = []
    for layout, dtype, userblock_size in VARIANTS:
        options = {"dtype": dtype, "userblock_size": userblock_size, **LAYOUTS[layout]}
        folders.append(write(tmp_path_factory.mktemp("data"), **options))
    folders.append(tmp_path_factory.mktemp("shards"))
    convert_features(folders[0], folders[-1], shards=2)
    return folders


@pytest.fixture(scope="module")
def stores(folders):
    """Stores by an index, each with its videos as they are without one."""
    pairs = []
    for folder in folders:
        store, plain = open_dataset(folder)[1], open_features(folder)
        assert isinstance(store.source, IndexedSource) and not isinstance(plain.source, IndexedSource)
        pairs.append((store, {video_id: plain[video_id] for video_id in ("v", "w")}))
    return pairs


@settings(max_examples=25)
@given(st.sampled_from(["v", "w"]), wanted)
def test_rows_are_those_of_the_file_bit_for_bit(stores, video_id, snippets):
    """Sorted rows, which may repeat, in every layout; the second read of a video skips HDF5."""
    for store, videos in stores:
        rows = np.array([row for row in snippets if row < len(videos[video_id])], dtype=np.int64)
        for _ in range(2):
            np.testing.assert_array_equal(store.rows(video_id, rows), videos[video_id][rows])


def test_stored_values_keep_their_dtype(folders):
    for folder in folders:
        store, plain = open_dataset(folder)[1], open_features(folder)
        for _ in range(2):
            stored, expected = (each.source.read("rgb", "v") for each in (store, plain))
            assert stored.dtype == expected.dtype
            np.testing.assert_array_equal(stored, expected)


def test_arrays_of_whole_rows_are_read_at_their_place(stores):
    """Others only by HDF5: compressed ones, chunks of some channels, and big-endian values."""
    placed = [store.source.places["flow"].width[0] > 0 for store, _ in stores]
    expected = [layout in ("contiguous", "chunks", "checksums") and dtype != ">f4" for layout, dtype, _ in VARIANTS]
    assert placed == [*expected, True]


def test_everything_else_is_that_of_the_files(folders):
    for folder in folders:
        annotations, store = open_dataset(folder, ("rgb", "flow_diff"))
        plain, expected = open_features(folder, ("rgb", "flow_diff")), load_annotations(folder)
        assert (annotations.classes, annotations.where) == (expected.classes, expected.where)
        assert list(annotations.videos) == list(expected.videos)
        for video, other in zip(annotations.videos.values(), expected.videos.values(), strict=True):
            assert_same(video, other)
        assert store.describe() == plain.describe()
        assert (store.video_ids, store.modality_dims) == (plain.video_ids, plain.modality_dims)
        assert store.snippet_rate == plain.snippet_rate
        lengths = [plain.num_snippets(video_id) for video_id in ("w", "v")]
        np.testing.assert_array_equal(store.lengths(["w", "v"]), lengths)
        assert store.lengths(["w", "v"]).dtype == np.int64
        assert store.source.path_of("rgb", "w") == plain.source.path_of("rgb", "w")
    np.testing.assert_array_equal(store.shards(["w", "v"]), plain.shards(["w", "v"]))  # of the last folder
    with pytest.raises(InputError, match="--open-shards needs sharded features"):
        open_dataset(folders[0])[1].shards(["v"])


def test_modalities_of_different_length_have_the_length_of_the_shorter(tmp_path):
    write(tmp_path)
    with h5py.File(tmp_path / "features.h5", "a") as file:
        values = file["flow/w"][:-1]
        del file["flow/w"]
        file["flow/w"] = values
    _, store = open_dataset(tmp_path)
    np.testing.assert_array_equal(store.lengths(["v", "w"]), [LENGTH, OTHER - 1])
    np.testing.assert_array_equal(store["w"], open_features(tmp_path)["w"])


def test_the_index_of_a_converted_dataset_is_there_and_files_are_not_opened(folders, monkeypatch):
    monkeypatch.setattr(h5py, "File", None)
    monkeypatch.setattr(json, "load", None)
    annotations, store = open_dataset(folders[-1])
    assert store.lengths(["v", "w"]).tolist() == [LENGTH, OTHER]
    assert annotations.videos.label_matrix(["w", "v"], annotations.classes).tolist() == [[True, True], [False, True]]


def change_annotations(folder):
    content = json.loads((folder / "annotations.json").read_text())
    content["database"]["w"]["labels"] = ["B"]
    (folder / "annotations.json").write_text(json.dumps(content, indent=1))


def change_features(folder):
    write(folder, dtype="<f4")


def damage(folder):
    content = bytearray((folder / INDEX).read_bytes())
    content[len(content) // 2] ^= 255
    (folder / INDEX).write_bytes(content)


def cut(folder):
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:-100])


def replace_by_text(folder):
    (folder / INDEX).write_text("of another program")


def replace_by_another_archive(folder):
    np.savez(folder / "x.npz", names=np.arange(3))
    (folder / "x.npz").rename(folder / INDEX)


def replace_by_a_pickle(folder):
    np.savez(folder / "x.npz", meta=np.array([{"format": 1}], dtype=object))
    (folder / "x.npz").rename(folder / INDEX)


def change_member(folder, name, change):
    with np.load(folder / INDEX) as archive:
        columns = dict(archive)
    columns[name] = change(columns[name])
    with (folder / INDEX).open("wb") as file:
        np.savez(file, **columns)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_annotations, "not up to date"),
        (change_features, "not up to date"),
        (damage, "damaged"),
        (cut, "damaged"),
        (replace_by_text, "damaged"),
        (replace_by_another_archive, "damaged"),
        (replace_by_a_pickle, "damaged"),
        (lambda folder: change_member(folder, "0/chunk_starts", lambda column: column + 1), "damaged"),
        (lambda folder: change_member(folder, "videos/labels", lambda column: column + 9), "damaged"),
        (lambda folder: change_member(folder, "videos/subset", lambda column: column[:1]), "damaged"),
        (lambda folder: change_member(folder, "0/file", lambda column: column + 1), "damaged"),
    ],
)
def test_another_index_is_made_again_and_one_line_says_so(tmp_path, capsys, change, reason):
    open_index(write(tmp_path))
    before = (tmp_path / INDEX).read_bytes()
    change(tmp_path)
    annotations, store = open_dataset(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path / INDEX}: {reason}; making it again\n"
    expected = open_features(tmp_path)
    np.testing.assert_array_equal(store["w"], expected["w"])
    assert annotations.videos["w"].labels == load_annotations(tmp_path).videos["w"].labels
    open_dataset(tmp_path)
    assert capsys.readouterr().out == ""
    assert reason == "not up to date" or (tmp_path / INDEX).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0/offsets", lambda column: column + 2),
        ("0/length", lambda column: column - 1),
        ("1/dtype", lambda column: column + 1),
    ],
)
def test_wrong_places_are_found_by_the_first_read(tmp_path, name, change):
    open_index(write(tmp_path))
    change_member(tmp_path, name, change)
    _, store = open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"features\.index: is wrong for '(flow|rgb)/v'; delete it|cannot be read"):
        store.rows("v", np.arange(3))


def test_a_folder_that_cannot_be_written_works_without_an_index(tmp_path, capsys):
    (write(tmp_path) / INDEX).mkdir()  # a name that cannot be replaced, as nothing can in a read-only folder
    (tmp_path / INDEX / "x").touch()
    _, store = open_dataset(tmp_path)
    np.testing.assert_array_equal(store["v"], open_features(tmp_path)["v"])
    lines = capsys.readouterr().out.splitlines()
    assert "every start has to read all shapes" in lines[-1] and "features.index: cannot be written" in lines[-1]


def test_a_file_that_changes_while_it_is_used_is_an_error(tmp_path):
    _, store = open_dataset(write(tmp_path))
    store.rows("v", np.arange(3))
    with (tmp_path / "features.h5").open("ab") as file:
        file.write(b"x")
    for video_id in ("v", "w"):
        with pytest.raises(InputError, match=r"features\.h5: has changed since it was opened; start the command again"):
            store.rows(video_id, np.arange(3))
    (tmp_path / "features.h5").unlink()
    with pytest.raises(InputError, match=r"features\.h5: 'rgb/v' cannot be read \(No such file"):
        store.rows("v", np.arange(3))


def test_a_truncated_file_is_an_error_of_one_line(tmp_path, monkeypatch):
    """Even if its time stamp and size are not looked at."""
    _, store = open_dataset(write(tmp_path))
    store.rows("v", np.arange(3))
    content = (tmp_path / "features.h5").read_bytes()
    (tmp_path / "features.h5").write_bytes(content[:3000])
    monkeypatch.setattr("utils.features.indexed.stamp_of", lambda _: store.source._files[0][1])
    with pytest.raises(InputError, match="'rgb/v' cannot be read .row .* after the end of the file"):
        store.rows("v", np.arange(LENGTH))


def test_damage_that_a_checksum_finds_is_found_with_an_index(tmp_path):
    write(tmp_path, chunks=(100, 150), fletcher32=True)
    content = bytearray((tmp_path / "features.h5").read_bytes())
    with h5py.File(tmp_path / "features.h5") as file:
        offset = file["rgb/v"].id.get_chunk_info(0).byte_offset
    content[offset] ^= 255
    (tmp_path / "features.h5").write_bytes(content)
    _, store = open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"features\.h5: 'rgb/v' cannot be read"):
        store.rows("v", np.arange(3))


def test_warnings_are_stored_and_stay_the_same(demo, tmp_path, monkeypatch):  # noqa: F811
    data = shutil.copytree(demo, tmp_path / "data")
    annotations, store = open_dataset(data)
    questions = [(DATASETS["demo"], "error"), (DATASETS["demo"], "skip"), (DATASETS["thumos14"], "error")]
    found = []
    for spec, missing in questions[:2]:
        found.append(startup_warnings(store, annotations, spec, missing))
        assert found[-1] == _find_warnings(store, annotations, spec, missing, None)
    with pytest.raises(InputError, match="no video of subset"):  # an error is not stored
        startup_warnings(store, annotations, *questions[2])
    monkeypatch.setattr("utils.features.check.find_faults", None)
    annotations, store = open_dataset(data)
    assert [startup_warnings(store, annotations, *question) for question in questions[:2]] == found
    with pytest.raises(TypeError):
        startup_warnings(store, annotations, *questions[2])
    with zipfile.ZipFile(data / INDEX) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("cache", ["host", "none"])
def test_trainings_with_and_without_an_index_are_equal(demo, tmp_path, cache, monkeypatch):  # noqa: F811
    data = shutil.copytree(demo, tmp_path / "data")
    options = ["--cache", cache, "--max-iter", 2]
    train(arguments(data, tmp_path / "new", *options))
    assert (data / INDEX).exists()
    train(arguments(data, tmp_path / "again", *options))
    monkeypatch.setattr("utils.features.index.open_index", lambda _: None)
    train(arguments(data, tmp_path / "without", *options))
    results = [(tmp_path / name / "metrics.json").read_text() for name in ("new", "again", "without")]
    assert results[1:] == results[:1] * 2
