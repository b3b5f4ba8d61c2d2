"""The only place that opens a pickle.

The releases of this field ship lists as object-dtype .npy files, and such a file is a pickle: loading it with
`np.load(..., allow_pickle=True)` runs whatever code it holds. The unpickler here admits what numpy arrays are
made of and nothing else, so a file can be wrong but cannot act.
"""

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.errors import InputError, shown


def _numpy_internals() -> dict[tuple[str, str], object]:
    """The globals that a pickled array refers to, under the module names of numpy 1 and numpy 2."""
    numpy_core = np.core if int(np.__version__.split(".")[0]) < 2 else np._core
    multiarray = numpy_core.multiarray
    allowed = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = multiarray._reconstruct
        allowed[f"{core}.multiarray", "scalar"] = multiarray.scalar
        allowed[f"{core}.numeric", "_frombuffer"] = numpy_core.numeric._frombuffer
    return allowed


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 spells bytes (`_codecs.encode(text, "latin1")`); the real function reaches any codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file asks for the codec {encoding!r}, which an array never needs")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays, their dtypes and scalars, and Python's plain literals (which need no global)."""

    allowed = {**_numpy_internals(), ("_codecs", "encode"): _encode_latin1}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is not part of an array")
        return self.allowed[module, name]


def load_array(path: str | Path) -> np.ndarray:
    """Any .npy file, object dtype included, as an array; no code of the file is run.

    Strings written by Python 2 come as bytes (see `as_text`). InputError: no such file, not a .npy file, a
    truncated one, or a pickle that holds anything but arrays and plain values.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            shape, fortran_order, dtype = _read_header(file)
            if not dtype.hasobject:
                file.seek(0)
                return np.load(file, allow_pickle=False)
            array = _ArrayUnpickler(file, encoding="bytes").load()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{path}: not a .npy file of arrays ({_one_line(error)})") from None
    if not isinstance(array, np.ndarray) or array.size != np.prod(shape, dtype=np.int64):
        raise InputError(f"{path}: the header promises an array of shape {shape}, the content is another")
    return array.reshape(shape, order="F" if fortran_order else "C")


def array_shape(path: str | Path) -> tuple[int, ...]:
    """The shape that a .npy file's header gives, without reading its content."""
    try:
        with Path(path).open("rb") as file:
            return _read_header(file)[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a .npy file ({_one_line(error)})") from None


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
            raise InputError(f"{path}: row {number}: expected a name, found {shown(value)}")
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


def _read_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
