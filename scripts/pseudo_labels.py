"""Write pseudo labels of the training snippets, from the outputs of one or several trained networks.

python scripts/pseudo_labels.py CHECKPOINT [...] --path-dataset DIR --out FILE.h5
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

import numpy as np
from torch import nn
from tqdm import tqdm

from options import ANY_RECIPE_HELP
from utils.annotations import Annotations, load_annotations
from utils.checkpoint import read_checkpoint
from utils.datasets import dataset_spec
from utils.engine import network_outputs
from utils.errors import InputError, OneLineParser, count_noun, exit_on_input_error
from utils.features import open_features
from utils.formats.checksums import sha256_of
from utils.pseudo_labels import class_activation, pseudo_labels, write_pseudo_labels
from utils.run.devices import choose_device, memory_advice
from utils.trained import load_method, match_training, stored_options
from wsad_dataset import WeakVideoDataset

RELATIVE_HELP = "divide the pseudo labels of each video and class by the highest of them, which becomes 1"


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = OneLineParser(
        prog="scripts/pseudo_labels.py",
        description="Label the snippets of the training videos with trained networks, for main.py --pseudo-labels. The "
        "videos are the training subset of the first checkpoint. Only their features and weak labels are read, no "
        "segment.",
    )
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="best.pt, selected.pt or last.pt of a run of any method; several: the mean of their activations",
    )
    add("--path-dataset", required=True, help="folder with annotations.json and the features")
    add("--out", required=True, type=Path, metavar="FILE", help="HDF5 file to write")
    add(
        "--relative",
        action="store_true",
        help=RELATIVE_HELP,
    )
    add("--any-recipe", action="store_true", help=ANY_RECIPE_HELP)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device; auto: the GPU if there is one")
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    annotations = load_annotations(args.path_dataset)
    networks, datasets = open_checkpoints(args.checkpoints, annotations, args.path_dataset, args.any_recipe)
    with memory_advice("use --device cpu"):
        videos = label_videos([network.to(device) for network in networks], datasets, args.relative)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    digests = {path: sha256_of(Path(path)) for path in args.checkpoints}
    write_pseudo_labels(args.out, videos, annotations.classes, digests)
    highest = np.concatenate([values.max(axis=1, initial=0.0) for _, values in videos.values()])
    simulated = datasets[0].store.simulated_prefix
    print(
        f"{simulated}pseudo labels of {count_noun(len(videos), 'video')}, {len(highest):,} snippets: "
        f"{(highest >= 0.5).mean():.1%} action, {(highest == 0).mean():.1%} certain background, in {args.out}"
    )


def open_checkpoints(
    paths: Sequence[str], annotations: Annotations, path_dataset: str, any_recipe: bool
) -> tuple[list[nn.Module], list[WeakVideoDataset]]:
    """Return the network of each checkpoint, and the training videos with the features that it was trained on.

    Raises:
        InputError: A checkpoint or its features cannot be used, or the features differ in their snippets.
    """
    networks, datasets, subset = [], [], None
    for path in paths:
        checkpoint = read_checkpoint(path)
        options = stored_options(checkpoint, path, "use a checkpoint of main.py")
        store = open_features(path_dataset, options.modalities)
        store = match_training(store, {path: checkpoint}, options, any_recipe)
        spec = dataset_spec(vars(options))
        subset = subset or spec.train_subset
        dataset = WeakVideoDataset(
            annotations,
            store,
            subset,
            missing_features=options.missing_features,
            min_snippets=spec.min_snippets,
            device=None,  # each video is read once
        )
        datasets.append(dataset)
        if [dataset.video_ids, dataset.lengths.tolist()] != [datasets[0].video_ids, datasets[0].lengths.tolist()]:
            raise InputError(
                f"{path}: its features have other videos or other numbers of snippets than those of {paths[0]}; "
                "use checkpoints of features with the same snippets"
            )
        networks.append(load_method(checkpoint, path, options, annotations.classes, dataset.modality_dims).network)
    return networks, datasets


def label_videos(
    networks: Sequence[nn.Module], datasets: Sequence[WeakVideoDataset], relative: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return weak labels (L,) and pseudo labels (T, L) of each video, from the mean activation of all networks."""
    dataset, videos = datasets[0], {}
    indices = np.arange(len(dataset))
    # Equal lengths give equal orders.
    streams = [network_outputs(*pair, indices, ("cas", "attention")) for pair in zip(networks, datasets, strict=True)]
    for outputs in tqdm(zip(*streams, strict=True), "labeling", len(dataset), leave=False, unit="video", disable=None):
        index = outputs[0][0]
        labels = np.flatnonzero(dataset.labels[index])
        activation = np.mean([class_activation(**curves)[:, labels] for _, curves in outputs], axis=0)
        videos[dataset.video_ids[index]] = labels, pseudo_labels(activation, relative)
    return {video_id: videos[video_id] for video_id in dataset.video_ids}


if __name__ == "__main__":
    exit_on_input_error(main)
