"""Options: the command line over a YAML config over defaults.

An option has one name: `--weight-decay 1e-3` on the command line, `weight_decay: 1e-3` in YAML and in the namespace.
A config is a command line written down, and goes through the same parser. It may name another config to start from
(`base: thumos14.yaml`) and then lists only what differs.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eval.localizations import LOCALIZATIONS, add_localization_options, check_localization
from utils.config_parser import NOT_IN_CONFIG, OLD_NAMES, ConfigParser, DefaultsHelp, UpdateWeights
from utils.datasets import DATASETS, dataset_options, dataset_spec, parse_range
from utils.errors import InputError, OneLineParser
from utils.fusion import CONSENSUS
from utils.methods import METHODS, arguments_of
from utils.number_types import (
    feature_scale,
    fraction_below_one,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_fraction,
    positive_int,
    seed,
)
from utils.sampler import SAMPLINGS

FREE_ON_RESUME = (  # options that may change on --resume
    "run_dir",
    "path_dataset",
    "max_iter",
    "device",
    "cache",
    "skip_nonfinite",
    "compile",
    "pseudo_labels",  # the path; checkpoints have the digest of the content
    "save_outputs",
)
DEFAULTS = {"topk_ratio": 7}  # options for which a method may define another default
ANY_RECIPE_HELP = "accept features of another recipe than those of the training (default: refuse them)"
SAVE_OUTPUTS = {
    "choices": ("none", "test"),
    "default": "test",
    "help": "videos whose T-CAM and attention to write to outputs.h5, for the curves of the report: the test videos "
    "(test), or none, which also saves torchrun from collecting them (none)",
}
BOOLEAN = argparse.BooleanOptionalAction


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the options of a training run. A wrong option ends the program with one line and status 2.

    Args:
        argv: Command line; that of the process by default.
    """
    parser = ConfigParser(
        prog="main.py",
        description="Train from video-level labels, evaluate, and write everything about the run into one folder. "
        "Start from a config: python main.py --config configs/demo.yaml --path-dataset data/demo",
        formatter_class=DefaultsHelp,
    )
    _add_train_options(parser)
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", nargs="?")
    config_parser.add_argument("--base", nargs="?")
    configs, _ = config_parser.parse_known_args(argv)
    args = argparse.Namespace()
    if configs.config:
        parser.apply_config(args, Path(configs.config), Path(configs.base) if configs.base else None)
    elif configs.base:
        parser.error("--base replaces the base of a config; give --config too")
    return _checked(parser, _with_defaults(parser.parse_args(argv, args)))


def parse_test_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the options of test.py. The options of the run come from its checkpoint, or from `--config`."""
    parser = OneLineParser(
        prog="test.py",
        description="Localize and score with a trained checkpoint. Writes a table of every protocol, metrics.json, "
        "detections.json (ActivityNet submission format, in seconds) and a picture of a few videos.",
        formatter_class=DefaultsHelp,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        nargs="+",
        metavar="FILE",
        help="best.pt or last.pt of a run, or a released .pkl (with --config); several: their outputs are averaged",
    )
    add("--path-dataset", required=True, help="folder with annotations.json and the features")
    add("--output-dir", required=True, help="folder for metrics.json, detections.json and the picture")
    add(
        "--config",
        help="config with the options of the run, e.g. configs/thumos14.yaml; needed for a released .pkl, and "
        "replaces the options stored in other checkpoints",
    )
    add("--subset", metavar="NAME", help="subset to localize, and to score if it has segments (default: as trained)")
    add(
        "--missing-features",
        choices=("error", "skip"),
        help="treatment of annotated videos without features: stop (error), or leave them out (skip; default: as in "
        "training)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device; auto: the GPU if there is one")
    add("--any-recipe", action="store_true", help=ANY_RECIPE_HELP)
    add("--save-outputs", **SAVE_OUTPUTS)
    add_localization_options(parser, trained=True)
    args = parser.parse_args(argv)
    args.options = None
    if args.config:
        args.options = parse_args(["--config", args.config, "--path-dataset", args.path_dataset])
    return args


def run_options(args: argparse.Namespace) -> dict:
    """Return the options to save with a run, a valid config: without NOT_IN_CONFIG, and without those of no value."""
    return {name: value for name, value in vars(args).items() if name not in NOT_IN_CONFIG and value is not None}


def resume_options(args: argparse.Namespace) -> dict:
    """Return the options that a resumed run must share with the saved one."""
    return {name: value for name, value in run_options(args).items() if name not in FREE_ON_RESUME}


def complete_options(saved: Mapping[str, object]) -> dict:
    """Return the saved options of a run of any version, with today's names, and defaults for new options."""
    parser = ConfigParser()
    _add_train_options(parser)
    renamed = {OLD_NAMES.get(name, str(name)): value for name, value in saved.items()}
    args = argparse.Namespace(**{**vars(parser.parse_args([])), **renamed})
    if args.method in tuple(METHODS) and args.localization in (None, *LOCALIZATIONS):
        args = _with_defaults(args)
        check_localization(vars(args))
    return vars(args)


def method_options(args: argparse.Namespace) -> dict:
    """Return the options of the method as `utils.methods.build_method` takes them."""
    pool = None if args.temporal_pool == "none" else args.temporal_pool
    if pool == "dataset":
        pool = dataset_spec(vars(args)).temporal_pool(args.num_snippets)
    options = {**vars(args), "weights": args.loss_weights, "temporal_pool": pool}
    return {name: options[name] for name in METHODS[args.method].options() if name in options}


def _range(text: str) -> str:
    try:
        parse_range(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of tIoU such as 0.1:0.7") from None
    return text


def _with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    definition = METHODS[args.method]
    args.consensus = args.consensus or definition.consensus
    args.localization = args.localization or definition.localization
    for name, value in dataset_options(args.dataset).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    defaults = dict(DEFAULTS)
    for localization in (*reversed(LOCALIZATIONS), args.localization):  # its own values come last
        defaults |= LOCALIZATIONS[localization].settings()
    for name, value in {**defaults, **definition.defaults}.items():
        if getattr(args, name) is None:
            setattr(args, name, np.asarray(value).tolist())
    return args


def _options_of_methods() -> set[str]:
    """Return the names of the options that the methods add."""
    names: set[str] = set()
    for definition in METHODS.values():
        parser = argparse.ArgumentParser(add_help=False)
        definition.add_options(parser)
        names |= set(vars(parser.parse_args([])))
    return names


def _checked(parser: OneLineParser, args: argparse.Namespace) -> argparse.Namespace:
    """Check combinations of options, and name the run folder."""
    definition = METHODS[args.method]
    if len(args.modalities) not in definition.num_modalities:
        expected, first = " or ".join(map(str, definition.num_modalities)), args.modalities[0]
        parser.error(
            f"--method {args.method} takes {expected} modalities, --modalities {' '.join(args.modalities)} has "
            f"{len(args.modalities)}; for a single stream, use --modalities {first} {first}_diff"
        )
    if args.localization not in definition.localizations:
        accepted = " or ".join(definition.localizations)
        parser.error(f"--method {args.method} takes --localization {accepted}, not {args.localization}")
    if len(set(args.modalities)) < len(args.modalities):
        parser.error(f"--modalities {' '.join(args.modalities)}: each modality may appear once")
    for name in _options_of_methods() - definition.options():
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} has no effect with --method {args.method}; leave it out")
    if args.pseudo_labels and not definition.has_background:
        parser.error(
            f"--pseudo-labels needs a background class, which --method {args.method} does not have; leave it out"
        )
    try:
        dataset_spec(vars(args))
    except InputError as error:
        parser.error(str(error))
    try:
        definition.objective(**arguments_of(definition.objective, method_options(args)))
    except ValueError as error:
        parser.error(f"--method {args.method}: {error}")
    if args.path_dataset is None:
        parser.error("--path-dataset is missing: the folder with annotations.json and the features")
    if args.batch_size < 2 * args.num_pairs:
        parser.error(f"--batch-size {args.batch_size} is too small for --num-pairs {args.num_pairs}")
    if args.run_dir is None:
        name = Path(args.config).stem if args.config else args.dataset
        name += f"_on_{Path(args.base).stem}" if args.base else ""
        args.run_dir = f"runs/{name}_s{args.seed}"
    return args


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--config", help="YAML file of options; options on the command line override it")
    add("--base", metavar="FILE", help="config to start from, instead of the `base` that the config names")
    add("--run-dir", help="folder of the run (default: runs/CONFIG_sSEED)")
    add("--resume", action=BOOLEAN, default=False, help="continue the run in --run-dir, if there is one")
    add("--seed", type=seed, default=0, help="random seed for weights, batches and dropout")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device; auto: the GPU if there is one")
    add(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help="precision of the training step; bf16 is autocast. Evaluation is always float32 (TF32 convolutions on a "
        "GPU)",
    )
    add(
        "--compile",
        action=BOOLEAN,
        default=False,
        help="run the training step through torch.compile, with CUDA graphs on a GPU; pays off for long GPU runs",
    )

    add = parser.add_argument_group("data").add_argument
    add("--path-dataset", help="folder with annotations.json and the features")
    add(
        "--dataset",
        default="thumos14",
        metavar="NAME",
        help=f"name of the dataset; {', '.join(DATASETS)} have published values of the next six options",
    )
    add("--train-subset", metavar="NAME", help="subset of the annotations to train on")
    add("--test-subset", metavar="NAME", help="subset of the annotations to test on")
    add(
        "--tiou-thresholds",
        nargs="+",
        type=positive_fraction,
        metavar="TIOU",
        help="thresholds of mAP@tIoU (default: the dataset's, else 0.1 0.2 ... 0.9)",
    )
    add(
        "--average-ranges",
        nargs="+",
        type=_range,
        metavar="LOW:HIGH",
        help="ranges of tIoU whose mAP is averaged in tables; the first one selects the best checkpoint, unless the "
        "dataset's own is among them (default: the dataset's, else 0.1:0.5 0.1:0.7 0.1:0.9)",
    )
    add(
        "--snippet-rate",
        type=positive_float,
        metavar="HZ",
        help="snippets per second of features that do not store their rate (default: the dataset's, else 25 / 16)",
    )
    add(
        "--min-snippets",
        type=positive_int,
        metavar="N",
        help="leave out videos with fewer snippets (default: the dataset's, else 1)",
    )
    add(
        "--modalities",
        nargs="+",
        default=["rgb", "flow"],
        metavar="NAME",
        help="feature streams, two for CO2-Net; NAME_diff is the change of stream NAME between snippets",
    )
    add(
        "--feature-scale",
        type=feature_scale,
        default=1.0,
        metavar="NUMBER|auto",
        help="factor of all features, in training and testing; auto: gives the training features a root mean square "
        "of 0.2",
    )
    add(
        "--missing-features",
        choices=("error", "skip"),
        default="error",
        help="treatment of annotated videos without features: stop (error), or leave out the videos and their ground "
        "truth (skip)",
    )
    add(
        "--cache",
        choices=("host", "device", "none"),
        default="host",
        help="memory of the features: main memory (host); the device, for training features (device); or none, each "
        "batch is read from disk (none)",
    )
    add(
        "--open-shards",
        type=non_negative_int,
        default=0,
        metavar="K",
        help="number of feature shards to draw batches from at a time; 0: all of them",
    )
    add(
        "--holdout",
        type=fraction_below_one,
        default=0.0,
        metavar="FRACTION",
        help="fraction of the training videos to hold out; they select selected.pt by video-level labels alone",
    )

    add = parser.add_argument_group("training (Section 4.2)").add_argument
    add("--max-iter", type=positive_int, default=5000, help="number of iterations")
    add("--eval-every", type=positive_int, default=200, help="iterations between evaluations")
    add("--batch-size", type=positive_int, default=10, help="videos per batch")
    add("--num-pairs", type=non_negative_int, default=3, help="pairs of videos per batch that share a class")
    add("--num-snippets", type=positive_int, default=500, help="snippets sampled per video")
    add(
        "--sampling",
        choices=tuple(SAMPLINGS),
        default="stratified",
        help="sampling of the snippets of a training video: one from each of equal parts (stratified), or from parts "
        "that overlap, as in the release (release)",
    )
    add("--lr", type=positive_float, default=5e-5, help="learning rate of Adam")
    add("--weight-decay", type=non_negative_float, default=1e-3, help="weight decay of Adam")
    add(
        "--skip-nonfinite",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="number of steps with a loss or gradient that is not finite to skip before the run stops",
    )
    add("--evaluate-untrained", action=BOOLEAN, default=False, help="also evaluate before the first step")
    add("--save-outputs", **SAVE_OUTPUTS)
    add(
        "--ema",
        type=fraction_below_one,
        default=0.0,
        metavar="DECAY",
        help="decay of an exponential moving average of the weights, which is evaluated and saved in their place; 0: "
        "no average",
    )
    add(
        "--pseudo-labels",
        metavar="FILE",
        help="pseudo labels of the training snippets, from scripts/pseudo_labels.py; adds their loss to the objective",
    )
    add("--pseudo-weight", type=positive_float, default=1.0, help="weight of the loss of the pseudo labels")

    add = parser.add_argument_group("method").add_argument
    add("--method", "--model", choices=tuple(METHODS), default="co2net", help="method to train")
    add(
        "--topk-ratio",
        type=positive_int,
        metavar="RATIO",
        help="divisor of T in top-k MIL: k = T // RATIO snippets (default: 7; hamnet: 10; um: 9)",
    )
    add(
        "--loss-weights",
        nargs="+",
        action=UpdateWeights,
        default={},
        metavar="TERM=WEIGHT",
        help="weights of loss terms to change; the other terms have the weight of the config or the published one "
        "(docs/co2net.md, docs/methods.md); 0 removes a term",
    )
    add(
        "--consensus",
        choices=tuple(CONSENSUS),
        help="module that enhances the modalities: the CCM, or an alternative of Table 5 or 6 (default: ccm; "
        "audio_visual: cross_attention)",
    )
    add(
        "--stages",
        type=non_negative_int,
        default=2,
        help="stages of `--consensus cross_attention`; 0: plain concatenation",
    )
    add(
        "--localization",
        choices=tuple(LOCALIZATIONS),
        help="localization from T-CAM and attention (default: outer_inner, CO2-Net's; audio_visual: two_stage; um: um)",
    )
    add_localization_options(parser)
    for definition in METHODS.values():
        definition.add_options(parser)
