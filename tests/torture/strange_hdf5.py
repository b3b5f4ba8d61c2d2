"""Hostile HDF5: links and values that lie outside, sizes that are not there, what is no array where one should be."""

import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from tests.torture.case import Case, read_features, read_outputs

Shape = tuple[int, int]  # of a good array there
Spoil = Callable[[h5py.Group, str, Path, Shape], None]  # puts something under a name of a group; the path is outside
ROWS = 90
BLOCK = 2**22  # rows of a bomb's chunk: 100 MB of 6 channels


def _outside(path: Path, shape: tuple[int, ...]) -> Path:
    """A file that no reader may open: beside the input, not in it."""
    folder = path / f"secret {shape[1]}"  # of the width that the reader expects
    if not folder.exists():
        folder.mkdir()
        with h5py.File(folder / "secret.h5", "w") as file:
            file["values"] = np.ones(shape, np.float32)
        (folder / "secret.bin").write_bytes(np.ones(shape, np.float32).tobytes())
    return folder


def _external_link(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group[name] = h5py.ExternalLink(str(_outside(outside, shape) / "secret.h5"), "/values")


def _external_group(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group[name] = h5py.ExternalLink(str(_outside(outside, shape) / "secret.h5"), "/")


def _missing_file(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group[name] = h5py.ExternalLink("/nowhere/secret.h5", "/values")


def _external_storage(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    place = (str(_outside(outside, shape) / "secret.bin"), 0, h5py.h5f.UNLIMITED)
    group.create_dataset(name, shape, "f4", external=[place])


def _virtual(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(str(_outside(outside, shape) / "secret.h5"), "values", shape)
    group.create_virtual_dataset(name, layout)


def _virtual_of_nothing(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group.create_virtual_dataset(name, h5py.VirtualLayout((2**40, shape[1]), "f4"))


def _dangling(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group[name] = h5py.SoftLink("/nowhere/at/all")


def _link_to_itself(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group[name] = h5py.SoftLink(f"{group.name}/{name}")


def _link_to_above(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group[name] = group.parent


def _unknown_filter(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk(shape)
    layout.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # a compressor that comes as a library from a folder
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space, layout)
    dataset.write_direct_chunk((0, 0), b"x" * 100)


@cache
def _zeros(num_bytes: int) -> bytes:
    return zlib.compress(bytes(num_bytes), 9)


def _gzip_bomb(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    """800 MB of zeros in 800 kB, for 6 channels."""
    dataset = group.create_dataset(name, (8 * BLOCK, shape[1]), "f4", chunks=(BLOCK, shape[1]), compression="gzip")
    for row in range(0, 8 * BLOCK, BLOCK):
        dataset.id.write_direct_chunk((row, 0), _zeros(BLOCK * 4 * shape[1]))


def _chunk_that_grows(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    """A chunk that unpacks to a thousand times its size."""
    dataset = group.create_dataset(name, shape, "f4", chunks=shape, compression="gzip")
    dataset.id.write_direct_chunk((0, 0), _zeros(BLOCK * 24))


def _never_written(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group.create_dataset(name, (2**30, shape[1]), "f4", chunks=(2**10, shape[1]))


def _never_written_contiguous(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group.create_dataset(name, (2**36, shape[1]), "f4")


def _group_for_an_array(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group.create_group(name)


def _type_for_an_array(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group[name] = np.dtype("f4")


def _deep(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    for _ in range(1500):
        group = group.create_group(name)
    group["end"] = np.ones(shape, np.float32)


def _name_of_no_text(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    h5py.h5g.create(group.id, b"\xff\xfe\x80")
    group[name] = np.ones(shape, np.float32)


def _values(make: Callable[[Shape], object]) -> Spoil:
    def spoil(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
        group[name] = make(shape)

    return spoil


def _reference(group: h5py.Group, name: str, outside: Path, shape: Shape) -> None:
    group.create_dataset(name, shape, h5py.ref_dtype)


STRINGS = h5py.string_dtype()
SPOILED: dict[str, tuple[Spoil, bool]] = {
    "a link to another file": (_external_link, True),
    "a link to a group of another file": (_external_group, True),
    "a link to a file that is not there": (_missing_file, True),
    "values in another file": (_external_storage, True),
    "a view of another file": (_virtual, True),
    "a view of nothing, 2^40 rows": (_virtual_of_nothing, True),
    "a link to nowhere": (_dangling, True),
    "a link to itself": (_link_to_itself, True),
    "a link to what it is in": (_link_to_above, False),
    "a compressor of a stranger": (_unknown_filter, True),
    "800 MB in 800 kB": (_gzip_bomb, False),
    "a chunk that grows": (_chunk_that_grows, True),
    "2^30 rows that were never written": (_never_written, True),
    "2^36 rows that were never written": (_never_written_contiguous, True),
    "a group": (_group_for_an_array, False),
    "a type": (_type_for_an_array, True),
    "groups 1,500 deep": (_deep, False),
    "a name that is no text": (_name_of_no_text, False),
    "texts": (_values(lambda shape: np.full(shape, "x", dtype=STRINGS)), True),
    "texts of a length": (_values(lambda shape: np.full(shape, b"x")), True),
    "records": (_values(lambda shape: np.zeros(shape, [("a", "f4"), ("b", "f4")])), True),
    "opaque bytes": (_values(lambda shape: np.zeros(shape, "V7")), True),
    "references": (_reference, True),
    "whole numbers": (_values(lambda shape: np.zeros(shape, "i8")), False),
    "truth values": (_values(lambda shape: np.zeros(shape, bool)), False),
    "complex numbers": (_values(lambda shape: np.zeros(shape, "c8")), True),
    "numbers of 16 bytes": (_values(lambda shape: np.zeros(shape, np.longdouble)), False),
    "big-endian numbers": (_values(lambda shape: np.zeros(shape, ">f4")), False),
    "NaN": (_values(lambda shape: np.full(shape, np.nan, "f4")), False),
    "huge numbers": (_values(lambda shape: np.full(shape, 1e300)), False),
    "one number": (_values(lambda shape: 1.0), True),
    "nothing": (_values(lambda shape: h5py.Empty("f4")), True),
    "an array of no rows": (_values(lambda shape: np.zeros((0, shape[1]), "f4")), False),
    "an array of no columns": (_values(lambda shape: np.zeros((shape[0], 0), "f4")), False),
    "one dimension": (_values(lambda shape: np.zeros(shape[0], "f4")), False),
    "30 dimensions": (_values(lambda shape: np.zeros((1,) * 30, "f4")), True),
}

OUTSIDE = (_external_link, _external_storage, _virtual)  # whose values would be a stranger's choice of files

ATTRIBUTES = {
    "a text": "25",
    "texts": np.array(["25", "x"], dtype=object),
    "a list": [25, 25],
    "a table": np.zeros((3, 3)),
    "nothing": h5py.Empty("f4"),
    "zero": 0,
    "less than zero": -25,
    "NaN": np.nan,
    "infinity": np.inf,
    "10^300": 1e300,
    "a record": np.zeros((), [("a", "f4")]),
    "complex": 1j,
    "8 MB": np.zeros(2**16 - 64, "u1"),
    "opaque": np.void(b"x"),
}


def hdf5_cases() -> Iterator[Case]:
    """In features.h5 and in the outputs.h5 of a run."""
    for name, (spoil, refused) in SPOILED.items():
        features = _spoiler("features.h5", ("rgb", "flow"), "train_0001", spoil)
        yield Case("HDF5", f"{name}, features.h5", "hdf5 features", features, read_features, refused)
        outputs = _spoiler("run/outputs.h5", ("test_0012",), "attention", spoil)
        yield Case("HDF5", f"{name}, outputs.h5", "run", outputs, read_outputs, spoil in OUTSIDE)
    for name, value in ATTRIBUTES.items():
        for attribute in ("fps", "stride"):
            make = _attributes("features.h5", {attribute: value})
            yield Case("HDF5", f"{attribute}: {name}", "hdf5 features", make, read_features, name != "10^300")
        for attribute in ("snippet_rate", "classes"):
            make = _attributes("run/outputs.h5", {attribute: value})
            yield Case("HDF5", f"{attribute}: {name}", "run", make, read_outputs, False)


def _spoiler(file: str, groups: tuple[str, ...], name: str, spoil: Spoil) -> Callable[[Path, Path], None]:
    def make(folder: Path, sentinel: Path) -> None:
        with h5py.File(folder / file, "r+") as content:
            for group in groups:
                shape = (ROWS, content[group][name].shape[-1])
                del content[group][name]
                spoil(content[group], name, folder.parent.parent, shape)

    return make


def _attributes(file: str, attributes: dict) -> Callable[[Path, Path], None]:
    def make(folder: Path, sentinel: Path) -> None:
        with h5py.File(folder / file, "r+") as content:
            for name, value in attributes.items():
                content.attrs[name] = value

    return make
