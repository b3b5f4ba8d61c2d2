"""Fixtures of several test files: reference data, if present, and commands run in process."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from utils.errors import exit_on_input_error

ROOT = Path(__file__).resolve().parent.parent
# A busy machine is slow, not wrong.
settings.register_profile("no_deadline", parent=settings(), deadline=None)
settings.load_profile("no_deadline")

REFERENCE = Path(os.environ.get("CO2NET_REFERENCE", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden outputs and real data that is not part of the project; skips where it is absent."""
    if not (REFERENCE / "golden").is_dir():
        pytest.skip(f"no reference data at {REFERENCE}")
    return REFERENCE


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Leave out the picture of a run: it takes longer than a small training. The marker `pictures` draws it."""
    results = sys.modules.get("utils.results")
    if results and not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(results, "plot_videos", lambda path, *_: Path(path).touch())


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Runs a command's main with these words, as the shell would: exit status, stdout, stderr."""

    def command(main, *words):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        status = 0
        try:
            exit_on_input_error(main)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return command
