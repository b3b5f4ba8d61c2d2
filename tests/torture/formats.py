"""The files that the project reads: how to make some, and what its commands read of them.

`ours` are those that this project writes, and that it can hold to a checksum: whatever is read of a damaged one must be
what was written. `foreign` ones have none, so of them a flipped value is another value that nobody can notice; but a
flipped bit must not change more than what it is part of. What that is differs:

* JSON, CSV and YAML are texts without shortcuts. Of what is read, one value, or one name with all that is under it,
  may be another.
* in .npy files, HDF5 and pickles a few bytes speak for many values: the dtype in a header, the address of a block, a
  name that is written once and referred to. `shortcut` says which; values that differ by it are counted apart.

`ill_formed`, where there is one, is another, plain reader's opinion: a file that is not well-formed must be refused.
"""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch

from eval.html_report.finished_run import read_runs
from eval.outputs import open_outputs
from eval.tables import read_detections, read_ground_truth
from model import CO2Net
from options import parse_args
from tests.torture.setting import CLASSES, WIDTHS, Setting
from utils.annotations import RELEASE_SUFFIX, Annotations, annotations_to_json, load_annotations
from utils.checkpoint import RELEASED_MODULES, load_weights, read_checkpoint, save_checkpoint
from utils.features.convert import convert_features
from utils.features.sources import JOINT_SUFFIX
from utils.features.store import open_features
from utils.formats.checksums import SUMS

RUN_FILES = ("options.yaml", "environment.json", "log.jsonl", "metrics.json", "detections.json", "outputs.h5")
DATASET_FILES = ("features.h5", "annotations.json", SUMS)
RELEASE = "Demo"  # name of the files in the release's form
HEADER_SAYS_ALL = "the header says how all values are coded, and how many belong to a row"
PICKLED_ONCE = "a pickle writes a name or a list once and refers to it"
ADDRESSES = "the file's directory says where blocks lie and how their values are coded"


@dataclass(frozen=True)
class Format:
    """Files of one form.

    Attributes:
        files: patterns of those of its folder that are damaged, one at a time.
        make: writes them into a folder.
        read: what the project's own reader, the one that its commands use, makes of the folder.
        shortcut: how one flip can change several values, which nobody can notice; "" if it cannot.
        ill_formed: whether a damaged file of it is not well-formed.
        share: how often it is damaged, compared with others.
    """

    name: str
    ours: bool
    files: tuple[str, ...]
    make: Callable[[Setting, Path], None]
    read: Callable[[Path], object]
    shortcut: str = ""
    ill_formed: Callable[[Path], bool] = lambda path: False
    share: float = 1.0


def _read_features(path: Path) -> dict:
    store = open_features(path, ("rgb", "flow"))
    return {
        "videos": {video_id: store[video_id] for video_id in store.video_ids},
        "rate": store.snippet_rate,
        "simulated": store.describe()["simulated"],
    }


def _read_annotations(path: Path) -> dict:
    return annotations_to_json(load_annotations(path))


def _read_dataset(folder: Path) -> dict:
    return {"features": _read_features(folder), "annotations": _read_annotations(folder)}


def _read_run(folder: Path) -> dict:
    """All that a report reads of a run."""
    (run,) = read_runs([folder / "run"], folder / "dataset")
    with open_outputs(run.outputs) as outputs:
        curves = {video_id: outputs[video_id] for video_id in outputs.video_ids}
        classes = outputs.classes
    fields = {name: value for name, value in vars(run).items() if name not in ("detections", "folder", "outputs")}
    fields["dataset"] = str(run.dataset)
    return {
        **fields,
        "detections": detections_by_video(folder / "run/detections.json"),
        "curves": curves,
        "in": classes,
    }


def detections_by_video(path: Path) -> dict[str, list]:
    """{video_id: [[class, start, end, score], ...]} as the evaluator reads it."""
    table = read_detections(path)
    videos: dict[str, list] = {video: [] for video in table.videos}
    for row in _rows(table):
        videos[row[0]].append(row[1:])
    return videos


def _rows(table) -> list[list]:
    columns = (table.video, table.label, table.start, table.end, table.score)
    return [
        [table.videos[video], table.classes[label], start, end, score]
        for video, label, start, end, score in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _read_ground_truth(folder: Path) -> dict:
    """The annotations; the evaluator reads the same of them."""
    read_ground_truth(folder / "annotations.json", None)
    return _read_annotations(folder)


def _make_dataset(setting: Setting, folder: Path) -> None:
    for path in setting.dataset.iterdir():
        shutil.copy(path, folder)


def _make_converted(setting: Setting, folder: Path) -> None:
    """The release's files, converted as scripts/convert_features.py does it."""
    with TemporaryDirectory(dir=setting.root) as source:
        make_release(setting, Path(source))
        convert_features(source, folder)


def _make_run(setting: Setting, folder: Path) -> None:
    shutil.copytree(setting.dataset, folder / "dataset")
    (folder / "run").mkdir()
    for name in (*RUN_FILES, SUMS):
        shutil.copy(setting.reference / name, folder / "run")


def _make_run_without_sums(setting: Setting, folder: Path) -> None:
    _make_run(setting, folder)
    (folder / "run" / SUMS).unlink()


def _make_checkpoint(name: str) -> Callable[[Setting, Path], None]:
    return lambda setting, folder: shutil.copy(setting.reference / "checkpoints" / name, folder) and None


def _make_small_checkpoint(setting: Setting, folder: Path) -> None:
    """Little but what says where its values are, so that this is what damage meets."""
    weights = {"weight": torch.arange(1.0, 5.0), "bias": torch.ones(1)}
    save_checkpoint(folder / "small.pt", {"model": weights, "classes": ["Clap"], "iteration": 3, "metrics": None})


def _make_annotations(setting: Setting, folder: Path) -> None:
    shutil.copy(setting.dataset / "annotations.json", folder)


def make_hdf5(setting: Setting, folder: Path) -> None:
    """As h5py writes it when nothing is said: no checksum anywhere."""
    features = _read_features(setting.dataset)["videos"]
    with h5py.File(folder / "features.h5", "w") as file:
        file.attrs.update({"fps": 25, "stride": 16})
        for video_id, values in features.items():
            file[f"rgb/{video_id}"], file[f"flow/{video_id}"] = np.split(values, [WIDTHS[0]], axis=1)


def make_npy_folders(setting: Setting, folder: Path) -> None:
    """One .npy a video and modality, and features.json."""
    for name in ("rgb", "flow"):
        (folder / name).mkdir()
    for video_id, values in _read_features(setting.dataset)["videos"].items():
        for name, part in zip(("rgb", "flow"), np.split(values, [WIDTHS[0]], axis=1), strict=True):
            np.save(folder / name / f"{video_id}.npy", part)
    (folder / "features.json").write_text('{"fps": 25, "stride": 16}\n')


def make_release(setting: Setting, folder: Path) -> None:
    """The joint features and the annotation folder that W-TALC and its descendants share."""
    annotations = load_annotations(setting.dataset)
    features = _read_features(setting.dataset)["videos"]
    joint = [np.pad(features[video_id], ((0, 0), (0, 1))) for video_id in annotations.videos]
    _save_objects(folder / f"{RELEASE}{JOINT_SUFFIX}", joint)
    make_release_annotations(annotations, folder / f"{RELEASE}{RELEASE_SUFFIX}")


def make_release_annotations(annotations: Annotations, folder: Path) -> None:
    """The .npy files of the release; names as bytes, as Python 2 has left them there."""
    folder.mkdir()
    videos = annotations.videos.values()
    columns: Mapping[str, list] = {
        "classlist": [name.encode() for name in annotations.classes],
        "videoname": [video.video_id.encode() for video in videos],
        "subset": [video.subset.encode() for video in videos],
    }
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", np.array(column))
    np.save(folder / "duration.npy", np.array([[video.duration] for video in videos]))
    _save_objects(folder / "labels_all.npy", [list(video.labels) for video in videos])
    _save_objects(folder / "labels.npy", [list(video.segment_labels) for video in videos])
    _save_objects(folder / "segments.npy", [video.segments.tolist() for video in videos])


def _save_objects(path: Path, rows: list) -> None:
    objects = np.empty(len(rows), dtype=object)
    objects[:] = rows
    np.save(path, objects, allow_pickle=True)


def make_detections_json(setting: Setting, folder: Path) -> None:
    shutil.copy(setting.reference / "detections.json", folder)


def make_detections_csv(setting: Setting, folder: Path) -> None:
    with (folder / "detections.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video-id", "t-start", "t-end", "label", "score"])
        for video, label, start, end, score in _rows(read_detections(setting.reference / "detections.json")):
            writer.writerow([video, start, end, label, score])


def _make_legacy_checkpoint(setting: Setting, folder: Path) -> None:
    state = CO2Net(CLASSES, WIDTHS).state_dict()
    released = {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"]
        for theirs, ours in RELEASED_MODULES.items()
        for kind in ("weight", "bias")
    }
    torch.save(released, folder / "released.pkl", _use_new_zipfile_serialization=False)


def _read_weights(folder: Path) -> dict:
    """As test.py loads a released checkpoint."""
    net = CO2Net(CLASSES, WIDTHS)
    load_weights(net, folder / "released.pkl")
    return net.state_dict()


def _make_config(setting: Setting, folder: Path) -> None:
    shutil.copy(setting.root / "config.yaml", folder)


def _read_config(folder: Path) -> dict:
    return vars(parse_args(["--config", str(folder / "config.yaml"), "--path-dataset", "dataset", "--run-dir", "run"]))


def _no_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return True
    return False


def _ragged(path: Path) -> bool:
    """Whether rows of a CSV file have other numbers of fields than its head."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            widths = {len(row) for row in csv.reader(file, strict=True) if row}
    except (ValueError, csv.Error):
        return True
    return len(widths) > 1


def _other_size(path: Path) -> bool:
    """Whether a numeric .npy file has another size than its header says; features.json: whether it is no JSON."""
    if path.suffix == ".json":
        return _no_json(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            return path.stat().st_size != file.tell() + dtype.itemsize * int(np.prod(shape, dtype=object))
    except Exception:  # of a damaged header numpy may raise anything
        return True


FORMATS = (
    Format("simulated dataset", True, DATASET_FILES, _make_dataset, _read_dataset, share=1.5),
    Format("converted dataset", True, DATASET_FILES, _make_converted, _read_dataset, share=1.5),
    Format("run folder", True, ("run/*.*", f"run/{SUMS}"), _make_run, _read_run, share=3),
    Format(
        "small checkpoint",
        True,
        ("small.pt",),
        _make_small_checkpoint,
        lambda f: read_checkpoint(f / "small.pt"),
        share=2,
    ),
    Format(
        "best.pt", True, ("best.pt",), _make_checkpoint("best.pt"), lambda f: read_checkpoint(f / "best.pt"), share=0.7
    ),
    Format(
        "last.pt", True, ("last.pt",), _make_checkpoint("last.pt"), lambda f: read_checkpoint(f / "last.pt"), share=0.3
    ),
    Format(
        "annotations.json",
        False,
        ("annotations.json",),
        _make_annotations,
        _read_ground_truth,
        ill_formed=_no_json,
    ),
    Format(
        "detections, JSON",
        False,
        ("detections.json",),
        make_detections_json,
        lambda folder: detections_by_video(folder / "detections.json"),
        ill_formed=_no_json,
    ),
    Format(
        "detections, CSV",
        False,
        ("detections.csv",),
        make_detections_csv,
        lambda folder: _rows(read_detections(folder / "detections.csv")),
        ill_formed=_ragged,
    ),
    Format("config, YAML", False, ("config.yaml",), _make_config, _read_config),
    Format("run folder without sums", False, ("run/*.*",), _make_run_without_sums, _read_run, shortcut=ADDRESSES),
    Format("HDF5 features", False, ("features.h5",), make_hdf5, _read_features, shortcut=ADDRESSES),
    Format(
        ".npy folders",
        False,
        ("*/*.npy", "features.json"),
        make_npy_folders,
        _read_features,
        shortcut=HEADER_SAYS_ALL,
        ill_formed=_other_size,
    ),
    Format("release features", False, (f"*{JOINT_SUFFIX}",), make_release, _read_features, shortcut=PICKLED_ONCE),
    Format("release annotations", False, (f"*{RELEASE_SUFFIX}/*.npy",), make_release, _read_annotations, PICKLED_ONCE),
    Format(
        "released checkpoint", False, ("released.pkl",), _make_legacy_checkpoint, _read_weights, ADDRESSES, share=0.5
    ),
)
