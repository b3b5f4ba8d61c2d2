"""Localize and score with trained or released checkpoints. See python test.py --help."""

from dataclasses import replace
from pathlib import Path

from options import parse_test_args
from utils.checkpoint import read_checkpoint
from utils.datasets import dataset_spec
from utils.engine import Evaluator
from utils.errors import InputError, exit_on_input_error
from utils.features.index import open_dataset
from utils.results import print_results, write_results
from utils.run.devices import choose_device, memory_advice
from utils.trained import load_pool, match_training, override_localization, stored_options
from wsad_dataset import WeakVideoDataset


def main(argv: list[str] | None = None) -> None:
    """Evaluate checkpoints with the options of the command line."""
    args = parse_test_args(argv)
    output = Path(args.output_dir)
    if (output / "options.yaml").exists():
        raise InputError(f"--output-dir {output} is the folder of a run, whose results would be lost; choose another")
    device = choose_device(args.device)
    checkpoints = {path: read_checkpoint(path) for path in args.checkpoint}
    first, checkpoint = next(iter(checkpoints.items()))
    options = override_localization(args.options or stored_options(checkpoint, first), vars(args))
    spec = dataset_spec(vars(options))
    spec = replace(spec, test_subset=args.subset or spec.test_subset)

    # Data
    annotations, store = open_dataset(args.path_dataset, options.modalities)
    store = match_training(store, checkpoints, options, args.any_recipe)
    test_set = WeakVideoDataset(
        annotations,
        store,
        spec.test_subset,
        missing_features=args.missing_features or options.missing_features,
        min_snippets=spec.min_snippets,
        device=None,  # each video is read once
    )

    # Method
    method = load_pool(checkpoints, options, annotations.classes, test_set.modality_dims)
    method.network.to(device)

    # Results
    evaluate = Evaluator(test_set, annotations, spec)
    with memory_advice("use --device cpu"):
        evaluation = evaluate(method)
    output.mkdir(parents=True, exist_ok=True)
    name, iteration = Path(first).stem, checkpoint.get("iteration")
    if len(checkpoints) > 1:
        name, iteration = f"mean of {len(checkpoints)}", None
    simulated = store.simulated_prefix
    title = f"{' + '.join(checkpoints)}, {simulated}features"
    rows = [(name, iteration, evaluation.metrics)] if evaluate.has_ground_truth else []
    heading = f"{options.dataset}, {simulated}features {store.source.path}: {spec.test_subset} {test_set}"
    rate, save_outputs = evaluate.snippet_rate, args.save_outputs == "test"
    write_results(output, rows, evaluation, annotations, rate, options.modalities, title, save_outputs)
    print_results(output, heading, rows, evaluation, spec)


if __name__ == "__main__":
    exit_on_input_error(main)
