"""Safe reader of untrusted .npy files, object dtype included, and of .npz files of numbers.

Releases of this field store lists as object-dtype .npy files. Such a file is a pickle, and a pickle is a program that
`np.load(..., allow_pickle=True)` runs. `load_array` never runs one:

1. `_scan` checks each opcode against an allow-list and each length against the bytes that follow.
2. `_InertUnpickler` loads plain values. A function that the pickle names becomes a `_Call`, which nothing executes.
3. `_ArrayBuilder` replaces each `_Call` by the array, scalar or bytes that it describes, after checking its size.

A .npz file is a zip of .npy files. Its members are read without pickles, and not if they unpack to far more bytes.
"""

import io
import math
import mmap
import os
import pickle
import pickletools
import re
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from utils.errors import InputError, shorten
from utils.formats.rows import read_rows

MAX_HEADER_BYTES = 2**13  # the header of a plain dtype has 128
MAX_DIMENSIONS = 32
MAX_EMPTY_LENGTH = 2**16  # largest dimension accepted in an array with zero elements
MAX_OPCODES = 2**21  # the largest pickle of THUMOS14 has 46,000; one opcode may take 100 bytes of memory
MAX_DEPTH = 8  # nesting of lists; the releases have 3
FREE_BYTES = 2**22  # how far shared parts may expand, for any file size
MAX_RATIO = 100  # a member of a .npz may unpack to MAX_RATIO x its stored bytes + FREE_BYTES
KINDS = "biufSUO"  # bool, integers, floats, bytes, text and objects, as in `np.dtype.kind`
NO_OBJECTS = "it has object dtype; expected numbers or text"
TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"
_MAX_MESSAGE = 300  # characters of a library's message

_OPCODE = re.compile(  # opcodes that lists, text, numbers and arrays need
    "PROTO|FRAME|STOP|MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|(SHORT_)?BINUNICODE|BINUNICODE8"
    "|(SHORT_)?BINBYTES|BINBYTES8|BYTEARRAY8|(SHORT_)?BINSTRING|(LONG_)?BIN(PUT|GET)|MEMOIZE|EMPTY_LIST|APPENDS?"
    "|EMPTY_TUPLE|TUPLE[123]?|(STACK_)?GLOBAL|REDUCE|BUILD"
)
_NAMES = frozenset(  # functions and classes that a pickled array names, in NumPy 1 and 2
    {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("__builtin__", "bytes")}
    | {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
    | {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
)


def load_array(path: str | Path) -> np.ndarray:
    """Return the array of any .npy file, object dtype included, without running code from the file.

    Strings written by Python 2 are returned as bytes, see `decode_names`.

    Raises:
        InputError: The file is missing, truncated, or holds anything but arrays and plain values.
    """
    with _open(path) as (file, size):
        header = _read_header(file, size)
        return _read_objects(file, header) if header.dtype.hasobject else _read_plain(file, header)


def load_plain_array(path: str | Path, member: str | None = None) -> np.ndarray:
    """Return the array of a .npy file, or of a member of a .npz file, of numbers or text.

    Raises:
        InputError: As `load_array`, and for object dtype; the pickle is not read.
    """
    with _open(path, member) as (file, size):
        return _read_plain(file, _read_plain_header(file, size))


def load_plain_rows(path: str | Path, rows: np.ndarray, member: str | None = None) -> np.ndarray:
    """Return `load_plain_array(path, member)[rows]` for sorted rows; a .npy file in C order is not read in full."""
    with _open(path, member) as (file, size):
        header = _read_plain_header(file, size)
        if len(header.shape) != 2 or header.fortran_order or member is not None:
            return _read_plain(file, header)[rows]
        values = np.empty((len(rows), header.shape[1]), header.dtype)
        read_rows(file.fileno(), file.tell(), rows, values)
        return values


def array_shape(path: str | Path, member: str | None = None) -> tuple[int, ...]:
    """Return the shape in the header of an array, checked against the file's size; values are not read."""
    with _open(path, member) as (file, size):
        return _read_header(file, size).shape


def npz_names(path: str | Path) -> list[str]:
    """Return the names of the arrays in a .npz file.

    Raises:
        InputError: The file cannot be read, or it has no array.
    """
    with _reading(path, ".npz") as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if not names or len(set(names)) != len(names):
            raise ValueError("expected arrays with different names")
        return names


def load_rows(path: str | Path) -> np.ndarray:
    """Return the array of a .npy file that has one row per video or class.

    Raises:
        InputError: As `load_array`, and for a single value.
    """
    rows = load_array(path)
    if rows.ndim == 0:
        raise InputError(f"{path}: expected one row per video or class, got a single value")
    return rows


def load_names(path: str | Path) -> list[str]:
    """Return the names in a .npy file, one per row.

    Raises:
        InputError: As `load_rows`, and for a row that is not text.
    """
    rows = load_rows(path)
    for number, value in enumerate(rows):
        if not isinstance(value, str | bytes):
            raise InputError(f"{path}: row {number}: expected a name, got {shorten(value)}")
    return decode_names(rows)


def load_video_ids(folder: Path) -> list[str]:
    """Return the names in the release's videoname.npy, in the order of the rows of its other files.

    Raises:
        InputError: As `load_names`, and for a repeated name.
    """
    names = load_names(folder / "videoname.npy")
    if len(set(names)) != len(names):
        repeated, count = Counter(names).most_common(1)[0]
        raise InputError(f"{folder / 'videoname.npy'}: expected one row per video, got {count} rows of '{repeated}'")
    return names


def decode_names(values: Sequence) -> list:
    """Return the values with bytes decoded to str; the releases store names as bytes, NumPy strings or str."""
    return [value.decode("latin1") if isinstance(value, bytes) else value for value in values]


@contextmanager
def _open(path: str | Path, member: str | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """Open a .npy file, or a member of a .npz file, and yield it with its size in bytes."""
    with _reading(path, ".npy" if member is None else ".npz") as file:
        size = os.fstat(file.fileno()).st_size
        if member is None:
            yield file, size
            return
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{member}.npy")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"the compression of '{member}' is not supported; store it again with np.savez")
            if info.compress_size > size or info.file_size > MAX_RATIO * info.compress_size + FREE_BYTES:
                raise ValueError(f"'{member}' declares {info.file_size:,} bytes, packed into {info.compress_size:,}")
            with archive.open(info) as content:
                yield content, info.file_size


@contextmanager
def _reading(path: str | Path, kind: str) -> Iterator[BinaryIO]:
    """Open a file for reading; any error in the block becomes an InputError that names the file."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
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
        reason = str(error)[:_MAX_MESSAGE] if isinstance(error, ValueError) else "it is damaged"
        raise InputError(f"{path}: not a {kind} file of arrays ({reason})") from None


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def _read_header(file: BinaryIO, size: int) -> _Header:
    """Read the header, check it against the file's size in bytes, and leave the file at the content.

    Raises:
        ValueError: Damaged header, unsupported dtype, or a shape that does not match the size of the content.
    """
    start = io.BytesIO(file.read(MAX_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"expected format version (1, 0) to (3, 0), got {version}")
    formats = np.lib.format  # version 3.0 differs from 2.0 only in the names of fields
    read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
    with warnings.catch_warnings():  # by Python about odd literals, by NumPy about files of Python 2
        warnings.simplefilter("ignore")
        header = _Header(*read(start))
    if header.dtype.kind not in KINDS or header.dtype.subdtype is not None:
        raise ValueError(f"expected numbers, text or objects, got dtype {shorten(header.dtype)}")
    stored = size - start.tell()
    declared = _array_bytes(header.shape, header.dtype)
    if declared > stored or (declared < stored and not header.dtype.hasobject):
        raise ValueError(f"the header declares {declared:,} bytes, got {stored:,}; is the file complete?")
    file.seek(start.tell())
    return header


def _read_plain_header(file: BinaryIO, size: int) -> _Header:
    header = _read_header(file, size)
    if header.dtype.hasobject:
        raise ValueError(NO_OBJECTS)
    return header


def _array_bytes(shape: object, dtype: np.dtype) -> int:
    """Return the bytes of an array in a file, for objects a lower bound; ValueError for an impossible shape."""
    if not isinstance(shape, tuple) or not all(type(length) is int for length in shape):
        raise ValueError(f"expected a shape of integers, got {shorten(shape)}")
    impossible = len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0
    if impossible or (0 in shape and max(shape) > MAX_EMPTY_LENGTH):
        raise ValueError(f"no array has the shape {shorten(shape)}")
    itemsize = 1 if dtype.hasobject else max(dtype.itemsize, 1)  # each object takes at least one opcode
    return math.prod(shape) * itemsize


def _read_plain(file: BinaryIO, header: _Header) -> np.ndarray:
    if isinstance(file, zipfile.ZipExtFile):
        content = file.read(_array_bytes(header.shape, header.dtype) + 1)  # one more: the checksum is at the end
        array = np.frombuffer(content, header.dtype)
    else:
        array = np.fromfile(file, header.dtype, math.prod(header.shape))
    return _check_text(array.reshape(header.shape, order="F" if header.fortran_order else "C"))


def _check_text(array: np.ndarray) -> np.ndarray:
    """Return the array; ValueError for invalid code points, which NumPy itself reports only when one is used."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        codes = np.ravel(array, order="K").view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if codes.max() > 0x10FFFF:
            raise ValueError("its text has invalid characters")
    return array


def _read_objects(file: BinaryIO, header: _Header) -> np.ndarray:
    start = file.tell()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # a read past its end allocates nothing
        content.seek(start)
        _scan(content)
        size = len(content)
    file.seek(start)
    array, *_ = _ArrayBuilder(size).build(_InertUnpickler(file, encoding="bytes").load())
    if not (isinstance(array, np.ndarray) and array.dtype.hasobject and array.shape == header.shape):
        raise ValueError(f"the header declares objects of shape {header.shape}, the content differs")
    return array


def _scan(content: mmap.mmap) -> None:
    """Check a pickle without loading it; ValueError for an opcode, index or length that no array needs."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if not _OPCODE.fullmatch(opcode.name):
            raise ValueError(f"the pickle opcode {opcode.name} is not supported")
        if number == MAX_OPCODES:
            raise ValueError(f"it has more than {MAX_OPCODES:,} pickle opcodes")
        if opcode.name.endswith("BINPUT") and argument > number:  # the unpickler allocates a memo of this length
            raise ValueError(f"its memo index {argument:,} is larger than its number of values")
        if opcode.name == "FRAME" and argument > len(content) - content.tell():
            raise ValueError(f"it has a frame of {argument:,} bytes, got {len(content) - content.tell():,}")
    if content.tell() != len(content):
        raise ValueError("it has bytes after the array")


class _Call:
    """A name that a pickle refers to, later with the arguments and state given to it; never executed."""

    __slots__ = ("arguments", "name", "state")  # so that a pickle cannot set other attributes

    def __init__(self, name: str, arguments: tuple | None = None):
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: object) -> "_Call":
        if self.arguments is not None:
            raise ValueError(f"it calls the result of {self.name}")
        return _Call(self.name, arguments)

    def __repr__(self) -> str:
        return self.name

    def __setstate__(self, state: object) -> None:
        if self.arguments is None or self.state is not None:
            raise ValueError(f"it sets the state of {self.name} twice or before its call")
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Unpickler that loads lists, tuples, text, bytes, numbers and `_Call` objects, and nothing else."""

    def find_class(self, module: str, name: str) -> _Call:
        if (module, name) not in _NAMES:
            raise ValueError(f"it names {shorten(module)}, {shorten(name)}, which no array needs")
        return _Call(name)


class _ArrayBuilder:
    """Builder of the arrays and values that a loaded pickle describes.

    Parts that the pickle shares stay shared. Each occurrence counts towards the size.
    """

    def __init__(self, file_size: int):
        self._max_bytes = max(file_size, FREE_BYTES)
        self._built: dict[int, tuple[object, int, int]] = {}  # by id of a list, tuple or call

    def build(self, value: object, level: int = 0) -> tuple[object, int, int]:
        """Return the value without calls, its size in bytes with all parts written out, and its depth.

        Raises:
            ValueError: The value is not plain data, too large or nested too deep.
        """
        if value is None or isinstance(value, int | float):
            return value, 1, 0
        if isinstance(value, str | bytes):
            return value, 1 + len(value), 0
        if level > MAX_DEPTH:
            raise ValueError(TOO_DEEP)
        if id(value) not in self._built:
            self._built[id(value)] = self._build_new(value, level)
        built, size, depth = self._built[id(value)]
        if level + depth > MAX_DEPTH:
            raise ValueError(TOO_DEEP)
        return built, size, depth

    def _build_new(self, value: object, level: int) -> tuple[object, int, int]:
        if isinstance(value, list | tuple):
            parts, size, depth = self._build_parts(value, level)
            return type(value)(parts), size, depth
        if not isinstance(value, _Call) or value.arguments is None:
            raise ValueError(f"expected a value or an array, got {shorten(value)}")
        if value.name == "_reconstruct":  # how protocols 2 to 4 write an array
            _, shape, dtype, fortran_order, content = value.state
            dtype, depth = _read_dtype(dtype), 0
            if dtype.hasobject and isinstance(content, list):
                _check_size(shape, dtype, len(content))
                content, size, depth = self._build_parts(content, level)
            else:
                content = _read_bytes(content)
                size = _check_size(shape, dtype, len(content), numbers=True)
            array = np.empty(0, dtype=np.int8)
            array.__setstate__((1, shape, dtype, bool(fortran_order), content))  # without a copy
            return _check_text(array), size, depth
        if value.name == "_frombuffer":  # how protocol 5 writes an array
            content, dtype, shape, order, *axes = value.arguments
            dtype = _read_dtype(dtype)
            size = _check_size(shape, dtype, len(content), numbers=True)
            array = np.ndarray((math.prod(shape),), dtype, content)
            array = array.reshape(shape).transpose(*axes) if order == "K" else array.reshape(shape, order=order)
            return _check_text(array), size, 0
        if value.name == "scalar":
            dtype, content = _read_dtype(value.arguments[0]), _read_bytes(value.arguments[1])
            if not content and not dtype.itemsize:
                return dtype.type(), 1, 0  # empty text
            size = _check_size((), dtype, len(content), numbers=True)
            return _check_text(np.ndarray((), dtype, content))[()], size, 0
        content = _read_bytes(value)
        return content, 1 + len(content), 0

    def _build_parts(self, values: Sequence, level: int) -> tuple[list, int, int]:
        parts, size, depth = [], 1, 0
        for value in values:
            part, part_size, part_depth = self.build(value, level + 1)
            parts.append(part)
            size, depth = size + part_size, max(depth, part_depth)
            if size > self._max_bytes:
                raise ValueError(f"its repeated parts add up to more than {self._max_bytes:,} bytes")
        return parts, size, depth + 1


def _read_dtype(call: object) -> np.dtype:
    match call:
        case _Call(name="dtype", arguments=(str() | bytes() as code, *_), state=(3, order, None, None, None, *_)):
            (code,), (order,) = decode_names([code]), decode_names([order])
            if re.fullmatch(rf"[{KINDS}]\d{{1,9}}", code, re.ASCII):
                return np.dtype(code).newbyteorder(order)
    raise ValueError("it has a dtype that is not supported, expected numbers, text or objects")


def _read_bytes(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case _Call(name="encode", arguments=(str() as text, "latin1")):  # how protocol 2 writes bytes
            return text.encode("latin1")
        case _Call(name="bytes", arguments=()):
            return b""
    raise ValueError(f"expected bytes, got {shorten(value)}")


def _check_size(shape: object, dtype: np.dtype, stored: int, numbers: bool = False) -> int:
    """Return the size that an array counts with; ValueError if it differs from its stored bytes or objects."""
    declared = _array_bytes(shape, dtype)
    if declared != stored or (numbers and dtype.hasobject):
        raise ValueError(f"it has an array of shape {shorten(shape)} and {declared:,} bytes, got {stored:,}")
    return 1 + declared
