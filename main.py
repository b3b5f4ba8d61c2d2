"""Train from video-level labels: build, loop, evaluate, save. See python main.py --help."""

from argparse import Namespace
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from eval.tables import results_table
from options import complete_options, method_options, parse_args, resume_options, run_options
from utils.annotations import Annotations, load_annotations
from utils.datasets import DatasetSpec, dataset_spec
from utils.engine import (
    TABLE_PROTOCOLS,
    BatchLoss,
    Evaluation,
    Evaluator,
    holdout_scores,
    loss_inputs,
    selection_scores,
    train_step,
    write_results,
)
from utils.errors import exit_on_input_error
from utils.features import FeatureStore, open_features
from utils.features.check import startup_warnings
from utils.features.simulate import provide_demo
from utils.formats.checksums import sha256_of
from utils.methods import build_method
from utils.pseudo_labels import read_pseudo_labels
from utils.run import Ranks, RunFolder, RunLog, StopSignal, join_ranks
from utils.run.devices import choose_device, memory_advice
from utils.run.fast_cpu import speed_up_cpu
from utils.training import Training, average_weights, seed_everything
from wsad_dataset import BatchLoader, WeakVideoDataset, auto_scale, split_holdout


def main(argv: list[str] | None = None) -> None:
    """Train with the options of the command line."""
    args = parse_args(argv)
    with join_ranks() as ranks:
        resume = args.resume or ranks.restarts > 0  # torchrun restarts lost processes; they continue the run
        folder = None
        if ranks.is_main:  # the only rank that writes
            folder = RunFolder(args.run_dir, resume_options(args), resume, complete_options)
        advice = "lower --batch-size or --num-snippets, or use --precision bf16 or --device cpu"
        with folder or nullcontext(), memory_advice(advice):
            train(args, folder, ranks)


def train(args: Namespace, folder: RunFolder | None, ranks: Ranks) -> None:
    """Train, evaluate and write a whole run. Only rank 0 has a folder."""
    # Data
    device = ranks.device(choose_device(args.device))
    spec = dataset_spec(vars(args))
    ranks.on_rank_zero(provide_demo, args.path_dataset)
    annotations = load_annotations(args.path_dataset)
    store = open_features(args.path_dataset, args.modalities)
    train_set, test_set, holdout_set = open_subsets(args, spec, annotations, store, device)
    pseudo_labels = read_pseudo_labels(args.pseudo_labels, train_set) if args.pseudo_labels else None
    loader = BatchLoader(
        train_set,
        args.batch_size,
        args.num_pairs,
        args.num_snippets,
        args.seed,
        pin_memory=device.type == "cuda",
        prefetch=args.cache == "none" or (args.cache == "host" and device.type == "cuda"),
        open_shards=args.open_shards,
        sampling=args.sampling,
        rank=ranks.rank,
        num_ranks=ranks.size,
        pseudo_labels=pseudo_labels,
    )

    # Method, optimizer and training state
    seed_everything(args.seed, ranks.rank)
    method = build_method(args.method, len(annotations.classes), train_set.modality_dims, **method_options(args))
    net = method.network.to(device)
    if device.type == "cpu":
        speed_up_cpu(net, args.precision, reuse_memory=args.cache != "none")
    optimizer = torch.optim.Adam(net.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    batch_loss = BatchLoss(net, method.objective, args.precision, args.compile, pseudo_weight=args.pseudo_weight)
    batch_loss = ranks.share(batch_loss, loss_inputs(loader.example(device), 0.0, device))
    average = None
    if args.ema:
        average = average_weights(net, args.ema)
        method = replace(method, network=average.module)  # the network to evaluate
    identity = {
        "architecture": method.architecture,
        "classes": list(annotations.classes),
        "options": {**run_options(args), "feature_scale": train_set.store.scale},  # the number, not `auto`
        **({"recipe": store.recipe} if store.recipe else {}),
    }
    if args.pseudo_labels:
        identity["options"]["pseudo_labels_sha256"] = sha256_of(Path(args.pseudo_labels))
    training = Training(
        net,
        optimizer,
        loader,
        identity,
        args.run_dir,
        ranks,
        average,
        max_iter=args.max_iter,
        eval_every=args.eval_every,
        skip_nonfinite=args.skip_nonfinite,
    )
    training.resume(args.seed)
    evaluate = Evaluator(test_set, annotations, spec, ranks)
    if not evaluate.has_ground_truth:
        print(
            f"subset '{spec.test_subset}' has no annotated segment in a video that can be tested: nothing is scored, "
            "and no checkpoint is the best; --holdout selects one by video-level labels"
        )
    if folder:
        folder.begin(run_options(args), train_set.store.describe(), device, ranks.size, ranks.nodes)
    if training.iteration == args.max_iter:
        print(f"already at iteration {training.iteration} of {args.max_iter}; raise --max-iter to train on")

    # Loop
    log = RunLog(
        args.run_dir if folder else None,
        training.iteration,
        args.max_iter,
        args.eval_every,
        args.batch_size * args.num_snippets,
        spec.main_range,
    )
    evaluation = None
    with log, StopSignal(ranks) as stop, closing(loader):
        if args.evaluate_untrained and training.iteration == 0:
            training.untrained = evaluate(method).metrics
            log.evaluation(0, {}, training.untrained)
        for batch in training.batches():
            outcome = train_step(batch_loss, optimizer, batch, ranks, training.progress)  # forward to Adam
            training.advance(outcome, batch)  # counts the step; a non-finite one left the weights unchanged
            log.step(training.iteration, outcome.terms, args.lr)
            if training.evaluation_is_due:
                evaluation = evaluate(method)
                holdout = ranks.on_rank_zero(holdout_scores, method, holdout_set) if holdout_set else {}
                log.evaluation(training.iteration, training.losses(), evaluation.metrics, holdout, training.skipped)
                training.save(evaluation.metrics, selection_scores(evaluation, holdout))
            if stop.requested() and training.iteration < args.max_iter:
                training.save_last()
                stop.end(f"stopped after iteration {training.iteration}; --resume continues the run")

    # Results
    evaluation = evaluation or evaluate(method)
    if folder:
        report(args, spec, annotations, store, training, evaluation, evaluate.snippet_rate)
        folder.end()


def open_subsets(
    args: Namespace, spec: DatasetSpec, annotations: Annotations, store: FeatureStore, device: torch.device
) -> tuple[WeakVideoDataset, WeakVideoDataset, WeakVideoDataset | None]:
    """Open the training, test and holdout videos in the memory that --cache selects, and print a summary."""
    for warning in startup_warnings(store, annotations, spec, args.missing_features, args.config):
        print(f"warning: {warning}")
    train_ids, holdout_ids = split_holdout(annotations, spec.train_subset, args.holdout, args.seed)
    host = None if args.cache == "none" else "cpu"
    common = {"missing_features": args.missing_features, "min_snippets": spec.min_snippets}
    train_device = device if args.cache == "device" else host
    subset = spec.train_subset
    scale = args.feature_scale
    if scale == "auto":
        scale = auto_scale(WeakVideoDataset(annotations, store, subset, video_ids=train_ids, device=None, **common))
    store = store.scaled(scale)
    train_set = WeakVideoDataset(annotations, store, subset, video_ids=train_ids, device=train_device, **common)
    test_set = WeakVideoDataset(annotations, store, spec.test_subset, device=host, **common)
    holdout_set = None
    if holdout_ids:
        holdout_set = WeakVideoDataset(annotations, store, subset, video_ids=holdout_ids, device=host, **common)
    print(f"{store.simulated_prefix}features {store.source.path}: {subset} {train_set}; {spec.test_subset} {test_set}")
    if store.scale != 1:
        print(f"the features are multiplied by {store.scale:g}")
    if store.snippet_rate is None:
        print(f"the features have no snippet rate; assuming {spec.snippet_rate:g} snippets per second")
    return train_set, test_set, holdout_set


def report(
    args: Namespace,
    spec: DatasetSpec,
    annotations: Annotations,
    store: FeatureStore,
    training: Training,
    evaluation: Evaluation,
    snippet_rate: float,
) -> None:
    """Write metrics, detections and pictures of a finished run, and print its table."""
    run_dir = Path(args.run_dir)
    rows = training.table_rows(evaluation.metrics)
    features = f"{store.simulated_prefix}{' + '.join(args.modalities)}"
    title = f"{run_dir.name}, last checkpoint (iteration {training.iteration}), {features}"
    write_results(run_dir, rows, evaluation, annotations, snippet_rate, args.modalities, title)
    print(f"\n{args.dataset}, {features}, seed {args.seed}")
    if evaluation.metrics:
        print(results_table(rows, spec, TABLE_PROTOCOLS))
        measure = f"mean mAP@{spec.main_range[0]:g}:{spec.main_range[1]:g} ({TABLE_PROTOCOLS[0]})"
        if spec.accuracy_subsets:
            measure = f"snippet accuracy ({spec.accuracy_subsets[0]})"
        print(f"`best` has the highest {measure} on the test subset: an upper bound")
    else:
        print(f"subset '{spec.test_subset}' has no annotated segments: no scores")
    if "selected" in training.chosen:
        print("`selected` is the best on holdout training videos, by their video-level labels alone")
    print("`last` is the state after the last iteration")
    print(f"results in {run_dir}: metrics.json, detections.json (of `last`), outputs.h5, videos.png")
    print(f"HTML report: python scripts/report.py {run_dir}")


if __name__ == "__main__":
    exit_on_input_error(main)
