"""Hostile video ids and class names, through a whole training into its files, back, and into the report.

One training has all names that a file can hold. Each other name gets a training of its own, which must refuse it in one
line or read it back. Nothing may appear outside the run folder.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from eval.detection_formats import read_detections
from eval.html_report.finished_run import read_runs
from eval.html_report.page import render_report
from eval.outputs import open_outputs
from tests.torture.corpus import write_release
from tests.torture.training_process import TrainingProcess
from tests.torture.workspace import Budget, Workspace
from utils.annotations import load_annotations
from utils.errors import InputError
from utils.formats.files import read_json, write_json

HTML = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><script>alert(1)</script>"]
ROOT = "{root}/escaped"  # in the folder of all trainings, where it would be noticed
PATHS = ["../../../escaped", ROOT, "..", ".", "...", "a/b/../../c", "%2e%2e%2fescaped"]
MARKUP = ["' onmouseover='alert(1)", "<!--", "]]><svg/onload=alert(1)>", "javascript:alert(1)", "{{ 7 * 7 }}{% raw %}"]
VIDEO_IDS = [*HTML, *PATHS, *MARKUP, "two\nlines\r\nand more", "v" * 5000, "$\\frac{1}{0}$", "\u202egnp.exe\u2028", " "]
CLASS_NAMES = [*HTML[:2], "..\\../$_{\n\u202e"]
UNWRITABLE = ("null\0byte", "half a pair \ud800")


def run_names(workspace: Workspace, budget: Budget) -> Counter:
    """Train with all names and then, without a limit on examples, with one unwritable name each; count both."""
    counts, root = Counter(), workspace.root / "names"
    _train(workspace, root, [name.replace("{root}", str(root)) for name in VIDEO_IDS], CLASS_NAMES, counts, False)
    annotations = load_annotations(workspace.dataset)
    videos, classes = list(annotations.videos), list(annotations.classes)
    for number, name in enumerate(UNWRITABLE if budget.limit is None else ()):
        _train(workspace, workspace.root / f"video {number}", [*videos[:-1], name], classes, counts, True)
        _train(workspace, workspace.root / f"class {number}", videos, [*classes[:-1], name], counts, True)
    return counts


def _train(
    workspace: Workspace, root: Path, names: Sequence[str], classes: Sequence[str], counts: Counter, may_refuse: bool
) -> None:
    """Train on videos and classes of these names, and look at what the training leaves."""
    _write_dataset(workspace, root / "dataset", names, classes)
    (root / "here").mkdir()
    before = _files(workspace.root, root / "run")
    words = workspace.argv(root / "run", "--path-dataset", str(root / "dataset"))
    process = TrainingProcess(words, folder=root / "here")
    status = process.wait(600)
    counts["names"] += 1 if may_refuse else len(names) + len(classes)
    counts["trainings"] += 1
    faults = []
    if outside := _files(workspace.root, root / "run") - before:
        faults.append(("file outside", str(sorted(outside)[:3])))
    if process.lines("Traceback"):
        faults.append(("traceback", "a training"))
    elif status == 0:
        try:
            faults += [("other", what) for what in _faults(workspace, root, names, classes)]
        except InputError as error:
            faults.append(("lost run", f"the run cannot be read: {error}"))
    elif may_refuse and status == 2 and len(process.lines("error: ")) == 1:
        counts["refused"] += 1
    else:
        faults.append(("hang" if status is None else "other", f"ended with status {status}"))
    for kind, what in faults:
        workspace.fail(kind, "names", counts["trainings"], f"{root.name}: {what}", process.text[-4000:], root)


def _write_dataset(workspace: Workspace, folder: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    """Write the simulated videos under other names, as annotations.json and the release's features."""
    annotations = load_annotations(workspace.dataset)
    content = read_json(workspace.dataset / "annotations.json")
    renamed = dict(zip(annotations.classes, classes, strict=True))
    database = dict(zip(names, content["database"].values(), strict=True))
    for entry in database.values():
        entry["labels"] = [renamed[label] for label in entry["labels"]]
        entry["annotations"] = [{**row, "label": renamed[row["label"]]} for row in entry["annotations"]]
    write_release(annotations, workspace.dataset, folder, names)
    write_json(folder / "annotations.json", {"classes": list(classes), "database": database})


def _faults(workspace: Workspace, root: Path, names: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    """Yield the files in which names differ, and the markup that names add to the report."""
    videos = load_annotations(root / "dataset").videos
    tested = [name for name in names if videos[name].subset == "test"]
    with open_outputs(root / "run/outputs.h5") as outputs:
        if set(outputs.video_ids) != set(tested) or any(len(outputs[name]["attention"]) < 2 for name in tested):
            yield "outputs.h5 has other videos"
    detections = read_detections(root / "run/detections.json")
    if list(detections.videos) != tested or not set(detections.classes) <= set(classes):
        yield "detections.json has other names"
    page, expected = _Page(root / "run", root / "dataset"), _Page(workspace.reference, workspace.dataset)
    if added := (page.tags - expected.tags) | ({"script"} if page.scripts != expected.scripts else set()):
        yield f"names added to the report: {sorted(added)[:3]}"
    data = json.loads(page.data)
    if not {video["id"] for video in data["videos"]} <= set(names) or data["classes"] != list(classes):
        yield "the report's data have other names"


def _files(folder: Path, without: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_relative_to(without)}


class _Page(HTMLParser):
    """Tags with their attributes, number of scripts, and data of a run's report."""

    def __init__(self, run_dir: Path, dataset: Path):
        super().__init__()
        self.tags, self.scripts, self.data, self._in_data = set(), 0, "", False
        self.feed(render_report(read_runs([run_dir], dataset)))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(" ".join([tag, *(name for name, _ in attrs)]))
        self.tags |= {f"link to {value}" for name, value in attrs if name in ("href", "src") and value[:1] != "#"}
        self.scripts += tag == "script"
        self._in_data = ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        self.data += data if self._in_data else ""
