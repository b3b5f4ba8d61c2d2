"""Tests of untrusted feature files: no other file is opened, no size is trusted, and nothing crashes.

`tests/test_features.py` has what the three forms hold, `tests/test_npy.py` what a .npy file may be.
"""

import os
import random
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest

from utils.errors import InputError
from utils.features.hdf5_source import HDF5Source
from utils.features.store import open_features, open_source

VALUES = np.random.default_rng(0).random((40, 4)).astype(np.float32)
PACKED = {"chunks": (16, 4), "compression": "gzip"}


def opened(folder, write) -> HDF5Source:
    """Open a file that `write` fills, given the file and the group of one modality."""
    with h5py.File(folder / "features.h5", "w") as file:
        write(file, file.create_group("rgb"))
    return HDF5Source(folder / "features.h5")


def refused(folder, write, video_id="v") -> str:
    """Return the error of a video; its shape and its values must fail alike, and without allocating memory."""
    source = opened(folder, write)
    assert video_id in source.video_ids("rgb")
    tracemalloc.start()
    lines = []
    for read in (source.shape, source.read):
        with pytest.raises(InputError) as error:
            read("rgb", video_id)
        lines.append(str(error.value))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert lines[0] == lines[1]
    assert lines[0].startswith(f"{folder / 'features.h5'}: 'rgb/{video_id}' cannot be read (")
    assert "\n" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (16, 4)},
        {"chunks": (64, 64), "maxshape": (None, None)},
        PACKED,
        {**PACKED, "shuffle": True, "fletcher32": True},
        {"chunks": (7, 3), "compression": "gzip", "compression_opts": 9, "fletcher32": True},
        {"chunks": (16, 4), "shuffle": True},
        {"chunks": (16, 4), "fletcher32": True},
        {"chunks": (16, 4), "compression": "lzf"},
        {"chunks": (16, 4), "compression": "lzf", "shuffle": True, "fletcher32": True},
        {"compression": "gzip", "maxshape": (None, None)},
    ],
)
@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("values", [VALUES, VALUES.astype(">f2"), np.zeros((300, 300))])
def test_every_valid_layout_is_read(tmp_path, options, version, values):
    with h5py.File(tmp_path / "features.h5", "w", libver=version) as file:
        file.create_dataset("rgb/v", data=values, **options)
    source = HDF5Source(tmp_path / "features.h5")
    assert source.shape("rgb", "v") == values.shape
    for _ in range(2):
        np.testing.assert_array_equal(source.read("rgb", "v"), values)


@pytest.mark.parametrize("options", [{}, {"maxshape": (None, 4)}, {"maxshape": (None, 4), "compression": "gzip"}])
def test_a_video_without_snippets_is_read(tmp_path, options):
    source = opened(tmp_path, lambda file, group: group.create_dataset("v", (0, 4), "f4", **options))
    assert source.shape("rgb", "v") == source.read("rgb", "v").shape == (0, 4)


def another_file(folder) -> str:
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["x/y"] = VALUES
    return str(folder / "other.hdf5")


@pytest.mark.parametrize(
    ("link", "video_id"),
    [("external", "v"), ("soft to external", "v"), ("through external", "v"), ("soft through external", "v")],
)
def test_a_link_to_another_file_is_not_followed(tmp_path, link, video_id):
    other = another_file(tmp_path)

    def write(file, group):
        group["away"] = h5py.ExternalLink(other, "/x" if "through" in link else "/x/y")
        soft = {"soft to external": "/rgb/away", "soft through external": "away/y"}
        group["v"] = h5py.SoftLink(soft[link]) if link in soft else h5py.ExternalLink(other, "/x/y")

    assert "it links to another file" in refused(tmp_path, write, video_id)


def test_listing_opens_no_other_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")  # opening it would block

    def write(file, group):
        group["v"] = h5py.ExternalLink(str(tmp_path / "pipe.h5"), "/x")

    assert "it links to another file" in refused(tmp_path, write)


def test_a_modality_in_another_file_is_named(tmp_path):
    other = another_file(tmp_path)
    with pytest.raises(InputError, match=r"features\.h5: 'flow' cannot be read \(it links to another file"):
        opened(tmp_path, lambda file, group: file.update({"flow": h5py.ExternalLink(other, "/x")}))


def test_values_stored_in_another_file_are_not_read(tmp_path):
    (tmp_path / "raw").write_bytes(bytes(640))

    def write(file, group):
        group.create_dataset("v", (40, 4), "f4", external=[(str(tmp_path / "raw"), 0, 640)])

    assert "lie in another file" in refused(tmp_path, write)


def test_a_virtual_dataset_is_not_read(tmp_path):
    layout = h5py.VirtualLayout((40, 4), "f4")
    layout[:] = h5py.VirtualSource(another_file(tmp_path), "/x/y", (40, 4))
    assert "lie in another file" in refused(
        tmp_path, lambda file, group: group.create_virtual_dataset("v", layout, fillvalue=1)
    )


def test_soft_links_stay_within_the_file(tmp_path):
    def write(file, group):
        file["data/deep/values"] = VALUES
        file["flow"] = h5py.SoftLink("data/deep")
        group["v"] = h5py.SoftLink("/data/./deep//values")
        group["w"] = h5py.SoftLink("v")
        group["sub"] = h5py.SoftLink("/data/deep")
        group["ring"] = h5py.SoftLink("ring")
        group["gone"] = h5py.SoftLink("/data/shallow/values")
        group["up"] = h5py.SoftLink("../data")

    source = opened(tmp_path, write)
    assert source.modalities == ("data", "flow", "rgb")
    assert source.video_ids("flow") == ["values"]
    assert source.video_ids("rgb") == ["gone", "ring", "sub/values", "up", "v", "w"]
    for video_id in ("v", "w", "sub/values"):
        np.testing.assert_array_equal(source.read("rgb", video_id), VALUES)
    for video_id, message in (("ring", "more than 100 links"), ("gone", "does not exist"), ("up", "does not exist")):
        with pytest.raises(InputError, match=f"'rgb/{video_id}' cannot be read .*{message}"):
            source.shape("rgb", video_id)


def test_nested_groups_are_limited(tmp_path):
    def write(file, group):
        for level in range(25):  # two ways down at each level: millions of paths
            child = group.create_group("a")
            group["b"], group = child, child
            if level == 14:
                child["values"] = VALUES
                break
        child["top"] = file["rgb"]

    source = opened(tmp_path, write)
    assert source.video_ids("rgb") == ["a/" * 15 + "values"]
    (tmp_path / "deep").mkdir()
    source = opened(tmp_path / "deep", lambda file, group: group.create_group("/".join("a" * 3000)))
    with pytest.raises(InputError, match="group 'rgb' cannot be read .groups are nested deeper than 16 levels"):
        source.video_ids("rgb")


def written_chunk(group, content: bytes, shape=(256, 256), **options):
    """Create a dataset of one chunk with these bytes."""
    dataset = group.create_dataset("v", shape, "f4", chunks=shape, **options)
    dataset.id.write_direct_chunk((0,) * len(shape), content)


def without_values(group, shape, **options):
    group.create_dataset("v", shape, "f4", **options)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda group: without_values(group, (2**20, 2**20)), "declares 4,398,046,511,104 bytes, the file has 0"),
        (lambda group: without_values(group, (2**20, 2**20), chunks=(2**10, 2**10)), "declares 1,048,576 chunks"),
        (lambda group: without_values(group, (2**20, 2**20), **PACKED), "chunks, the file has 0"),
        (lambda group: without_values(group, (2**20, 2**20), fillvalue=1.5), "the file has 0"),
        (lambda group: without_values(group, (0, 2**40), maxshape=(None, None), chunks=(1, 1)), "no array has"),
        (lambda group: written_chunk(group, zlib.compress(bytes(2**20))[:100]), None),
        (lambda group: written_chunk(group, b"short"), "declares 262,144 bytes, the file has 5"),
        (lambda group: written_chunk(group, b"a", shuffle=True), "the file has 1"),
        (lambda group: written_chunk(group, b"abc", fletcher32=True), "the file has 3"),
        (lambda group: written_chunk(group, b"abc", compression="gzip"), "the file has 3"),
        (lambda group: written_chunk(group, b"abc", compression="lzf"), "the file has 3"),
        (lambda group: written_chunk(group, b"abc", (1, 1), compression="gzip", fletcher32=True), "the file has 3"),
    ],
)
def test_sizes_that_the_file_cannot_contain(tmp_path, write, message):
    line = refused(tmp_path, lambda file, group: write(group))
    assert message is None or message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zlib.compress(os.urandom(1000)), "does not unpack to the declared 262,144 bytes"),
        (zlib.compress(bytes(2**24)), "does not unpack to the declared 262,144 bytes"),
        (zlib.compress(os.urandom(2**18))[:-9], "does not unpack to the declared 262,144 bytes"),
        (os.urandom(1000), "while decompressing"),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_chunk_unpacks_to_its_size_or_is_refused(tmp_path, content, message, shuffle):
    """HDF5 itself reads past the end of a chunk that is too short."""
    source = opened(tmp_path, lambda _, group: written_chunk(group, content, compression="gzip", shuffle=shuffle))
    tracemalloc.start()
    with pytest.raises(InputError, match=f"'rgb/v' cannot be read .*{message}"):
        source.read("rgb", "v")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([b"text"]), "got dtype"),
        (np.zeros(3, dtype=[("x", "f4")]), "got dtype"),
        (np.zeros(3, dtype=complex), "got dtype"),
        (np.array(["a", "b"], dtype=h5py.string_dtype()), "got dtype"),
    ],
)
def test_values_that_are_not_numbers_are_not_read(tmp_path, values, message):
    assert message in refused(tmp_path, lambda file, group: group.create_dataset("v", data=values))


def test_references_are_not_followed(tmp_path):
    def write(file, group):
        group.create_dataset("v", data=np.array([group.ref], dtype=h5py.ref_dtype))

    assert "got dtype" in refused(tmp_path, write)


@pytest.mark.parametrize("options", [{"scaleoffset": 2}, {"filters": 32015}, {"filters": 1, "twice": True}])
def test_other_filters_are_named(tmp_path, options):
    def write(file, group):
        if "scaleoffset" in options:
            group.create_dataset("v", data=VALUES, chunks=(16, 4), **options)
            return
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((16, 4))
        for _ in range(2 if "twice" in options else 1):  # compressed twice, a millionth of the bytes is enough
            layout.set_filter(options["filters"], h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(group.id, b"v", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((40, 4)), layout)

    assert "and fletcher32, got [" in refused(tmp_path, write)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(8000),
        "25",
        b"25",
        np.array(["25"], dtype=h5py.string_dtype()),
        np.zeros(1, dtype=[("x", "f4")]),
        np.zeros((0, 2**40)),
        h5py.Empty("f8"),
        np.inf,
        1j,
    ],
)
def test_a_rate_of_another_kind_is_refused_in_one_line(tmp_path, value):
    with pytest.raises(InputError) as error:
        opened(tmp_path, lambda file, group: file.attrs.update(fps=value, stride=16)).rate("rgb")
    assert "the attributes of 'rgb': expected positive numbers fps and stride" in str(error.value)
    assert len(str(error.value)) < 500


def test_a_reference_is_not_a_rate(tmp_path):
    def write(file, group):
        group.attrs["fps"], group.attrs["stride"] = group.ref, 16

    with pytest.raises(InputError, match="positive numbers fps and stride"):
        opened(tmp_path, write).rate("rgb")


def test_a_name_that_is_not_text_is_refused(tmp_path):
    source = opened(tmp_path, lambda file, group: group.create_dataset(b"\xff\xfe", data=VALUES))
    with pytest.raises(InputError, match="is not UTF-8"):
        source.video_ids("rgb")


def test_shapes_are_read_without_values(tmp_path, monkeypatch):
    def write(file, group):
        for number in range(400):
            group.create_dataset(f"v{number}", data=VALUES, **PACKED)

    opened(tmp_path, write)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    store = open_features(tmp_path, ("rgb",))
    assert sum(map(store.num_snippets, store.video_ids)) == 16_000


def test_a_video_id_is_never_a_path(tmp_path):
    for folder in ("rgb", "hidden"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        np.save(tmp_path / "data" / folder / "v.npy", VALUES)
    np.save(tmp_path / "secret.npy", VALUES)
    store = open_features(tmp_path / "data", ("rgb",))
    assert store.video_ids == ["v"]
    for video_id in ("../hidden/v", "../../secret", str(tmp_path / "secret"), "./v", "v.npy", ""):
        with pytest.raises(InputError, match="has no features"):
            store[video_id]


def test_a_folder_of_npy_files_loads_no_pickle(tmp_path):
    (tmp_path / "rgb").mkdir()
    np.save(tmp_path / "rgb" / "v.npy", np.array([[None]]))
    with pytest.raises(InputError, match=r"v\.npy: .*object dtype; expected numbers"):
        open_source(tmp_path).read("rgb", "v")


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "features.h5")
    for path in (tmp_path, tmp_path / "features.h5"):
        with pytest.raises(InputError):
            open_source(path)


def seed_file(path, version) -> bytes:
    with h5py.File(path, "w", libver=version) as file:
        for modality in ("rgb", "flow"):
            file[f"{modality}/a/b"], file[f"{modality}/linked"] = VALUES[:5], h5py.SoftLink(f"/{modality}/a/b")
            file.create_dataset(f"{modality}/z", data=VALUES, shuffle=True, fletcher32=True, **PACKED)
            file.create_dataset(f"{modality}/l", data=VALUES, chunks=(16, 4), compression="lzf", maxshape=(None, 4))
            file[modality].attrs.update(fps=25, stride=16)
    return path.read_bytes()


def compare_rows(source, modality, video_id) -> None:
    """Compare rows read from a file opened again with those of the whole array."""
    shape = source.shape(modality, video_id)
    if len(shape) == 2 and shape[0]:
        rows = np.array([0, shape[0] // 2, shape[0] - 1])
        result = HDF5Source(source.path).rows(modality, video_id, rows)
        np.testing.assert_array_equal(result, source.read(modality, video_id)[rows])


def read_all(path) -> int:
    """Return the number of readable arrays in a damaged file; only InputErrors of one line are caught."""
    arrays = 0
    source = HDF5Source(path)
    for modality in source.modalities:
        attempts = [lambda modality=modality: source.rate(modality)]
        try:
            ids = source.video_ids(modality)
        except InputError:
            ids = []
        attempts += [lambda modality=modality, video_id=v: source.read(modality, video_id) for v in ids]
        attempts += [lambda modality=modality, video_id=v: compare_rows(source, modality, video_id) for v in ids]
        for attempt in attempts:
            try:
                arrays += isinstance(attempt(), np.ndarray)
            except InputError as error:
                assert "\n" not in str(error)
    return arrays


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_damaged_files_are_read_or_refused(tmp_path, version):
    path = tmp_path / "features.h5"
    whole = seed_file(path, version)
    rng = random.Random(version)
    outcomes = set()
    for _ in range(120):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            content[rng.randrange(len(content))] = rng.choice((0, 255, rng.randrange(256)))
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.15 else content)
        try:
            outcomes.add(read_all(path))
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.add(InputError)
    assert {InputError, 8} <= outcomes
