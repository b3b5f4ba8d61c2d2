"""Share of the long run in the suite: no failures, the counts that were asked for, and a wrong reader is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

KILLS, INPUTS, EXAMPLES = 2, 40, 25

# In a process of its own, because trainings are forked from it. The dataset and its training are made once.
PROGRAM = """
import json, shutil, sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import tests.torture.__main__ as torture
import utils.formats.files
from tests.torture import trials
from tests.torture.inputs import damaged_files
from tests.torture.workspace import Workspace
from utils.errors import exit_on_input_error

out = Path(sys.argv[1])
make_workspace, statuses, refused = torture.make_workspace, {}, {}


def make_once(root, seed):
    if not (out / "made").exists():
        make_workspace(root, seed)
        shutil.copytree(root, out / "made")
    shutil.copytree(out / "made", root, dirs_exist_ok=True)
    return Workspace(root, seed)


def run(name, *words):
    statuses[name] = 0
    try:
        exit_on_input_error(lambda: torture.main(["--minutes", "1000", "--json", str(out / f"{name}.json"), *words]))
    except SystemExit as end:
        statuses[name] = end.code


torture.make_workspace = make_once
for words in ("--minutes 0", "--seed -1", "--only all", "--kills many"):
    with redirect_stderr(StringIO()) as printed:
        run(words, *words.split())
    refused[words] = printed.getvalue()
run("good", "--seed", "7", "--markdown", str(out / "page.md"), *sys.argv[2:])
utils.formats.files.verify_checksum = lambda *arguments: None  # JSON, YAML and text are read unchecked
trials.inputs = lambda folders: damaged_files(folders, ["run folder"])
run("wrong", "--only", "inputs", "--inputs", "40")
number = json.loads((out / "wrong.json").read_text())["failures"][0]["number"]
run("again", "--only", "inputs", "--inputs", "40", "--first", str(number))
(out / "ends.json").write_text(json.dumps({"statuses": statuses, "refused": refused}))
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Folder of the files that the program writes, with its output in `printed`."""
    folder = tmp_path_factory.mktemp("torture")
    words = ["--kills", KILLS, "--inputs", INPUTS, "--examples", EXAMPLES]
    (folder / "kept").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder / "kept")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "printed").write_text(done.stdout)
    return folder


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_no_failures(out):
    assert read(out, "good")["failures"] == []
    assert read(out, "ends")["statuses"]["good"] == 0


def test_counts(out):
    good = read(out, "good")
    assert good["kills"]["kills"] == KILLS
    assert good["kills"]["runs finished"] == good["kills"]["runs started"] >= 2
    for part, count in (("inputs", INPUTS), ("examples", EXAMPLES)):
        assert sum(sum(counts.values()) for counts in good[part].values()) == count
    assert good["names"]["trainings"] == 1
    assert 50 < good["controls"]["run"] < good["controls"]["all"]  # the others only name what they would call


def test_wrong_reader_is_noticed_and_its_input_copied(out):
    failures = read(out, "wrong")["failures"]
    assert read(out, "ends")["statuses"]["wrong"] == 1
    assert "silent wrong number" in {failure["kind"] for failure in failures}
    assert f"{len(failures)} failures; the files of the first ones" in (out / "printed").read_text()
    assert Path(failures[0]["copy"], "failure.json").is_file()


def test_failures_are_repeated_by_number(out):
    first, again = (
        [(failure["kind"], failure["number"], failure["what"]) for failure in read(out, name)["failures"]]
        for name in ("wrong", "again")
    )
    assert again == first
    assert read(out, "ends")["statuses"]["again"] == 1


def test_page(out):
    page = (out / "page.md").read_text()
    assert page.startswith("# Reliability\n\n`python -m tests.torture --minutes 1000 ")
    assert "**simulated**" in page
    assert f"| kills | {KILLS} |" in page


def test_wrong_options_are_one_line(out):
    ends = read(out, "ends")
    for words, printed in ends["refused"].items():
        assert ends["statuses"][words] == 2
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
