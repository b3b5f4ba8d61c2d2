"""Number types for argparse: each converts the text of an option, or raises ArgumentTypeError."""

from argparse import ArgumentTypeError
from collections.abc import Callable


def _number(kind: type, text: str, is_valid: Callable[[float], bool], expected: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_valid(value):
        raise ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def positive_int(text: str) -> int:
    """Convert a whole number of at least 1."""
    return _number(int, text, lambda x: x >= 1, "a whole number of at least 1")


def temporal_pool(text: str) -> str | int:
    """Convert `dataset`, `none`, or an odd number of snippets."""
    expected = "`dataset`, `none` or an odd number of snippets"
    return text if text in ("dataset", "none") else _number(int, text, lambda x: x % 2 == 1 and x > 0, expected)


def non_negative_int(text: str) -> int:
    """Convert a whole number of at least 0."""
    return _number(int, text, lambda x: x >= 0, "a whole number of at least 0")


def seed(text: str) -> int:
    """Convert a random seed."""
    return _number(int, text, lambda x: 0 <= x < 2**63, "a whole number from 0 to 2^63 - 1")


def positive_float(text: str) -> float:
    """Convert a finite number above 0."""
    return _number(float, text, lambda x: 0 < x < float("inf"), "a number above 0")


def feature_scale(text: str) -> float | str:
    """Convert a number from 1e-6 to 1e6, or `auto`."""
    expected = "auto or a number from 1e-6 to 1e6"
    return text if text == "auto" else _number(float, text, lambda x: 1e-6 <= x <= 1e6, expected)


def non_negative_float(text: str) -> float:
    """Convert a finite number of at least 0."""
    return _number(float, text, lambda x: 0 <= x < float("inf"), "a number of at least 0")


def fraction(text: str) -> float:
    """Convert a number in [0, 1]."""
    return _number(float, text, lambda x: 0 <= x <= 1, "a number in [0, 1]")


def fraction_below_one(text: str) -> float:
    """Convert a number in [0, 1)."""
    return _number(float, text, lambda x: 0 <= x < 1, "a number in [0, 1)")


def positive_fraction(text: str) -> float:
    """Convert a number in (0, 1]."""
    return _number(float, text, lambda x: 0 < x <= 1, "a number in (0, 1]")
