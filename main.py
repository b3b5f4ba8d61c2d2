"""Train CO2-Net from video-level labels: build, loop, evaluate, checkpoint. See python main.py --help."""

import torch

from eval.detection_files import write_detections
from eval.report import plot_videos, results_table
from model import CO2Net
from options import parse_args
from utils.annotations import load_annotations
from utils.checkpoint import Training, read_checkpoint
from utils.datasets import DATASETS
from utils.engine import (
    PROTOCOLS,
    Evaluator,
    StopSignal,
    choose_device,
    open_subset,
    save_outputs,
    train_step,
)
from utils.errors import exit_on_input_error
from utils.features import open_features
from utils.logger import RunLog, open_run, write_json
from utils.losses import CO2Loss
from wsad_dataset import BatchLoader


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device, spec = choose_device(args.device), DATASETS[args.dataset]
    annotations = load_annotations(args.path_dataset)
    store = open_features(args.path_dataset, args.modalities)
    train, test = (
        open_subset(store, annotations, spec, subset, args.missing_features)
        for subset in (spec.train_subset, spec.test_subset)
    )
    simulated = "SIMULATED " if store.source.simulated else ""
    print(f"{simulated}features {store.source.path}: {spec.train_subset} {train}; {spec.test_subset} {test}")
    run = open_run(args, device)

    torch.manual_seed(args.seed)
    architecture = {
        "num_classes": len(annotations.classes),
        "modality_dims": list(train.modality_dims),
        "temporal_pool": spec.temporal_pool(args.num_snippets),
        "attention_logit_dropout": args.attention_logit_dropout,
    }
    net = CO2Net(**architecture).to(device)
    criterion = CO2Loss(args.topk_ratio, args.loss_weights, shifted_suppression=args.suppression == "shifted")
    optimiser = torch.optim.Adam(net.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    loader = BatchLoader(
        train, args.batch_size, args.num_pairs, args.num_snippets, args.seed, pin_memory=device.type == "cuda"
    )
    training = Training(net, optimiser, loader, {"architecture": architecture, "options": vars(args)}, run)
    training.resume(args.eval_every)
    evaluate = Evaluator(test, annotations, spec, args.path_dataset)

    evaluation = None
    with RunLog(run, args, training.iteration) as log, StopSignal() as stop:
        if args.evaluate_untrained and training.iteration == 0:
            training.untrained = evaluate(net).metrics
            log.evaluation(0, {}, training.untrained)
        while training.iteration < args.max_iter:
            terms = train_step(net, criterion, optimiser, next(loader), args.precision)
            training.advance(terms)
            log.step(training.iteration, terms)
            on_schedule = training.iteration % args.eval_every == 0
            if on_schedule or training.iteration == args.max_iter:
                log.pause()
                evaluation = evaluate(net)
                log.evaluation(training.iteration, training.losses(), evaluation.metrics)
                training.evaluated(evaluation.metrics, evaluation.selection, on_schedule)
            if stop.requested and training.iteration < args.max_iter:
                training.losses()
                training.save_last()
                raise SystemExit(f"stopped after iteration {training.iteration}; --resume continues")

    evaluation = evaluation or evaluate(net)
    rows = end_rows(training)
    write_json(run / "metrics.json", {name: {"iteration": at, **metrics} for name, at, metrics in rows})
    write_detections(run / "detections.json", evaluation.detections)
    save_outputs(run / "outputs.h5", evaluation, annotations.classes, evaluate.snippet_rate)
    title = f"{run.name}, last checkpoint (iteration {training.iteration}) on {simulated}features"
    plot_videos(
        run / "videos.png", evaluation.results, annotations, evaluate.snippet_rate, args.modalities, title
    )
    print(f"\n{args.dataset}, {simulated}features, seed {args.seed}")
    print(results_table(rows, spec, PROTOCOLS))
    low, high = spec.main_range
    print(
        f"`best` was chosen on the test subset, by its mean mAP@{low:g}:{high:g} ({PROTOCOLS[0]}); `last` was not chosen."
    )
    print(
        f"table: {run}/metrics.json · detections of `last`: {run}/detections.json · picture: {run}/videos.png"
    )


def end_rows(training: Training) -> list[tuple[str, int, dict]]:
    """Name, iteration and metrics of every checkpoint that the end table shows."""
    best = read_checkpoint(training.folder / "best.pt")
    rows = [("last", training.iteration, training.metrics), ("best", best["iteration"], best["metrics"])]
    return [("untrained", 0, training.untrained), *rows] if training.untrained else rows


if __name__ == "__main__":
    exit_on_input_error(main)
