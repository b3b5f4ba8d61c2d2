"""SHA256SUMS files: checksums of the files in a folder, in the format of `sha256sum -c SHA256SUMS`.

Converted and simulated datasets and finished runs have one, so that reading detects a flipped bit. Files that no
SHA256SUMS lists are not checked.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from utils.errors import InputError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")
_BLOCK_BYTES = 2**22
_PROGRESS_BYTES = 2**28  # smaller files take no visible time


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; shows a progress bar for large files."""
    from tqdm import tqdm  # here, because it would slow down the start of every command

    digest, size = hashlib.sha256(), path.stat().st_size
    hidden = size < _PROGRESS_BYTES
    bar = tqdm(total=size, desc=f"checking {path.name}", unit="B", unit_scale=True, leave=False, disable=hidden or None)
    with path.open("rb") as file, bar:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def format_checksums(folder: Path, names: Iterable[str]) -> str:
    """Return the content of a SHA256SUMS file for the named files of a folder."""
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the checksums in a folder's SHA256SUMS by file name, {} if there is no such file.

    Raises:
        InputError: SHA256SUMS is damaged or cannot be read.
    """
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    matches = [_LINE.fullmatch(line) for line in lines]
    if not all(matches):
        raise InputError(f"{path}: damaged; expected lines of 'SHA-256  NAME'")
    return {match[2]: match[1] for match in matches}


def verify_checksum(path: Path, content: bytes | None = None) -> None:
    """Check a file against the SHA256SUMS beside it, if that lists the file.

    Args:
        path: File to check.
        content: Content of the file, if it is already in memory.

    Raises:
        InputError: The checksums differ.
    """
    expected = read_checksums(path.parent).get(path.name)
    if expected is None:
        return
    actual = sha256_of(path) if content is None else hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise InputError(
            f"{path}: differs from the checksum in {SUMS}; restore the file, or, if you changed it on purpose, "
            f"delete {path.parent / SUMS}"
        )
