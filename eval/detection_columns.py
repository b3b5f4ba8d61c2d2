"""Detection files, read as whole columns: no Python code per row.

Each reader returns None for a file with anything unusual, such as a number in quotes or a wrong row. The readers of
eval/detection_formats.py then take it row by row.
"""

import gc
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from eval.csv_rows import SEGMENT_COLUMNS, find_columns
from eval.tables import Table, positions
from utils.annotations import checked_name
from utils.errors import InputError, shorten
from utils.formats.files import read_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

COLUMNS = (*SEGMENT_COLUMNS, "score")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PART_BYTES = 2**18  # of JSON to parse at a time; its objects fit into a processor's cache
_NEXT_VIDEO = re.compile(rb'[}\[][ \t\n\r]*\]([ \t\n\r]*,[ \t\n\r]*)"')  # after the last detection of a video
MAX_PARQUET_ROWS = 10**8  # a few bytes of Parquet can stand for any number of equal rows


def read_json_columns(path: Path) -> Table | None:
    """Read a JSON file in ActivityNet's submission format.

    Raises:
        InputError: The file cannot be read.
    """
    content = read_bytes(path).removeprefix(BYTE_ORDER_MARK)
    try:
        with _garbage_collection_off():
            return _checked_table(_table_of_json(content))
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return None


def _table_of_json(content: bytes) -> Table:
    """Convert the content of a file, a part of its videos at a time.

    Raises:
        ValueError: The content is unusual. Other errors, of missing keys and wrong types, mean the same.
    """
    videos, counts, classes, columns, more = [], [], {}, [], {}
    colons = 1  # JSON has one per key, such as `results`, and those within strings
    for data in _parse_parts(content):
        results = data.pop("results")
        entries = list(chain.from_iterable(results.values()))
        columns.append(_columns_of_entries(entries, classes))
        if set(map(type, results.values())) != {list}:
            raise ValueError("expected lists of detections")
        more |= data
        videos += results
        counts += map(len, results.values())
        colons += sum(map(len, entries))
    label, times, score = map(np.concatenate, zip(*columns, strict=True))
    colons += len(videos) + sum(name.count(":") for name in videos) + _count_colons(more)
    colons += int(np.dot(np.bincount(label), [name.count(":") for name in classes]))
    # With more colons, a key was there twice.
    if content.count(b":") != colons or b"\\u003" in content or len(set(videos)) != len(videos):
        raise ValueError("expected every key once")
    return Table(
        videos=tuple(checked_name(name, "video") for name in videos),
        classes=tuple(checked_name(name, "label") for name in classes),
        video=np.repeat(np.arange(len(counts)), counts),
        label=label,
        start=times[:, 0].copy(),
        end=times[:, 1].copy(),
        score=score,
        snippet_rate=stored_snippet_rate(more, "detections"),
    )


def _parse_parts(content: bytes) -> Iterator[dict]:
    """Yield the content of a file in parts, each with some of the videos, so that few objects exist at a time.

    A cut is right between the lists of two videos. Elsewhere, brackets before it do not match, or the results are not
    the last object that is open.

    Raises:
        ValueError: A part is not valid JSON, or was cut elsewhere.
    """
    start, head = 0, b""
    while cut := _NEXT_VIDEO.search(content, start + PART_BYTES):
        data = orjson.loads(head + content[start : cut.start(1)] + b"}}")
        if next(reversed(data)) != "results":
            raise ValueError("cut in another object")
        yield data
        start, head = cut.end(1), b'{"results": {'
    yield orjson.loads(head + content[start:])


def _columns_of_entries(entries: list[dict], classes: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label (N,), start and end (N, 2), and score (N,) of detections, and number new classes."""
    labels, scores, segments = (list(map(itemgetter(name), entries)) for name in ("label", "score", "segment"))
    if not set(map(type, segments)) <= {list} or not set(map(len, segments)) <= {2}:
        raise ValueError("expected [start, end]")
    if not set(map(type, labels)) <= {str}:
        labels = [checked_name(label, "label") for label in labels]
    for label in dict.fromkeys(labels):
        classes.setdefault(label, len(classes))
    return (
        np.fromiter(map(classes.__getitem__, labels), np.int64, len(labels)),
        np.fromiter(chain.from_iterable(segments), np.float64, 2 * len(segments)).reshape(-1, 2),
        np.fromiter(scores, np.float64, len(scores)),
    )


def _count_colons(value: object) -> int:
    """Return the colons of a value in JSON, none of them escaped."""
    if isinstance(value, dict):
        return len(value) + sum(map(_count_colons, chain(value, value.values())))
    if isinstance(value, list):
        return sum(map(_count_colons, value))
    return value.count(":") if isinstance(value, str) else 0


def stored_snippet_rate(data: dict, where: str) -> float | None:
    """Return the snippet rate that the content of a JSON file states, in Hz, or None.

    Raises:
        InputError: It is not a positive number.
    """
    stored = data.get("snippet_rate")
    if stored is None:
        return None
    try:
        rate = float(stored)
    except (TypeError, ValueError, OverflowError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise InputError(f"{where}: 'snippet_rate': expected a positive number, got {shorten(stored)}")
    return rate


def read_csv_columns(path: Path) -> Table | None:
    """Read a CSV file whose fields are not quoted.

    Raises:
        InputError: The file cannot be read.
    """
    import pyarrow as pa  # here, because it would slow down the start of every command
    from pyarrow import csv

    content = read_bytes(path).removeprefix(BYTE_ORDER_MARK)
    if b'"' in content:
        return None
    try:
        if not content.isascii():
            content.decode()  # columns that are not used must be text, too
        names = find_columns(content[: content.find(b"\n")].decode().rstrip("\r").split(","), COLUMNS, path)
        name, number = pa.dictionary(pa.int32(), pa.string()), pa.float64()
        types = dict(zip(names, (name, number, number, name, number), strict=True))
        options = csv.ConvertOptions(include_columns=names, column_types=types)
        table = csv.read_csv(pa.BufferReader(content), convert_options=options)
    except (ValueError, KeyError):
        return None
    return _table_of_arrow(table)


def read_parquet_columns(path: Path) -> Table | None:
    """Read a Parquet file.

    Raises:
        InputError: The file cannot be read, or is not a Parquet file of detections.
    """
    with open_parquet(path) as (file, names):
        return _table_of_arrow(file.read(names).select(names))


@contextmanager
def open_parquet(path: Path) -> Iterator[tuple["ParquetFile", list[str]]]:
    """Open a Parquet file of detections, as a context manager.

    Yields:
        The file, and its names of COLUMNS.

    Raises:
        InputError: The file cannot be read or has other columns; also for reads inside the block.
    """
    import pyarrow as pa  # here, because it would slow down the start of every command
    from pyarrow.parquet import ParquetFile

    content = read_bytes(path)
    try:
        schema = ParquetFile(pa.BufferReader(content)).schema_arrow
        names = find_columns(schema.names, COLUMNS, path)
        texts = [name for name in names if schema.field(name).type in (pa.string(), pa.large_string())]
        file = ParquetFile(pa.BufferReader(content), read_dictionary=texts)
        if file.metadata.num_rows > MAX_PARQUET_ROWS:
            raise InputError(f"{path}: expected at most {MAX_PARQUET_ROWS:,} rows, got {file.metadata.num_rows:,}")
        yield file, names
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file ({error!s:.300}); is the file complete?") from None


def _table_of_arrow(table: "pa.Table") -> Table | None:
    """Convert a table with the columns of COLUMNS, in their order."""
    if any(column.null_count for column in table.columns):
        return None
    video, start, end, label, score = table.columns
    try:
        (videos, video), (classes, label) = _numbered(video), _numbered(label)
        start, end, score = map(_numbers, (start, end, score))
    except (InputError, ValueError, TypeError, NotImplementedError):
        return None
    return _checked_table(Table(videos, classes, video, label, start, end, score))


def _numbered(column: "pa.ChunkedArray") -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names in a column, in order of appearance, and the index of each row's name (N,)."""
    from pyarrow import types

    column = column if types.is_dictionary(column.type) else column.dictionary_encode()
    column = column.unify_dictionaries().combine_chunks()
    listed, indices = column.dictionary.to_pylist(), _to_numpy(column.indices)
    first = np.full(len(listed), len(indices))
    first[indices[::-1]] = np.arange(len(indices))[::-1]  # of several values, the last one stays
    used = np.argsort(first)[: np.count_nonzero(first < len(indices))]
    names = [checked_name(listed[number], "name") for number in used]
    order = tuple(dict.fromkeys(names))
    numbers = np.empty(len(listed), dtype=np.int64)
    numbers[used] = positions(names, order)
    return order, numbers[indices]


def _numbers(column: "pa.ChunkedArray") -> np.ndarray:
    """Return a column of numbers (N,) as float64; TypeError for other columns."""
    from pyarrow import types

    if not (types.is_floating(column.type) or types.is_integer(column.type)):
        raise TypeError("expected a column of numbers")
    return _to_numpy((column if types.is_float64(column.type) else column.cast("float64")).combine_chunks())


def _to_numpy(array: "pa.Array") -> np.ndarray:
    return np.from_dlpack(array)  # array.to_numpy() imports pandas, which takes half a second


def _checked_table(table: Table) -> Table | None:
    """Return the table, None if a number is not finite or a segment ends before it starts."""
    finite = (np.isfinite(column).all() for column in (table.start, table.end, table.score))
    return table if all(finite) and (table.start <= table.end).all() else None


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Pause the search for reference cycles, which takes longer than creating millions of objects without any."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
