"""Train a second stage (P-MIL) on the proposals of a finished run, or of detection files.

python scripts/second_stage.py --run runs/NAME
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

import numpy as np
import torch

from eval.detection_formats import read_detections, write_detections
from eval.proposals import FRACTIONAL
from eval.tables import Table
from options import ANY_RECIPE_HELP, parse_args, run_options
from utils.checkpoint import has_training_state, read_checkpoint, save_checkpoint
from utils.datasets import dataset_spec
from utils.engine import Evaluation, Evaluator, VideoResult
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.features.index import open_dataset
from utils.features.recipes import RECIPE, require_recipe
from utils.number_types import non_negative_float, positive_float, positive_int, seed
from utils.optimizer import FusedAdam
from utils.results import print_results, write_results
from utils.run import RunFolder, RunLog
from utils.run.devices import choose_device, memory_advice
from utils.run.random_states import seed_everything
from utils.second_stage.pmil import PMILLoss, ProposalNet, fuse_modalities, localize_proposals, proposal_scores
from utils.second_stage.proposals import ProposalVideos, proposals_by_video, propose
from utils.segments import seconds_to_snippets
from utils.subsets import open_subsets
from utils.trained import load_method, stored_options, stored_scale

FILES = ("proposals_train.json", "proposals_test.json")  # of the run folder
LOWEST = 1e-6  # probability in the T-CAM of the pictures


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_second_stage_args(argv)
    run_dir = Path(args.run_dir)
    if has_training_state(run_dir / "checkpoints"):
        raise InputError(f"{run_dir}: already has a run; choose another --run-dir")
    with RunFolder(run_dir, {}, False, dict) as folder, memory_advice("lower --batch-size, or use --device cpu"):
        run(args, folder)


def parse_second_stage_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. A wrong option ends the program with one line and status 2."""
    parser = OneLineParser(
        prog="scripts/second_stage.py",
        description="Train P-MIL, which classifies and ranks the proposals of a first stage, and evaluate it. The "
        "first stage is a finished run (--run), or two detection files (--proposals-train and --proposals-test, with "
        "--config). The results are a run folder, as of main.py, and the proposals in it.",
    )
    add = parser.add_argument_group("first stage").add_argument
    add("--run", type=Path, metavar="RUN", help="folder of a finished run, whose last checkpoint makes the proposals")
    add("--proposals-train", metavar="FILE", help="detection file with the proposals of the training videos")
    add("--proposals-test", metavar="FILE", help="detection file with those of the test videos")
    add("--config", metavar="FILE", help="config of the dataset and its modalities, for detection files")
    add("--path-dataset", metavar="DIR", help="folder with annotations.json and the features (default: as in the run)")
    add("--any-recipe", action="store_true", help=ANY_RECIPE_HELP)
    add(
        "--drop-duplicates",
        action="store_true",
        help="drop the repeated proposals of a video (default: keep them, as P-MIL's release)",
    )
    add = parser.add_argument_group("second stage").add_argument
    add("--run-dir", metavar="DIR", help="folder to write (default: RUN_pmil_sSEED, or runs/CONFIG_pmil_sSEED)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device; auto: the GPU if there is one")
    add("--max-iter", type=positive_int, metavar="NUMBER", help="largest number of steps (default: all of --epochs)")
    numbers = {
        "--seed": (seed, 0, "random seed for weights, batches and dropout"),
        "--epochs": (positive_int, 200, "passes over the training videos"),
        "--eval-every": (positive_int, 10, "epochs between evaluations"),
        "--batch-size": (positive_int, 10, "videos per batch"),
        "--max-proposals": (positive_int, 1000, "proposals per video and step; a random choice if a video has more"),
        "--lr": (positive_float, 5e-5, "learning rate of Adam"),
        "--weight-decay": (non_negative_float, 1e-3, "weight decay of Adam"),
    }
    for name, (kind, default, text) in numbers.items():
        add(name, type=kind, default=default, metavar="NUMBER", help=f"{text} (default: {default:g})")
    args = parser.parse_args(argv)
    from_files = [args.proposals_train, args.proposals_test, args.config, args.path_dataset]
    if args.run and any(from_files[:3]):
        parser.error("--run makes the proposals itself; leave out --proposals-train, --proposals-test and --config")
    if not args.run and not all(from_files):
        parser.error("expected --run RUN, or all of --proposals-train, --proposals-test, --config and --path-dataset")
    stem = args.run or Path("runs") / Path(args.config).stem
    args.run_dir = args.run_dir or f"{stem}_pmil_s{args.seed}"
    return args


def run(args: argparse.Namespace, folder: RunFolder) -> None:
    """Make or read the proposals, train, evaluate and write the results."""
    device = choose_device(args.device)
    checkpoint, path = None, None
    if args.run:
        path = args.run / "checkpoints" / "last.pt"
        checkpoint = read_checkpoint(path)
        options = stored_options(checkpoint, path, "use a run of main.py")
        options.feature_scale = stored_scale(checkpoint, path, options)
        options.path_dataset = args.path_dataset or options.path_dataset
    else:
        options = parse_args(["--config", args.config, "--path-dataset", args.path_dataset])
    if options.cache == "device" and device.type == "cpu":
        options.cache = "host"

    # Data and proposals
    spec = dataset_spec(vars(options))
    annotations, store = open_dataset(options.path_dataset, options.modalities)
    if checkpoint and not args.any_recipe:
        require_recipe(store.recipe, checkpoint.get(RECIPE), store.source.path, path)
    train_set, test_set, _ = open_subsets(
        store,
        annotations,
        spec,
        device=torch.device("cpu"),
        cache=options.cache,
        feature_scale=options.feature_scale,
        holdout=options.holdout,
        seed=options.seed,
        missing_features=options.missing_features,
        config=options.config,
    )
    evaluator, rows = Evaluator(test_set, annotations, spec), []
    rate = evaluator.snippet_rate
    if not evaluator.has_ground_truth:
        raise InputError(f"subset '{spec.test_subset}' has no annotated segment in a video that can be tested")
    if args.run:
        method = load_method(checkpoint, path, options, annotations.classes, train_set.modality_dims)
        method.network.to(device)
        rows = [("first stage", checkpoint.get("iteration", 0), evaluator(method).metrics)]
        tables = [propose(method, train_set, rate, True), propose(method, test_set, rate, False)]
        where = [str(path)] * 2
        del method
    else:
        where = [args.proposals_train, args.proposals_test]
        tables = [read_detections(file) for file in where]
    train_videos, test_videos = (
        ProposalVideos(videos, proposals_by_video(table, rate, args.drop_duplicates), device, options.cache, source)
        for videos, table, source in zip((train_set, test_set), tables, where, strict=True)
    )
    print(f"proposals: training {train_videos}, test {test_videos}")

    # Network and training
    seed_everything(args.seed)
    architecture = {"num_classes": len(annotations.classes), "modality_dims": list(train_set.modality_dims)}
    try:
        net = ProposalNet(**architecture).to(device)
    except ValueError as error:
        raise InputError(f"P-MIL cannot be built: {error}") from None
    args.batch_size = min(args.batch_size, len(train_videos))
    steps = len(train_videos) // args.batch_size  # per epoch
    args.max_iter = min(args.max_iter or args.epochs * steps, args.epochs * steps)
    saved = {**run_options(options), **second_stage_options(args)}
    folder.begin(saved, train_set.store.describe(), device)
    write_proposals(folder.path, tables, rate)
    evaluation = train(args, net, train_videos, test_videos, evaluator, steps)

    # Results
    rows.append(("last", args.max_iter, evaluation.metrics))
    weights = {name: value.cpu() for name, value in net.state_dict().items()}
    state = {"model": weights, "architecture": architecture, "classes": list(annotations.classes)}
    state |= {"options": saved, "iteration": args.max_iter, "metrics": evaluation.metrics}
    save_checkpoint(folder.path / "checkpoints" / "last.pt", state)
    features = f"{store.simulated_prefix}{' + '.join(options.modalities)}"
    title = f"{folder.path.name}, P-MIL (iteration {args.max_iter}), {features}"
    write_results(folder.path, rows, evaluation, annotations, rate, options.modalities, title)
    print_results(folder.path, f"\n{spec.name}, {features}, P-MIL, seed {args.seed}", rows, evaluation, spec)
    print(f"proposals: {', '.join(FILES)}")
    print(f"HTML report: python scripts/report.py {folder.path}")
    folder.end()


def second_stage_options(args: argparse.Namespace) -> dict:
    """Return the options to save with a second stage: those of its training, and where its proposals come from."""
    common = ("run_dir", "seed", "device", "max_iter", "batch_size", "lr", "weight_decay")
    others = ("run", "proposals_train", "proposals_test", "drop_duplicates", "epochs", "eval_every", "max_proposals")
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    return {**{name: values[name] for name in common}, "second_stage": {name: values[name] for name in others}}


def write_proposals(folder: Path, tables: Sequence[Table], rate: float) -> None:
    """Write the proposals in the format that --proposals-train and --proposals-test read."""
    for name, table in zip(FILES, tables, strict=True):
        write_detections(folder / name, table, rate)


def train(
    args: argparse.Namespace,
    net: ProposalNet,
    train_videos: ProposalVideos,
    test_videos: ProposalVideos,
    evaluator: Evaluator,
    steps: int,
) -> Evaluation:
    """Train the network, with an evaluation every few epochs, and return the last evaluation."""
    loss, total = PMILLoss(), args.max_iter
    optimizer = FusedAdam(net.parameters(), args.lr, weight_decay=args.weight_decay)
    snippets = round(args.batch_size * train_videos.dataset.lengths.mean())
    log = RunLog(Path(args.run_dir), 0, total, args.eval_every * steps, snippets, evaluator.spec.main_range)
    sums: dict[str, torch.Tensor] = {}
    count = 0
    batches = train_videos.batches(args.batch_size, args.max_proposals, args.seed)
    net.train()
    with log:
        for iteration in range(1, total + 1):
            epoch, pooled, segments, labels = next(batches)
            terms = loss(net(pooled), segments, labels, epoch)
            optimizer.zero_grad(set_to_none=True)
            terms["total"].backward()
            optimizer.step()
            terms = {name: value.detach() for name, value in terms.items()}
            if not terms["total"].isfinite():
                raise InputError(f"the loss is not finite in iteration {iteration}; lower --lr, or check the features")
            sums = {name: sums.get(name, 0) + value for name, value in terms.items()}
            count += 1
            log.step(iteration, terms, args.lr)
            if iteration % (args.eval_every * steps) == 0 or iteration == total:
                evaluation = evaluate(net, test_videos, evaluator)
                log.evaluation(iteration, {n: (v / count).item() for n, v in sums.items()}, evaluation.metrics)
                sums, count = {}, 0
    return evaluation


@torch.no_grad()
def evaluate(net: ProposalNet, videos: ProposalVideos, evaluator: Evaluator) -> Evaluation:
    """Score the detections of a network among the proposals. A video without proposals has no detections."""
    net.eval()
    numbers = {index: number for number, index in enumerate(videos.indices)}
    results = []
    for index, video_id in enumerate(evaluator.dataset.video_ids):
        ambiguous = seconds_to_snippets(evaluator.annotations.videos[video_id].ambiguous, evaluator.snippet_rate)
        segments, outputs = np.empty((0, 2)), no_outputs(net.num_classes)
        if index in numbers:
            outputs = fuse_modalities(net(videos[numbers[index]]))
            outputs = {name: value.double().cpu().numpy() for name, value in outputs.items()}
            segments = videos.segments[numbers[index]].cpu().numpy()
        results.append(video_result(video_id, outputs, segments, evaluator.dataset.lengths[index], ambiguous))
    net.train()
    return evaluator.score(results)


def no_outputs(num_classes: int) -> dict[str, np.ndarray]:
    """Return the outputs for a video without proposals."""
    return {"probabilities": np.empty((0, num_classes + 1)), "attention": np.empty(0), "completeness": np.empty(0)}


def video_result(
    video_id: str, outputs: dict[str, np.ndarray], segments: np.ndarray, num_snippets: int, ambiguous: np.ndarray
) -> VideoResult:
    """Return detections, scores and curves of one video.

    The curves are for pictures: a snippet has the attention and the class probabilities of the proposal with the
    highest attention that covers it. A snippet without a proposal is background.
    """
    probabilities, attention = outputs["probabilities"], outputs["attention"]
    detections = np.empty(0, FRACTIONAL)
    if len(segments):
        detections = localize_proposals(**outputs, segments=segments, ambiguous=ambiguous)
    curve = np.zeros(num_snippets, np.float32)
    cas = np.full((num_snippets, probabilities.shape[1]), np.log(LOWEST), np.float32)
    cas[:, -1] = 0
    for proposal in np.argsort(attention):  # the highest one comes last
        start, end = np.floor(segments[proposal, 0]), np.ceil(segments[proposal, 1])
        covered = slice(*np.clip([start, end], 0, num_snippets).astype(int))
        curve[covered], cas[covered] = attention[proposal], np.log(np.maximum(probabilities[proposal], LOWEST))
    return VideoResult(
        video_id=video_id,
        cas=cas,
        modality_attention=np.empty((0, num_snippets), np.float32),
        attention=curve,
        detections=detections,
        scores=proposal_scores(probabilities, attention),
    )


if __name__ == "__main__":
    exit_on_input_error(main)
