"""Lines of code that an addition costs."""

import ast
from collections.abc import Sequence

from scripts.reproduction.plan import ROOT


def count_lines(places: Sequence[str]) -> int:
    """Return the number of lines of files and definitions, without empty lines.

    Args:
        places: FILE, or FILE::NAME for a class or function at the top level of a file.

    Raises:
        ValueError: A file has no such definition.
    """
    return sum(len([line for line in _lines(place) if line.strip()]) for place in places)


def _lines(place: str) -> list[str]:
    file, _, name = place.partition("::")
    text = (ROOT / file).read_text()
    lines = text.splitlines()
    if not name:
        return lines
    for node in ast.parse(text).body:
        if getattr(node, "name", None) == name:
            return lines[node.lineno - 1 : node.end_lineno]
    raise ValueError(f"{file} has no definition {name}")
