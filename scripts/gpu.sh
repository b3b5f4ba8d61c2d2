#!/usr/bin/env bash
# Do what only a GPU can show, within MINUTES: GPU tests, benchmark, full-size training, missing runs of the tables.
#
#   bash scripts/gpu.sh 30 --path-dataset DIR                            everything, into runs/gpu
#   bash scripts/gpu.sh 8 --path-dataset DIR --stages tables --tables table3 table5 --seeds 0 1
#   bash scripts/gpu.sh --rehearse                                       everything tiny, on the CPU
#   bash scripts/gpu.sh --help                                           all options
#
# It runs with the Python of the variable PYTHON, else with the active one if that sees a GPU, else with .venv.
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
