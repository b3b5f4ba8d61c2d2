"""Train from video-level labels: build, loop, evaluate, checkpoint. See python main.py --help."""

from argparse import Namespace
from collections.abc import Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from eval.tables import results_table
from options import default_options, loss_options, network_options, parse_args, resume_options, run_options
from utils.annotations import Annotations, load_annotations
from utils.checkpoint import read_checkpoint
from utils.datasets import DATASETS, DatasetSpec
from utils.engine import (
    PROTOCOLS,
    Evaluation,
    Evaluator,
    HoldOut,
    advice_on_memory,
    choose_device,
    open_subset,
    split_holdout,
    write_results,
)
from utils.errors import exit_on_input_error
from utils.features.check import startup_warnings
from utils.features.simulate import provide_demo
from utils.features.store import open_features
from utils.formats.files import write_json
from utils.methods import build_criterion, build_network
from utils.run.folder import RunFolder
from utils.run.log import RunLog
from utils.run.memory import keep_freed_memory
from utils.run.ranks import Ranks, join_ranks
from utils.run.stop import StopSignal
from utils.training import Training, seed_everything
from utils.training_step import Objective, TrainingStep, build_optimizer
from wsad_dataset import BatchLoader, WeakVideoDataset


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with (
        join_ranks() as ranks,
        run_folder(args, ranks) as folder,
        advice_on_memory("lower --batch-size or --num-snippets, or use --precision bf16 or --device cpu"),
    ):
        train(args, folder, ranks)


def run_folder(args: Namespace, ranks: Ranks) -> RunFolder | nullcontext:
    """The run's folder, which rank 0 alone holds; what torchrun starts again goes on with the run."""
    folder = RunFolder(args.run_dir, resume_options(args), args.resume or ranks.restarts > 0, default_options())
    return folder if ranks.is_main else nullcontext()


class Data(NamedTuple):
    """The dataset of a run."""

    annotations: Annotations
    features: dict  # which ones, in words
    train: WeakVideoDataset
    test: WeakVideoDataset
    held_out: WeakVideoDataset | None

    @property
    def simulated(self) -> str:
        return "SIMULATED " if self.features["simulated"] else ""


def open_data(args: Namespace, spec: DatasetSpec, device: torch.device) -> Data:
    """The dataset, checked and said in a line; its features are where --cache wants them."""
    annotations = load_annotations(args.path_dataset)
    store = open_features(args.path_dataset, args.modalities)
    for warning in startup_warnings(store, annotations, spec, args.missing_features):
        print(f"warning: {warning}")
    train_ids, holdout_ids = split_holdout(annotations, spec.train_subset, args.holdout, args.seed)
    on_host = None if args.cache == "none" else "cpu"
    subsets = [
        (spec.train_subset, train_ids, device if args.cache == "device" else on_host),
        (spec.test_subset, None, on_host),
        (spec.train_subset, holdout_ids, on_host),
    ]
    train, test, *held_out = (
        open_subset(store, annotations, spec, subset, args.missing_features, video_ids, kept)
        for subset, video_ids, kept in subsets[: 3 if holdout_ids else 2]
    )
    data = Data(annotations, store.describe(), train, test, held_out[0] if held_out else None)
    place = data.features["path"]
    print(f"{data.simulated}features {place}: {spec.train_subset} {train}; {spec.test_subset} {test}")
    if train.snippet_rate is None:
        print(f"the features do not say their rate: {spec.snippet_rate:g} snippets a second are assumed")
    return data


def train(args: Namespace, folder: RunFolder | None, ranks: Ranks) -> None:
    """The whole of a run, in its folder: what the processes do together, and what rank 0 makes of it."""
    device, spec, run = ranks.device(choose_device(args.device)), DATASETS[args.dataset], Path(args.run_dir)
    ranks.on_rank_zero(provide_demo, args.path_dataset)
    keep_freed_memory(args.cache != "none")
    data = open_data(args, spec, device)

    seed_everything(args.seed, ranks.rank)
    architecture = {
        "num_classes": len(data.annotations.classes),
        "modality_dims": list(data.train.modality_dims),
        **network_options(args),
    }
    net = build_network(args.model, architecture).to(device)
    criterion = build_criterion(args.model, loss_options(args))
    optimizer = build_optimizer(net.parameters(), args.lr, args.weight_decay)
    loader = BatchLoader(
        data.train,
        args.batch_size,
        args.num_pairs,
        args.num_snippets,
        args.seed,
        pin_memory=device.type == "cuda",
        rank=ranks.rank,
        num_ranks=ranks.size,
        prefetch=args.cache == "none" or (args.cache == "host" and device.type == "cuda"),
        open_shards=args.open_shards,
    )
    options = run_options(args)
    identity = {"architecture": architecture, "classes": list(data.annotations.classes), "options": options}
    training = Training(
        net,
        optimizer,
        loader,
        identity,
        run,
        ranks,
        max_iter=args.max_iter,
        eval_every=args.eval_every,
        skip_nonfinite=args.skip_nonfinite,
    )
    training.resume(args.seed)
    objective = Objective(net, criterion, args.precision, args.compile)
    step = TrainingStep(ranks.share(objective, loader.example(device)), optimizer, ranks)
    evaluate = Evaluator(data.test, data.annotations, spec, args.localization, ranks)
    holdout = HoldOut(data.held_out, criterion, args.localization) if data.held_out else None

    if folder:
        folder.begin(options, data.features, device, ranks.size, ranks.nodes)
    evaluation = None
    snippets = args.batch_size * args.num_snippets
    first, total = training.iteration, args.max_iter
    with (
        RunLog(run if folder else None, first, total, args.eval_every, snippets, spec.main_range) as log,
        StopSignal(ranks) as stop,
        closing(loader),
    ):
        if args.evaluate_untrained and training.iteration == 0:
            training.untrained = evaluate(net).metrics
            log.evaluation(0, {}, training.untrained)
        for batch in training.batches():
            outcome = step(batch)
            training.advance(outcome, batch)
            log.step(training.iteration, outcome.terms, args.lr)
            if training.is_due:
                evaluation, weak = evaluate(net), ranks.on_rank_zero(holdout, net) if holdout else {}
                log.evaluation(training.iteration, training.losses(), evaluation.metrics, weak, training.skipped)
                training.save(evaluation.metrics, selection_scores(evaluation, weak))
            if stop.requested() and training.iteration < args.max_iter:
                training.save_last()
                stop.end(
                    f"stopped after iteration {training.iteration}; run the same command with --resume to continue"
                )

    evaluation = evaluation or evaluate(net)
    if not folder:
        return
    rows = end_rows(training, evaluation)
    title = (
        f"{run.name}, last checkpoint (iteration {training.iteration}), {data.simulated}{' + '.join(args.modalities)}"
    )
    write_json(run / "metrics.json", {name: {"iteration": at, **metrics} for name, at, metrics in rows})
    write_results(run, evaluation, data.annotations, evaluate.snippet_rate, args.modalities, title)
    folder.end()
    print(f"\n{args.dataset}, {data.simulated}{' + '.join(args.modalities)}, seed {args.seed}")
    print(results_table(rows, spec, PROTOCOLS))
    print(how_chosen(spec, training.chosen))
    print(f"all of it is in {run}: metrics.json, detections.json (of `last`), the picture videos.png, ...")


def selection_scores(evaluation: Evaluation, weak: dict[str, float | None]) -> dict[str, list[float]]:
    """What chooses each chosen checkpoint; lists are compared from the left."""
    scores = {"best": [evaluation.selection]}
    if weak:
        scores["selected"] = [weak["classification_mAP"] or 0.0, -weak["loss"]]
    return scores


def end_rows(training: Training, evaluation: Evaluation) -> list[tuple[str, int, dict]]:
    """Name, iteration and metrics of every checkpoint that the end table shows."""
    rows = [("untrained", 0, training.untrained)] if training.untrained else []
    rows.append(("last", training.iteration, evaluation.metrics))
    for name in training.chosen:
        checkpoint = read_checkpoint(training.checkpoints / f"{name}.pt")
        rows.append((name, checkpoint["iteration"], checkpoint["metrics"]))
    return rows


def how_chosen(spec: DatasetSpec, chosen: Iterable[str]) -> str:
    """What a reader must know of the checkpoints in the table."""
    low, high = spec.main_range
    measure = f"mean mAP@{low:g}:{high:g} ({PROTOCOLS[0]})"
    if spec.accuracy_subsets:
        measure = f"snippet accuracy ({spec.accuracy_subsets[0]})"
    lines = [f"`best` was chosen on the test subset, by {measure}: an upper bound"]
    if "selected" in chosen:
        lines.append("`selected` was chosen on held-out training videos, by their video-level labels alone")
    return "\n".join([*lines, "`last` was not chosen"])


if __name__ == "__main__":
    exit_on_input_error(main)
