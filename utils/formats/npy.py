"""The only place that opens a pickle, and the .npy files of strangers.

The releases of this field ship lists as object-dtype .npy files. Such a file is a pickle: a program, which
`np.load(..., allow_pickle=True)` runs. Here nothing of a file is run and no size that it claims is believed: its
operations, as `pickletools` reads them, are carried out on plain values and arrays alone, each held against the bytes
that are there.
"""

import io
import math
import mmap
import os
import pickletools
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import BinaryIO, NamedTuple

import numpy as np

from utils.errors import InputError, shorten
from utils.formats.rows import read_rows

MAX_HEADER_BYTES = 2**13  # of a plain dtype it has 128
MAX_DIMENSIONS = 32  # of an array
MAX_EMPTY_LENGTH = 2**16  # of a dimension of an array without items, which no bytes bear out
MAX_OPERATIONS = 2**21  # of a pickle; THUMOS14's largest has 46,000, and each may take 100 bytes of memory
MAX_DEPTH = 8  # lists in lists; the releases have 3
FREE_BYTES = 2**22  # which parts that appear several times may come to, written out, however small the file is
KINDS = "biufSUO"  # bool, integers, floats, bytes, text and objects, as `np.dtype.kind` has them
NO_OBJECTS = "it has object dtype; expected numbers or text"
_SHORT = 300  # characters of a library's message


def load_array(path: str | Path) -> np.ndarray:
    """Any .npy file, object dtype included, as an array; no code of the file is run.

    Strings written by Python 2 come as bytes (see `as_texts`). InputError: no such file, not a .npy file, one that is
    truncated or promises another size than it has, or a pickle that holds anything but arrays and plain values.
    """
    with _opened(path) as file:
        header = _read_header(file)
        return _read_objects(file, header) if header.dtype.hasobject else _read_plain(file, header)


def load_plain_array(path: str | Path) -> np.ndarray:
    """`load_array` for files that hold numbers or names, not lists; InputError for object dtype, a pickle unopened."""
    with _opened(path) as file:
        header = _read_header(file)
        if header.dtype.hasobject:
            raise ValueError(NO_OBJECTS)
        return _read_plain(file, header)


def load_plain_rows(path: str | Path, rows: np.ndarray) -> np.ndarray:
    """`load_plain_array(path)[rows]` of sorted rows of a (T, D) array; in C order the others are not read."""
    with _opened(path) as file:
        header = _read_header(file)
        if header.dtype.hasobject:
            raise ValueError(NO_OBJECTS)
        if len(header.shape) != 2 or header.fortran_order:
            return _read_plain(file, header)[rows]
        return read_rows(file.fileno(), file.tell(), header.dtype, header.shape[1], rows)


def array_shape(path: str | Path) -> tuple[int, ...]:
    """The shape that a .npy file's header gives and its size bears out, without reading its content."""
    with _opened(path) as file:
        return _read_header(file).shape


def load_rows(path: str | Path) -> np.ndarray:
    """`load_array` of a file that holds a row for each video or class; InputError for a single value."""
    rows = load_array(path)
    if rows.ndim == 0:
        raise InputError(f"{path}: holds a single value; expected a row for each video or class")
    return rows


def load_names(path: str | Path) -> list[str]:
    """The names in a .npy file, a row each; InputError for anything that is no text."""
    rows = load_rows(path)
    for number, value in enumerate(rows):
        if not isinstance(value, str | bytes):
            raise InputError(f"{path}: row {number}: expected a name, found {shorten(value)}")
    return as_texts(rows)


def load_video_ids(folder: Path) -> list[str]:
    """The names in the release's videoname.npy, which number the rows of its other files; InputError for a repeat."""
    names = load_names(folder / "videoname.npy")
    if len(set(names)) != len(names):
        repeated, count = Counter(names).most_common(1)[0]
        raise InputError(f"{folder / 'videoname.npy'}: names '{repeated}' {count} times; a video has one row")
    return names


def as_texts(values: Sequence) -> list:
    """Names as the release stores them (bytes, numpy strings or str) -> str; what is no name stays as it is."""
    return [value.decode("latin1") if isinstance(value, bytes) else value for value in values]


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """A file to read; whatever goes wrong with it becomes an InputError that names it."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise InputError(f"{path}: cannot be read (not a file)")
        with path.open("rb") as file:
            yield file
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory") from None
    except Exception as error:  # a damaged file raises almost anything
        reason = str(error)[:_SHORT] if isinstance(error, ValueError) else "it is damaged"
        raise InputError(f"{path}: not a .npy file of arrays ({reason})") from None


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def _read_header(file: BinaryIO) -> _Header:
    """What a .npy file says about itself, held against its size; `file` stands behind it then.

    ValueError: damaged, a dtype that is not plain, a shape that takes more or fewer bytes than follow.
    """
    start = io.BytesIO(file.read(MAX_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the format, expected (1, 0) to (3, 0)")
    formats = np.lib.format  # 3.0 differs from 2.0 in the names of fields alone
    read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
    with warnings.catch_warnings():  # Python's, of strange literals, and numpy's, of Python 2's
        warnings.simplefilter("ignore")
        header = _Header(*read(start))
    if header.dtype.kind not in KINDS or header.dtype.subdtype is not None:
        raise ValueError(f"its dtype is {shorten(header.dtype)}; expected numbers, text or objects")
    held = file.seek(0, os.SEEK_END) - start.tell()
    promised = _promised_bytes(header.shape, header.dtype)
    if promised > held or (promised < held and not header.dtype.hasobject):
        raise ValueError(f"its header promises {promised:,} bytes, the file holds {held:,}; is it complete?")
    file.seek(start.tell())
    return header


def _promised_bytes(shape: object, dtype: np.dtype) -> int:
    """How many bytes such an array has in a file, at the least; ValueError for a shape that no array can have."""
    if not isinstance(shape, tuple) or not all(type(length) is int for length in shape):
        raise ValueError(f"the shape {shorten(shape)}, expected whole numbers")
    impossible = len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0
    if impossible or (0 in shape and max(shape) > MAX_EMPTY_LENGTH):
        raise ValueError(f"the shape {shorten(shape)}, which no array has")
    itemsize = 1 if dtype.hasobject else max(dtype.itemsize, 1)  # a pickle has an operation at least for each object
    return math.prod(shape) * itemsize


def _read_plain(file: BinaryIO, header: _Header) -> np.ndarray:
    array = np.fromfile(file, header.dtype, math.prod(header.shape))
    array = array.reshape(header.shape, order="F" if header.fortran_order else "C")
    _require_text(array)
    return array


def _require_text(array: np.ndarray) -> None:
    """ValueError for text of characters that there are not; numpy would say so only where one is used."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        codes = np.ravel(array, order="K").view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if codes.max() > 0x10FFFF:
            raise ValueError("its text has characters that there are not")


def _read_objects(file: BinaryIO, header: _Header) -> np.ndarray:
    """The array of objects that a .npy file's pickle stands for."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # gives what is there, whatever is asked for
        content.seek(file.tell())
        array = _PickleReader().read(content)
        if content.tell() != len(content):
            raise ValueError("it goes on behind its array")
        size = len(content)
    if not (isinstance(array, np.ndarray) and array.dtype.hasobject and array.shape == header.shape):
        raise ValueError(f"its header promises objects of shape {header.shape}, the content is another")
    weight, _ = _weigh(array, {})
    if weight > max(size, FREE_BYTES):
        raise ValueError(f"it repeats its parts until they come to {shorten(weight)} bytes")
    return array


def _weigh(value: object, known: dict[int, tuple[int, int]], level: int = 0) -> tuple[int, int]:
    """The bytes that a value comes to at the least where all its parts are written out, and how deep they nest.

    `known`: the same of the lists and arrays that were met before, by id. ValueError: something that is no value, or
    nested too deep, as what holds itself is.
    """
    if isinstance(value, str | bytes):
        return 1 + len(value), 0
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return 1 + value.nbytes, 0
    if value is None or isinstance(value, int | float | np.generic):
        return 1, 0
    if id(value) not in known:
        weight, depth = 1, 0
        if level < MAX_DEPTH:
            for part in _parts(value):
                part_weight, part_depth = _weigh(part, known, level + 1)
                weight, depth = weight + part_weight, max(depth, part_depth)
        known[id(value)] = weight, depth + 1
    weight, depth = known[id(value)]
    if level + depth > MAX_DEPTH:
        raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
    return weight, depth


def _parts(value: object) -> Iterable:
    if isinstance(value, np.ndarray):
        return value.flat
    if isinstance(value, dict):
        return (part for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return value
    raise ValueError(f"it holds a {type(value).__name__} where a value or an array should be")


class _DType:
    """A dtype as a pickle makes it: a code first, its byte order later, when others refer to it already."""

    def __init__(self, code: str | bytes):
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not (isinstance(text, str) and re.fullmatch(rf"[{KINDS}]\d{{1,9}}", text, re.ASCII)):
            raise ValueError(f"it has the dtype {shorten(code)}; expected numbers, text or objects")
        self.numpy = np.dtype(text)

    def complete(self, version, order, subarray, names, fields, *_) -> None:
        """What dtypes of these codes may have beside: the byte order. ValueError for fields, a subarray, metadata."""
        if version != 3 or any(part is not None for part in (subarray, names, fields)):
            raise ValueError("it has a dtype with fields, a subarray or metadata")
        self.numpy = self.numpy.newbyteorder(order.decode("latin1") if isinstance(order, bytes) else order)


def _make_dtype(code, *_) -> _DType:
    return _DType(code)  # the rest of the call asks for a copy


def _make_empty_array(*_) -> np.ndarray:
    return np.empty(0, dtype=np.int8)  # whatever is asked for: the state that follows says the shape and the dtype


def _fill_array(array: np.ndarray, _, shape, dtype: _DType, fortran_order, content) -> None:
    """What numpy's own arrays do with their state, which it believes; ValueError for a state that does not fit."""
    if array.size or array.dtype != np.int8:
        raise ValueError("it fills an array twice")
    if type(content) is not (list if dtype.numpy.hasobject else bytes):
        raise ValueError(f"it fills an array with a {type(content).__name__}")
    _require_size(shape, dtype.numpy, len(content))
    array.__setstate__((1, shape, dtype.numpy, bool(fortran_order), content))
    _require_text(array)


def _array_of_buffer(buffer, dtype: _DType, shape, order, axis_order=None) -> np.ndarray:
    """How protocol 5 spells arrays; order "K" comes with the order of the axes in memory."""
    _require_size(shape, dtype.numpy, len(buffer))
    array = np.frombuffer(buffer, dtype.numpy)
    _require_text(array)
    if order == "K" and axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order=order)


def _require_size(shape, dtype: np.dtype, found: int) -> None:
    promised = _promised_bytes(shape, dtype)
    if promised != found:
        raise ValueError(f"it has an array of shape {shorten(shape)} that promises {promised:,}, and holds {found:,}")


def _make_scalar(dtype: _DType, content: bytes) -> np.generic:
    if len(content) != dtype.numpy.itemsize or dtype.numpy.hasobject:
        raise ValueError(f"it has a number of {len(content):,} bytes that promises {dtype.numpy.itemsize:,}")
    if not content:
        return dtype.numpy.type()  # empty text
    array = np.frombuffer(content, dtype.numpy)
    _require_text(array)
    return array[0]


def _encode_latin1(text: str, codec: str) -> bytes:
    """How protocol 2 spells bytes; the real `_codecs.encode` reaches any codec."""
    if codec != "latin1":
        raise ValueError(f"it asks for the codec {shorten(codec)}, which is no part of an array")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # how protocol 2 spells these: a call of `bytes`


def _callable(module: object, name: object) -> Callable:
    if not (isinstance(module, str) and isinstance(name, str) and (module, name) in _CALLS):
        raise ValueError(f"it asks for {shorten(module)}, {shorten(name)}, which is no part of an array")
    return _CALLS[module, name]


# What a pickled array calls, under the module names of numpy 1 and 2, and what is called in its place. numpy.ndarray
# is an argument of _reconstruct and never called.
_CALLS: dict[tuple[str, str], Callable] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _make_dtype,
    ("_codecs", "encode"): _encode_latin1,
    ("__builtin__", "bytes"): _no_bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _make_empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _make_scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("core", "_core")},
}


class _PickleReader:
    """Pickle's stack machine without its powers: it has the operations that plain values and arrays need.

    Where a file asks for numpy's functions, those above are called, which check what they are given. Any exception
    means a file that is damaged or hostile.
    """

    def __init__(self):
        self._stack: list = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, object] = {}

    def read(self, content: mmap.mmap) -> object:
        """The value that a pickle stands for, read to its end and no further."""
        for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if number == MAX_OPERATIONS:
                raise ValueError(f"it takes more than {MAX_OPERATIONS:,} operations")
            self._run(operation.name, argument)
        (value,) = self._stack
        return value

    def _run(self, name: str, argument) -> None:
        """One operation, by the name that `pickletools` gives it. What is not here is refused."""
        push = self._stack.append
        match name:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                push(argument)
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                push(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                push(argument)
            case "SHORT_BINSTRING" | "BINSTRING":  # Python 2's
                push(argument.encode("latin1"))
            case "BINPUT" | "LONG_BINPUT":
                self._put(argument)
            case "MEMOIZE":
                self._put(len(self._memo))
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "MARK":
                self._marks.append(len(self._stack))
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                push({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._pop(int(name[-1]))))
            case "TUPLE":
                push(tuple(self._pop_to_mark()))
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "GLOBAL":
                push(_callable(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                push(_callable(*self._pop(2)))
            case "REDUCE":
                push(self._call(*self._pop(2)))
            case "BUILD":
                push(self._build(*self._pop(2)))
            case "PROTO" | "FRAME" | "STOP":
                pass  # the reader of operations needs none of them
            case _:
                raise ValueError(f"it has the operation {name}, which no array needs")

    def _pop(self, count: int) -> list:
        return [self._stack.pop() for _ in range(count)][::-1]

    def _pop_to_mark(self) -> list:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _top(self, kind: type) -> list | dict:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"it takes a {type(self._stack[-1]).__name__} for a {kind.__name__}")
        return self._stack[-1]

    def _put(self, index: int) -> None:
        if index > MAX_OPERATIONS:
            raise ValueError(f"it numbers a value {index:,}, and has fewer")
        self._memo[index] = self._stack[-1]

    def _extend(self, values: list) -> None:
        self._top(list).extend(values)

    def _set_items(self, values: list) -> None:
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes):  # numbers can be chosen so that a dict of them takes hours
                raise ValueError(f"it has a dict with the key {shorten(key)}; expected text")
            self._top(dict)[key] = value

    def _call(self, function: object, arguments: object) -> object:
        if not isinstance(function, FunctionType) or not isinstance(arguments, tuple):  # functions here are all ours
            raise ValueError("it calls what is no function")
        return function(*arguments)

    def _build(self, target: object, state: object) -> object:
        """An object whose state follows its making, with its state."""
        if isinstance(target, np.ndarray):
            _fill_array(target, *state)
        elif isinstance(target, _DType):
            target.complete(*state)
        else:
            raise ValueError(f"it gives a state to a {type(target).__name__}")
        return target
