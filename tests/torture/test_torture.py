"""A short share of the long run finds nothing, counts its work, and finds a reader that is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

KILLS, DAMAGED, STRANGERS = 2, 120, 60

# In a process of its own, because trainings are forked from it; the dataset and its training are made once.
PROGRAM = """
import json, shutil, sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import tests.torture.__main__ as torture
import utils.formats.files
from tests.torture.setting import Setting
from utils.errors import exit_on_input_error

out = Path(sys.argv[1])
make_setting = torture.make_setting


def made_before(root, seed):
    shutil.copytree(out / "made", root, dirs_exist_ok=True)
    return Setting(root, seed)


def make_and_keep(root, seed):
    setting = make_setting(root, seed)
    shutil.copytree(root, out / "made")
    return setting


def run(name, *words):
    status = 0
    try:
        exit_on_input_error(lambda: torture.main(["--minutes", "5", "--json", str(out / f"{name}.json"), *words]))
    except SystemExit as end:
        status = end.code
    statuses[name] = status


statuses, refused = {}, {}
for words in (["--minutes", "0"], ["--seed", "-1"], ["--only", "all"], ["--kills", "many"]):
    with redirect_stderr(StringIO()) as printed:
        run(" ".join(words), *words)
    refused[" ".join(words)] = printed.getvalue()
torture.make_setting = make_and_keep
words = sys.argv[2:]
run("good", "--seed", "7", *words, "--markdown", str(out / "page.md"))
torture.make_setting = made_before
utils.formats.files.verify_checksum = lambda *arguments: None  # JSON, YAML and text of ours are read unchecked
run("wrong", "--only", "damage", "--damaged", "60")
failed = json.loads((out / "wrong.json").read_text())["failures"][0]["number"]
run("again", "--only", "damage", "--first", str(failed), "--damaged", "1")
(out / "statuses.json").write_text(json.dumps(statuses))
(out / "refused.json").write_text(json.dumps(refused))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder with what the program wrote, and what it printed."""
    out = tmp_path_factory.mktemp("torture")
    words = ["--kills", KILLS, "--damaged", DAMAGED, "--strangers", STRANGERS]
    command = [sys.executable, "-c", PROGRAM, out, *words]
    (out / "kept").mkdir()
    environment = {**os.environ, "TMPDIR": str(out / "kept")}
    finished = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=570
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return out, finished.stdout


def told(out, name):
    return json.loads((out / f"{name}.json").read_text())


def test_nothing_is_lost_wrong_or_run(done):
    out, printed = done
    assert told(out, "good")["failures"] == []
    assert told(out, "statuses")["good"] == 0
    assert "simulated features" in printed


def test_the_counts_are_what_was_asked_for(done):
    good = told(done[0], "good")
    assert good["kills"]["kills"] == KILLS
    assert good["kills"]["runs finished"] == good["kills"]["runs begun"] >= 2
    assert sum(sum(counts.values()) for counts in good["damage"].values()) == DAMAGED
    groups = {name: counts for name, counts in good["strangers"].items() if name not in ("names", "controls")}
    assert sum(sum(counts.values()) for counts in groups.values()) == STRANGERS
    assert good["strangers"]["names"]["trainings"] == 1
    controls = good["strangers"]["controls"]
    assert 100 < controls["ran"] < controls["all"]  # the others name what they would call, and do not call it


def test_a_reader_that_is_wrong_is_found_and_its_input_kept(done):
    out, printed = done
    assert told(out, "statuses")["wrong"] == 1
    failures = told(out, "wrong")["failures"]
    assert "silent wrong number" in {failure["kind"] for failure in failures}
    assert f"{len(failures)} failures; the inputs of each part's first ones are in {out / 'kept'}" in printed
    assert Path(failures[0]["kept"], "failure.json").is_file()


def test_a_failure_is_repeated_by_its_number(done):
    out, _ = done
    (again,) = told(out, "again")["failures"]
    first = told(out, "wrong")["failures"][0]
    assert told(out, "statuses")["again"] == 1
    assert {name: again[name] for name in ("kind", "number", "what")} == {
        name: first[name] for name in ("kind", "number", "what")
    }


def test_the_page_is_written_from_the_run(done):
    page = (done[0] / "page.md").read_text()
    assert page.startswith("# Reliability\n\nWritten by `python -m tests.torture --minutes 5 ")
    assert "**simulated**" in page
    assert f"| kills | {KILLS} |" in page
    assert "## Damaged files of others, one flip" in page


def test_a_wrong_option_is_one_line(done):
    out, _ = done
    for words, printed in told(out, "refused").items():
        assert told(out, "statuses")[words] == 2
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
