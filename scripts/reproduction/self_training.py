"""Label the training videos with a finished run, and train with these pseudo labels: a row of scripts/reproduce.py.

python scripts/reproduction/self_training.py CHECKPOINT LABELS [--relative] OPTIONS-OF-MAIN ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository root

from main import main as train
from options import parse_args
from scripts.pseudo_labels import main as write_labels
from utils.errors import exit_on_input_error

RELATIVE = "--relative"  # the option of pseudo_labels.py; all others are of main.py


def main(argv: list[str] | None = None) -> None:
    """Run the command. A resumed run has the labels that it began with, unless the checkpoint is newer."""
    checkpoint, labels, *words = argv or sys.argv[1:]
    relative = [word for word in words if word == RELATIVE]
    words = [word for word in words if word != RELATIVE]
    args = parse_args(words)
    if not Path(labels).exists() or Path(labels).stat().st_mtime < Path(checkpoint).stat().st_mtime:
        common = ["--path-dataset", args.path_dataset, "--device", args.device]
        write_labels([checkpoint, "--out", labels, *common, *relative])
    train([*words, "--pseudo-labels", labels])


if __name__ == "__main__":
    exit_on_input_error(main)
