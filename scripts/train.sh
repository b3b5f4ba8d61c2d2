#!/usr/bin/env bash
# Train, evaluate and report, from a fresh machine.
#
#   bash scripts/train.sh                               the demo: makes its simulated data, then runs/demo
#   bash scripts/train.sh --seed 1 --run-dir runs/one   the demo with any options of main.py
#   bash scripts/train.sh thumos14 --path-dataset DIR   the paper's experiment; NAME is a file of configs/
#   bash scripts/train.sh --help                        this text, and the options of main.py
#
# The same command again continues a stopped run.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

name=demo
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  name=${1#configs/}
  name=${name%.yaml}
  shift
fi
config=configs/$name.yaml
if [ ! -f "$config" ]; then
  echo "error: $config not found; existing configs: $(basename -s .yaml -a configs/*.yaml | tr '\n' ' ')" >&2
  exit 2
fi
if [[ " $* " =~ \ (-h|--help)\  ]]; then
  sed -n '2,9s/^# \{0,1\}//p' scripts/train.sh
  exec python main.py --help
fi
if [ "$name" = demo ]; then
  set -- --run-dir runs/demo "$@"
fi
python main.py --config "$config" --resume "$@"
if [ "$name" = demo ]; then
  run_dir=$(python -c 'import sys, options; print(options.parse_args(sys.argv[1:]).run_dir)' --config "$config" "$@")
  python scripts/report.py "$run_dir"
fi
