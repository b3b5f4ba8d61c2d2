"""Train again, with pseudo labels of a finished run.

python scripts/self_training.py --run runs/NAME
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

from main import main as train
from options import parse_args
from scripts.pseudo_labels import RELATIVE_HELP
from scripts.pseudo_labels import main as write_labels
from utils.checkpoint import has_training_state
from utils.errors import InputError, OneLineParser, exit_on_input_error

LABELS = "pseudo_labels.h5"  # of the run folder


def main(argv: list[str] | None = None) -> None:
    """Run the command. A resumed run keeps the labels that it began with."""
    parser = OneLineParser(
        prog="scripts/self_training.py",
        description="Label the training videos with the last checkpoint of a finished run, and train from scratch with "
        "these pseudo labels and the options of that run. Other options of main.py may follow, such as --seed or "
        "--resume; they replace those of the run.",
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="RUN", help="folder of a finished run of main.py")
    add("--run-dir", metavar="DIR", help="folder to write (default: RUN_self_training)")
    add("--relative", action="store_true", help=RELATIVE_HELP)
    args, others = parser.parse_known_args(argv)
    checkpoint, options = args.run / "checkpoints" / "last.pt", args.run / "options.yaml"
    if not checkpoint.is_file() or not options.is_file():
        raise InputError(f"--run {args.run}: expected the folder of a finished run, with {options.name} and last.pt")
    folder = args.run_dir or f"{args.run}_self_training"
    words = ["--config", str(options), *others, "--run-dir", folder]
    labels, training = Path(folder) / LABELS, parse_args(words)
    if not has_training_state(Path(folder) / "checkpoints"):
        common = ["--path-dataset", training.path_dataset, "--device", training.device]
        write_labels([str(checkpoint), "--out", str(labels), *common, *(["--relative"] if args.relative else [])])
    elif not training.resume:
        raise InputError(f"{folder}: already has a run; continue it with --resume, or choose another --run-dir")
    elif labels.exists() and labels.stat().st_mtime < checkpoint.stat().st_mtime:
        raise InputError(f"{labels} is older than {checkpoint}, expected its labels; choose another --run-dir")
    train([*words, "--pseudo-labels", str(labels)])


if __name__ == "__main__":
    exit_on_input_error(main)
