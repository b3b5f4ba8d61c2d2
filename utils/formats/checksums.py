"""SHA256SUMS: the checksums of a folder's files, in the form that `sha256sum -c SHA256SUMS` reads.

Converted and simulated datasets and finished runs have one, so that a flipped bit in a file of ours is noticed. In a
file of somebody else's, without one, it cannot be.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")
_BLOCK = 2**22  # bytes
_SHOWN = 2**28  # bytes, from which on there is a progress bar


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in blocks, with a progress bar where it takes seconds."""
    digest, size = hashlib.sha256(), path.stat().st_size
    bar = tqdm(total=size, desc=f"checking {path.name}", unit="B", unit_scale=True, leave=False, disable=size < _SHOWN)
    with path.open("rb") as file, bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def format_checksums(folder: Path, names: Iterable[str]) -> str:
    """The content of a SHA256SUMS over these files of a folder."""
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)


def read_checksums(folder: Path) -> dict[str, str]:
    """What the SHA256SUMS of a folder lists, by file name; {} where there is none. InputError if it is damaged."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    found = [_LINE.fullmatch(line) for line in lines]
    if not all(found):
        raise InputError(f"{path}: damaged; expected lines of 'SHA-256  NAME'")
    return {match[2]: match[1] for match in found}


def verify_checksum(path: Path, content: bytes | None = None) -> None:
    """InputError if the SHA256SUMS beside a file lists another checksum; `content`: the file's, if already read."""
    expected = read_checksums(path.parent).get(path.name)
    if expected is None:
        return
    found = sha256_of(path) if content is None else hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(
            f"{path}: differs from the checksum in {SUMS} beside it; restore it, or, if the change is yours, "
            f"delete {path.parent / SUMS}"
        )
