"""What features offer in whatever form they lie on disk; the forms themselves are in rooms of their own.

`utils/features/feature_files.py` finds out which form a folder has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.datasets import Rate
from utils.errors import InputError, shorten


class Source(Protocol):
    """One form of features on disk; arrays as they are stored."""

    form: str
    path: Path
    modalities: tuple[str, ...]
    simulated: bool  # made by utils/features/simulate.py, which marks what it makes

    def video_ids(self, modality: str) -> list[str]: ...
    def rate(self, modality: str) -> Rate | None: ...  # None where nothing says it
    def shape(self, modality: str, video_id: str) -> tuple[int, ...]: ...
    def read(self, modality: str, video_id: str) -> np.ndarray: ...

    def place(self, modality: str, video_id: str) -> Path:
        """The file in which one modality of a video lies."""
        return self.path

    def rows(self, modality: str, video_id: str, snippets: np.ndarray) -> np.ndarray:
        """`read(...)[snippets]` of sorted snippets of an array (T, D); what can be read in parts is."""
        return self.read(modality, video_id)[snippets]


def checked_rate(said: Mapping[str, object], where: str) -> Rate:
    """fps and stride as a file says them; InputError where either is missing or not a positive number."""
    try:
        rate = Rate(float(said["fps"]), float(said["stride"]))
        usable = rate.fps > 0 and 0 < rate.hz < np.inf
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        usable = False
    if not usable:
        expected = "fps / stride (frames a snippet) needs two positive numbers, as fps 25 and stride 16"
        raise InputError(f"{where}: {expected}; found {shorten(said)}")
    return rate
