"""HDF5 files: ours are written with checksums; of strangers' nothing outside is opened, and no size is believed.

HDF5 itself follows links to other files, makes up what was never written, and, for a damaged chunk, reads past its end.
What reads here raises ValueError, or whatever h5py raises for a damaged file; callers say of which file.
"""

import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from utils.errors import shorten
from utils.formats.npy import MAX_EMPTY_LENGTH
from utils.formats.rows import by_block, read_rows

# HDF5 1.10 is the oldest format with checksums over all metadata; "latest" would shut out readers of other ages.
VERSION = ("v110", "v110")
MAX_STEPS, MAX_LEVELS = 100, 16  # links and groups on the way to a dataset of HDF5; groups within groups
GZIP, LZF, FLETCHER32 = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_LZF, h5py.h5z.FILTER_FLETCHER32
FILTERS = (h5py.h5z.FILTER_SHUFFLE, LZF, GZIP, FLETCHER32)  # in the order in which they are applied
FLETCHER32_BYTES = 4  # the checksum behind a chunk
GZIP_RATIO = 1040  # what it packs at most is 1032, lzf less
MAX_RATIO, FREE_BYTES = 100, 2**20  # of a whole dataset, beside what any may have: one of zeros alone packs well
PLAIN_TYPES = (h5py.h5t.IEEE_F16LE, h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F64LE)  # whose bytes are the values, as they lie


@contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """A file to write, with checksums over its metadata; its datasets have them by `fletcher32=True`.

    OSError, in the system's words, for what the system refuses, such as a full disk.
    """
    try:
        # Without a cache a write fails where it is made; from the cache it may fail when nobody can be told any more.
        with h5py.File(path, "w", libver=VERSION, rdcc_nbytes=0) as file:
            yield file
    except (OSError, RuntimeError) as error:
        if number := re.search(r"errno = (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        raise


def set_attributes(place: h5py.Group, values: Mapping[str, object]) -> None:
    """Numbers and texts; h5py would put text where HDF5 has no checksum, outside the attribute."""
    for name, value in values.items():
        place.attrs[name] = np.array(value) if not isinstance(value, str) else np.bytes_(value.encode())


def follow(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | h5py.Datatype:
    """What lies at a path below a group, soft links followed, link after link; ValueError where that leaves the file.

    HDF5's own way through a path would open other files.
    """
    found, names = group, path.split("/")
    for _ in range(MAX_STEPS):
        if not names:
            return found
        name = names.pop(0).encode()
        if name in (b"", b"."):
            continue
        there = isinstance(found, h5py.Group) and found.id.links.exists(name)
        kind = found.id.links.get_info(name).type if there else None
        if kind == h5py.h5l.TYPE_HARD:
            found = found[name]
        elif kind == h5py.h5l.TYPE_SOFT:
            target = found.id.links.get_val(name).decode()
            found = group.file if target.startswith("/") else found
            names[:0] = target.split("/")
        elif kind is None:
            raise ValueError("it links to what is not there")
        else:
            raise ValueError("it links to another file, and no other is opened; copy the values into this one")
    raise ValueError(f"more than {MAX_STEPS} links and groups on the way to it")


def dataset_paths(group: h5py.Group, met: set[h5py.Group], level: int = 1) -> Iterator[str]:
    """The paths under a group of all that is no group itself; of a group that was `met` before, nothing."""
    if level > MAX_LEVELS:
        raise ValueError(f"groups are nested deeper than {MAX_LEVELS} levels")
    for name in names_in(group):
        child = _group_at(group, name)
        if child is None:
            yield name
        elif child not in met:
            met.add(child)
            yield from (f"{name}/{path}" for path in dataset_paths(child, met, level + 1))


def names_in(group: h5py.Group) -> Iterator[str]:
    for name in group:
        if isinstance(name, bytes):
            raise ValueError(f"the name {shorten(name)} is not UTF-8")
        yield name


def _group_at(group: h5py.Group, name: str) -> h5py.Group | None:
    """The group of that name, if it is one; what cannot be opened is none, which is reported when it is read."""
    try:
        if _is_array(group, name.encode()):
            return None
        found = follow(group, name)
    except Exception:  # as in `HDF5Source._reading`
        return None
    return found if isinstance(found, h5py.Group) else None


def _is_array(group: h5py.Group, name: bytes) -> bool:
    """Whether an array lies there itself, which shows without opening it; most of what is listed are such."""
    own = group.id.links.get_info(name).type == h5py.h5l.TYPE_HARD
    return own and h5py.h5o.get_info(group.id, name).type == h5py.h5o.TYPE_DATASET


def check_no_external_data(dataset: h5py.Dataset) -> None:
    """ValueError for values that lie elsewhere or are no numbers, and for filters whose output has no known bound."""
    layout = dataset.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise ValueError("its values lie in another file, and no other is opened; copy them into this one")
    if dataset.dtype.kind not in "biuf":
        raise ValueError(f"it has dtype {shorten(dataset.dtype)}, expected float16 or float32")
    filters = _filters(dataset)
    if filters != [code for code in FILTERS if code in filters] or {LZF, GZIP} <= set(filters):
        raise ValueError(
            f"it is stored with the HDF5 filters {filters}, expected shuffle, gzip or lzf, and fletcher32 at most; "
            "store it again, as h5repack does"
        )


def check_stored_size(dataset: h5py.Dataset, file_bytes: int) -> None:
    """ValueError for a dataset of more bytes than those in the file can be unpacked to; no value is read for that."""
    shape, chunks, item_bytes = dataset.shape, dataset.chunks, _item_bytes(dataset)  # each takes h5py a while
    if 0 in shape and max(shape) > MAX_EMPTY_LENGTH:
        raise ValueError(f"no array has the shape {shape}")
    promised, held = math.prod(shape) * item_bytes, dataset.id.get_storage_size()
    if held > file_bytes or (promised > held and not chunks):
        raise ValueError(f"it promises {max(promised, held):,} bytes, the file holds {min(held, file_bytes):,} of them")
    if chunks:
        places = math.prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))
        _check_chunk_sizes(dataset, places, math.prod(chunks) * item_bytes)
    if promised > MAX_RATIO * held + FREE_BYTES:
        raise ValueError(f"it promises {promised:,} bytes, packed into {held:,}; no features pack so well")


def _check_chunk_sizes(dataset: h5py.Dataset, places: int, promised: int) -> None:
    """ValueError for chunks that were not written or are too small; HDF5 reads past the end of such.

    places: how many there must be; promised: the bytes of each, since those at the edges are stored whole.
    """
    chunks = _chunks(dataset)
    written = len({chunk.chunk_offset for chunk in chunks})
    if written < places:
        raise ValueError(f"of its {places:,} chunks the file holds {written:,}")
    by_mask = {mask: _filters(dataset, mask) for mask in {0, *(chunk.filter_mask for chunk in chunks)}}
    for chunk in chunks:
        filters = by_mask[chunk.filter_mask]
        held = chunk.size - (FLETCHER32_BYTES if FLETCHER32 in filters else 0)
        if not (promised <= GZIP_RATIO * held if LZF in filters or GZIP in filters else promised == held):
            raise ValueError(f"a chunk of it promises {promised:,} bytes, the file holds {chunk.size:,}")
    if LZF in by_mask[0]:
        lzf = dataset.id.get_create_plist().get_filter(by_mask[0].index(LZF))
        if lzf[2][2:] != (promised,):
            raise ValueError("the size of its lzf chunks is damaged")


def check_chunks(dataset: h5py.Dataset) -> None:
    """ValueError for a gzipped chunk that is damaged or unpacks to another size; HDF5 reads past the end of such."""
    promised = math.prod(dataset.chunks) * _item_bytes(dataset) if dataset.chunks else 0
    for chunk in _chunks(dataset) if GZIP in _filters(dataset) else ():
        mask, content = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if GZIP in _filters(dataset, mask):
            unpacker = zlib.decompressobj()
            if len(unpacker.decompress(content, promised + 1)) != promised or not unpacker.eof:
                raise ValueError(f"a chunk of it does not unpack to the {promised:,} bytes that it promises")


def dataset_rows(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Sorted rows (N,) of a dataset (T, D) -> (N, D) in its own dtype; the checks above must have passed.

    What lies in one piece is read past HDF5, row by row; of chunks those that hold a wanted row, one after another.
    """
    offset = dataset.id.get_offset()  # None for what does not lie in one piece
    if offset is not None and any(dataset.id.get_type().equal(kind) for kind in PLAIN_TYPES):
        descriptor = dataset.file.id.get_vfd_handle()
        return read_rows(descriptor, offset, dataset.dtype, dataset.shape[1], rows)
    values = np.empty((len(rows), dataset.shape[1]), dataset.dtype)
    for places, first, last in by_block(rows, dataset.chunks[0] if dataset.chunks else len(dataset)):
        values[places] = dataset[first : last + 1][rows[places] - first]
    return values


def _filters(dataset: h5py.Dataset, mask: int = 0) -> list[int]:
    """The numbers of a dataset's filters in their order, without those that the mask of a chunk says it left out."""
    layout = dataset.id.get_create_plist()
    return [layout.get_filter(index)[0] for index in range(layout.get_nfilters()) if not mask >> index & 1]


def _chunks(dataset: h5py.Dataset) -> list[h5py.h5d.StoreInfo]:
    chunks = []
    dataset.id.chunk_iter(chunks.append)
    return chunks


def _item_bytes(dataset: h5py.Dataset) -> int:
    return dataset.id.get_type().get_size()
