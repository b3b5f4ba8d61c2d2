"""HDF5 files: writing with checksums, and safe reading of untrusted files.

HDF5 itself follows links to other files, invents values that were never written, and reads past the end of a damaged
chunk. The functions here open no other file and check every declared size against the bytes in the file.

Readers raise ValueError, or whatever h5py raises for a damaged file. Callers add the path.
"""

import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import h5py
import numpy as np

from utils.errors import shorten
from utils.formats.npy import MAX_EMPTY_LENGTH
from utils.formats.rows import iter_blocks

# HDF5 1.10 is the oldest format with checksums over all metadata; "latest" would exclude older readers.
VERSION = ("v110", "v110")
MAX_STEPS = 100  # links and groups on the way to a dataset
MAX_LEVELS = 16  # groups within groups
GZIP, LZF, FLETCHER32 = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_LZF, h5py.h5z.FILTER_FLETCHER32
FILTERS = (h5py.h5z.FILTER_SHUFFLE, LZF, GZIP, FLETCHER32)  # in the order in which HDF5 applies them
FLETCHER32_BYTES = 4  # checksum after a chunk
GZIP_RATIO = 1040  # gzip packs a chunk by at most 1032, lzf by less
MAX_RATIO, FREE_BYTES = 100, 2**20  # a dataset may unpack to MAX_RATIO x its stored bytes + FREE_BYTES
PLACED_DTYPES = (np.dtype("<f2"), np.dtype("<f4"), np.dtype("<f8"))  # stored as NumPy has them in memory
_PLACED_TYPES = (h5py.h5t.IEEE_F16LE, h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F64LE)


@contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a new file whose metadata has checksums; create datasets in it with `fletcher32=True`.

    Raises:
        OSError: The system refuses a write, for example on a full disk; in the system's words.
    """
    try:
        # Without a chunk cache a write fails in the call; a cached one may fail at exit, where nothing reports it.
        with h5py.File(path, "w", libver=VERSION, rdcc_nbytes=0) as file:
            yield file
    except (OSError, RuntimeError) as error:
        if number := re.search(r"errno = (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        raise


def set_attributes(group: h5py.Group, values: Mapping[str, object]) -> None:
    """Set numbers and texts as attributes; text has a fixed length, because HDF5 has no checksum for the other kind."""
    for name, value in values.items():
        group.attrs[name] = np.array(value) if not isinstance(value, str) else np.bytes_(value.encode())


def follow(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | h5py.Datatype:
    """Return the object at a path below a group, following soft links within the file.

    HDF5's own lookup would open other files.

    Raises:
        ValueError: The path leads to another file, to nothing, or over too many links.
    """
    node, names = group, path.split("/")
    for _ in range(MAX_STEPS):
        if not names:
            return node
        name = names.pop(0).encode()
        if name in (b"", b"."):
            continue
        exists = isinstance(node, h5py.Group) and node.id.links.exists(name)
        kind = node.id.links.get_info(name).type if exists else None
        if kind == h5py.h5l.TYPE_HARD:
            node = node[name]
        elif kind == h5py.h5l.TYPE_SOFT:
            target = node.id.links.get_val(name).decode()
            node = group.file if target.startswith("/") else node
            names[:0] = target.split("/")
        elif kind is None:
            raise ValueError("it links to a target that does not exist")
        else:
            raise ValueError("it links to another file, which is not supported; copy the values into this one")
    raise ValueError(f"more than {MAX_STEPS} links and groups on the way to it")


def dataset_paths(group: h5py.Group, visited: set[h5py.Group], level: int = 1) -> Iterator[str]:
    """Yield the paths of all non-groups below a group, skipping `visited` groups and adding new ones to them."""
    if level > MAX_LEVELS:
        raise ValueError(f"groups are nested deeper than {MAX_LEVELS} levels")
    for name in names_in(group):
        child = _group_at(group, name)
        if child is None:
            yield name
        elif child not in visited:
            visited.add(child)
            yield from (f"{name}/{path}" for path in dataset_paths(child, visited, level + 1))


def names_in(group: h5py.Group) -> Iterator[str]:
    """Yield the names in a group; ValueError for one that is not UTF-8."""
    for name in group:
        if isinstance(name, bytes):
            raise ValueError(f"the name {shorten(name)} is not UTF-8")
        yield name


def _group_at(group: h5py.Group, name: str) -> h5py.Group | None:
    """Return the group of that name, None for anything else; reading reports what cannot be opened."""
    try:
        own = group.id.links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD
        if own and h5py.h5o.get_info(group.id, name.encode()).type == h5py.h5o.TYPE_DATASET:
            return None  # the common case, without opening the dataset
        node = follow(group, name)
    except Exception:  # for a damaged file h5py raises almost anything
        return None
    return node if isinstance(node, h5py.Group) else None


def check_no_external_data(dataset: h5py.Dataset) -> None:
    """Check that a dataset is numeric, in this file, and stored with filters of bounded output.

    Raises:
        ValueError: It is not.
    """
    layout = dataset.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise ValueError("its values lie in another file, which is not supported; copy them into this one")
    if dataset.dtype.kind not in "biuf":
        raise ValueError(f"expected float16 or float32, got dtype {shorten(dataset.dtype)}")
    filters = _filters(dataset)
    if filters != [code for code in FILTERS if code in filters] or {LZF, GZIP} <= set(filters):
        raise ValueError(
            f"expected no other HDF5 filters than shuffle, gzip or lzf, and fletcher32, got {filters}; "
            "store it again, for example with h5repack"
        )


def check_stored_size(dataset: h5py.Dataset, file_bytes: int) -> None:
    """Check that the bytes in the file can unpack to the declared shape; values are not read.

    Raises:
        ValueError: They cannot.
    """
    shape, chunks, item_bytes = dataset.shape, dataset.chunks, _item_bytes(dataset)  # each is slow in h5py
    if 0 in shape and max(shape) > MAX_EMPTY_LENGTH:
        raise ValueError(f"no array has the shape {shape}")
    declared, stored = math.prod(shape) * item_bytes, dataset.id.get_storage_size()
    if stored > file_bytes or (declared > stored and not chunks):
        raise ValueError(f"it declares {max(declared, stored):,} bytes, the file has {min(stored, file_bytes):,}")
    if chunks:
        count = math.prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))
        _check_chunk_sizes(dataset, count, math.prod(chunks) * item_bytes)
    if declared > MAX_RATIO * stored + FREE_BYTES:
        raise ValueError(f"it declares {declared:,} bytes, packed into {stored:,}; no features pack that well")


def _check_chunk_sizes(dataset: h5py.Dataset, count: int, declared: int) -> None:
    """Check that `count` chunks exist and can unpack to `declared` bytes each; ValueError if not.

    HDF5 reads past the end of a chunk that is too small. Chunks at an edge are stored in full size too.
    """
    chunks = _chunks(dataset)
    written = len({chunk.chunk_offset for chunk in chunks})
    if written < count:
        raise ValueError(f"it declares {count:,} chunks, the file has {written:,}")
    by_mask = {mask: _filters(dataset, mask) for mask in {0, *(chunk.filter_mask for chunk in chunks)}}
    for chunk in chunks:
        filters = by_mask[chunk.filter_mask]
        stored = chunk.size - (FLETCHER32_BYTES if FLETCHER32 in filters else 0)
        if not (declared <= GZIP_RATIO * stored if LZF in filters or GZIP in filters else declared == stored):
            raise ValueError(f"a chunk declares {declared:,} bytes, the file has {chunk.size:,}")
    if LZF in by_mask[0]:
        lzf = dataset.id.get_create_plist().get_filter(by_mask[0].index(LZF))
        if lzf[2][2:] != (declared,):
            raise ValueError("the size of its lzf chunks is damaged")


def check_chunks(dataset: h5py.Dataset) -> None:
    """Unpack each gzip chunk and check its size; HDF5 reads past the end of a damaged one.

    Raises:
        ValueError: A chunk is damaged or unpacks to another size.
    """
    declared = math.prod(dataset.chunks) * _item_bytes(dataset) if dataset.chunks else 0
    for chunk in _chunks(dataset) if GZIP in _filters(dataset) else ():
        mask, content = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if GZIP in _filters(dataset, mask):
            unpacker = zlib.decompressobj()
            if len(unpacker.decompress(content, declared + 1)) != declared or not unpacker.eof:
                raise ValueError(f"a chunk does not unpack to the declared {declared:,} bytes")


def read_checked(group: h5py.Group, path: str, file_bytes: int) -> np.ndarray:
    """Return all values of the dataset at a path, after the checks above.

    Raises:
        ValueError: A check fails.
    """
    dataset = follow(group, path)
    check_no_external_data(dataset)
    check_stored_size(dataset, file_bytes)
    check_chunks(dataset)
    return dataset[()]


def group_name(text: str) -> str:
    """Quote any text as the name of one group: a slash would nest groups, and a dot is the file itself."""
    name = quote(text, safe=" !#$&'()*+,:;=?@[]^`{|}~<>\"\\")
    return name if name.strip(".") else name.replace(".", "%2E")


def dataset_rows(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Return sorted rows of a dataset that passed the checks above, reading only the chunks that contain them.

    Shape:
        dataset (T, D), rows (N,) -> (N, D) in the dataset's dtype.
    """
    values = np.empty((len(rows), dataset.shape[1]), dataset.dtype)
    for positions, first, last in iter_blocks(rows, dataset.chunks[0] if dataset.chunks else len(dataset)):
        values[positions] = dataset[first : last + 1][rows[positions] - first]
    return values


class RowPlaces(NamedTuple):
    """Places of the rows of a dataset (T, D) in its file."""

    length: int  # T
    width: int  # D
    dtype: int  # number in PLACED_DTYPES
    chunk_length: int  # rows per chunk, all of T if contiguous
    offsets: list[int]  # bytes before each chunk


def row_places(dataset: h5py.Dataset) -> RowPlaces | None:
    """Return where the rows of a checked dataset are stored, None unless they are stored as NumPy has them in memory.

    A dataset that is compressed, empty, in chunks of some of its columns or not (T, D) has no such places.
    """
    kind, shape = dataset.id.get_type(), dataset.shape
    dtype = next((number for number, stored in enumerate(_PLACED_TYPES) if kind.equal(stored)), None)
    if dtype is None or len(shape) != 2 or 0 in shape or set(_filters(dataset)) - {FLETCHER32}:
        return None
    if not (chunks := dataset.chunks):
        return RowPlaces(*shape, dtype, shape[0], [dataset.id.get_offset()])
    stored = sorted(_chunks(dataset), key=lambda chunk: chunk.chunk_offset)
    if chunks[1] != shape[1]:
        return None
    return RowPlaces(*shape, dtype, chunks[0], [chunk.byte_offset for chunk in stored])


def _filters(dataset: h5py.Dataset, mask: int = 0) -> list[int]:
    """Return the codes of a dataset's filters in their order, without those that a chunk's mask skips."""
    layout = dataset.id.get_create_plist()
    return [layout.get_filter(index)[0] for index in range(layout.get_nfilters()) if not mask >> index & 1]


def _chunks(dataset: h5py.Dataset) -> list[h5py.h5d.StoreInfo]:
    chunks = []
    dataset.id.chunk_iter(chunks.append)
    return chunks


def _item_bytes(dataset: h5py.Dataset) -> int:
    return dataset.id.get_type().get_size()
