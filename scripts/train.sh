#!/usr/bin/env bash
# Train, evaluate and report, from a fresh machine.
#
#   bash scripts/train.sh                               the demo: makes its simulated data, then runs/demo
#   bash scripts/train.sh thumos14 --path-dataset DIR   the paper's experiment; NAME is a file of configs/
#
# Any option of main.py may follow (python main.py --help). The same command again continues a stopped run.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

name=${1:-demo}
[ $# -eq 0 ] || shift
if [ ! -f "configs/$name.yaml" ]; then
  echo "error: no config configs/$name.yaml; there are: $(basename -s .yaml -a configs/*.yaml | tr '\n' ' ')" >&2
  exit 2
fi
if [ "$name" = demo ]; then
  set -- --run-dir runs/demo "$@"
fi
python main.py --config "configs/$name.yaml" --resume "$@"
[ "$name" != demo ] || python scripts/report.py runs/demo
