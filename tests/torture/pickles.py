"""Hostile pickles: each creates a folder, the sentinel, if anything of it runs."""

import io
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

# Callables that create the sentinel, and their arguments for its path.
CALLS: dict[str, Callable[[str], tuple]] = {
    "os mkdir": lambda path: (path,),
    "posix mkdir": lambda path: (path,),
    "os makedirs": lambda path: (path,),
    "os system": lambda path: (f"mkdir '{path}'",),
    "subprocess call": lambda path: (["mkdir", path],),
    "builtins eval": lambda path: (f"__import__('os').mkdir({path!r})",),
    "builtins exec": lambda path: (f"import os\nos.mkdir({path!r})",),
    "__builtin__ eval": lambda path: (f"__import__('os').mkdir({path!r})",),
    "builtins open": lambda path: (path, "w"),
    "io open": lambda path: (path, "w"),
    "numpy memmap": lambda path: (path, "u1", "w+", 0, (1,)),
    "numpy savetxt": lambda path: (path, [1.0]),
    "numpy.testing._private.utils runstring": lambda path: (f"import os; os.mkdir({path!r})", {}),
    "torch.storage _load_from_bytes": lambda path: (build("os mkdir", "REDUCE", path),),
    "logging FileHandler": lambda path: (path,),
}


def _plain(value: object) -> bytes:
    """Return the opcodes of a plain value, for the middle of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _texts(*values: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in values)


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _build(opcodes: bytes, name: str, arguments: tuple) -> bytes:
    """Give an object the callable as its __setstate__, and then a state."""
    state = _plain(arguments[0] if len(arguments) == 1 else arguments)
    return opcodes + b"}" + _plain("__setstate__") + _global(name) + b"sb" + state + b"b"


# Opcodes that name and call something: (callable, arguments) -> opcodes.
WAYS: dict[str, Callable[[str, tuple], bytes]] = {
    "REDUCE": lambda name, args: _global(name) + _plain(args) + b"R",
    "STACK_GLOBAL": lambda name, args: _texts(*name.split()) + b"\x93" + _plain(args) + b"R",
    "INST": lambda name, args: b"(" + b"".join(map(_plain, args)) + b"i" + _global(name)[1:],
    "OBJ": lambda name, args: b"(" + _global(name) + b"".join(map(_plain, args)) + b"o",
    "NEWOBJ": lambda name, args: _global(name) + _plain(args) + b"\x81",
    "NEWOBJ_EX": lambda name, args: _global(name) + _plain(args) + b"}\x92",
    "BUILD": lambda name, args: _build(_global("argparse Namespace") + b")\x81", name, args),
    "BUILD on a function": lambda name, args: _build(_global("numpy._core.numeric _frombuffer"), name, args),
    "memoized": lambda name, args: _global(name) + b"q\x000h\x00" + _plain(args) + b"R",
    "GLOBAL alone": lambda name, args: _global(name),
    "persistent id": lambda name, args: _plain(args) + b"Q",
    "extension": lambda name, args: b"\x82\x01",
}
_ARRAY = pickle.dumps(np.array([1], dtype=object), protocol=2)[2:-1]
INSIDE: dict[str, Callable[[bytes], bytes]] = {
    "a list": lambda body: b"]" + body + b"a",
    "a value": lambda body: b"}" + _plain(0) + body + b"s",
    "a key": lambda body: b"}" + body + _plain(0) + b"s",
    "a tuple": lambda body: body + b"\x85",
    "an array": lambda body: _ARRAY.replace(b"K\x01a", body + b"a", 1),
    "an unused item": lambda body: b"]" + body + b"0",
}
FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "protocol 0": lambda body: body + b".",
    "protocol 2": lambda body: b"\x80\x02" + body + b".",
    "a frame": lambda body: b"\x80\x04\x95" + struct.pack("<Q", len(body) + 1) + body + b".",
}


def build(call: str, way: str, path: str, inside: Sequence[str] = (), frame: str = "protocol 2") -> bytes:
    """Return a pickle that creates the path if it runs."""
    body = WAYS[way](call, CALLS[call](path))
    for container in inside:
        body = INSIDE[container](body)
    return FRAMES[frame](body)


PICKLES = {f"{way}: {call}": partial(build, call, way) for way in WAYS for call in CALLS}


def runs(content: bytes, path: Path) -> bool:
    """Return whether Python's own reader runs the pickle, which creates this path."""
    with suppress(Exception):
        pickle.loads(content)  # nosec B301 - bytes made above, in a process of its own
    vars(sys.modules["numpy._core.numeric"]._frombuffer).pop("__setstate__", None)  # of "BUILD on a function"
    return path.exists()


def npy_file(header: bytes, content: bytes, version: int = 1) -> bytes:
    """Return a .npy file of this header and content."""
    size = struct.pack("<H" if version == 1 else "<I", len(header) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + b"\n" + content


def npy_of_objects(content: bytes) -> bytes:
    """Return a .npy file of objects with this pickle."""
    return npy_file(b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", content)


def _zip(content: bytes, checkpoint: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(file, "w") as target:
        for record in source.infolist():
            target.writestr(record.filename, content if record.filename.endswith("data.pkl") else source.read(record))
    return file.getvalue()


def _legacy(content: bytes, checkpoint: Path) -> bytes:
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)) + content


def _tar(content: bytes, checkpoint: Path) -> bytes:
    file, record = io.BytesIO(), tarfile.TarInfo()
    record.size = len(content)
    with tarfile.open(fileobj=file, mode="w") as archive:
        for record.name in ("pickle", "storages", "tensors"):
            archive.addfile(record, io.BytesIO(content))
    return file.getvalue()


# Forms of a checkpoint: a pickle and a good zip archive -> the file.
CHECKPOINTS: dict[str, Callable[[bytes, Path], bytes]] = {
    "zip": _zip,
    "legacy": _legacy,
    "plain": lambda content, checkpoint: content,
    "tar": _tar,
}
