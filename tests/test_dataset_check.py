"""The check of a dataset folder reports every kind of fault in one run, by file and video, and nothing else."""

import json
import shutil

import h5py
import numpy as np
import pytest

from tests.test_features import streams, write_folders, write_hdf5, write_joint
from utils.annotations import load_annotations, parse_annotations
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.features.check import check_dataset, main, startup_warnings
from utils.features.simulate import invent_timeline, simulate_features
from utils.features.store import open_features
from utils.formats.checksums import SUMS, format_checksums

WIDTHS = (6, 5)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    simulate_features(parse_annotations(invent_timeline(20, 3), "invented"), folder, WIDTHS)
    return folder


@pytest.fixture
def dataset(clean, tmp_path):
    """Return a copy that a test may damage."""
    return shutil.copytree(clean, tmp_path / "data")


def found(check) -> dict[str, list[str]]:
    """Return the subjects of the findings by kind."""
    kinds = {}
    for finding in check.findings:
        assert "\n" not in str(finding)
        kinds.setdefault(f"{finding.severity}: {finding.kind}", []).append(finding.subject)
    return kinds


def messages(check) -> str:
    return "\n".join(map(str, check.findings))


def replace_values(file, name, values):
    del file[name]
    file[name] = values


def spoil_features(file) -> int:
    """Damage features; return the offset of one more video's values, to be damaged in the file."""
    del file["flow/train_0003"]
    replace_values(file, "rgb/train_0004", file["rgb/train_0004"][:, :4])
    replace_values(file, "rgb/train_0005", file["rgb/train_0005"][:, 0])
    replace_values(file, "rgb/train_0006", file["rgb/train_0006"][()].astype(np.int64))
    file["rgb/train_0007"][4:6, 2] = np.nan, np.inf
    for modality, width in zip(("rgb", "flow"), WIDTHS, strict=True):
        replace_values(file, f"{modality}/train_0008", np.zeros((0, width), np.float16))
        replace_values(file, f"{modality}/test_0014", file[f"{modality}/test_0014"][:40])
        file[f"{modality}/v_TEST_0012"] = file[f"{modality}/test_0012"][()]
    replace_values(file, "rgb/train_0009", np.zeros_like(file["rgb/train_0009"][()]))
    replace_values(file, "rgb/train_0010", file["rgb/train_0010"][()].astype(np.float64))
    replace_values(file, "flow/test_0013", file["flow/test_0013"][:-3])
    replace_values(file, "flow/test_0017", file["flow/test_0017"][:-1])
    return file["rgb/test_0015"].id.get_chunk_info(0).byte_offset


def spoil_annotations(content):
    videos = content["database"]
    content["classes"].append("Juggle")
    videos["train_0000"]["labels"].append("Juggle")
    videos["train_0001"]["labels"] = []
    videos["train_0002"]["annotations"][0]["segment"] = [9, 3]
    videos["train_0011"]["labels"] = ["Yodel"]
    videos["unseen"] = {"subset": "spare", "duration": 9}
    duration = videos["test_0016"]["duration"]
    for segment in ([1, duration + 0.5], [2, duration + 9], [-1, 3], [5, 5]):  # the first is within a snippet
        videos["test_0016"]["annotations"].append({"label": content["classes"][0], "segment": segment})


def spoil(folder):
    """Add every kind of fault to a folder."""
    path = folder / "features.h5"
    with h5py.File(path, "r+") as file:
        place = spoil_features(file)
    content = bytearray(path.read_bytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    annotations = json.loads((folder / "annotations.json").read_text())
    spoil_annotations(annotations)
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "notes.txt").write_text("once")
    (folder / "gone.txt").write_text("once")
    (folder / SUMS).write_text(format_checksums(folder, ["notes.txt", "gone.txt", "features.h5"]))
    (folder / "notes.txt").write_text("now")
    (folder / "gone.txt").unlink()


EXPECTED = {
    "error: differs from its checksum": ["notes.txt", "gone.txt"],
    "error: unreadable annotations": ["train_0002", "train_0011"],
    "error: wrong width": ["train_0004"],
    "error: wrong shape": ["train_0005"],
    "error: different lengths": ["test_0013"],
    "error: missing features": ["train_0003"],
    "error: wrong dtype": ["train_0006"],
    "error: NaN or infinity": ["train_0007"],
    "error: unreadable features": ["test_0015"],
    "warning: cut to the shorter": ["test_0017"],
    "warning: no snippets": ["train_0008", "train_0008"],
    "warning: segment outside the video": ["test_0016", "test_0016"],
    "warning: segment of no length": ["test_0016"],
    "warning: suspicious names": ["test_0012"],
    "warning: far from its duration": ["test_0014"],
    "warning: unlabeled training video": ["train_0001"],
    "warning: class without a pair": ["Juggle"],
    "warning: class without a test": ["Juggle"],
    "warning: constant values": ["train_0009"],
    "note: wide dtype": ["train_0010"],
    "note: missing features": ["unseen"],
    "note: extra features": ["train_0002", "train_0011", "v_TEST_0012"],
}


def test_every_fault_is_found_in_one_run(dataset, tmp_path, run_main):
    spoil(dataset)
    status, printed, _ = run_main(main, dataset, "--check", "--json", tmp_path / "all.json")
    assert status == 1
    content = json.loads((tmp_path / "all.json").read_text())
    kinds = {}
    for finding in content["findings"]:
        subject = finding["video"] or finding["label"] or finding["where"].rpartition("/")[2]
        kinds.setdefault(f"{finding['severity']}: {finding['kind']}", []).append(subject)
        assert finding["where"].startswith(str(dataset))
        assert subject in f"{finding['where']}: {finding['message']}"
    assert {kind: sorted(subjects) for kind, subjects in kinds.items()} == {k: sorted(s) for k, s in EXPECTED.items()}
    assert content["dataset"] == "demo"
    assert content["features"]["simulated"]
    for kind, subjects in EXPECTED.items():
        severity, name = kind.split(": ")
        assert any(line.startswith(f"{severity:9} {name}") and subjects[0] in line for line in printed.splitlines())
    assert "SIMULATED" in printed.splitlines()[0]
    assert printed.splitlines()[-1] == "11 errors, 12 warnings, 5 notes"


def test_message_has_what_was_expected(dataset):
    spoil(dataset)
    text = messages(check_dataset(dataset))
    for part in (
        "'rgb' of video 'train_0004' has shape (",
        ", 4), expected (snippets, 6) as in 19 of 21 videos",
        ",), expected (snippets, 6)",
        "'rgb' of video 'train_0006' has dtype int64, expected float16 or float32",
        "has 2 NaN or infinite values of ",
        ", the first in row 4",
        "no 'flow' of video 'train_0003' (subset 'train'); extract it, or leave the video out",
        "video 'test_0014' has 40 snippets, expected ",
        " s at 1.5625 snippets per second",
        "'test_0012' and 'v_TEST_0012' are similar names",
        "is [5, 5] s, expected start < end",
        "] s, expected within [0, ",
        "is [-1, 3] s, expected start >= 0",
        "1 of the segments end before they start (video 'train_0002', annotation 0: [9, 3])",
        "video 'train_0011' has the label 'Yodel', which 'classes' lacks",
        "class 'Juggle' has 1 training videos with features, expected two",
        "'rgb' of video 'train_0009' is 0 everywhere",
        "gone.txt: listed in SHA256SUMS, but not found",
        "notes.txt: differs from the checksum in SHA256SUMS",
    ):
        assert part in text


def test_clean_dataset_has_no_finding(clean, run_main):
    status, printed, _ = run_main(main, clean, "--check")
    assert status == 0
    first, last = printed.splitlines()
    assert "features.h5 (HDF5, SIMULATED); flow + rgb of 20 videos; annotations of 20 videos, 3 classes" in first
    assert last == "0 errors, 0 warnings, 0 notes"
    assert run_main(main, clean / "features.h5", "--check", "--modalities", "rgb", "rgb_diff")[0] == 0


def test_warnings_do_not_change_the_exit_status(dataset, run_main):
    with h5py.File(dataset / "features.h5", "r+") as file:
        file["rgb/train_0009"][...] = 1
    (dataset / SUMS).unlink()
    status, printed, _ = run_main(main, dataset, "--check")
    assert (status, printed.splitlines()[-1]) == (0, "0 errors, 1 warning, 0 notes")


def test_unusable_arguments_are_one_line(clean, run_main, tmp_path):
    for words, message in [
        ((tmp_path / "absent", "--check"), "no such file or folder"),
        ((clean, "--check", "--modalities", "audio"), "modality 'audio' not found; stored are flow, rgb"),
        ((clean, "--check", "--dataset", "mine"), "dataset 'mine' not found"),
        ((clean, "--json", tmp_path / "x.json"), "need --check"),
        ((clean, "--check", "--json", tmp_path / "absent/x.json"), "absent/x.json: cannot be written"),
    ]:
        status, _, error = run_main(main, *words)
        lines = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("error: ")]
        assert status == 2
        assert message in lines[0]


def test_missing_features_that_training_skips_are_a_note(dataset, run_main):
    with h5py.File(dataset / "features.h5", "r+") as file:
        del file["rgb/train_0003"]
    (dataset / SUMS).unlink()
    assert run_main(main, dataset, "--check")[0] == 1
    status, printed, _ = run_main(main, dataset, "--check", "--missing-features", "skip")
    assert (status, printed.splitlines()[-1]) == (0, "0 errors, 0 warnings, 1 note")


def test_wrong_subsets(clean):
    check = check_dataset(clean, dataset="activitynet12")
    assert found(check)["error: wrong subsets"] == ["annotations.json"] * 2
    assert "no video of subset 'training', on which activitynet12 trains; subsets present: 'test'" in messages(check)


def test_unknown_subsets(dataset):
    text = (dataset / "annotations.json").read_text()
    (dataset / "annotations.json").write_text(text.replace('"train"', '"mine"'))
    (dataset / SUMS).unlink()
    check = check_dataset(dataset)
    assert found(check) == {"note: unknown dataset": ["annotations.json"]}
    assert "the subsets ['mine', 'test'] fit no single dataset" in messages(check)


def annotate(folder):
    entry = {"duration": 5.76, "labels": ["A"]}
    database = {"v1": entry | {"subset": "train"}, "v2": entry | {"subset": "train"}, "v3": entry | {"subset": "test"}}
    (folder / "annotations.json").write_text(json.dumps({"classes": ["A"], "database": database}))
    return folder


def test_npy_files(tmp_path):
    annotate(write_folders(tmp_path, streams()))
    whole = (tmp_path / "rgb/v1.npy").read_bytes()
    (tmp_path / "rgb/v1.npy").write_bytes(whole[:-4])
    (tmp_path / "flow/v3.npy").write_bytes(b"no array")
    (tmp_path / "features.json").write_text('{"fps": 30}')
    check = check_dataset(tmp_path)
    kinds = found(check)
    assert kinds["error: unreadable features"] == ["v1", "v3"]
    assert kinds["error: unusable rate"] == ["features.json"]
    wheres = {finding.where for finding in check.findings if finding.severity == "error"}
    assert {str(tmp_path / name) for name in ("rgb/v1.npy", "flow/v3.npy", "features.json")} == wheres
    (tmp_path / "features.json").unlink()
    assert found(check_dataset(tmp_path))["note: rate not given"] == [tmp_path.name]


def test_modalities_of_different_rates(tmp_path):
    annotate(write_hdf5(tmp_path, streams(), fps=25, stride=16))
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        file["rgb"].attrs.update(fps=30, stride=16)
    assert "error: different lengths" not in found(check_dataset(tmp_path))  # within two snippets
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        file["rgb"].attrs.update(fps=100, stride=1)
    check = check_dataset(tmp_path)
    assert found(check)["error: different lengths"] and "differ by more than 2 snippets or 1 %" in messages(check)
    assert "error: different lengths" not in found(check_dataset(tmp_path, ["rgb"]))


def test_video_repeated_in_a_release(tmp_path):
    write_joint(tmp_path, streams())
    np.save(tmp_path / "Tiny-Annotations" / "videoname.npy", np.array([b"v1", b"v2", b"v1"]))
    check = check_dataset(tmp_path)
    assert found(check) == {"error: duplicated video": ["v1"]}
    assert "Tiny-Annotations/videoname.npy: expected one row per video, got 2 rows of 'v1'" in messages(check)


def test_video_repeated_in_a_file(dataset):
    text = (dataset / "annotations.json").read_text()
    (dataset / "annotations.json").write_text(text.replace('"train_0001"', '"train_0000"'))
    (dataset / SUMS).unlink()
    check = check_dataset(dataset)
    assert found(check) == {"error: unreadable annotations": ["annotations.json"]}
    assert "the key 'train_0000' appears more than once" in messages(check)


def test_unreadable_features_do_not_hide_other_faults(dataset):
    spoil(dataset)
    (dataset / "features.h5").write_bytes((dataset / "features.h5").read_bytes()[:5000])
    kinds = found(check_dataset(dataset))
    assert kinds["error: unreadable features"] == ["features.h5"]
    assert kinds["error: unreadable annotations"] == ["train_0002", "train_0011"]
    assert kinds["warning: segment of no length"] == ["test_0016"]
    (dataset / "annotations.json").write_text("{")
    spoiled = check_dataset(dataset)
    assert found(spoiled)["error: unreadable annotations"] == ["annotations.json"]
    assert spoiled.count("error") == 5  # both, and three that differ from their checksums


def test_unreadable_annotations_do_not_hide_faults_of_features(dataset):
    spoil(dataset)
    (dataset / "annotations.json").write_text("{")
    kinds = found(check_dataset(dataset))
    assert kinds["error: NaN or infinity"] == ["train_0007"]
    assert kinds["error: wrong width"] == ["train_0004"]


def test_flipped_byte_is_detected_by_both_checksums(dataset):
    path = dataset / "features.h5"
    with h5py.File(path) as file:
        place = file["rgb/train_0000"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    kinds = {"error: differs from its checksum": ["features.h5"], "error: unreadable features": ["train_0000"]}
    assert found(check_dataset(dataset)) == kinds


def test_terminal_codes_in_a_name_are_escaped(tmp_path, run_main):
    write_hdf5(tmp_path, {"rgb": {"v\x1b[2J": np.ones((3, 4), np.float32)}})
    printed = run_main(main, tmp_path, "--check")[1]
    assert "v\\x1b[2J" in printed
    assert "\x1b" not in printed


def startup(folder, missing_features="error"):
    annotations = load_annotations(folder)
    return startup_warnings(open_features(folder), annotations, DATASETS["demo"], missing_features)


def test_training_refuses_a_dataset_with_errors_in_the_videos_it_uses(dataset):
    assert startup(dataset) == []
    (dataset / SUMS).unlink()
    with h5py.File(dataset / "features.h5", "r+") as file:
        spoil_features(file)
        file["rgb/other"] = np.zeros((3, 99), np.float16)  # a video without annotations
    with pytest.raises(InputError) as error:
        startup(dataset)
    assert (
        "features.h5: wrong width: 1 (train_0004); wrong shape: 1 (train_0005); different lengths: 1 (test_0013); "
        f"python -m utils.features {dataset / 'features.h5'} --check --modalities rgb flow --dataset demo "
        "lists every error"
    ) in str(error.value)


def test_training_reports_a_single_error_in_full(dataset):
    with h5py.File(dataset / "features.h5", "r+") as file:
        replace_values(file, "rgb/test_0013", file["rgb/test_0013"][:, :4])
    with pytest.raises(InputError, match=r"h5: 'rgb' of video 'test_0013' has shape .*expected \(snippets, 6\)"):
        startup(dataset)


def test_training_warns_once_per_kind(dataset):
    path = dataset / "annotations.json"
    content = json.loads(path.read_text())
    for video_id in ("train_0000", "train_0001", "train_0002", "train_0003"):
        content["database"][video_id]["labels"] = []
    content["database"]["spare"] = {"subset": "spare", "duration": 9, "annotations": []}
    path.write_text(json.dumps(content))
    (dataset / SUMS).unlink()
    with h5py.File(dataset / "features.h5", "r+") as file:
        del file["rgb/train_0007"]  # left to WeakVideoDataset
        for modality in ("rgb", "flow"):
            replace_values(file, f"{modality}/test_0014", file[f"{modality}/test_0014"][:40])
    expected = [
        "far from its duration: 1 (test_0014)",
        "unlabeled training video: 4 (train_0000, train_0001, train_0002, ...)",
    ]
    assert startup(dataset) == startup(dataset, "skip") == expected


def test_real_features(reference, run_main):
    folder = reference / "data" / "thumos14"
    status, printed, _ = run_main(main, folder, "--check", "--modalities", "rgb", "--missing-features", "skip")
    assert status == 0
    assert printed.splitlines()[-1] == "0 errors, 30 warnings, 30 notes"
