"""What happens to files: a flipped bit, a lost end, a block written twice, ..."""

import re
from collections.abc import Callable

import numpy as np

EDGE = 4096  # bytes at each end of a file, where its headers and directories are


def _byte(content: bytearray, at: int, random: np.random.Generator) -> None:
    content[at] ^= int(random.integers(1, 256))


def _bit(content: bytearray, at: int, random: np.random.Generator) -> None:
    content[at] ^= 1 << int(random.integers(8))


def _digit(content: bytearray, at: int, random: np.random.Generator) -> None:
    """The next digit becomes another one, so that a text stays well-formed; where none follows, a byte another."""
    found = re.search(rb"[0-9]", content[at:])
    if found is None:
        return _byte(content, at, random)
    place = at + found.start()
    content[place] = int(random.choice(sorted(set(b"0123456789") - {content[place]})))
    return None


def _bytes(content: bytearray, at: int, random: np.random.Generator) -> None:
    for place in (at, *random.integers(len(content), size=random.integers(1, 16))):
        _byte(content, int(place), random)


def _truncated(content: bytearray, at: int, random: np.random.Generator) -> None:
    del content[at:]


def _zeroed(content: bytearray, at: int, random: np.random.Generator) -> None:
    end = min(len(content), at + _block(random))
    content[at:end] = bytes(end - at)


def _repeated(content: bytearray, at: int, random: np.random.Generator) -> None:
    block = content[at : at + _block(random)]
    content[at:at] = block


def _inserted(content: bytearray, at: int, random: np.random.Generator) -> None:
    content[at:at] = random.bytes(int(random.integers(1, 65)))


def _emptied(content: bytearray, at: int, random: np.random.Generator) -> None:
    content.clear()


def _block(random: np.random.Generator) -> int:
    return int(2 ** random.uniform(0, 12))


Damage = Callable[[bytearray, int, np.random.Generator], None]
KINDS: dict[str, Damage] = {
    "one bit flipped": _bit,
    "one byte changed": _byte,
    "one digit changed": _digit,
    "several bytes changed": _bytes,
    "cut off": _truncated,
    "a block zeroed": _zeroed,
    "a block repeated": _repeated,
    "bytes inserted": _inserted,
    "emptied": _emptied,
}
SHARES = (0.2, 0.2, 0.1, 0.1, 0.12, 0.1, 0.07, 0.1, 0.01)
SINGLE = ("one bit flipped", "one byte changed", "one digit changed")


def damaged(content: bytes, kind: str, random: np.random.Generator) -> bytes:
    """The content with this damage, at a random place: half of the time within EDGE bytes of an end of the file.

    It differs from what it was: a block of zeros is not zeroed, for example.
    """
    while True:
        new = bytearray(content)
        KINDS[kind](new, _place(len(content), random), random)
        if new != content:
            return bytes(new)


def _place(size: int, random: np.random.Generator) -> int:
    at = int(random.integers(size))
    if random.random() < 0.5 and size > 2 * EDGE:
        at %= EDGE
        return at if random.random() < 0.5 else size - 1 - at
    return at
