"""Recipes of features: stored in files and checkpoints, and compared."""

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

import main
from scripts.detect import main as detect
from scripts.pseudo_labels import main as pseudo_labels
from scripts.second_stage import main as second_stage
from test import main as localize
from tests.conftest import ROOT
from tests.videos import TINY, simulated_dataset
from utils.checkpoint import read_checkpoint
from utils.detector import load_detector
from utils.errors import InputError
from utils.features import open_features
from utils.features.convert import convert_features
from utils.features.shards import shard_name
from utils.video.folder import FeatureFolder


def test_recipes_survive_the_file(tmp_path):
    recipe = replace(TINY, weights={"rgb": "ab" * 32})
    assert json.loads(json.dumps(recipe.as_dict())) == recipe.as_dict()
    with FeatureFolder(tmp_path, recipe) as folder:
        folder.add("a/b", {"rgb": np.ones((3, 2), dtype=np.float32)})
        folder.assemble()
    assert open_features(tmp_path, None).describe()["recipe"] == recipe.as_dict()


def test_a_detector_refuses_features_of_another_recipe(tmp_path, run_main):
    data = simulated_dataset(tmp_path / "data", TINY)
    run, words = tmp_path / "run", ("--device", "cpu", "--max-iter", "2", "--eval-every", "2", "--num-snippets", "20")
    words = (*words, "--precision", "float32")
    train = ("--config", ROOT / "configs/demo.yaml", "--run-dir", run, *words, "--path-dataset")
    status, _, error = run_main(main.main, *train, data)
    assert status == 0, error
    checkpoint = run / "checkpoints/last.pt"
    assert read_checkpoint(checkpoint)["recipe"] == TINY.as_dict()
    assert json.loads((run / "environment.json").read_text())["features"]["recipe"] == TINY.as_dict()
    convert_features(data, tmp_path / "copy")
    assert open_features(tmp_path / "copy", None).recipe == TINY.as_dict()
    other = simulated_dataset(tmp_path / "other", replace(TINY, fps=12.5, weights={"rgb": "ab" * 32}))
    end = ("--checkpoint", checkpoint, "--output-dir", tmp_path / "out", "--device", "cpu")
    score, video = (localize, "--path-dataset"), (detect,)
    assert run_main(*score, tmp_path / "copy", *end)[0] == 0
    for command in (score, video):
        status, _, error = run_main(*command, other, *end)
        assert status == 2 and "fps 12.5 instead of 10" in error and error.count("\n") == 1
    assert run_main(*score, other, *end, "--any-recipe")[0] == 0
    status, _, error = run_main(second_stage, "--run", run, "--path-dataset", other, "--device", "cpu")
    assert status == 2 and "fps 12.5 instead of 10" in error and error.count("\n") == 1
    assert not (tmp_path / "run_pmil_s0").exists()
    label = (pseudo_labels, checkpoint, "--path-dataset", other, "--out", tmp_path / "labels.h5", "--device", "cpu")
    status, _, error = run_main(*label)
    assert status == 2 and "fps 12.5 instead of 10" in error and error.count("\n") == 1
    assert run_main(*label, "--any-recipe")[0] == 0
    assert load_detector(checkpoint, "cpu", any_recipe=True).open(other).recipe["fps"] == 12.5
    status, _, error = run_main(main.main, *train, other, "--resume", "--max-iter", "4")
    assert status == 2 and "was trained on features of another recipe" in error and error.count("\n") == 1


@pytest.mark.parametrize("value", [np.bytes_(b"[1]"), np.bytes_(b"{"), np.bytes_(b"[" * 9000), "text", 3])
def test_a_recipe_in_a_file_is_a_json_object_of_fixed_length(value, tmp_path):
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["rgb/video"] = np.ones((3, 2), dtype=np.float32)
        file.attrs["recipe"] = value
    with pytest.raises(InputError, match="not a readable HDF5 file") as refusal:
        open_features(tmp_path, None)
    assert "\n" not in str(refusal.value)


def test_shards_share_one_recipe(tmp_path):
    for number, fps in enumerate((10, 10, 12)):
        with FeatureFolder(tmp_path / str(number), replace(TINY, fps=fps, stride=fps, weights={"rgb": "0"})) as folder:
            folder.add(f"v{number}", {"rgb": np.ones((3, 2), dtype=np.float32)})
            folder.assemble()
    for second, is_same in ((1, True), (2, False)):
        shards = tmp_path / f"shards{second}"
        shards.mkdir()
        for number, source in enumerate((0, second)):
            shutil.copy(tmp_path / str(source) / "features.h5", shards / shard_name(number, 2))
        if is_same:
            assert open_features(shards, None).recipe["fps"] == 10
        else:
            with pytest.raises(InputError, match="'rgb' has|another recipe"):
                open_features(shards, None)
