"""Options: one name each, from the command line over YAML over defaults; a wrong one is one line."""

from pathlib import Path

import pytest
import yaml

from options import complete_options, parse_args, parse_test_args, run_options

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def parse(tmp_path, text, *more):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    return parse_args(["--config", str(config), "--path-dataset", "DIR", *more])


def test_command_line_over_yaml_over_defaults(tmp_path):
    args = parse(tmp_path, "lr: 3e-4\nseed: 7\n", "--seed", "9")
    assert (args.lr, args.seed, args.weight_decay) == (3e-4, 9, 1e-3)


def test_base_is_read_first(tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 1e-3\nmax_iter: 5\nloss_weights: {oppo: 0}\n")
    args = parse(tmp_path, "base: base.yaml\nmax_iter: 9\n")
    assert (args.lr, args.max_iter, args.loss_weights) == (1e-3, 9, {"oppo": 0.0})


def test_loss_weights_update_those_of_the_config(tmp_path):
    (tmp_path / "base.yaml").write_text("loss_weights: {oppo: 0, norm: 0}\n")
    args = parse(tmp_path, "base: base.yaml\nloss_weights: {ml: 0}\n", "--loss-weights", "oppo=0.5")
    assert args.loss_weights == {"oppo": 0.5, "norm": 0.0, "ml": 0.0}


def test_the_command_line_switches_a_true_of_the_config_off(tmp_path):
    assert parse(tmp_path, "evaluate_untrained: true\n").evaluate_untrained is True
    assert parse(tmp_path, "evaluate_untrained: true\n", "--no-evaluate-untrained").evaluate_untrained is False


def test_options_of_older_runs_keep_their_meaning(tmp_path):
    args = parse(tmp_path, "model: audio_visual\npseudo_neighbours: 2\n")
    assert (args.method, args.pseudo_neighbors) == ("audio_visual", 2)
    complete = complete_options({"model": "audio_visual", "lr": 0.1})
    assert (complete["method"], complete["lr"], complete["localization"]) == ("audio_visual", 0.1, "two_stage")
    assert complete["consensus"] == "cross_attention"


def test_a_missing_config_lists_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--config", "configs/thumos.yaml", "--path-dataset", "DIR"])
    printed = capsys.readouterr().err
    assert "configs/thumos.yaml: not found" in printed
    assert "configs/thumos14.yaml" in printed


def test_every_kind_of_value_from_yaml(tmp_path):
    args = parse(
        tmp_path,
        "modalities: [rgb, rgb_diff]\nevaluate_untrained: true\nloss_weights: {mil: 1, cas: 0}\nprecision: bf16\n",
    )
    assert args.modalities == ["rgb", "rgb_diff"]
    assert args.evaluate_untrained is True
    assert args.loss_weights == {"mil": 1.0, "cas": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr: 3", "unknown option 'lrr'"),
        ("resume: true", "unknown option 'resume'"),
        ("lr: fast", "'fast' is not a number above 0"),
        ("lr: -1", "'-1' is not a number above 0"),
        ("lr: .nan", "is not a number above 0"),
        ("lr: [1, 2]", "expected a single value"),
        ("lr:", "expected a single value"),
        ("seed: 1.5", "a whole number from 0"),
        ("max_iter: 0", "at least 1"),
        ("precision: fp8", "invalid choice: 'fp8'"),
        ("modalities: rgb", "takes 2 modalities"),
        ("modalities: [rgb]", "takes 2 modalities"),
        ("evaluate_untrained: 1", "expected true or false"),
        ("loss_weights: {mul: 1}", "unknown loss term mul"),
        ("loss_weights: {mil: much}", "expected TERM=NUMBER"),
        ("loss_weights: {mil: -1}", "expected TERM=NUMBER"),
        ("loss_weights: {mil: .nan}", "expected TERM=NUMBER"),
        ("loss_weights: {mil: 0, cas: 0, ml: 0, oppo: 0, norm: 0}", "at least one term must be left"),
        ("batch_size: 4", "too small for --num-pairs 3"),
        ("modalities: [rgb, rgb]", "each modality may appear once"),
        ("compile: 3", "expected true or false"),
        ("max_iter: true", "expected one argument"),
        ("- lr", "option: value"),
        ("lr: [", "not a YAML file"),
        ('base: "a\\0b"', "is not a file name"),
        ("base: config.yaml", "configs name each other as base"),
        ("base: absent.yaml", "absent.yaml: not found; expected a YAML file such as "),
    ],
)
def test_a_wrong_config_is_one_line(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as stop:
        parse(tmp_path, text)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--path-dataset is missing"),
        (["--path-dataset", "DIR", "--dataset", "kinetics"], "dataset 'kinetics' has no published train_subset"),
        (["--path-dataset", "DIR", "--loss-weights", "oppo"], "got 'oppo'"),
        (["--path-dataset", "DIR", "--seed", "-1"], "a whole number from 0"),
        (["--path-dataset", "DIR", "--seed", str(2**63)], "a whole number from 0"),
        (["--path-dataset", "DIR", "--color", "red"], "unrecognized arguments: --color red"),
        (
            ["--method", "audio_visual", "--mutual", "kl"],
            "--mutual has no effect with --method audio_visual; leave it out",
        ),
        (["--temporal-pool", "4"], "'4' is not `dataset`, `none` or an odd number of snippets"),
        (["configs/demo.yaml"], "did you mean --config configs/demo.yaml?"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        parse_args(argv)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_names_its_command(config):
    args = parse_args(["--config", str(config), "--path-dataset", "DIR"])
    assert args.run_dir == f"runs/{config.stem}_s0"
    assert f"configs/{config.name}" in config.read_text() or "scripts/train.sh" in config.read_text()


def test_a_runs_options_are_a_config(tmp_path):
    args = parse(tmp_path, "lr: 3e-4\nmodalities: [rgb, rgb_diff]\n", "--loss-weights", "oppo=0")
    kept = tmp_path / "options.yaml"
    for options in (args, parse(tmp_path, "lr: 1e-3\n")):  # with and without loss weights of its own
        kept.write_text(yaml.safe_dump(run_options(options)))
        again = parse_args(["--config", str(kept)])
        assert run_options(again) == run_options(options)


def test_published_settings():
    thumos, activitynet = (
        parse_args(["--config", str(config), "--path-dataset", "DIR"])
        for config in (CONFIGS[0].parent / "thumos14.yaml", CONFIGS[0].parent / "activitynet12.yaml")
    )
    assert (thumos.lr, thumos.weight_decay, thumos.num_snippets, thumos.topk_ratio) == (5e-5, 1e-3, 500, 7)
    assert (thumos.max_iter, thumos.eval_every, thumos.batch_size, thumos.num_pairs) == (5000, 200, 10, 3)
    assert (activitynet.lr, activitynet.weight_decay, activitynet.num_snippets) == (3e-5, 5e-4, 60)
    assert (activitynet.max_iter, activitynet.topk_ratio) == (22000, 5)


def test_released_checkpoint_takes_a_config():
    argv = ["--checkpoint", "best.pkl", "--path-dataset", "DIR", "--output-dir", "OUT"]
    assert parse_test_args(argv).options is None
    args = parse_test_args([*argv, "--config", str(CONFIGS[0].parent / "thumos14.yaml")])
    assert args.options.dataset == "thumos14"
