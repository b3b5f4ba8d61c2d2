"""Hostile .npy files and checkpoints: pickles that run code, headers and records that promise what is not there."""

import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from tests.torture.case import JOINT, Case, read_annotations, read_features, read_resumed, read_tested
from tests.torture.pickles import PICKLES, as_legacy, as_objects, as_tar, as_zip
from utils.annotations import RELEASE_SUFFIX
from utils.checkpoint import read_checkpoint

ANNOTATION_FILES = ("classlist", "videoname", "subset", "duration", "labels_all", "labels", "segments")
Bytes = Callable[[bytes, Path], bytes]  # a pickle and a good file of the place -> the file


def _npy_places() -> Iterator[tuple[str, str, Callable]]:
    """(place, file, reader) of every .npy file that the project opens."""
    for name in ANNOTATION_FILES:
        yield "release", f"Demo{RELEASE_SUFFIX}/{name}.npy", read_annotations
    yield "release", JOINT, read_features
    yield "npy folders", "rgb/train_0001.npy", read_features


CHECKPOINTS: dict[str, Bytes] = {
    "zip": as_zip,
    "legacy": lambda content, good: as_legacy(content),
    "plain pickle": lambda content, good: content,
    "tar": lambda content, good: as_tar(content),
}


def pickle_cases() -> Iterator[Case]:
    """Every hostile pickle in every place where one is opened."""
    for name in PICKLES:
        for place, file, read in _npy_places():
            yield Case("pickles in .npy files", f"{name}, {file}", place, _npy_maker(name, file), read)
        for form, build in CHECKPOINTS.items():
            make = _checkpoint_maker(name, build)
            yield Case("pickles in checkpoints", f"{name}, {form}", "small checkpoint", make, _read_best)


def _npy_maker(name: str, file: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, sentinel: Path) -> None:
        (folder / file).write_bytes(as_objects(PICKLES[name](str(sentinel))))

    return make


def _checkpoint_maker(name: str, build: Bytes) -> Callable[[Path, Path], None]:
    def make(folder: Path, sentinel: Path) -> None:
        path = folder / "best.pt"
        path.write_bytes(build(PICKLES[name](str(sentinel)), path))

    return make


def _read_best(folder: Path) -> None:
    read_checkpoint(folder / "best.pt")


def _header(text: str, version: bytes = b"\x01\x00") -> bytes:
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) + 1)
    return b"\x93NUMPY" + version + size + text.encode() + b"\n"


def _array(descr: str = "'<f4'", shape: str = "(3, 6)", order: str = "False") -> bytes:
    return _header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}") + bytes(72)


HEADERS: dict[str, bytes] = {
    "10^12 rows": _array(shape="(1000000000000, 6)"),
    "2^40 objects": _array("'|O'", "(1099511627776,)"),
    "more than 2^64 values": _array(shape="(4294967296, 4294967296, 4)"),
    "an empty dimension and 2^62": _array(shape="(0, 4611686018427387904)"),
    "a negative shape": _array(shape="(-3, 6)"),
    "a shape of texts": _array(shape="('a', 'b')"),
    "a shape that is a number": _array(shape="18"),
    "70 dimensions": _array(shape="(" + "1, " * 70 + ")"),
    "2 GB of text a value": _array("'<U500000000'"),
    "void of 10^9 bytes": _array("'|V1000000000'"),
    "a dtype that is code": _array("__import__('os').mkdir('x')"),
    "a shape that is code": _array(shape="__import__('os').mkdir('x')"),
    "no dict": _header("['descr']"),
    "nested 5,000 deep": _header("(" * 5000),
    "a structured dtype of objects": _array("[('a', '|O')]", "(2,)"),
    "a dtype of 2,000 fields": _array(repr([(f"f{number}", "<f4") for number in range(200)])),
    "dates": _array("'<M8[s]'"),
    "version 9": _header("{}", b"\x09\x00"),
    "a header of 4 GB": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{",
    "no header": b"\x93NUMPY",
    "a text of 2^40 bytes": as_objects(b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"."),
    "a number of 2^31 bytes": as_objects(b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"."),
    "a frame of 2^60 bytes": as_objects(b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"]."),
    "a memo at 2^31": as_objects(b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b"."),
    "marks without end": as_objects(b"\x80\x02" + b"(" * 200_000 + b"."),
    "lists 100,000 deep": as_objects(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "a list that is in itself": as_objects(b"\x80\x02]q\x00h\x00a."),
    "lists that double 60 times": as_objects(
        b"\x80\x02]q\x00" + b"0]h\x00h\x00eq\x00".replace(b"]h", b"](h") * 60 + b"."
    ),
    "an array of 2^40 from nothing": as_objects(
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftX\x02\x00\x00\x00f4\x86R."
    ),
    "a dtype of a stranger": as_objects(b"\x80\x02cnumpy\ndtype\nX\x09\x00\x00\x00V99999999\x85R."),
    "bytes behind the end": as_objects(b"\x80\x02]." + b"x" * 100),
}


def npy_cases() -> Iterator[Case]:
    """Headers and pickles that promise, nest or repeat more than there is."""
    for name, content in HEADERS.items():
        for place, file, read in (
            ("npy folders", "rgb/train_0001.npy", read_features),
            ("release", f"Demo{RELEASE_SUFFIX}/labels.npy", read_annotations),
            ("release", JOINT, read_features),
        ):
            yield Case(".npy bombs and headers", f"{name}, {file}", place, _writer(file, content), read)


def _writer(file: str, content: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, sentinel: (folder / file).write_bytes(content) and None


def _deflated(folder: Path, sentinel: Path) -> None:
    """The same records, compressed, one of them 256 MB of zeros."""
    path = folder / "best.pt"
    with zipfile.ZipFile(path) as source:
        records = {record.filename: source.read(record) for record in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name, content in records.items():
            target.writestr(name, bytes(2**28) if name.endswith("data/0") else content)


def _claims(folder: Path, sentinel: Path) -> None:
    """A directory that gives every record 3 GB."""
    path = folder / "best.pt"
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    while content[at : at + 4] == b"PK\x01\x02":
        content[at + 20 : at + 28] = struct.pack("<II", 3 * 10**9, 3 * 10**9)
        at += 46 + sum(struct.unpack("<HHH", content[at + 28 : at + 34]))
    path.write_bytes(content)


def _overlapping(folder: Path, sentinel: Path) -> None:
    """One record of 4 MB that the directory lists 20,000 times."""
    name, body = b"archive/data/0", bytes(2**22)
    crc = zipfile.crc32(body)
    sizes = struct.pack("<III", crc, len(body), len(body))
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 0, 0, 33) + sizes + struct.pack("<HH", len(name), 0) + name
    entry = b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 0, 0, 33) + sizes
    entry += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    end = struct.pack("<HHHHIIH", 0, 0, 20_000, 20_000, 20_000 * len(entry), len(local) + len(body), 0)
    (folder / "best.pt").write_bytes(local + body + entry * 20_000 + b"PK\x05\x06" + end)


def _saved(change: Callable[[dict], object], file: str = "best.pt") -> Callable[[Path, Path], None]:
    """A checkpoint of ours, changed in one place, with whole checksums."""

    def make(folder: Path, sentinel: Path) -> None:
        path = folder / file
        checkpoint = torch.load(path, weights_only=True)
        changed = change(checkpoint)
        torch.save(checkpoint if changed is None else changed, path)

    return make


def _weight(make: Callable[[torch.Tensor], object]) -> Callable[[dict], None]:
    def change(checkpoint: dict) -> None:
        name = "classifier.4.weight"
        checkpoint["model"][name] = make(checkpoint["model"][name])

    return change


def _put(name: str, value: object) -> Callable[[dict], None]:
    return lambda checkpoint: checkpoint.update({name: value})


def _option(name: str, value: object) -> Callable[[dict], None]:
    return lambda checkpoint: checkpoint["options"].update({name: value})


CHANGES: dict[str, tuple[Callable[[dict], object], bool]] = {  # name: what is changed, whether it must be refused
    "a weight of 10^12 values from one": (_weight(lambda w: torch.zeros(1).expand(10**6, 10**6)), True),
    "a sparse weight": (_weight(torch.Tensor.to_sparse), True),
    "a weight without values": (_weight(lambda w: w.to("meta")), True),
    "a complex weight": (_weight(lambda w: w.to(torch.complex64)), True),
    "a weight of whole numbers": (_weight(torch.Tensor.long), False),
    "a quantized weight": (_weight(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)), True),
    "a weight of 8 bits": (_weight(lambda w: w.to(torch.float8_e5m2)), False),
    "a weight of NaN": (_weight(lambda w: w * torch.nan), True),
    "a weight of no dimension": (_weight(lambda w: torch.tensor(1.0)), True),
    "a weight that is a list": (_weight(lambda w: [1.0]), True),
    "a weight that is a parameter": (_weight(torch.nn.Parameter), False),
    "weights that are a list": (_put("model", [1, 2]), True),
    "weights under numbers": (lambda c: _put("model", dict(enumerate(c["model"].values())))(c), True),
    "no weights": (_put("model", {}), True),
    "a list": (lambda checkpoint: [checkpoint], True),
    "a tensor": (lambda checkpoint: torch.zeros(3), True),
    "options that are a number": (_put("options", 5), True),
    "options without a dataset": (_put("options", {}), True),
    "a dataset of no name": (_option("dataset", "../../etc"), True),
    "a dataset that is a list": (_option("dataset", ["demo"]), True),
    "modalities that are a number": (_option("modalities", 5), True),
    "modalities that are paths": (_option("modalities", ["../rgb", "/etc"]), True),
    "modalities that are lists": (_option("modalities", [["rgb"], ["flow"]]), True),
    "missing features that are a list": (_option("missing_features", ["x"]), False),
    "snippets that are text": (_option("num_snippets", "many"), False),
    "an architecture that is a text": (_put("architecture", "CO2Net"), True),
    "an architecture of other arguments": (_put("architecture", {"color": "red"}), True),
    "an architecture of numbers as names": (_put("architecture", {5: 5}), True),
    "a consensus of no name": (lambda c: c["architecture"].update(consensus="__import__"), True),
    "a consensus that is a list": (lambda c: c["architecture"].update(consensus=[]), True),
    "a pool of 10^9": (lambda c: c["architecture"].update(temporal_pool=10**9), True),
    "a pool that is a text": (lambda c: c["architecture"].update(temporal_pool="a"), True),
    "a dropout of 7": (lambda c: c["architecture"].update(attention_logit_dropout=7.0), True),
    "classes that are a number": (_put("classes", 3), True),
    "classes of lists": (_put("classes", [[], {}, None]), True),
    "an iteration that is a dict": (_put("iteration", {"a": {}}), False),
    "an iteration of NaN": (_put("iteration", float("nan")), False),
}


def _state(name: str, value: object) -> Callable[[dict], None]:
    return lambda checkpoint: checkpoint["training"].update({name: value})


def _of_other_shapes(checkpoint: dict) -> None:
    for values in checkpoint["training"]["optimizer"]["state"].values():
        values["exp_avg"] = torch.zeros(3)
    checkpoint["iteration"] = 10  # so that it is used


STATES: dict[str, Callable[[dict], object]] = {  # of a training, as last.pt holds it
    "a state that is a list": _put("training", [1]),
    "a state of nothing": _put("training", {}),
    "an optimizer of nothing": _state("optimizer", {}),
    "an optimizer that is a text": _state("optimizer", "Adam"),
    "an optimizer of other shapes": _of_other_shapes,
    "an optimizer of other weights": lambda c: c["training"]["optimizer"]["param_groups"][0].update(params=[0]),
    "batches of nothing": _state("batches", {}),
    "batches of another generator": lambda c: c["training"]["batches"]["sampler"].update(bit_generator="MT19937"),
    "batches of a number": lambda c: c["training"]["batches"]["sampler"].update(state=5),
    "random states of nothing": _state("random", {}),
    "random states of another length": lambda c: c["training"]["random"].update(torch=torch.zeros(3)),
    "random states of Python that are short": lambda c: c["training"]["random"].update(python=[3, [1, 2], None]),
    "losses that are a number": _state("losses", 5),
    "losses of text": _state("losses", {"sums": {"total": "x"}, "count": "y"}),
    "choices that are a list": _state("chosen", ["best"]),
    "choices of nothing": _state("chosen", {"best": {}}),
    "choices of paths": _state("chosen", {"../../escaped": {"iteration": 12, "score": [9.0]}}),
    "skipped steps of text": _state("skipped", "many"),
    "untrained scores of text": _state("untrained", "none"),
    "an iteration of text": _put("iteration", "12"),
    "an iteration below zero": _put("iteration", -5),
    "an iteration of 0.5": _put("iteration", 0.5),
    "metrics of a number": lambda c: c.update(iteration=12, metrics=5),
}


def checkpoint_cases() -> Iterator[Case]:
    """Archives that swell, and dicts whose values are of other kinds."""
    for make in (_deflated, _claims, _overlapping):
        yield Case("checkpoints of other content", make.__doc__.strip(), "checkpoint", make, _read_best)
    for name, (change, refused) in CHANGES.items():
        yield Case("checkpoints of other content", name, "checkpoint", _saved(change), read_tested, refused)
    for name, change in STATES.items():
        make = _saved(change, "run/checkpoints/last.pt")
        yield Case("states of other content", name, "run to resume", make, read_resumed, must_refuse=False)


def make_small_checkpoint(folder: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(3)}, "names": np.str_("").item()}, folder / "best.pt")
