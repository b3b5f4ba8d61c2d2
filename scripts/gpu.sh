#!/usr/bin/env bash
# Run everything that needs a GPU, within MINUTES: GPU tests, benchmark, full-size training, missing runs of the tables.
#
#   bash scripts/gpu.sh 30 --path-dataset DIR                            everything, into runs/gpu
#   bash scripts/gpu.sh 8 --path-dataset DIR --stages tables --tables table3 table5 --seeds 0 1
#   bash scripts/gpu.sh --rehearse                                       the same with tiny data, on the CPU
#   bash scripts/gpu.sh --help                                           all options
#
# Python is that of the variable PYTHON. The next choices are the active Python if it sees a GPU, and that of .venv.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sees_gpu() { "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

if [ -z "${PYTHON:-}" ]; then
  for PYTHON in python python3; do
    sees_gpu "$PYTHON" && break
    PYTHON=
  done
fi
if [ -z "$PYTHON" ]; then
  source scripts/setup.sh
  PYTHON=python
fi
exec "$PYTHON" -m scripts.reproduction.gpu "$@"
