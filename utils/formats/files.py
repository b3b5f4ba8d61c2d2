"""Atomic writes, and bounded reads of small files (JSON, YAML, text).

The project writes every file through `atomic_write`. After an interruption at any moment, the old file or the new one
is complete. This includes SIGKILL and a full disk. Reading checks a file against the SHA256SUMS beside it, if that
lists the file (utils/formats/checksums.py).
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import yaml

from utils.errors import InputError
from utils.formats.checksums import verify_checksum

PARTIAL = ".partial-"  # between a file's name and the id of the process that writes it
MAX_JSON_BYTES = 2**31  # THUMOS14's annotations have 0.6 MB, ten million detections about 1 GB
MAX_YAML_BYTES = 2**16
MAX_YAML_BRACKETS = 1000  # the parser takes minutes for a hundred thousand open brackets


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    Yields:
        A temporary path beside `path`. If the block succeeds, the file written there replaces `path`. Content reaches
        the disk before the name does, so a power failure cannot leave half a file either. If the block fails, `path`
        is unchanged and the temporary file is removed.

    Raises:
        InputError: An error of the system, such as a full disk.
    """
    path = Path(path)
    if path.is_dir() or not path.name:
        raise InputError(f"{path}: cannot be written (it is a folder)")
    partial = path.with_name(f"{path.name}{PARTIAL}{os.getpid()}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def sweep_partial(folder: Path) -> None:
    """Remove temporary files of killed processes; only for a folder that no other process writes to."""
    for path in folder.glob(f"*{PARTIAL}*"):
        path.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """Return any text as a file name; characters that a file system may refuse are percent-encoded."""
    return re.sub(r'[\x00-\x1f"%*/:<>?\\|]', lambda character: quote(character[0], safe=""), text)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object, indent: int | None = None) -> None:
    """Write strict JSON, atomically; undefined numbers must be None, not NaN."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def save_figure(figure, path: str | Path, dpi: int) -> None:
    """Write a matplotlib figure, atomically; the suffix chooses the format, ValueError for an unknown one."""
    path = Path(path)
    with atomic_write(path) as partial:
        form = path.suffix.removeprefix(".") or "png"
        # An SVG file has its date otherwise, and so is never the same twice.
        figure.savefig(partial, dpi=dpi, format=form, metadata={"Date": None} if form == "svg" else None)


def read_bytes(path: str | Path, max_bytes: int = MAX_JSON_BYTES, verify: bool = True) -> bytes:
    """Return the content of a file.

    Args:
        path: File to read.
        max_bytes: Largest accepted size.
        verify: Compare the content with its checksum in SHA256SUMS, if there is one.

    Raises:
        InputError: The file cannot be read, is too large, or differs from its checksum.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a device may never end
            raise InputError(f"{path}: cannot be read (not a file)")
        if status.st_size > max_bytes:
            raise InputError(
                f"{path}: expected at most {max_bytes:,} bytes, got {status.st_size:,}; is it another file?"
            )
        content = path.read_bytes()
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{path}: cannot be read (invalid file name)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if verify:
        verify_checksum(path, content)
    return content


def read_text(path: str | Path, expected: str, max_bytes: int = MAX_JSON_BYTES, verify: bool = True) -> str:
    """Return UTF-8 text, without its byte order mark.

    Args:
        path: File to read.
        expected: Kind of text, for the error message.
        max_bytes: Largest accepted size.
        verify: See `read_bytes`.

    Raises:
        InputError: As `read_bytes`, and for other encodings.
    """
    try:
        return read_bytes(path, max_bytes, verify).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; expected {expected}") from None


def read_json(path: str | Path) -> object:
    """Return the content of a JSON file.

    Raises:
        InputError: The file is unreadable, empty or invalid, repeats a key within an object, is nested about a
            thousand levels deep, or has half of a surrogate pair.
    """
    text = read_text(path, "JSON")
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
        if "\\ud" in text.lower():  # half of a surrogate pair cannot be encoded again
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); is the file complete?") from None


def read_json_lines(path: str | Path) -> list:
    """Return the values of a file with one JSON value per line.

    Raises:
        InputError: The file cannot be read or a line is not JSON.
    """
    try:
        return [json.loads(line) for line in read_text(path, "lines of JSON").splitlines()]
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not one JSON value per line; repair the file or move it away") from None


def read_yaml(path: str | Path, verify: bool = False) -> object:
    """Return the content of a YAML file of plain values.

    Aliases are refused, because a few lines of them expand to gigabytes.

    Args:
        path: File to read.
        verify: See `read_bytes`; for the options of a finished run, not for a config.

    Raises:
        InputError: The file cannot be read or is not such a file.
    """
    text = read_text(path, "YAML", MAX_YAML_BYTES, verify)
    if text.count("[") + text.count("{") > MAX_YAML_BRACKETS:
        raise InputError(f"{path}: has more than {MAX_YAML_BRACKETS} brackets; expected a file of options")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise InputError(f"{path}: has a YAML alias (*name); write the value out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a YAML file of plain values ({error})") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; InputError for a repeated key, of which `json` would keep only the last value."""
    content = dict(pairs)
    if len(content) != len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InputError(f"the key '{repeated:.80}' appears more than once in one object; merge or rename them")
    return content


def _sync_folder(folder: Path) -> None:
    """Write the folder's list of names to the disk, on systems that can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
