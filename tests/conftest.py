"""What several test files need: the shared reference material, where there is some."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("CO2NET_REFERENCE", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden outputs and real data that is not part of the project; skips where it is absent."""
    if not (REFERENCE / "golden").is_dir():
        pytest.skip(f"no reference data at {REFERENCE}")
    return REFERENCE
