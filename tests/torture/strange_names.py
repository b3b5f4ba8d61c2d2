"""Video ids and class names of strangers, through a whole training, into its files, back, and into the report.

One training has all the names that a file can hold, as the ids of its videos and as its classes; names that no file can
hold get a training each, which must be refused in one line. Nothing may appear outside the run folder.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from eval.html_report.finished_run import read_runs
from eval.html_report.page import render_report
from eval.outputs import open_outputs
from eval.tables import read_detections
from tests.torture.attempt import Attempt
from tests.torture.formats import make_release_annotations
from tests.torture.setting import Budget, Setting
from utils.annotations import RELEASE_SUFFIX, load_annotations
from utils.errors import InputError
from utils.features.sources import JOINT_SUFFIX
from utils.features.store import open_features
from utils.formats.files import read_json, write_json

PART = "names"
HTML = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><script>alert(1)</script>")
VIDEO_IDS = (
    "../../../escaped",
    "{root}/escaped",  # the folder of all trainings, where it would be noticed
    "..",
    ".",
    "...",
    "a/b/../../c",
    "two\nlines\r\nand more",
    "v" * 5000,
    *HTML,
    "' onmouseover='alert(1)",
    "<!--",
    "]]><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{0}$",
    "%2e%2e%2fescaped",
    "\u202egnp.exe\u2028",
    " ",
)
CLASS_NAMES = (HTML[0], HTML[1], "..\\../$_{\n\u202e")
UNWRITABLE = ("null\0byte", "half a pair \ud800")
OWN_SCRIPTS = 3  # of the report's template: its data, Plotly and its own


def run_names(setting: Setting, budget: Budget) -> Counter:
    """How many of what: the training with all names, then, without a limit on inputs, those with one each."""
    counts = Counter()
    _train_with_names(setting, counts)
    alone = [(name, where) for name in UNWRITABLE for where in ("video", "class")] if budget.limit is None else []
    for number, (name, where) in enumerate(alone):
        if budget.allows(number):
            _train_with_one(setting, number, name, where, counts)
    return counts


def _train_with_names(setting: Setting, counts: Counter) -> None:
    root = setting.root / "names"
    names = [name.format(root=root) if "{root}" in name else name for name in VIDEO_IDS]
    _make_dataset(setting, root / "dataset", names, CLASS_NAMES)
    attempt = _train(setting, root, counts)
    counts["names"] += len(names) + len(CLASS_NAMES)
    if attempt is None:
        return
    try:
        for what in (*_wrong_files(root, names), *_wrong_page(root, names)):
            setting.fail("other", PART, 0, what, attempt.text[-2000:], root)
    except InputError as error:
        setting.fail("lost run", PART, 0, f"what it wrote cannot be read: {error}", "", root)


def _train_with_one(setting: Setting, number: int, name: str, where: str, counts: Counter) -> None:
    """A name that HDF5 or UTF-8 cannot hold: refused in one line, or written and read back."""
    root = setting.root / f"name{number}"
    dataset = read_json(setting.dataset / "annotations.json")
    names, classes = list(dataset["database"]), dataset["classes"]
    if where == "video":
        names[-1] = name
    else:
        classes = [*classes[:-1], name]
    _make_dataset(setting, root / "dataset", names, classes)
    counts["names"] += 1
    if _train(setting, root, counts, refused=True) is not None:
        try:
            wrong = _wrong_files(root, names)
        except InputError as error:
            wrong = [f"what it wrote cannot be read: {error}"]
        for what in wrong:
            setting.fail("other", PART, number + 1, f"{name!a} as a {where}: {what}", "", root)


def _train(setting: Setting, root: Path, counts: Counter, refused: bool = False) -> Attempt | None:
    """A training in an empty folder; None where it was refused, or failed and was counted."""
    (root / "here").mkdir()
    before = _everything(setting.root, but=root / "run")
    words = setting.argv(root / "run", "--path-dataset", str(root / "dataset"))
    attempt = Attempt(words, folder=root / "here")
    status = attempt.end(300)
    counts["trainings"] += 1
    if outside := _everything(setting.root, but=root / "run") - before:
        setting.fail("file outside", PART, counts["trainings"], f"{sorted(outside)[:3]}", attempt.text[-2000:], root)
    errors = attempt.lines("error: ")
    if attempt.lines("Traceback"):
        setting.fail("traceback", PART, counts["trainings"], "a training", attempt.text[-4000:], root)
    elif status == 0:
        return attempt
    elif refused and status == 2 and len(errors) == 1:
        counts["refused in one line"] += 1
    else:
        setting.fail("other", PART, counts["trainings"], f"ended with status {status}", attempt.text[-4000:], root)
    return None


def _make_dataset(setting: Setting, folder: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    """The simulated videos under other names, in the form that can hold any: annotations.json and the joint file."""
    annotations = load_annotations(setting.dataset)
    content = read_json(setting.dataset / "annotations.json")
    called = dict(zip(annotations.classes, classes, strict=True))
    database = {}
    for name, entry in zip(names, content["database"].values(), strict=True):
        entry["labels"] = [called[label] for label in entry["labels"]]
        entry["annotations"] = [{**row, "label": called[row["label"]]} for row in entry["annotations"]]
        database[name] = entry
    folder.mkdir(parents=True)
    write_json(folder / "annotations.json", {"classes": list(classes), "database": database})
    make_release_annotations(annotations, folder / f"Demo{RELEASE_SUFFIX}")
    store = open_features(setting.dataset, ("rgb", "flow"))
    joint = [np.pad(store[video_id], ((0, 0), (0, 1))) for video_id in annotations.videos]
    for path, rows in ((f"Demo{JOINT_SUFFIX}", joint), (f"Demo{RELEASE_SUFFIX}/videoname.npy", names)):
        objects = np.empty(len(rows), dtype=object)
        objects[:] = rows
        np.save(folder / path, objects, allow_pickle=True)


def _wrong_files(root: Path, names: Sequence[str]) -> list[str]:
    """What of the names did not come back from the files of the run."""
    subsets = {video.video_id: video.subset for video in load_annotations(root / "dataset").videos.values()}
    tested = [name for name in names if subsets[name] == "test"]
    wrong = []
    with open_outputs(root / "run/outputs.h5") as outputs:
        if set(outputs.video_ids) != set(tested) or any(len(outputs[name]["attention"]) < 2 for name in tested):
            wrong.append("outputs.h5 has other videos")
    detections = read_detections(root / "run/detections.json")
    if list(detections.videos) != tested or not set(detections.classes) <= set(_classes(root)):
        wrong.append("detections.json has other names")
    return wrong


def _wrong_page(root: Path, names: Sequence[str]) -> Iterator[str]:
    """What of the names became part of the report's page rather than of its text."""
    page = _Page()
    page.feed(render_report(read_runs([root / "run"], root / "dataset")))
    page.close()
    if page.tags["script"] != OWN_SCRIPTS:
        yield f"the report has {page.tags['script']} scripts, not its own {OWN_SCRIPTS}"
    if page.strange:
        yield f"the report has elements of a stranger: {page.strange[:3]}"
    told = [video["id"] for video in json.loads(page.data)["videos"]]
    if not set(told) <= set(names) or json.loads(page.data)["classes"] != _classes(root):
        yield "the report's data have other names"


def _classes(root: Path) -> list[str]:
    return list(load_annotations(root / "dataset").classes)


def _everything(folder: Path, but: Path) -> set[str]:
    found = {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}
    return {path for path in found if not Path(path).is_relative_to(but)}


class _Page(HTMLParser):
    """Counts the elements of a page, and keeps those that the report's template does not write."""

    OURS = re.compile(r"(aria-[a-z]+|data-[a-z]+|class|id|role|tabindex|scope|colspan|value|title|type|href|rel|lang)")
    HEAD = ("name", "content", "charset", "http-equiv", "selected")
    NEVER = ("img", "svg", "iframe", "object", "embed", "form", "base", "audio", "video", "math")

    def __init__(self):
        super().__init__()
        self.tags: Counter = Counter()
        self.strange: list[str] = []
        self.data, self._in_data = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._in_data = ("id", "data") in attrs
        odd = [name for name, _ in attrs if not self.OURS.fullmatch(name) and name not in self.HEAD]
        links = [value for name, value in attrs if name == "href" and not str(value).startswith(("#", "data:"))]
        if odd or links or tag in self.NEVER:
            self.strange.append(f"<{tag} {attrs}>"[:200])

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data
