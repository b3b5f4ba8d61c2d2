"""Variants of Tables 3 to 6: every config trains, the fusions and similarities are what their sources say."""

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

import main
from model import CO2Net, ConsensusModule, GlobalContext, LocalContext
from options import parse_args
from scripts.reproduction.plan import read_tables
from test import main as evaluate
from tests.ave_release import make_release
from utils.annotations import parse_annotations
from utils.engine import train_step
from utils.features.simulate import invent_timeline, simulate_features
from utils.features.simulate_ave import simulate_ave
from utils.fusion import CONSENSUS, SSMA, DescriptorPair, SqueezeExcitation, consensus_factory
from utils.losses import SIMILARITIES, CO2Loss, bernoulli_js, bernoulli_kl, mutual_loss

CONFIGS = Path(__file__).parent.parent / "configs"
ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))
SUBSETS = {
    "demo": {},
    "thumos14": {"train": "validation"},
    "multithumos": {"train": "validation"},
    "activitynet12": {"train": "training", "test": "validation"},
    "activitynet13": {"train": "training", "test": "validation"},
}
WIDTH = 40


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A made data set with the subsets of each dataset."""
    folders = {}
    for name, subsets in SUBSETS.items():
        content = invent_timeline(12, 3)
        for video in content["database"].values():
            video["subset"] = subsets.get(video["subset"], video["subset"])
        folders[name] = tmp_path_factory.mktemp(name)
        made = simulate_features(parse_annotations(content, "invented"), folders[name], (WIDTH, WIDTH))
        with h5py.File(made, "a") as file:  # under the names that the audio-visual configs have for them
            file["visual"], file["audio"] = file["rgb"], file["flow"]
    release, folders["ave"] = (tmp_path_factory.mktemp(name) for name in ("release", "ave"))
    make_release(release)
    simulate_ave(release, folders["ave"], dims=(WIDTH, WIDTH))
    return folders


@pytest.mark.parametrize("config", [*sorted(CONFIGS.glob("*.yaml")), *ABLATIONS], ids=lambda path: path.stem)
def test_every_config_trains(config, datasets, tmp_path, monkeypatch):
    """Two steps of main.py: losses finite, and a finite gradient in every parameter."""
    torch.set_num_threads(1)
    steps = []

    def checked_step(batch_loss, *arguments):
        outcome = train_step(batch_loss, *arguments)
        assert outcome.finite and all(torch.isfinite(value) for value in outcome.terms.values())
        for name, parameter in batch_loss.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
        steps.append(outcome)
        return outcome

    monkeypatch.setattr(main, "train_step", checked_step)
    monkeypatch.setattr(main, "write_results", lambda *arguments: None)
    name = parse_args(["--config", str(config), "--path-dataset", "DIR"]).dataset
    argv = ["--config", config, "--path-dataset", datasets[name], "--run-dir", tmp_path / "run", "--device", "cpu"]
    argv += ["--precision", "float32"]  # not all processors have bfloat16 instructions
    main.main([*map(str, argv), "--num-snippets", "30", "--max-iter", "2", "--eval-every", "2"])
    assert len(steps) == 2


@pytest.mark.parametrize("config", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_is_its_overrides_over_any_base(config):
    content = yaml.safe_load(config.read_text())
    assert config.name in config.read_text().splitlines()[1]
    argv = ["--path-dataset", "DIR", "--run-dir", "RUN"]
    other = "activitynet12_audio_visual.yaml" if content["base"] == "../ave.yaml" else "thumos14_r2plus1d.yaml"
    base = str(CONFIGS / other)
    plain, varied = (
        vars(parse_args([*argv, *more])) for more in (["--config", base], ["--config", str(config), "--base", base])
    )
    different = {name for name in plain if plain[name] != varied[name]} - {"config", "base"}
    if "method" in content:  # a method has defaults of its own, and the config may repeat a default
        different = different - {"localization", "class_score_weight"} | {"consensus"}
    assert different == set(content) - {"base"}


def test_base_is_about_a_config(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--base", "configs/demo.yaml", "--path-dataset", "DIR"])
    assert "give --config too" in capsys.readouterr().err


def test_every_ablation_is_in_a_table_and_the_papers_own_row_is_one_number():
    tables = read_tables()
    named = {row.config for table in tables.values() for row in table.rows if row.config}
    assert named == {"best_thumos14_r2plus1d", *(path.stem for path in ABLATIONS)}
    (published,) = (row.paper for row in tables["table1"].rows if row.key)
    for key in ("table3", "table4", "table5", "table6"):
        assert [row.paper for row in tables[key].rows if row.config is None] == [published] == [44.6]
    (activitynet,) = (row for row in tables["table2"].rows if row.key)
    assert (activitynet.paper, activitynet.at) == (26.4, {0.5: 43.3, 0.75: 26.3, 0.95: 5.2})
    for row in (*tables["table4"].rows, tables["table1"].rows[-1]):
        mean = np.mean([value for t, value in row.at.items() if t <= 0.7])
        assert mean == pytest.approx(row.paper, abs=0.06)  # the paper's own rows agree with their mean


@pytest.mark.parametrize("name", CONSENSUS)
def test_every_consensus_keeps_shapes_and_its_checkpoint(name):
    net = CO2Net(3, (12, 12), consensus=consensus_factory(name)).eval()
    outputs = net(torch.rand(2, 9, 24))
    assert outputs["modality_attention"].shape == (2, 2, 9)
    assert outputs["features"].shape == (2, 9, 24)
    CO2Net(3, (12, 12), consensus=consensus_factory(name)).load_state_dict(net.state_dict())
    if name != "add":
        assert CO2Net(3, (12, 20), consensus=consensus_factory(name))(torch.rand(1, 5, 32))["cas"].shape == (1, 5, 4)


def test_impossible_variants_are_refused():
    with pytest.raises(ValueError, match="one width, got 12 and 20"):
        CO2Net(3, (12, 20), consensus=consensus_factory("add"))
    with pytest.raises(ValueError, match="expected one of ccm, local_local"):
        consensus_factory("sum")
    with pytest.raises(ValueError, match="expected one of mse, mae, kl, js"):
        CO2Loss(mutual="l2")


def set_layer(layer, weight, bias=0.0):
    """Weights (out, in) of the middle tap, all other taps zero."""
    torch.nn.init.zeros_(layer.weight)
    layer.weight.data[:, :, layer.kernel_size[0] // 2] = torch.tensor(weight)
    torch.nn.init.constant_(layer.bias, bias)


def test_squeeze_and_excitation_by_hand():
    """Means (2, 1); hidden relu(2 - 1) = 1; scales sigmoid(0) = 1/2 and sigmoid(ln 3) = 3/4."""
    unit = SqueezeExcitation(2, 7)
    set_layer(unit.excitation[0], [[1.0, -1.0]])
    set_layer(unit.excitation[2], [[0.0], [math.log(3)]])
    main_modality = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])
    expected = torch.tensor([[[0.5, 1.5], [0.0, 1.5]]])
    torch.testing.assert_close(unit(main_modality, torch.rand(1, 7, 2)), expected)


def test_ssma_by_hand():
    """Hidden relu(x1 + x2) = (1, 2); gates sigmoid(0) = 1/2 and sigmoid(h ln 3) = (3/4, 9/10) on the concatenation;
    then first = g1 + the next snippet's g2, second = 2 g2."""
    unit = SSMA(1, 1)
    set_layer(unit.gate[0], [[1.0, 1.0]])
    set_layer(unit.gate[2], [[0.0], [math.log(3)]])
    set_layer(unit.fuse, [[1.0, 0.0], [0.0, 2.0]])
    unit.fuse.weight.data[0, 1, 2] = 1.0
    first, second = unit(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]))
    torch.testing.assert_close(first, torch.tensor([[[0.5 + 1.8, 0.0]]]))
    torch.testing.assert_close(second, torch.tensor([[[0.0, 3.6]]]))


def test_add_and_concat():
    first, second = torch.rand(2, 3, 5), torch.rand(2, 3, 5)
    for one in CONSENSUS["add"](3, 3)(first, second):
        torch.testing.assert_close(one, first + second)
    assert all(a is b for a, b in zip(CONSENSUS["concat"](3, 4)(first, second), (first, second), strict=True))


def test_a_global_and_a_local_descriptor_are_the_ccm():
    ccm = ConsensusModule(4, 3).eval()
    pair = DescriptorPair(4, 3, GlobalContext, LocalContext).eval()
    pair.main_context.load_state_dict(ccm.global_context.state_dict())
    pair.auxiliary_context.load_state_dict(ccm.cross_modal.state_dict())
    first, second = torch.rand(2, 4, 6), torch.rand(2, 3, 6)
    assert torch.equal(pair(first, second), ccm(first, second))


@pytest.mark.parametrize(("name", "sees_time"), [("local_local", True), ("local_global", False), ("ccm", True)])
def test_which_descriptor_sees_the_auxiliary_modality_in_time(name, sees_time):
    consensus = CO2Net(2, (6, 6), consensus=consensus_factory(name)).eval().consensus
    first, second = torch.rand(1, 6, 8), torch.rand(1, 6, 8)
    same = torch.allclose(consensus(first, second)[0], consensus(first, second.flip(2))[0], atol=1e-6)
    assert same != sees_time


def attentions(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def test_kl_and_js_are_scipys():
    ours, target = attentions(3, 50), attentions(4, 3, 50)[1]
    p, q = (np.stack([x.numpy(), 1 - x.numpy()]) for x in (target, ours))
    assert bernoulli_kl(ours, target).item() == pytest.approx(rel_entr(p, q).sum(axis=0).mean(), rel=1e-12)
    assert bernoulli_js(ours, target).item() == pytest.approx((jensenshannon(p, q, axis=0) ** 2).mean(), rel=1e-12)


def test_mse_and_mae_by_hand():
    both = torch.tensor([[[0.1, 0.5], [0.3, 0.1]]])
    assert mutual_loss(both).item() == pytest.approx((0.04 + 0.16) / 2)
    assert mutual_loss(both, "mae").item() == pytest.approx(0.3)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_each_modality_learns_from_the_other_only(name):
    """Eq. 6: of the two terms, each sends its gradient to its first argument alone."""
    both = attentions(2, 2, 9).requires_grad_()
    mutual_loss(both, name).backward()
    for mine, other in ((0, 1), (1, 0)):
        alone = both.detach()[:, mine].requires_grad_()
        (0.5 * SIMILARITIES[name](alone, both.detach()[:, other])).backward()
        torch.testing.assert_close(both.grad[:, mine], alone.grad)
    equal = attentions(1, 1, 5).expand(1, 2, 5)
    assert mutual_loss(equal, name).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_attention_of_zero_and_one_is_finite(name):
    both = torch.tensor([[[0.0, 1.0, 0.0, 0.5], [1.0, 0.0, 0.0, 1.0]]], requires_grad=True)
    loss = mutual_loss(both, name)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert torch.isfinite(both.grad).all()


def test_a_checkpoint_brings_its_variant_to_the_test_program(datasets, tmp_path):
    argv = ["--path-dataset", str(datasets["activitynet12"]), "--device", "cpu"]
    more = ["--consensus", "se", "--temporal-pool", "none", "--num-snippets", "30", "--max-iter", "1"]
    main.main(["--dataset", "activitynet12", "--run-dir", str(tmp_path / "run"), *argv, *more])
    checkpoint = tmp_path / "run/checkpoints/last.pt"
    architecture = torch.load(checkpoint, weights_only=True)["architecture"]
    assert (architecture["consensus"], architecture["temporal_pool"]) == ("se", None)
    evaluate(["--checkpoint", str(checkpoint), "--output-dir", str(tmp_path / "out"), *argv])
    ours, again = (json.loads((tmp_path / name / "metrics.json").read_text())["last"] for name in ("run", "out"))
    assert ours == again
