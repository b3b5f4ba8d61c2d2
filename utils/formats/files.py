"""Files, written whole or not at all, and read back within bounds and only as they were written.

Whatever the project writes goes through `atomic_write`: a stop at any moment, SIGKILL and a full disk included, leaves
the old file or the new one. Whatever small it reads (JSON, YAML, text) goes through `read_bytes`, which holds a file
to the SHA256SUMS beside it if that lists it (utils/formats/checksums.py).
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from utils.errors import InputError
from utils.formats.checksums import verify_checksum

PARTIAL = ".partial-"  # between a file's name and the number of the process that writes it
MAX_JSON_BYTES = 2**31  # THUMOS14's annotations have 0.6 MB, ten million detections about 1 GB
MAX_YAML_BYTES = 2**16
MAX_YAML_BRACKETS = 1000  # the reader takes minutes over a hundred thousand open ones


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A place beside `path` to write to; what is there when the block ends well takes the place of `path`.

    An error in the block leaves `path` as it was and nothing beside it; one of the system, as a full disk, becomes
    an InputError. The content is on the disk before it has its name, so that a machine that loses power has one of
    the two as well.
    """
    path = Path(path)
    if path.is_dir() or not path.name:
        raise InputError(f"{path}: cannot be written (it is a folder)")
    partial = path.with_name(f"{path.name}{PARTIAL}{os.getpid()}")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def sweep_partial(folder: Path) -> None:
    """Remove what a killed process left half written; for a folder that no other process writes to."""
    for path in folder.glob(f"*{PARTIAL}*"):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object, indent: int | None = None) -> None:
    """Strict JSON, whole or not at all: what is undefined must come as None."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def save_figure(figure, path: str | Path, dpi: int) -> None:
    """A matplotlib figure, whole or not at all; its kind by the suffix. ValueError for a kind it does not write."""
    path = Path(path)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=dpi, format=path.suffix.removeprefix(".") or "png")


def read_bytes(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file; InputError if it cannot be read, is too large, or differs from its listed checksum."""
    path = Path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a device may never end
            raise InputError(f"{path}: cannot be read (not a file)")
        if found.st_size > max_bytes:
            raise InputError(
                f"{path}: has {found.st_size:,} bytes, expected {max_bytes:,} at most; is it another file?"
            )
        content = path.read_bytes()
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{path}: cannot be read (no file can have such a name)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    verify_checksum(path, content)
    return content


def read_text(path: str | Path, expected: str, max_bytes: int = MAX_JSON_BYTES) -> str:
    """UTF-8 text, with a byte order mark or without; `expected` says what of, for the message of the InputError."""
    try:
        return read_bytes(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; expected {expected}") from None


def read_json(path: str | Path) -> object:
    """The content of a JSON file.

    InputError if it cannot be read, is empty, cut off or something else, is nested too deep (about a thousand
    levels), gives a key twice in one object, or has text that is none (half of a surrogate pair).
    """
    text = read_text(path, "JSON")
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    try:
        content = json.loads(text, object_pairs_hook=_object)
        if "\\ud" in text.lower():  # half of a pair makes a text that no file and no screen takes
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); is the file complete?") from None


def read_json_lines(path: str | Path) -> list:
    """A JSON value a line; InputError if it cannot be read or a line is none."""
    try:
        return [json.loads(line) for line in read_text(path, "lines of JSON").splitlines()]
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not one JSON value a line; repair it or move it away") from None


def read_yaml(path: str | Path) -> object:
    """The content of a YAML file of plain values, by the safe loader.

    InputError if it cannot be read or is no such file. Aliases are refused too: a few lines of them stand for
    gigabytes, and no file of options needs one.
    """
    text = read_text(path, "YAML", MAX_YAML_BYTES)
    if text.count("[") + text.count("{") > MAX_YAML_BRACKETS:
        raise InputError(f"{path}: has more than {MAX_YAML_BRACKETS} brackets, which no file of options needs")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise InputError(f"{path}: has a YAML alias (*name); write the value out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a YAML file of plain values ({error})") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; Python's own reader would keep the last of equal keys and silently lose the others."""
    content = dict(pairs)
    if len(content) != len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InputError(f"the key '{repeated:.80}' appears more than once in one object; merge or rename them")
    return content


def _sync(path: Path) -> None:
    """Wait until the file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():  # a full network disk may say so only now; a folder need not be syncable
            raise
    finally:
        os.close(descriptor)
