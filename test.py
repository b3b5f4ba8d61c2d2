"""Localize and score with a trained or released checkpoint. See python test.py --help."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from eval.proposals import LOCALIZATIONS
from eval.tables import results_table
from options import complete_options, method_options, parse_test_args
from utils.annotations import load_annotations
from utils.checkpoint import load_state, read_checkpoint, require_classes
from utils.datasets import dataset_spec
from utils.engine import TABLE_PROTOCOLS, Evaluator, write_results
from utils.errors import InputError, exit_on_input_error
from utils.features import open_features
from utils.methods import METHODS, build_method
from utils.run.devices import choose_device, memory_advice
from wsad_dataset import WeakVideoDataset


def main(argv: list[str] | None = None) -> None:
    """Evaluate a checkpoint with the options of the command line."""
    args = parse_test_args(argv)
    output = Path(args.output_dir)
    if (output / "options.yaml").exists():
        raise InputError(f"--output-dir {output} is the folder of a run, whose results would be lost; choose another")
    device = choose_device(args.device)
    checkpoint = read_checkpoint(args.checkpoint)
    options = args.options or stored_options(checkpoint, args.checkpoint)
    spec = dataset_spec(vars(options))
    spec = replace(spec, test_subset=args.subset or spec.test_subset)

    # Data
    annotations = load_annotations(args.path_dataset)
    store = open_features(args.path_dataset, options.modalities)
    test_set = WeakVideoDataset(
        annotations,
        store,
        spec.test_subset,
        missing_features=args.missing_features or options.missing_features,
        min_snippets=spec.min_snippets,
        device=None,  # each video is read once
    )

    # Method; a released checkpoint has weights only, so its architecture comes from the options.
    known = METHODS[options.method].options() - {"localization"}
    stored = {name: value for name, value in checkpoint.get("architecture", {}).items() if name in known}
    arguments = {**method_options(options), **stored}
    method = build_method(options.method, len(annotations.classes), test_set.modality_dims, **arguments)
    require_classes(checkpoint, annotations.classes, args.checkpoint)
    load_state(method.network, checkpoint, args.checkpoint)
    method.network.to(device)

    # Results
    evaluate = Evaluator(test_set, annotations, spec)
    with memory_advice("use --device cpu"):
        evaluation = evaluate(method)
    output.mkdir(parents=True, exist_ok=True)
    name, iteration = Path(args.checkpoint).stem, checkpoint.get("iteration")
    simulated = store.simulated_prefix
    title = f"{args.checkpoint}, {simulated}features"
    rows = [(name, iteration, evaluation.metrics)] if evaluate.has_ground_truth else []
    write_results(output, rows, evaluation, annotations, evaluate.snippet_rate, options.modalities, title)
    print(f"{options.dataset}, {simulated}features {store.source.path}: {spec.test_subset} {test_set}")
    if evaluate.has_ground_truth:
        print(results_table(rows, spec, TABLE_PROTOCOLS))
    else:
        count = len(evaluation.detections)
        print(f"subset '{spec.test_subset}' has no annotated segments: {count} detections, no scores")
    print(f"results in {output}: metrics.json, detections.json, outputs.h5, videos.png")


def stored_options(checkpoint: dict, path: str) -> Namespace:
    """Return the options that a checkpoint of this project stores, checked.

    Raises:
        InputError: If the checkpoint has no options (a released one), or invalid ones.
    """
    options = checkpoint.get("options")
    if options is None:
        raise InputError(f"{path}: has no options (a released checkpoint?); add --config configs/thumos14.yaml")
    types = {"dataset": str, "modalities": list, "missing_features": str, "num_snippets": int}
    complete = all(isinstance(options.get(name), kind) for name, kind in types.items())
    if not complete or not all(isinstance(m, str) for m in options["modalities"]):
        raise InputError(f"{path}: its options are not those of a run; give others with --config")
    options = Namespace(**complete_options(options))
    if options.method not in tuple(METHODS) or options.localization not in tuple(LOCALIZATIONS):
        raise InputError(f"{path}: its options name an unknown method or localization")
    return options


if __name__ == "__main__":
    exit_on_input_error(main)
