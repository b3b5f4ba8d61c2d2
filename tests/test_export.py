"""scripts/export.py: ONNX files give PyTorch's outputs at any length, and describe themselves."""

import json
import sys

import numpy as np
import pytest
import torch

from eval.proposals import localize
from options import parse_args
from scripts import export
from tests.test_docs import blocks
from utils.detector import load_detector
from utils.errors import InputError
from utils.methods import METHODS, build_method

DIMS = (5, 5)
CLASSES = ["Diving", "Golf Swing", "Käse"]
LOCALIZED = {"hamnet": "outer_inner", "audio_visual": "two_stage", "um": "um"}
# DELU has the network of CO2-Net, and an export takes seconds.
EXPORTED = [name for name in METHODS if name != "delu"]


@pytest.fixture(scope="module")
def onnxruntime():
    """Return onnxruntime; skip where a package of the extra is not installed."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed (pip install -e '.[onnx]')")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install -e '.[onnx]')")


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    """Return a function from a method to the file of an untrained network, as main.py stores one."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(name: str, seed: int = 0, **changes):
        path = folder / f"{name}_{seed}{'_changed' if changes else ''}.pt"
        words = ["--method", name, "--dataset", "thumos14", "--path-dataset", "nowhere", "--feature-scale", "0.25"]
        options = parse_args(words)
        torch.manual_seed(seed)
        method = build_method(name, len(CLASSES), DIMS, **({"width": 8, "stages": 1} if name == "audio_visual" else {}))
        content = {"model": method.network.state_dict(), "architecture": method.architecture, "classes": CLASSES}
        torch.save({**content, "options": vars(options), **changes}, path)
        return path

    return write


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder of the exported files, each written once."""
    return tmp_path_factory.mktemp("onnx")


def exported(name, checkpoint_of, files, run_main):
    path = files / f"{name}.onnx"
    if not path.exists():
        status, output, errors = run_main(export.main, "--checkpoint", checkpoint_of(name), "--out", path)
        assert status == 0, errors
        assert [line.split()[0] for line in output.splitlines()[1:-1:2]] == [str(length) for length in export.LENGTHS]
        assert "equal to 0.0001; wrote" in output
    return path


def test_only_delu_shares_its_network():
    assert METHODS["delu"].network is METHODS["co2net"].network
    assert len({METHODS[name].network for name in EXPORTED}) == len(EXPORTED)


@pytest.mark.parametrize("name", EXPORTED)
def test_outputs_equal_pytorch_at_any_length(name, onnxruntime, checkpoint_of, files, run_main):
    session = onnxruntime.InferenceSession(exported(name, checkpoint_of, files, run_main))
    method = load_detector(checkpoint_of(name), "cpu").method
    names = [output.name for output in session.get_outputs()]
    assert tuple(names) == method.localization.outputs
    for length in (1, 3, 7, 64, 530):
        features = torch.rand(1, length, sum(DIMS), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = method.network(features * 0.25)
        for output, got in zip(names, session.run(None, {"features": features.numpy()}), strict=True):
            np.testing.assert_allclose(got, expected[output].numpy(), rtol=1e-4, atol=1e-5, err_msg=output)


@pytest.mark.parametrize("name", ["hamnet", "um"])
def test_metadata_describes_the_model(name, onnxruntime, checkpoint_of, files, run_main):
    session = onnxruntime.InferenceSession(exported(name, checkpoint_of, files, run_main))
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == CLASSES
    assert (json.loads(facts["modalities"]), json.loads(facts["modality_dims"])) == (["rgb", "flow"], list(DIMS))
    assert (facts["method"], float(facts["snippet_rate"]), float(facts["feature_scale"])) == (name, 25 / 16, 0.25)
    assert facts["localization"] == LOCALIZED[name]
    settings = json.loads(facts["settings"])
    assert settings == json.loads(json.dumps(load_detector(checkpoint_of(name), "cpu").method.settings))


def test_snippet_rate_is_that_of_the_recipe(checkpoint_of):
    for recipe, rate in (({"fps": 15, "stride": 8}, 1.875), ({"fps": "15", "stride": 8}, 25 / 16)):
        detector = load_detector(checkpoint_of("hamnet", recipe=recipe), "cpu")
        assert export.snippet_rate(detector) == rate
        assert json.loads(export.metadata(detector, str(checkpoint_of("hamnet")))["recipe"]) == recipe


def test_example_of_the_page_gives_the_detections(onnxruntime, checkpoint_of, files, run_main, monkeypatch, capsys):
    """Run the example of docs/detect.md, and compare its lines with the detector's table."""
    (code,) = (code for code in blocks("docs/detect.md", "python") if "onnxruntime" in code)
    path = exported("hamnet", checkpoint_of, files, run_main)
    monkeypatch.chdir(files)
    (files / "model.onnx").write_bytes(path.read_bytes())
    features = np.random.default_rng(0).random((80, sum(DIMS)), dtype=np.float32)
    np.save("my_video.npy", features)
    names = {}
    exec(compile(code, "docs/detect.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert names["localize"] is localize
    expected = load_detector(checkpoint_of("hamnet"), "cpu")("my_video.npy", 25 / 16)
    lines = [f"{row.label}: {row.start:.2f} to {row.end:.2f} s, {row.score:.3f}" for row in expected.itertuples()]
    assert lines and sorted(printed) == sorted(lines)


def test_a_file_that_differs_is_not_written(onnxruntime, checkpoint_of, files, run_main, monkeypatch, tmp_path):
    """The exported model has other weights than the checkpoint."""
    import onnx

    model = onnx.load(exported("hamnet", checkpoint_of, files, run_main))
    monkeypatch.setattr(export, "export", lambda net: model)
    words = "--checkpoint", checkpoint_of("hamnet", seed=1), "--out", tmp_path / "model.onnx"
    status, output, errors = run_main(export.main, *words)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert "differs from PyTorch at 1 snippets: cas" in errors and "nothing was written" in errors
    assert not list(tmp_path.iterdir())


def test_a_model_of_one_length_is_not_accepted(onnxruntime, checkpoint_of):
    class OneLength:
        """Session that accepts one snippet only."""

        def run(self, names, inputs):
            if inputs["features"].shape[1] > 1:
                raise RuntimeError("Got invalid dimensions\nmore")
            return [output.numpy() for output in net(torch.from_numpy(inputs["features"]))]

    net = export.Exported(load_detector(checkpoint_of("hamnet"), "cpu")).eval().requires_grad_(False)
    with pytest.raises(InputError, match=r"fails at 2 snippets \(Got invalid dimensions\); nothing was written"):
        export.compare(net, OneLength())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": None}, "expected options to be of type dict"),
        ({"classes": CLASSES[:2]}, "the checkpoint has 3 classes"),
        ({"model": {}}, "not the weights of this network"),
    ],
)
def test_a_wrong_checkpoint_is_one_line(changes, message, onnxruntime, checkpoint_of, run_main, tmp_path):
    words = "--checkpoint", checkpoint_of("hamnet", **changes), "--out", tmp_path / "model.onnx"
    status, output, errors = run_main(export.main, *words)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert message in errors and not list(tmp_path.iterdir())


def test_a_missing_package_and_a_missing_folder_are_one_line(run_main, monkeypatch, tmp_path):
    words = "--checkpoint", "x.pt", "--out"
    status, _, errors = run_main(export.main, *words, tmp_path / "no" / "model.onnx")
    assert status == 2 and "expected a file in an existing folder" in errors
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, _, errors = run_main(export.main, *words, tmp_path / "model.onnx")
    assert (status, errors.count("\n")) == (2, 1)
    assert "the export needs onnx; install it with: pip install -e '.[onnx]'" in errors
