"""What the user asked for: command line over a YAML config over defaults.

An option has one name: `--weight-decay 1e-3` on the command line, `weight_decay: 1e-3` in YAML and in the
namespace. A config may name another one to start from (`base: thumos14.yaml`) and then only lists what differs.
"""

import argparse
from pathlib import Path

from eval.proposals import LOCALIZATIONS
from utils.datasets import DATASETS
from utils.errors import InputError, OneLineParser, shorten
from utils.formats.files import read_yaml
from utils.fusion import CONSENSUS
from utils.losses import SIMILARITIES
from utils.methods import METHODS
from utils.methods.audio_visual import CLASSIFIERS

NOT_IN_CONFIG = ("help", "config", "base", "resume")
FREE_ON_RESUME = ("run_dir", "path_dataset", "max_iter", "device", "cache", "skip_nonfinite", "compile")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names the default of every option that has one worth naming."""

    def _get_help_string(self, action: argparse.Action) -> str:
        plain = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return action.help if plain else super()._get_help_string(action)


class _LossWeights(argparse.Action):
    """`mil=1 oppo=0` -> {"mil": 1.0, "oppo": 0.0}; which names there are, the model says."""

    def __call__(self, parser, namespace, values, option_string=None):
        weights = {}
        for item in values:
            name, _, number = item.partition("=")
            try:
                weights[name] = _nonnegative(number)
            except argparse.ArgumentTypeError:
                parser.error(f"{option_string}: '{item}' is not NAME=NUMBER of at least 0, as in oppo=0.8")
        setattr(namespace, self.dest, weights)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of a training run; a wrong one ends the program with one line and status 2."""
    parser = _train_parser()
    first, _ = parser.parse_known_args(argv)
    if first.config:
        parser.set_defaults(**_read_config(parser, Path(first.config), base=first.base))
    elif first.base:
        parser.error("--base is what a config starts from; give the config too")
    args = _resolved(parser.parse_args(argv))
    _check_method(parser, args)
    if args.path_dataset is None:
        parser.error("--path-dataset is missing: the folder with annotations.json and the features")
    if args.run_dir is None:
        name = Path(args.config).stem if args.config else args.dataset
        name += f"_on_{Path(args.base).stem}" if args.base else ""
        args.run_dir = f"runs/{name}_s{args.seed}"
    if args.batch_size < 2 * args.num_pairs:
        parser.error(f"--batch-size is {args.batch_size}, too small for --num-pairs {args.num_pairs}")
    return args


def run_options(args: argparse.Namespace) -> dict:
    """What is kept of a run's options: all but how they were given, so that the file is itself a config."""
    return {name: value for name, value in vars(args).items() if name not in NOT_IN_CONFIG}


def default_options() -> dict:
    """What every option is unless something says otherwise: what a run had that was begun before the option was."""
    return vars(_resolved(_train_parser().parse_args([])))


def _resolved(args: argparse.Namespace) -> argparse.Namespace:
    """The same with the method's own choice where none was made."""
    method = METHODS[args.model]
    args.consensus, args.localization = args.consensus or method.consensus, args.localization or method.localization
    return args


def _check_method(parser: OneLineParser, args: argparse.Namespace) -> None:
    """What depends on the model, wherever it was said."""
    method = METHODS[args.model]
    if len(args.modalities) not in method.modalities:
        expected = " or ".join(map(str, method.modalities))
        parser.error(f"modalities are {' '.join(args.modalities)}; --model {args.model} takes {expected}")
    try:
        if not any(method.criterion.resolve_weights(args.loss_weights).values()):
            parser.error("loss_weights: no term is left to train with")
    except ValueError as error:
        parser.error(f"loss_weights of --model {args.model}: {error}")


def network_options(args: argparse.Namespace) -> dict:
    """Those arguments of the method's network that are options."""
    shared = {"consensus": args.consensus, "stages": args.stages}
    if args.model == "audio_visual":
        return {**shared, "classifier": args.classifier}
    pooled = args.temporal_pool == "dataset"
    return {
        **shared,
        "temporal_pool": DATASETS[args.dataset].temporal_pool(args.num_snippets) if pooled else None,
        "attention_logit_dropout": args.attention_logit_dropout,
    }


def loss_options(args: argparse.Namespace) -> dict:
    """The arguments of the method's objective."""
    shared = {"topk_ratio": args.topk_ratio, "weights": args.loss_weights}
    if args.model == "audio_visual":
        names = ("continuity_sigma", "continuity_stop_gradient", "pseudo_neighbors", "pseudo_threshold")
        return {**shared, **{name: getattr(args, name) for name in names}}
    return {**shared, "shifted_suppression": args.suppression == "shifted", "mutual": args.mutual}


def resume_options(args: argparse.Namespace) -> dict:
    """Those options that a resumed run must share; with others it would be another run."""
    return {name: value for name, value in run_options(args).items() if name not in FREE_ON_RESUME}


def parse_test_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of test.py; the rest of a run's options come with its checkpoint."""
    parser = OneLineParser(
        prog="test.py",
        description="Localize and score with a trained checkpoint: a table of every protocol, metrics.json, "
        "detections.json (ActivityNet submission form, in seconds) and a picture of a few videos.",
        formatter_class=_Help,
    )
    parser.add_argument(
        "--checkpoint", required=True, help="a run's best.pt or last.pt, or a released .pkl (with --config)"
    )
    parser.add_argument("--path-dataset", required=True, help="folder with annotations.json and the features")
    parser.add_argument("--output-dir", required=True, help="where metrics.json and detections.json go")
    parser.add_argument("--config", help="options of a released .pkl, which holds none, e.g. configs/thumos14.yaml")
    parser.add_argument(
        "--missing-features", choices=("error", "skip"), help="annotated videos without features (default: as trained)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    args = parser.parse_args(argv)
    args.options = None
    if args.config:
        args.options = parse_args(["--config", args.config, "--path-dataset", args.path_dataset])
    return args


def _train_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="main.py",
        description="Train from video-level labels, evaluate, and keep everything about the run in one "
        "folder. Start from a config: python main.py --config configs/demo.yaml --path-dataset data/demo",
        formatter_class=_Help,
    )
    run = parser.add_argument_group("run")
    run.add_argument("--config", help="YAML file of options; the command line wins over it")
    run.add_argument("--base", metavar="FILE", help="config to start from, in place of the `base` that --config names")
    run.add_argument("--run-dir", help="folder of the run (default: runs/CONFIG_sSEED)")
    run.add_argument("--resume", action="store_true", help="continue the run in --run-dir if there is one")
    run.add_argument("--seed", type=_seed, default=0, help="of weights, batches and dropout")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if any")
    run.add_argument(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help="of the training step; bf16 is autocast. Evaluation is always float32, on a GPU with TF32 convolutions",
    )
    run.add_argument(
        "--compile",
        action="store_true",
        help="the training step through torch.compile, on a GPU as CUDA graphs; for a GPU, and for long runs",
    )

    data = parser.add_argument_group("data")
    data.add_argument("--path-dataset", help="folder with annotations.json and the features")
    data.add_argument(
        "--dataset", choices=tuple(DATASETS), default="thumos14", help="subsets, thresholds and rules to use"
    )
    data.add_argument(
        "--modalities",
        nargs="+",
        default=["rgb", "flow"],
        metavar="NAME",
        help="feature streams, two or (audio_visual) one; NAME_diff is the change of stream NAME between snippets",
    )
    data.add_argument(
        "--missing-features",
        choices=("error", "skip"),
        default="error",
        help="what to do about annotated videos without features; skip leaves out their ground truth too",
    )
    data.add_argument(
        "--cache",
        choices=("host", "device", "none"),
        default="host",
        help="where features are kept: in main memory, those to train on on the device, or nowhere: they are read from "
        "disk for every batch, only what it needs",
    )
    data.add_argument(
        "--open-shards",
        type=_natural,
        default=0,
        metavar="K",
        help="of sharded features, draw batches from K shards at a time, all of them in turn; 0: from all at once",
    )
    data.add_argument(
        "--holdout",
        type=_fraction,
        default=0.0,
        metavar="FRACTION",
        help="of the training videos, held out to choose a checkpoint (selected.pt) by video-level labels alone",
    )

    training = parser.add_argument_group("training (Section 4.2)")
    training.add_argument("--max-iter", type=_positive_int, default=5000, help="iterations to train for")
    training.add_argument("--eval-every", type=_positive_int, default=200, help="iterations between evaluations")
    training.add_argument("--batch-size", type=_positive_int, default=10, help="videos in a batch")
    training.add_argument("--num-pairs", type=_natural, default=3, help="pairs of them that share a class")
    training.add_argument("--num-snippets", type=_positive_int, default=500, help="snippets sampled a video")
    training.add_argument("--lr", type=_positive, default=5e-5, help="Adam's learning rate")
    training.add_argument("--weight-decay", type=_nonnegative, default=1e-3, help="Adam's weight decay")
    training.add_argument(
        "--skip-nonfinite",
        type=_natural,
        default=0,
        metavar="N",
        help="steps whose loss or gradient is not finite that are left out before the run stops",
    )
    training.add_argument(
        "--evaluate-untrained",
        action="store_true",
        help="also evaluate before the first step, for the end table",
    )

    method = parser.add_argument_group("method")
    method.add_argument(
        "--model", choices=tuple(METHODS), default="co2net", help="CO2-Net, or the audio-visual paper's network"
    )
    method.add_argument("--topk-ratio", type=_positive_int, default=7, help="top-k MIL takes T // RATIO snippets")
    method.add_argument(
        "--loss-weights",
        nargs="+",
        action=_LossWeights,
        default={},
        metavar="TERM=WEIGHT",
        help="terms that differ from mil=1 cas=1 ml=1 oppo=0.8 norm=0.8 (audio_visual: mil=1 cas=0.8 cont=0.8 pseu=1); "
        "0 removes a term",
    )
    method.add_argument(
        "--consensus",
        choices=CONSENSUS,
        help="what enhances the modalities: CCM, descriptor pairs of Table 5, fusions of Table 6, cross attention "
        "(default: ccm; audio_visual: cross_attention)",
    )
    method.add_argument("--stages", type=_natural, default=2, help="of the cross attention; 0 is plain concatenation")
    method.add_argument(
        "--localization",
        choices=tuple(LOCALIZATIONS),
        help="how T-CAM and attention become detections (default: outer_inner, CO2-Net's; audio_visual: two_stage)",
    )

    method = parser.add_argument_group("CO2-Net (its Sections 3.4 and 3.5)")
    method.add_argument(
        "--suppression",
        choices=("shifted", "product"),
        default="shifted",
        help="suppressed T-CAM in training: as in the release, or the paper's Eq. 9",
    )
    method.add_argument(
        "--attention-logit-dropout",
        type=_fraction,
        default=0.5,
        help="dropout on the attention logit; 0.5 as in the release, 0 as in the paper",
    )
    method.add_argument(
        "--temporal-pool",
        choices=("dataset", "none"),
        default="dataset",
        help="average pool over time where the dataset has one in the release (ActivityNet1.2), or the paper's none",
    )
    method.add_argument(
        "--mutual", choices=tuple(SIMILARITIES), default="mse", help="similarity function of L_ml (Table 4)"
    )

    method = parser.add_argument_group("audio_visual; the paper leaves all but the first open (docs/audio_visual.md)")
    method.add_argument("--classifier", choices=CLASSIFIERS, default="openmax", help="Eq. 5, or that of Table 2, S-I")
    method.add_argument("--continuity-sigma", type=_positive, default=1.0, help="of L_cont's window, in snippets")
    method.add_argument(
        "--continuity-stop-gradient", action="store_true", help="take the smoothed sequences of L_cont as fixed targets"
    )
    method.add_argument("--pseudo-neighbors", type=_natural, default=4, help="N of L_pseu, an even number")
    method.add_argument("--pseudo-threshold", type=_up_to_one, default=0.7, help="tau of L_pseu")
    return parser


def _read_config(parser: OneLineParser, path: Path, seen: tuple[Path, ...] = (), base: str | None = None) -> dict:
    """The options of a YAML file over those of its `base`, each checked as if given on the command line.

    A `base` given here, from the working directory, takes the place of the file's own.
    """
    if path in seen:
        parser.error(f"{path}: configs name each other as base")
    values = _load_yaml(parser, path)
    own_base = values.pop("base", None)
    start = Path(base) if base else path.parent / str(own_base) if own_base is not None else None
    options = _read_config(parser, start, (*seen, path)) if start else {}
    actions = {action.dest: action for action in parser._actions if action.dest not in NOT_IN_CONFIG}
    for key, value in values.items():
        if key not in actions:
            parser.error(f"{path}: unknown option '{key}'; options are: {', '.join(sorted(actions))}")
        options[key] = _checked(parser, actions[key], value, path)
    return options


def _load_yaml(parser: OneLineParser, path: Path) -> dict:
    try:
        values = read_yaml(path)
    except InputError as error:
        parser.error(str(error))
    if not isinstance(values, dict):
        parser.error(f"{path}: expected a list of 'option: value' lines")
    return values


def _checked(parser: OneLineParser, action: argparse.Action, value: object, path: Path) -> object:
    """One YAML value, brought to the option's type by the command line's own rules."""
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            parser.error(f"{path}: {action.dest} is {shorten(value)}, expected true or false")
        return value
    if isinstance(action, _LossWeights):
        value = [f"{name}={weight}" for name, weight in value.items()] if isinstance(value, dict) else value
        if value == []:  # as options.yaml of a run with the published weights has it
            return {}
    many = action.nargs is not None
    if many != isinstance(value, list) or value is None:
        expected = "a list" if many else "a single value"
        parser.error(f"{path}: {action.dest} is {shorten(value)}, expected {expected}")
    words = [str(item) for item in value] if many else [str(value)]
    checker = OneLineParser(prog=parser.prog, add_help=False)
    checker.error = lambda message: parser.error(f"{path}: {message}")
    checker._add_action(action)
    # "--name=value" so that a value with a leading minus is a value
    argv = [action.option_strings[0], *words] if many else [f"{action.option_strings[0]}={words[0]}"]
    return getattr(checker.parse_args(argv), action.dest)


def _number(kind: type, text: str, holds, expected: str):
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None
    if not holds(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def _positive_int(text: str) -> int:
    return _number(int, text, lambda x: x >= 1, "a whole number of at least 1")


def _natural(text: str) -> int:
    return _number(int, text, lambda x: x >= 0, "a whole number of at least 0")


def _seed(text: str) -> int:
    return _number(int, text, lambda x: 0 <= x < 2**63, "a whole number from 0 to 2^63 - 1")


def _positive(text: str) -> float:
    return _number(float, text, lambda x: 0 < x < float("inf"), "a number above 0")


def _nonnegative(text: str) -> float:
    return _number(float, text, lambda x: 0 <= x < float("inf"), "a number of at least 0")


def _up_to_one(text: str) -> float:
    return _number(float, text, lambda x: 0 <= x <= 1, "a number in [0, 1]")


def _fraction(text: str) -> float:
    return _number(float, text, lambda x: 0 <= x < 1, "a number in [0, 1)")
