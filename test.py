"""Localize and score with a trained or released checkpoint. See python test.py --help."""

from argparse import Namespace
from pathlib import Path

from eval.proposals import LOCALIZATIONS
from eval.tables import results_table
from options import default_options, parse_test_args
from utils.annotations import load_annotations
from utils.checkpoint import load_state, read_checkpoint, require_classes
from utils.datasets import DATASETS
from utils.engine import PROTOCOLS, Evaluator, choose_device, open_subset, write_results
from utils.errors import InputError, exit_on_input_error
from utils.features.store import open_features
from utils.formats.files import write_json
from utils.methods import METHODS, build_network


def main(argv: list[str] | None = None) -> None:
    args = parse_test_args(argv)
    device = choose_device(args.device)
    checkpoint = read_checkpoint(args.checkpoint)
    options = args.options or carried_options(checkpoint, args.checkpoint)
    spec = DATASETS[options.dataset]
    annotations = load_annotations(args.path_dataset)
    store = open_features(args.path_dataset, options.modalities)
    missing_features = args.missing_features or options.missing_features
    # Each video is read once, so none is kept.
    test = open_subset(store, annotations, spec, spec.test_subset, missing_features, device=None)
    # A released checkpoint holds weights only.
    architecture = checkpoint.get("architecture", {"temporal_pool": spec.temporal_pool(options.num_snippets)})
    sizes = {"num_classes": len(annotations.classes), "modality_dims": test.modality_dims}
    net = build_network(options.model, {**architecture, **sizes})
    require_classes(checkpoint, annotations.classes, args.checkpoint)
    load_state(net, checkpoint, args.checkpoint)
    evaluate = Evaluator(test, annotations, spec, options.localization)
    evaluation = evaluate(net.to(device))

    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    name, iteration = Path(args.checkpoint).stem, checkpoint.get("iteration")
    simulated = "SIMULATED " if store.source.simulated else ""
    title = f"{args.checkpoint}, {simulated}features"
    write_json(output / "metrics.json", {name: {"iteration": iteration, **evaluation.metrics}})
    write_results(output, evaluation, annotations, evaluate.snippet_rate, options.modalities, title)
    print(f"{options.dataset}, {simulated}features {store.source.path}: {spec.test_subset} {test}")
    print(results_table([(name, iteration, evaluation.metrics)], spec, PROTOCOLS))
    print(f"all of it is in {output}: metrics.json, detections.json, the picture videos.png, ...")


def carried_options(checkpoint: dict, path: str) -> Namespace:
    """The options that a checkpoint of ours carries."""
    options = checkpoint.get("options")
    if options is None:
        raise InputError(
            f"{path}: carries no options of its own (a released checkpoint?); add --config configs/thumos14.yaml"
        )
    kinds = {"dataset": str, "modalities": list, "missing_features": str, "num_snippets": int}
    whole = all(isinstance(options.get(name), kind) for name, kind in kinds.items())
    if not whole or options["dataset"] not in DATASETS or not all(isinstance(m, str) for m in options["modalities"]):
        raise InputError(f"{path}: its options are not those of a run; give others with --config")
    options = {**default_options(), **options}  # those that came after the run are as they were
    if options["model"] not in METHODS or options["localization"] not in LOCALIZATIONS:
        raise InputError(f"{path}: its options name a model or localization that is not there")
    return Namespace(**options)


if __name__ == "__main__":
    exit_on_input_error(main)
