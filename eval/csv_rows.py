"""Read CSV files of segments, and find the usual columns in a header."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.errors import InputError, shorten

# Names of each column, in lower case without blanks, `-`, `_` and brackets. The first is this project's own.
COLUMNS = {
    "video-id": ("videoid", "video", "vid", "id", "videoname"),
    "t-start": ("tstart", "start", "starttime", "startsec", "startseconds", "begin"),
    "t-end": ("tend", "end", "endtime", "endsec", "endseconds", "stop"),
    "label": ("label", "labelname", "class", "classname", "action", "category"),
    "score": ("score", "confidence", "conf", "probability"),
    "subset": ("subset", "split"),
    "duration": ("duration", "videoduration"),
}
SEGMENT_COLUMNS = ("video-id", "t-start", "t-end", "label")


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, list]]:
    """Yield the rows of a CSV file.

    Args:
        path: CSV file with a header.
        required: Columns that must be present, as keys of COLUMNS.
        optional: Columns that may be absent; their fields are then None.

    Yields:
        (place, fields): the row's place for messages, and its fields, required columns first.

    Raises:
        InputError: The file or its header cannot be used.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)  # otherwise an open quote swallows the rest of the file
            if reader.fieldnames is None:
                raise InputError(f"{path}: the file is empty")
            names = find_columns(reader.fieldnames, required, path) + [
                _column(reader.fieldnames, name, path) for name in optional
            ]
            for entry in reader:
                video = entry[names[0]]
                place = f"{path}: video '{video!s:.80}', line {reader.line_num}"
                if None in entry or None in entry.values():  # csv's marks of too many and too few fields
                    raise InputError(f"{place}: expected {len(reader.fieldnames)} fields, as in the header")
                yield place, [None if name is None else entry[name] for name in names]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; expected CSV") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error}); is a quote left open, or a field not quoted?") from None


def find_columns(header: Sequence[str], required: Sequence[str], path: Path) -> list[str]:
    """Return the header's names of the required columns, given as keys of COLUMNS.

    Raises:
        InputError: A column is missing or ambiguous.
    """
    if len(set(header)) < len(header):
        raise InputError(f"{path}: the header names a column twice: {shorten(header)}")
    names = [_column(header, name, path) for name in required]
    if missing := [name for name, own in zip(required, names, strict=True) if own is None]:
        got = ",".join(header)
        raise InputError(
            f"{path}: no column {missing}; expected a header such as {','.join(required)}, "
            f"got {got if len(got) <= 80 else got[:77] + '...'}"
        )
    return names


def _column(header: Sequence[str], name: str, path: Path) -> str | None:
    """Return the header's name of a column, None if it is absent."""
    if name in header:
        return name
    same = [own for own in header if re.sub(r"[\W_]+", "", own).casefold() in COLUMNS[name]]
    if len(same) > 1:
        raise InputError(f"{path}: the columns {shorten(same)} could all be '{name}'; rename one of them to '{name}'")
    return same[0] if same else None
