"""Good inputs of every form that the project reads, and the readers that its commands use."""

import csv
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch

import main as training
import test as testing
from eval.detection import main as evaluate
from eval.detection_formats import read_detections
from eval.diagnosis import main as diagnose
from eval.html_report.finished_run import read_runs
from eval.html_report.page import render_report
from eval.outputs import open_outputs
from model import CO2Net
from options import parse_args
from tests.torture.workspace import CLASSES, WIDTHS, Workspace
from utils.annotations import RELEASE_SUFFIX, Annotations, annotations_to_json, load_annotations
from utils.checkpoint import RELEASED_MODULES, load_weights, read_checkpoint, save_checkpoint
from utils.features.convert import convert_features
from utils.features.sources import JOINT_SUFFIX
from utils.features.store import open_features

JOINT, RELEASE = f"Demo{JOINT_SUFFIX}", f"Demo{RELEASE_SUFFIX}"
Writer = Callable[[Workspace, Path], object]
Reader = Callable[[Path], object]


@dataclass(frozen=True)
class Form:
    """One form of input.

    Attributes:
        write: writes a good input into a folder.
        read: returns what the commands read of the folder.
        damaged: pattern of the files that random damage may hit.
        checked: the files carry checksums, so that they are read as written or not at all.
        shortcut: a few bytes stand for many values, so that one flip may change several.
    """

    write: Writer
    read: Reader
    damaged: str = ""
    checked: bool = False
    shortcut: bool = False


def _copy(*pairs: tuple[str, str]) -> Writer:
    """Return a writer that copies files of the workspace: pairs of a pattern and a folder."""

    def write(workspace: Workspace, folder: Path) -> None:
        for pattern, target in pairs:
            (folder / target).mkdir(parents=True, exist_ok=True)
            for path in workspace.root.glob(pattern):
                shutil.copy(path, folder / target)

    return write


def _write_converted(workspace: Workspace, folder: Path) -> None:
    with TemporaryDirectory(dir=workspace.root) as source:
        _write_release(workspace, Path(source))
        convert_features(source, folder)


def _write_hdf5(workspace: Workspace, folder: Path) -> None:
    """Write features as h5py does by default, without any checksum."""
    with h5py.File(folder / "features.h5", "w") as file:
        file.attrs.update({"fps": 25, "stride": 16})
        for video_id, values in _read_features(workspace.dataset)["videos"].items():
            file[f"rgb/{video_id}"], file[f"flow/{video_id}"] = np.split(values, [WIDTHS[0]], axis=1)


def _write_npy_folders(workspace: Workspace, folder: Path) -> None:
    for name, columns in (("rgb", slice(WIDTHS[0])), ("flow", slice(WIDTHS[0], None))):
        (folder / name).mkdir()
        for video_id, values in _read_features(workspace.dataset)["videos"].items():
            np.save(folder / name / f"{video_id}.npy", values[:, columns])
    (folder / "features.json").write_text('{"fps": 25, "stride": 16}\n')


def _write_release(workspace: Workspace, folder: Path) -> None:
    annotations = load_annotations(workspace.dataset)
    write_release(annotations, workspace.dataset, folder, [name.encode() for name in annotations.videos])


def write_release(annotations: Annotations, dataset: Path, folder: Path, names: Sequence[object]) -> None:
    """Write the joint features and the annotation folder of the release, with these names for the videos."""
    videos, features = annotations.videos.values(), _read_features(dataset)["videos"]
    (folder / RELEASE).mkdir(parents=True)
    arrays = {
        "classlist": np.array([name.encode() for name in annotations.classes]),  # bytes, as Python 2 wrote them
        "videoname": np.array(names) if isinstance(names[0], bytes) else _objects(names),
        "subset": np.array([video.subset.encode() for video in videos]),
        "duration": np.array([[video.duration] for video in videos]),
        "labels_all": _objects([list(video.labels) for video in videos]),
        "labels": _objects([list(video.segment_labels) for video in videos]),
        "segments": _objects([video.segments.tolist() for video in videos]),
    }
    for name, array in arrays.items():
        np.save(folder / RELEASE / f"{name}.npy", array)
    np.save(folder / JOINT, _objects([np.pad(features[video_id], ((0, 0), (0, 1))) for video_id in annotations.videos]))


def _objects(rows: Sequence[object]) -> np.ndarray:
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return array


def _write_csv(workspace: Workspace, folder: Path) -> None:
    rows = [[video_id, *row[1:3], row[0], row[3]] for video_id, *row in _rows(workspace.reference / "detections.json")]
    with (folder / "detections.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video-id", "t-start", "t-end", "label", "score"], *rows])


def _write_evaluation(workspace: Workspace, folder: Path) -> None:
    _copy(("dataset/annotations.json", ""), ("reference/detections.json", ""))(workspace, folder)
    _write_csv(workspace, folder)


def _write_small_checkpoint(workspace: Workspace, folder: Path) -> None:
    """Write a checkpoint of little more than its archive's directory, so that this is what damage hits."""
    weights = {"weight": torch.arange(1.0, 5.0), "bias": torch.ones(1)}
    save_checkpoint(folder / "small.pt", {"model": weights, "classes": ["Clap"], "iteration": 3, "metrics": None})


def _write_released(workspace: Workspace, folder: Path) -> None:
    state = CO2Net(CLASSES, WIDTHS).state_dict()
    names = [(old, new, kind) for old, new in RELEASED_MODULES.items() for kind in ("weight", "bias")]
    released = {f"{old}.{kind}": state[f"{new}.{kind}"] for old, new, kind in names}
    torch.save(released, folder / "released.pkl", _use_new_zipfile_serialization=False)


def _read_features(path: Path) -> dict:
    store = open_features(path, ("rgb", "flow"))
    videos = {video_id: store[video_id] for video_id in store.video_ids}
    return {"videos": videos, "rate": store.snippet_rate, "simulated": store.describe()["simulated"]}


def _read_annotations(folder: Path) -> dict:
    return annotations_to_json(load_annotations(folder))


def _read_dataset(folder: Path) -> tuple:
    return _read_features(folder), _read_annotations(folder)


def _rows(path: Path) -> list[list]:
    table = read_detections(path)
    columns = (table.video, table.label, table.start, table.end, table.score)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [[table.videos[video], table.classes[label], *numbers] for video, label, *numbers in rows]


def _read_detections(folder: Path) -> dict[str, list]:
    rows = _rows(folder / "detections.json")
    return {row[0]: [other[1:] for other in rows if other[0] == row[0]] for row in rows}


def _read_run(folder: Path) -> tuple:
    """Read everything that a report shows of a run."""
    (run,) = read_runs([folder / "run"], folder / "dataset")
    with open_outputs(run.outputs) as outputs:
        curves = {video_id: outputs[video_id] for video_id in outputs.video_ids}
        classes = outputs.classes
    fields = {name: value for name, value in vars(run).items() if name not in ("detections", "folder", "outputs")}
    detections = run.detections.videos, _rows(run.folder / "detections.json")
    return {**fields, "dataset": str(run.dataset)}, detections, curves, classes


def _read_released(folder: Path) -> dict:
    net = CO2Net(CLASSES, WIDTHS)
    load_weights(net, folder / "released.pkl")
    return net.state_dict()


def _read_config(folder: Path) -> dict:
    return vars(parse_args(["--config", str(folder / "config.yaml"), "--path-dataset", "dataset", "--run-dir", "run"]))


def _evaluate(file: str, *commands: Callable[[], None]) -> Reader:
    def read(folder: Path) -> None:
        before, words = sys.argv, ["--dataset", "demo", "--ground-truth", str(folder / "annotations.json")]
        sys.argv = ["command", *words, "--predictions", str(folder / file)]
        try:
            for command in commands:
                command()
        finally:
            sys.argv = before

    return read


def _test(folder: Path) -> None:
    words = ["--checkpoint", folder / "best.pt", "--path-dataset", folder / "dataset", "--device", "cpu"]
    testing.main([*map(str, words), "--output-dir", str(folder / "out")])


def _resume(folder: Path) -> None:
    words = ["--config", folder / "config.yaml", "--path-dataset", folder / "dataset", "--run-dir", folder / "run"]
    training.main([*map(str, words), "--resume"])


def is_malformed(path: Path) -> bool:
    """Return whether a plain reader of the format refuses the file."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                return len({len(row) for row in csv.reader(file, strict=True) if row}) > 1
        elif path.parent.name in ("rgb", "flow"):  # .npy without objects
            array = np.load(path, mmap_mode="r")
            return array.offset + array.nbytes != path.stat().st_size
    except Exception:  # numpy may raise anything for a damaged header
        return True
    return False


def _checkpoint(name: str) -> Reader:
    return lambda folder: read_checkpoint(folder / name)


_DATASET, _RUN = ("dataset/[!S]*", "dataset"), ("reference/*.[hjy]*", "run")  # without SHA256SUMS
_write_run = _copy(_DATASET, _RUN)
_write_resumed = _copy(
    _DATASET,
    ("config.yaml", ""),
    ("reference/options.yaml", "run"),
    ("reference/log.jsonl", "run"),
    ("reference/checkpoints/[!p]*", "run/checkpoints"),  # no previous.pt to fall back on
)

FORMS = {
    "simulated dataset": Form(_copy(("dataset/*", "")), _read_dataset, "*", checked=True),
    "converted dataset": Form(_write_converted, _read_dataset, "*", checked=True),
    "run folder": Form(
        _copy(("dataset/*", "dataset"), _RUN, ("reference/S*", "run")), _read_run, "run/*", checked=True
    ),
    "small checkpoint": Form(_write_small_checkpoint, _checkpoint("small.pt"), "*", checked=True),
    "best.pt": Form(_copy(("reference/checkpoints/best.pt", "")), _checkpoint("best.pt"), "*", checked=True),
    "last.pt": Form(_copy(("reference/checkpoints/last.pt", "")), _checkpoint("last.pt"), "*", checked=True),
    "annotations.json": Form(_copy(("dataset/annotations.json", "")), _read_annotations, "*"),
    "detections.json": Form(_copy(("reference/detections.json", "")), _read_detections, "*"),
    "detections.csv": Form(_write_csv, lambda folder: _rows(folder / "detections.csv"), "*"),
    "config.yaml": Form(_copy(("config.yaml", "")), _read_config, "*"),
    "run folder without checksums": Form(_write_run, _read_run, "run/*", shortcut=True),
    "HDF5 features": Form(_write_hdf5, _read_features, "*", shortcut=True),
    ".npy folders": Form(_write_npy_folders, _read_features, "**/*.*", shortcut=True),
    "release features": Form(_write_release, _read_features, JOINT, shortcut=True),
    "release annotations": Form(_write_release, _read_annotations, f"{RELEASE}/*", shortcut=True),
    "released checkpoint": Form(_write_released, _read_released, "*", shortcut=True),
    "evaluation": Form(_write_evaluation, _evaluate("detections.json", evaluate, diagnose)),
    "evaluation of CSV": Form(_write_evaluation, _evaluate("detections.csv", evaluate)),
    "report": Form(_write_run, lambda folder: render_report(read_runs([folder / "run"], folder / "dataset"))),
    "test.py": Form(_copy(_DATASET, ("reference/checkpoints/best.pt", "")), _test),
    "main.py --resume": Form(_write_resumed, _resume),
}
