"""Explicit hostile inputs: bombs, links that lead outside, code in tags, depth, and values without meaning."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path

import h5py
import numpy as np
import torch

from tests.torture import pickles
from tests.torture.corpus import FORMS, JOINT, RELEASE
from tests.torture.inputs import PICKLE_PLACES, TENSORS, Input, Write, pickle_input, put

DEPTH = 100_000


def examples() -> list[Input]:
    """Return every explicit input, and a good input of each form."""
    good = [Input(form, "undamaged", form, lambda folder, sentinel: None) for form in FORMS]
    calls = zip(cycle(PICKLE_PLACES), product(pickles.CALLS, pickles.WAYS), strict=False)
    return [
        *good,
        *(pickle_input(place, *call) for place, call in calls),
        *_npy(),
        *_checkpoints(),
        *_hdf5(),
        *_texts(),
    ]


def _array(descr: str = "'<f4'", shape: str = "(3, 6)") -> bytes:
    return pickles.npy_file(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode(), bytes(72))


HEADERS = {
    "10^12 rows": _array(shape="(1000000000000, 6)"),
    "2^40 objects": _array("'|O'", "(1099511627776,)"),
    "more than 2^64 values": _array(shape="(4294967296, 4294967296, 4)"),
    "an empty dimension and 2^62": _array(shape="(0, 4611686018427387904)"),
    "70 dimensions": _array(shape="(" + "1, " * 70 + ")"),
    "2 GB of text per value": _array("'<U500000000'"),
    "a dtype that is code": _array("__import__('os').mkdir('x')"),
    "5,000 brackets": pickles.npy_file(b"(" * 5000, b""),
    "a header of 4 GB": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{",
}
BOMBS = {
    "a text of 2^40 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    "a number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "a frame of 2^60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"].",
    "a memo at 2^31": b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".",
    "marks without end": b"\x80\x02" + b"(" * 200_000 + b".",
    "lists 100,000 deep": b"\x80\x02" + b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "lists that double 60 times": b"\x80\x02]q\x00" + b"0](h\x00h\x00eq\x00" * 60 + b".",
    "an array of 2^62": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86X\x02\0\0\0f4\x86R.",
    "a dtype of 10^8 bytes": b"\x80\x02cnumpy\ndtype\nX\x09\x00\x00\x00V99999999\x85R.",
    "bytes after the end": b"\x80\x02]." + b"x" * 100,
}


def _npy() -> Iterator[Input]:
    files = {name: pickles.npy_of_objects(content) for name, content in BOMBS.items()} | HEADERS
    places = [(".npy folders", "rgb/train_0001.npy"), ("release annotations", f"{RELEASE}/labels.npy")]
    for (name, content), (form, file) in product(files.items(), [*places, ("release features", JOINT)]):
        yield Input(form, ".npy bombs", f"{name}, {file}", put(file, content), must_refuse=True)


def _deflated(folder: Path, sentinel: Path) -> None:
    with zipfile.ZipFile(folder / "best.pt") as source:
        records = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(folder / "best.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name, content in records.items():
            target.writestr(name, bytes(2**28) if name.endswith("data/0") else content)


def _claims(folder: Path, sentinel: Path) -> None:
    content = bytearray((folder / "best.pt").read_bytes())
    at = content.index(b"PK\x01\x02")
    while content[at : at + 4] == b"PK\x01\x02":
        content[at + 20 : at + 28] = struct.pack("<II", 3 * 10**9, 3 * 10**9)
        at += 46 + sum(struct.unpack("<HHH", content[at + 28 : at + 34]))
    (folder / "best.pt").write_bytes(content)


def _change(change: Callable[[dict], object]) -> Write:
    """Return a writer that changes one part of a good checkpoint."""

    def write(folder: Path, sentinel: Path) -> None:
        checkpoint = torch.load(folder / "best.pt", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, folder / "best.pt")

    return write


def _weight(change: Callable[[torch.Tensor], object]) -> Callable[[dict], object]:
    name = "classifier.4.weight"
    return lambda checkpoint: checkpoint["model"].update({name: change(checkpoint["model"][name])})


CHANGES: dict[str, Callable[[dict], object]] = {
    **{name: _weight(TENSORS[name]) for name in ("expanded", "sparse", "meta", "complex", "quantized", "NaN")},
    "a list for a weight": _weight(lambda weight: [1.0]),
    "no weights": lambda checkpoint: checkpoint.update(model={}),
    "no dataset": lambda checkpoint: checkpoint.update(options={}),
    "a dataset that is a list": lambda checkpoint: checkpoint["options"].update(dataset=["../../etc"]),
    "modalities that are paths": lambda checkpoint: checkpoint["options"].update(modalities=["../rgb", "/etc"]),
    "an unknown argument": lambda checkpoint: checkpoint.update(architecture={"color": "red"}),
    "an unknown consensus": lambda checkpoint: checkpoint["architecture"].update(consensus="__import__"),
    "a pool of 10^9": lambda checkpoint: checkpoint["architecture"].update(temporal_pool=10**9),
}


def _checkpoints() -> Iterator[Input]:
    for name, write in {"256 MB in few bytes": _deflated, "records of 3 GB": _claims}.items():
        yield Input("best.pt", "checkpoints", name, write, must_refuse=True)
    for name, change in CHANGES.items():
        yield Input("test.py", "checkpoints", name, _change(change), must_refuse=True)


Spoil = Callable[[h5py.Group, str, int], object]  # (group, name, width) of a good array


def _zeros(rows: int, chunk_rows: int) -> Spoil:
    """Return a writer of chunks that unpack to 100 MB of zeros each, whatever their shape."""

    def spoil(group: h5py.Group, name: str, width: int) -> None:
        dataset = group.create_dataset(name, (rows, width), "f4", chunks=(chunk_rows, width), compression="gzip")
        packed = zlib.compress(bytes(100 * 2**20), 9)
        for row in range(0, rows, chunk_rows):
            dataset.id.write_direct_chunk((row, 0), packed)

    return spoil


def _never_written(rows: int, **more: object) -> Spoil:
    return lambda group, name, width: group.create_dataset(name, (rows, width), "f4", **more)


def _put(value: object) -> Spoil:
    return lambda group, name, width: group.update({name: value})


def _deep(group: h5py.Group, name: str, width: int) -> None:
    for _ in range(1500):
        group = group.create_group(name)


SPOILED: dict[str, tuple[Spoil, bool]] = {  # and whether it must be refused; tests/test_feature_files.py has more
    "a link to another file": (_put(h5py.ExternalLink("../../dataset/features.h5", "/rgb/train_0001")), True),
    "a link to a missing file": (_put(h5py.ExternalLink("/nowhere.h5", "/values")), True),
    "a link to nothing": (_put(h5py.SoftLink("/nowhere")), True),
    "a link to its group": (lambda group, name, width: group.update({name: group.parent}), False),
    "a view of nothing": (
        lambda group, name, width: group.create_virtual_dataset(name, h5py.VirtualLayout((2**40, width), "f4")),
        True,
    ),
    "100 MB per chunk": (_zeros(2**25, 2**22), False),
    "a chunk that grows": (_zeros(90, 90), True),
    "2^30 rows never written": (_never_written(2**30, chunks=(2**10, 1)), True),
    "2^36 rows never written": (_never_written(2**36), True),
    "a dtype": (_put(np.dtype("f4")), True),
    "nothing": (_put(h5py.Empty("f4")), True),
    "groups 1,500 deep": (_deep, False),
    "a name that is not text": (lambda group, name, width: h5py.h5g.create(group.id, b"\xff\xfe\x80"), False),
}


def _spoil(file: str, groups: tuple[str, ...], name: str, spoil: Spoil) -> Write:
    def write(folder: Path, sentinel: Path) -> None:
        with h5py.File(folder / file, "r+") as content:
            for group in groups:
                width = content[group][name].shape[-1]
                del content[group][name]
                spoil(content[group], name, width)

    return write


def _hdf5() -> Iterator[Input]:
    for name, (spoil, must_refuse) in SPOILED.items():
        features = _spoil("features.h5", ("rgb", "flow"), "train_0001", spoil)
        yield Input("HDF5 features", "HDF5", f"features.h5: {name}", features, must_refuse)
        outputs = _spoil("run/outputs.h5", ("test_0012",), "attention", spoil)
        yield Input("run folder without checksums", "HDF5", f"outputs.h5: {name}", outputs)


TAGS = """object/apply:os.system ["mkdir '{path}'"]
object/apply:os.mkdir ['{path}']
object/apply:builtins.eval ["__import__('os').mkdir('{path}')"]
object/apply:os.mkdir {args: ['{path}']}
object/new:os.mkdir ['{path}']
object/new:numpy.memmap ['{path}', u1, w+]
object:pathlib.Path {}
name:os.mkdir
module:antigravity
tuple [1, 2]"""
ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
YAML = [
    *(f"lr: !!python/{tag}" for tag in TAGS.splitlines()),
    "lr: !<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{path}']",
    "a0: &a0 [x]\n" + ALIASES,
    "lr: &a [*a]",
    *("lr: " + text for text in ("[" * DEPTH, "[" * 900 + "]" * 900, "{a: " * 900, "9" * 60_000, "2001-99-99", "1\0")),
    "- " * 20_000,
    "\n".join(" " * n + "a:" for n in range(250)),
    "? [a, b]\n: 1",
    "lr: 1\n---\nlr: 2",
    "\xff\xfe",
    *(f"base: {name}" for name in ("/dev/zero", "/dev/stdin", "..", "config.yaml", "[a, [b]]", '"a\\0b"')),
]
JSON = [
    *("[" * DEPTH + "]" * DEPTH, '{"a": ' * DEPTH + "1" + "}" * DEPTH, "[" * 900 + "]" * 900, "1" * DEPTH),
    *("NaN", "null", '"text"', "[]", "// {}\n{}", "__import__('os').mkdir('x')"),
    *('{"a": 1, "a": 2}', '{"a": "\xff"}', '{"a": "\0"}'),
]
HEAD, ROW = "video-id,t-start,t-end,label,score\n", "test_0012,1.5,4.5,Clap,0.5\n"
CSV = [
    *(HEAD + ROW.replace("0.5", text) for text in ("0,5", "nan", "1e999")),
    *(HEAD + ROW.replace("Clap,", text) for text in ("", "C" * 200_000 + ",", '"Clap,')),
    HEAD.strip() + ",score\n" + ROW.strip() + ",0.9\n",
]
SUMS = [
    "hello\n",
    "\xff\xfe\x00",
    "0" * 64,
    *(f"{'0' * 64}  {name}\n" for name in ("../../etc/passwd", "annotations.json")),
]
REPORT = ("metrics.json", "environment.json", "log.jsonl", "detections.json")
PLACES: dict[str, tuple[list[str], list[tuple[str, str]]]] = {  # each text goes into each file
    "YAML": (YAML, [("config.yaml", "config.yaml"), ("report", "run/options.yaml")]),
    "JSON": (JSON, [("annotations.json", "annotations.json"), ("evaluation", "detections.json")]),
    "JSON of a run": (JSON, [("report", f"run/{name}") for name in REPORT]),
    "CSV": (CSV, [("evaluation of CSV", "detections.csv")]),
    "SHA256SUMS": (SUMS, [("annotations.json", "SHA256SUMS")]),
}


def _texts() -> Iterator[Input]:
    for group, (texts, places) in PLACES.items():
        for text, (form, file) in product(texts, places):
            yield Input(form, group, f"{file}: {text[:60]!r}", _text(file, text), must_refuse=True)


def _text(file: str, text: str) -> Write:
    return lambda folder, sentinel: put(file, text.replace("{path}", str(sentinel)).encode("latin1"))(folder, sentinel)
