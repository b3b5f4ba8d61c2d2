"""Hypothesis strategies for inputs that may be damaged, wrong or hostile."""

import copy
import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
import yaml
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.torture import pickles
from tests.torture.corpus import FORMS, JOINT, RELEASE

EDGE = 4096  # bytes at each end of a file, where headers and directories lie
FLIPS = ("bit", "byte", "digit")
DAMAGE = ("bit", "bit", "byte", "byte", "digit", "bytes", "cut", "zeros", "repeat", "insert")
Write = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Input:
    """One input of a form.

    Attributes:
        group: row of the table that counts it.
        write: changes a folder with a good input, given the folder and the path that hostile code would create.
        must_refuse: the readers must refuse it.
        damaged: path of the damaged file; the values are compared with those of the good one.
        one_flip: a single bit, byte or digit is damaged.
    """

    form: str
    group: str
    name: str
    write: Write
    must_refuse: bool = False
    damaged: str | None = None
    one_flip: bool = False


def inputs(folders: dict[str, Path]) -> st.SearchStrategy[Input]:
    """Return the strategy for all inputs that are drawn; `folders` holds a good input of each form."""
    damage, pickled = damaged_files(folders, [name for name, form in FORMS.items() if form.damaged]), hostile_pickles()
    return st.one_of(*[damage] * 5, pickled, pickled, changed_documents(folders), arrays(), npy_headers())


def put(file: str, content: bytes) -> Write:
    """Return a writer that replaces one file; as a new one, because HDF5 may have the old one open."""

    def write(folder: Path, sentinel: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content)

    return write


@st.composite
def damaged_files(draw: st.DrawFn, folders: dict[str, Path], forms: Sequence[str]) -> Input:
    """Damage one file of a good input of these forms."""
    form = draw(st.sampled_from(forms))
    paths = sorted(path for path in folders[form].glob(FORMS[form].damaged) if path.is_file())
    path, kind = draw(st.sampled_from(paths)), draw(st.sampled_from(DAMAGE))
    content = draw(damaged_bytes(path.read_bytes(), kind))
    one_flip, file = kind in FLIPS, str(path.relative_to(folders[form]))
    group = form if FORMS[form].checked else f"{form}, {'one flip' if one_flip else 'more'}"
    return Input(form, group, f"{file}: {kind}", put(file, content), damaged=file, one_flip=one_flip)


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes, kind: str) -> bytes:
    """Damage a file's content at one place, often near an end of the file."""
    near = st.integers(0, min(len(content), EDGE) - 1)
    at = draw(st.integers(0, len(content) - 1) | near | near.map(lambda n: len(content) - 1 - n))
    new, length = bytearray(content), draw(st.integers(1, 64) | st.integers(1, EDGE))
    if kind == "bit":
        new[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "byte":
        new[at] ^= draw(st.integers(1, 255))
    elif kind == "digit":  # a text stays well-formed
        digits = [place for place in range(at, min(at + EDGE, len(new))) if chr(new[place]) in "0123456789"]
        assume(digits)
        new[digits[0]] = draw(st.sampled_from(b"0123456789"))
    elif kind == "bytes":
        for place in draw(st.lists(st.integers(0, len(new) - 1), min_size=2, max_size=16)):
            new[place] ^= draw(st.integers(1, 255))
    elif kind == "cut":
        del new[at:]
    elif kind == "zeros":
        new[at : at + length] = bytes(len(new[at : at + length]))
    else:
        new[at:at] = new[at : at + length] if kind == "repeat" else draw(st.binary(min_size=1, max_size=64))
    assume(new != content)
    return bytes(new)


# Forms and files with nested dicts and lists.
DOCUMENTS = [
    ("annotations.json", "annotations.json"),
    ("evaluation", "annotations.json"),
    ("evaluation", "detections.json"),
    ("evaluation of CSV", "detections.csv"),
    *(("report", f"run/{name}.json") for name in ("metrics", "environment", "detections")),
    ("report", "run/log.jsonl"),
    ("report", "run/options.yaml"),
    ("report", "dataset/annotations.json"),
    (".npy folders", "features.json"),
    ("config.yaml", "config.yaml"),
    ("test.py", "best.pt"),
    ("main.py --resume", "run/checkpoints/last.pt"),
]
TEXTS = st.text("aZ09.-/\\%{<&'\"\n\0 \u00e9\u202e\ud800", max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from([10**400, "9" * 400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
TENSORS: dict[str, Callable[[torch.Tensor], object]] = {
    "expanded": lambda old: torch.zeros(1).expand(10**6, 10**6),
    "sparse": lambda old: old.float().to_sparse(),
    "meta": lambda old: old.to("meta"),
    "complex": lambda old: old.to(torch.complex64),
    "int64": lambda old: old.long(),
    "float8": lambda old: old.to(torch.float8_e5m2),
    "quantized": lambda old: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8),
    "NaN": lambda old: old * torch.nan,
    "unsqueezed": lambda old: old[None],
    "parameter": lambda old: torch.nn.Parameter(old.float()),
}


@st.composite
def changed_documents(draw: st.DrawFn, folders: dict[str, Path]) -> Input:
    """Replace, remove, rename or repeat one value of a document, deep in it or near its top."""
    form, file = draw(st.sampled_from(DOCUMENTS))
    document = copy.deepcopy(_load(folders[form] / file))
    parents = _containers(document)
    parent = parents[draw(st.integers(0, len(parents) - 1) | st.integers(0, min(len(parents), 12) - 1))]
    key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
    change = draw(st.sampled_from(["replace"] * 4 + ["tensor", "remove", "rename"]))
    if change == "remove":
        del parent[key]
    elif change == "rename" and isinstance(parent, dict):
        parent[draw(TEXTS)] = parent.pop(key)
    elif change == "rename":
        parent.append(parent[key])
    elif change == "tensor" and isinstance(parent[key], torch.Tensor):
        change = draw(st.sampled_from(sorted(TENSORS)))
        parent[key] = TENSORS[change](parent[key])
    else:
        parent[key] = draw(VALUES)
    return Input(form, "one value changed", f"{file}: {change} {key}"[:200], put(file, _dump(file, document)))


def _load(path: Path) -> object:
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    text = path.read_text()
    if path.suffix == ".csv":
        return list(csv.reader(io.StringIO(text)))
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else yaml.safe_load(text)


def _dump(file: str, document: object) -> bytes:
    if file.endswith(".pt"):
        content = io.BytesIO()
        torch.save(document, content)
        return content.getvalue()
    if file.endswith(".csv"):
        rows = [",".join(map(str, row if isinstance(row, list) else [row])) for row in document]
        return "\n".join(rows).encode(errors="surrogatepass")
    if file.endswith(".jsonl"):
        return "".join(f"{json.dumps(row)}\n" for row in document).encode()
    return (yaml.safe_dump(document) if file.endswith(".yaml") else json.dumps(document)).encode(errors="surrogatepass")


def _containers(document: object) -> list[dict | list]:
    """Return the dicts and lists that are not empty, from the top down."""
    found, level = [], [document]
    while level := [part for part in level if isinstance(part, dict | list) and part]:
        found += level
        level = [child for part in level for child in (part.values() if isinstance(part, dict) else part)]
    return found


NPY_FILES = [
    *(("release annotations", f"{RELEASE}/{name}.npy") for name in ("classlist", "videoname", "subset", "duration")),
    *(("release annotations", f"{RELEASE}/{name}.npy") for name in ("labels_all", "labels", "segments")),
    ("release features", JOINT),
    (".npy folders", "rgb/train_0001.npy"),
]
HDF5_PLACES = [
    *(("HDF5 features", "features.h5", name) for name in ("rgb/train_0001", "flow/train_0001", "fps", "stride")),
    *(("report", "run/outputs.h5", f"test_0012/{name}") for name in ("attention", "cas")),
    *(("report", "run/outputs.h5", name) for name in ("snippet_rate", "classes")),
]
DTYPES = hnp.scalar_dtypes() | hnp.byte_string_dtypes(max_len=9) | st.just(np.dtype([("a", "<f4"), ("b", "S3")]))
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = hnp.arrays(DTYPES, SHAPES) | st.lists(TEXTS, max_size=9).map(lambda texts: np.array(texts, str))


@st.composite
def arrays(draw: st.DrawFn) -> Input:
    """Replace a good array by one of any dtype and shape, in .npy files and HDF5."""
    array, place = draw(ARRAYS), draw(st.sampled_from(NPY_FILES + HDF5_PLACES))
    name = f"{place[-1]}: {array.dtype} {array.shape}"[:200]
    if place in NPY_FILES:
        content = io.BytesIO()
        np.save(content, array)
        return Input(place[0], "arrays in .npy files", name, put(place[1], content.getvalue()))
    array = np.char.encode(array, "utf-8", "replace") if array.dtype.kind == "U" else array
    try:
        h5py.h5t.py_create(array.dtype, logical=True)
    except TypeError:
        assume(False)

    def write(folder: Path, sentinel: Path) -> None:
        with h5py.File(folder / place[1], "r+") as file:
            holder = file.attrs if place[2] in file.attrs else file
            del holder[place[2]]
            holder[place[2]] = array

    return Input(place[0], "arrays in HDF5", name, write)


@st.composite
def npy_headers(draw: st.DrawFn) -> Input:
    """Write a .npy header of any content before a few bytes."""
    form, file = draw(st.sampled_from(NPY_FILES))
    sides = st.integers(0, 9) | st.integers(-(2**70), 2**70) | st.sampled_from([2**31, 2**40, 2**62])
    shape = draw(st.lists(sides, max_size=4).map(tuple) | VALUES)
    descr = draw(st.sampled_from(["<f4", "|O", "<U500000000", "|V1000000000", "<M8[s]", [("a", "|O")]]) | VALUES)
    header = repr({"descr": descr, "fortran_order": draw(st.booleans() | VALUES), "shape": shape})
    content = header.encode(errors="surrogatepass"), draw(st.binary(max_size=99)), draw(st.sampled_from([1, 2, 3, 9]))
    return Input(form, ".npy headers", f"{file}: {header!a}"[:200], put(file, pickles.npy_file(*content)))


PICKLE_PLACES = [*NPY_FILES, *(("small checkpoint", form) for form in pickles.CHECKPOINTS)]


@st.composite
def hostile_pickles(draw: st.DrawFn) -> Input:
    """Write a pickle that calls something, plain or inside other values."""
    names = [sorted(table) for table in (pickles.CALLS, pickles.WAYS, pickles.INSIDE, pickles.FRAMES)]
    call, way, frame = (draw(st.sampled_from(names[number])) for number in (0, 1, 3))
    inside = draw(st.lists(st.sampled_from(names[2]), max_size=3))
    return pickle_input(draw(st.sampled_from(PICKLE_PLACES)), call, way, inside, frame)


def pickle_input(place: tuple[str, str], call: str, way: str, *more: object) -> Input:
    """Return the input with a pickle that makes this call at this place."""
    form, file = place

    def write(folder: Path, sentinel: Path) -> None:
        content, path = pickles.build(call, way, str(sentinel), *more), folder / "small.pt"
        if file in pickles.CHECKPOINTS:
            path.write_bytes(pickles.CHECKPOINTS[file](content, path))
        else:
            (folder / file).write_bytes(pickles.npy_of_objects(content))

    group = "pickles in checkpoints" if file in pickles.CHECKPOINTS else "pickles in .npy files"
    return Input(form, group, f"{file}: {way}, {call}, {more}", write, must_refuse=True)
