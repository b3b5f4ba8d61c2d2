"""One input of a stranger: what it is, where it is put, and who opens it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import main as training
import test as testing
from eval.detection import main as evaluate
from eval.diagnosis import main as diagnose
from eval.html_report.finished_run import read_runs
from eval.html_report.page import render_report
from eval.outputs import open_outputs
from options import parse_args
from utils.annotations import load_annotations
from utils.features.sources import JOINT_SUFFIX
from utils.features.store import open_features

JOINT = f"Demo{JOINT_SUFFIX}"


@dataclass(frozen=True)
class Case:
    """An input and its reader.

    Attributes:
        group: the line of the table that counts it.
        place: the folder of good files, by name, that it is put into.
        make: writes it: (folder, sentinel), the path that hostile code would make.
        read: opens it as a command does.
        must_refuse: whether there is nothing in it that could be used.
    """

    group: str
    name: str
    place: str
    make: Callable[[Path, Path], None]
    read: Callable[[Path], object]
    must_refuse: bool = True


def read_features(folder: Path) -> None:
    """Every value of every video, as main.py reads them."""
    store = open_features(folder, ("rgb", "flow"))
    _ = store.modality_dims, store.snippet_rate
    for video_id in store.video_ids:
        store[video_id]


def read_annotations(folder: Path) -> None:
    load_annotations(folder)


def read_outputs(folder: Path) -> None:
    """Every curve, as the report reads them."""
    with open_outputs(folder / "run/outputs.h5") as outputs:
        for video_id in outputs.video_ids:
            outputs[video_id]


def read_report(folder: Path) -> None:
    """The page of a run, as scripts/report.py makes it."""
    render_report(read_runs([folder / "run"], folder / "dataset"))


def read_config(folder: Path) -> None:
    parse_args(["--config", str(folder / "config.yaml"), "--path-dataset", str(folder), "--run-dir", "run"])


def read_evaluated(folder: Path) -> None:
    """Both evaluation commands."""
    words = ["--ground-truth", folder / "annotations.json", "--dataset", "demo", "--predictions"]
    for command, more in ((evaluate, ["--protocol", "all"]), (diagnose, [])):
        with _words([*words, folder / "detections.json", *more]):
            command()


def read_csv(folder: Path) -> None:
    words = ["--ground-truth", folder / "annotations.json", "--dataset", "demo"]
    with _words([*words, "--predictions", folder / "detections.csv"]):
        evaluate()


def read_tested(folder: Path) -> None:
    """A checkpoint, as test.py takes it."""
    words = ["--checkpoint", folder / "best.pt", "--path-dataset", folder / "dataset", "--device", "cpu"]
    testing.main([*map(str, words), "--output-dir", str(folder / "out")])


def read_resumed(folder: Path) -> None:
    """The state of a training, as main.py --resume takes it."""
    words = ["--config", folder / "config.yaml", "--path-dataset", folder / "dataset", "--run-dir", folder / "run"]
    training.main([*map(str, words), "--resume"])


@contextmanager
def _words(words: Sequence[object]) -> Iterator[None]:
    before, sys.argv = sys.argv, ["command", *map(str, words)]
    try:
        yield
    finally:
        sys.argv = before
