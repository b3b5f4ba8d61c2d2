"""Detection files: ActivityNet's JSON, CSV and Parquet.

JSON is `{"results": {video: [{"label", "score", "segment": [start, end]}, ...]}}`. CSV and Parquet have one row per
detection and the columns `video-id,t-start,t-end,label,score`; `eval.csv_rows` lists their other names. Times are in
seconds, as numbers or strings.

Every format has two readers. The first takes whole columns (eval/detection_columns.py) and returns None for anything
unusual. The second takes one row after another. It reads what the first one does not, and its errors name the row. On
the same file both return the same table.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson

from eval.csv_rows import read_rows
from eval.detection_columns import (
    COLUMNS,
    open_parquet,
    read_csv_columns,
    read_json_columns,
    read_parquet_columns,
    stored_snippet_rate,
)
from eval.sorting import number_order
from eval.tables import Table, make_table, table_of_records
from utils.annotations import checked_name, start_and_end
from utils.errors import InputError, shorten
from utils.formats.files import read_json, write_text

DetectionSource = Table | np.ndarray | dict | str | Path


def read_detections(source: DetectionSource) -> Table:
    """Read detections, in seconds.

    Args:
        source: A path (.json, .csv or .parquet), the content of such a JSON file, a table, or a structured array with
            the fields video, label, start, end and score.

    Raises:
        InputError: The source cannot be used; the message names the video and the row.
    """
    if isinstance(source, np.ndarray):
        source = table_of_records(source, "detections")
    if isinstance(source, Table):
        if source.score is None:
            raise InputError("detections: the table has no scores")
        return source
    if isinstance(source, dict):
        return _parse_json(source, "detections")
    path = Path(source)
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: expected detections as a .json, .csv or .parquet file")
    read_columns, read_by_row = READERS[path.suffix.lower()]
    table = read_columns(path)
    return read_by_row(path) if table is None else table


def write_detections(path: str | Path, detections: Table, snippet_rate: float | None = None) -> None:
    """Write detections in ActivityNet's submission format.

    Args:
        path: JSON file to write. A video without detections gets an empty list.
        detections: Detections in seconds.
        snippet_rate: Snippets per second of the features; stored for the protocols that round to this grid.

    Raises:
        InputError: The file cannot be written.
    """
    detections = detections.select(number_order(detections.video, len(detections.videos)))
    bounds = np.searchsorted(detections.video, np.arange(len(detections.videos) + 1)).tolist()
    labels = map([json.dumps(name) for name in detections.classes].__getitem__, detections.label.tolist())
    numbers = map(_number_texts, (detections.score, detections.start, detections.end))
    rows = list(map('{"label": %s, "score": %s, "segment": [%s, %s]}'.__mod__, zip(labels, *numbers, strict=True)))
    videos = zip(detections.videos, bounds[:-1], bounds[1:], strict=True)
    results = ", ".join(f"{json.dumps(video)}: [{', '.join(rows[first:last])}]" for video, first, last in videos)
    rate = "" if snippet_rate is None else f', "snippet_rate": {json.dumps(snippet_rate)}'
    write_text(path, f'{{"version": "VERSION 1.3", "results": {{{results}}}, "external_data": {{}}{rate}}}\n')


def _number_texts(column: np.ndarray) -> list[str]:
    """Return the shortest text of each number that reads back as the same number."""
    if not np.isfinite(column).all():
        raise ValueError("detections: numbers that are not finite have no JSON")
    texts = orjson.dumps(np.ascontiguousarray(column, dtype=np.float64), option=orjson.OPT_SERIALIZE_NUMPY)
    return texts.decode()[1:-1].split(",") if len(column) else []


def read_json_rows(path: Path) -> Table:
    """Read a JSON file row by row."""
    return _parse_json(read_json(path), str(path))


def _parse_json(data: object, where: str) -> Table:
    results = data.get("results") if isinstance(data, dict) else None
    if not isinstance(results, dict):
        raise InputError(f"{where}: no 'results' {{video: [...]}}; is this a detection file?")
    table = make_table(_json_rows(results, where), videos=results)
    return replace(table, snippet_rate=stored_snippet_rate(data, where))


def _json_rows(results: dict[str, list], where: str) -> Iterator[tuple]:
    for video, entries in results.items():
        if not isinstance(entries, list):
            raise InputError(f"{where}: video '{video}': expected a list, got {shorten(entries)}")
        for row, entry in enumerate(entries):
            prefix = f"{where}: video '{video}', detection {row}"
            try:
                start, end = start_and_end(entry["segment"])
                label, score = entry["label"], entry["score"]
            except KeyError as error:
                raise InputError(f"{prefix}: no {error}") from None
            except (TypeError, ValueError):
                expected = "{'label': ..., 'score': ..., 'segment': [start, end]}"
                raise InputError(f"{prefix}: expected {expected}, got {shorten(entry)}") from None
            yield _checked_row(video, start, end, label, score, prefix)


def read_csv_rows(path: Path) -> Table:
    """Read a CSV file row by row."""
    return make_table(_checked_row(*fields, place) for place, fields in read_rows(path, COLUMNS))


def read_parquet_rows(path: Path) -> Table:
    """Read a Parquet file row by row."""
    return make_table(_parquet_rows(path))


def _parquet_rows(path: Path) -> Iterator[tuple]:
    with open_parquet(path) as (file, names):
        batches = file.iter_batches(columns=names)
        rows = (row for batch in batches for row in zip(*(batch[name].to_pylist() for name in names), strict=True))
        for number, row in enumerate(rows):
            yield _checked_row(*row, f"{path}: video '{row[0]!s:.80}', row {number}")


def _checked_row(video, start, end, label, score, prefix: str) -> tuple[str, str, float, float, float]:
    try:
        numbers = float(start), float(end), float(score)
    except (TypeError, ValueError, OverflowError):
        got = f"segment [{shorten(start)}, {shorten(end)}], score {shorten(score)}"
        raise InputError(f"{prefix}: not numbers: {got}") from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{prefix}: not finite: segment [{start}, {end}], score {score}")
    if numbers[1] < numbers[0]:
        raise InputError(f"{prefix}: the segment [{start}, {end}] ends before it starts")
    return checked_name(video, f"{prefix}, video"), checked_name(label, f"{prefix}, label"), *numbers


READERS = {
    ".json": (read_json_columns, read_json_rows),
    ".csv": (read_csv_columns, read_csv_rows),
    ".parquet": (read_parquet_columns, read_parquet_rows),
}
