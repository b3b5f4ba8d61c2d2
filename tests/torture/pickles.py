"""Hostile pickles: each would make a folder, the sentinel, if anything of it ran.

Every way in which a pickle can name and call something (its opcodes REDUCE, INST, OBJ, BUILD, NEWOBJ, ...), with
callables of the interpreter, of numpy and of PyTorch. `control` opens one as Python's own reader does: what runs there
must not run in the project.
"""

import io
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

# Module, name, and the arguments that make the sentinel.
CALLS: dict[str, tuple[str, str, Callable[[str], tuple]]] = {
    "os.mkdir": ("os", "mkdir", lambda path: (path,)),
    "posix.mkdir": ("posix", "mkdir", lambda path: (path,)),
    "os.makedirs": ("os", "makedirs", lambda path: (path,)),
    "os.system": ("os", "system", lambda path: (f"mkdir '{path}'",)),
    "subprocess.call": ("subprocess", "call", lambda path: (["mkdir", path],)),
    "builtins.eval": ("builtins", "eval", lambda path: (f"__import__('os').mkdir({path!r})",)),
    "builtins.exec": ("builtins", "exec", lambda path: (f"import os\nos.mkdir({path!r})",)),
    "__builtin__.eval": ("__builtin__", "eval", lambda path: (f"__import__('os').mkdir({path!r})",)),
    "builtins.open": ("builtins", "open", lambda path: (path, "w")),
    "io.open": ("io", "open", lambda path: (path, "w")),
    "numpy.memmap": ("numpy", "memmap", lambda path: (path, "u1", "w+", 0, (1,))),
    "numpy.savetxt": ("numpy", "savetxt", lambda path: (path, [1.0])),
    "numpy runstring": (
        "numpy.testing._private.utils",
        "runstring",
        lambda path: (f"import os; os.mkdir({path!r})", {}),
    ),
    "torch load": ("torch.storage", "_load_from_bytes", lambda path: (_call("os", "mkdir", (path,)),)),
    "logging.FileHandler": ("logging", "FileHandler", lambda path: (path,)),
}


def _plain(value: object) -> bytes:
    """The opcodes of a plain value, for the middle of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _words(values: tuple) -> bytes:
    return b"".join(map(_plain, values))


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _call(module: str, name: str, arguments: tuple) -> bytes:
    return b"\x80\x02" + _global(module, name) + _plain(arguments) + b"R."


def _text_protocol(module: str, name: str, arguments: tuple) -> bytes:
    return _global(module, name) + b"(" + _words(arguments) + b"tR."


def _stack_global(module: str, name: str, arguments: tuple) -> bytes:
    names = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + names + b"\x93" + _plain(arguments) + b"R."


def _framed(module: str, name: str, arguments: tuple) -> bytes:
    body = _stack_global(module, name, arguments)[2:]
    return b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body


def _inst(module: str, name: str, arguments: tuple) -> bytes:
    return b"(" + _words(arguments) + f"i{module}\n{name}\n.".encode()


def _obj(module: str, name: str, arguments: tuple) -> bytes:
    return b"(" + _global(module, name) + _words(arguments) + b"o."


def _build(module: str, name: str, arguments: tuple) -> bytes:
    """An object is given the callable as its __setstate__, and then a state."""
    return _build_state(_global("argparse", "Namespace") + b")\x81", module, name, arguments)


def _build_on_function(module: str, name: str, arguments: tuple) -> bytes:
    """The same on a function of Python's own that the pickles of arrays name."""
    return _build_state(_global("numpy._core.numeric", "_frombuffer"), module, name, arguments)


def _build_state(made: bytes, module: str, name: str, arguments: tuple) -> bytes:
    state = _plain(arguments[0] if len(arguments) == 1 else arguments)
    return b"\x80\x02" + made + b"}" + _plain("__setstate__") + _global(module, name) + b"sb" + state + b"b."


def _memoized(module: str, name: str, arguments: tuple) -> bytes:
    return b"\x80\x02" + _global(module, name) + b"q\x000h\x00" + _plain(arguments) + b"R."


def _in_dict(module: str, name: str, arguments: tuple) -> bytes:
    return b"\x80\x02}" + _call(module, name, arguments)[2:-1] + _plain(0) + b"s."


def _in_array(module: str, name: str, arguments: tuple) -> bytes:
    """An array of objects, whole but for its one element."""
    array = pickle.dumps(np.array([1], dtype=object), protocol=2)
    return array.replace(b"K\x01a", _call(module, name, arguments)[2:-1] + b"a", 1)


CALLING: dict[str, Callable[[str, str, tuple], bytes]] = {
    "REDUCE": _call,
    "REDUCE, protocol 0": _text_protocol,
    "STACK_GLOBAL": _stack_global,
    "FRAME": _framed,
    "INST": _inst,
    "OBJ": _obj,
    "BUILD": _build,
    "BUILD on a function": _build_on_function,
    "memoized": _memoized,
    "in a dict": _in_dict,
    "in an array": _in_array,
}


def _new(module: str, name: str, arguments: tuple) -> bytes:
    return b"\x80\x04" + _global(module, name) + _plain(arguments) + b"\x81."


def _new_with_keywords(module: str, name: str, arguments: tuple) -> bytes:
    return b"\x80\x04" + _global(module, name) + _plain(arguments) + b"}\x92."


def _alone(module: str, name: str, arguments: tuple) -> bytes:
    return b"\x80\x02" + _global(module, name) + b"."


def _builder(build: Callable[[str, str, tuple], bytes], what: str) -> Callable[[str], bytes]:
    module, name, arguments = CALLS[what]
    return lambda path: build(module, name, arguments(path))


# Name -> a pickle that would make a path, or names what could.
PICKLES: dict[str, Callable[[str], bytes]] = {
    **{f"{how}: {what}": _builder(build, what) for how, build in CALLING.items() for what in CALLS},
    **{f"GLOBAL alone: {what}": _builder(_alone, what) for what in CALLS},
    "NEWOBJ: numpy.memmap": _builder(_new, "numpy.memmap"),  # a class whose __new__ is enough
    "NEWOBJ_EX: numpy.memmap": _builder(_new_with_keywords, "numpy.memmap"),
    "PERSID": lambda path: b"P" + path.encode() + b"\n.",
    "BINPERSID": lambda path: b"\x80\x02" + _plain(path) + b"Q.",
    "EXT1": lambda path: b"\x80\x02\x82\x01.",
}


def _numeric():
    """numpy's module of that name, which moved."""
    return sys.modules.get("numpy._core.numeric") or sys.modules["numpy.core.numeric"]


def control(path: Path, content: bytes) -> bool:
    """Whether Python's own reader runs the pickle, which makes this path."""
    with suppress(Exception):
        pickle.loads(content)  # nosec B301 - bytes made above, in a process of its own
    vars(_numeric()._frombuffer).pop("__setstate__", None)  # of "BUILD on a function"
    return path.exists()


def as_objects(content: bytes, shape: str = "(2,)", descr: str = "'|O'") -> bytes:
    """A .npy file of objects whose pickle this is."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def as_zip(content: bytes, checkpoint: Path) -> bytes:
    """A checkpoint as torch.save writes it, with this data.pkl."""
    file = io.BytesIO()
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(file, "w") as target:
        for record in source.infolist():
            target.writestr(record.filename, content if record.filename.endswith("data.pkl") else source.read(record))
    return file.getvalue()


def as_legacy(content: bytes) -> bytes:
    """The form before: a magic number, a version, the machine, and then this pickle."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)) + content


def as_tar(content: bytes) -> bytes:
    """The form before that: a tar archive of pickles."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("pickle", "storages", "tensors"):
            record = tarfile.TarInfo(name)
            record.size = len(content)
            archive.addfile(record, io.BytesIO(content))
    return file.getvalue()
