"""Train from video-level labels: build, loop, evaluate, save. See python main.py --help."""

from argparse import Namespace
from contextlib import closing, nullcontext
from dataclasses import replace

from options import complete_options, method_options, parse_args, resume_options, run_options
from utils.datasets import dataset_spec
from utils.engine import BatchLoss, Evaluator, holdout_scores, loss_inputs, selection_scores, train_step
from utils.errors import exit_on_input_error
from utils.features.index import open_dataset
from utils.features.simulate import provide_demo
from utils.methods import build_method
from utils.optimizer import FusedAdam
from utils.pseudo_labels import read_pseudo_labels
from utils.results import choice_notes, print_results, write_results
from utils.run import Ranks, RunFolder, RunLog, StopSignal, join_ranks
from utils.run.devices import choose_device, memory_advice
from utils.run.fast_cpu import speed_up_cpu
from utils.run.random_states import seed_everything
from utils.subsets import open_subsets
from utils.training import Training, run_identity
from wsad_dataset import BatchLoader


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
    annotations, store = ranks.rank_zero_first(open_dataset, args.path_dataset, args.modalities)
    train_set, test_set, holdout_set = open_subsets(
        store,
        annotations,
        spec,
        device=device,
        cache=args.cache,
        feature_scale=args.feature_scale,
        holdout=args.holdout,
        seed=args.seed,
        missing_features=args.missing_features,
        config=args.config,
        ranks=ranks,
    )
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
        pseudo_labels=read_pseudo_labels(args.pseudo_labels, train_set) if args.pseudo_labels else None,
    )

    # Method, optimizer and training state
    seed_everything(args.seed, ranks.rank)
    method = build_method(args.method, len(annotations.classes), train_set.modality_dims, **method_options(args))
    net = method.network.to(device)
    if device.type == "cpu":
        speed_up_cpu(net, args.precision, reuse_memory=args.cache != "none")
    optimizer = FusedAdam(net.parameters(), args.lr, weight_decay=args.weight_decay)
    batch_loss = BatchLoss(net, method.objective, args.precision, args.compile, pseudo_weight=args.pseudo_weight)
    batch_loss = ranks.share(batch_loss, loss_inputs(loader.example(device), 0.0, device))
    training = Training(
        net,
        optimizer,
        loader,
        run_identity(method.architecture, train_set, run_options(args)),
        args.run_dir,
        ranks,
        args.ema,
        max_iter=args.max_iter,
        eval_every=args.eval_every,
        skip_nonfinite=args.skip_nonfinite,
    )
    training.resume(args.seed)
    method = replace(method, network=training.evaluated)
    evaluate = Evaluator(test_set, annotations, spec, ranks)
    if not evaluate.has_ground_truth:
        print(
            f"subset '{spec.test_subset}' has no annotated segment in a video that can be tested: nothing is scored, "
            "and no checkpoint is the best; --holdout selects one by video-level labels"
        )

    # Loop
    if folder:
        folder.begin(run_options(args), train_set.store.describe(), device, ranks.size, ranks.nodes)
    log_dir, batch_snippets = args.run_dir if folder else None, args.batch_size * args.num_snippets
    log = RunLog(log_dir, training.iteration, args.max_iter, args.eval_every, batch_snippets, spec.main_range)
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
    save_outputs = args.save_outputs == "test"
    if save_outputs:
        evaluation = evaluate.gather_outputs(evaluation)
    if folder:
        rows = training.table_rows(evaluation.metrics)
        features = f"{store.simulated_prefix}{' + '.join(args.modalities)}"
        title = f"{folder.path.name}, last checkpoint (iteration {training.iteration}), {features}"
        heading = f"\n{args.dataset}, {features}, seed {args.seed}"
        rate = evaluate.snippet_rate
        write_results(folder.path, rows, evaluation, annotations, rate, args.modalities, title, save_outputs)
        print_results(folder.path, heading, rows, evaluation, spec, choice_notes(training.chosen, spec))
        print(f"HTML report: python scripts/report.py {folder.path}")
        folder.end()


if __name__ == "__main__":
    exit_on_input_error(main)
