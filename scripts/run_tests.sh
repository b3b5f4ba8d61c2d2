#!/usr/bin/env bash
# Set up on a fresh machine, then run every check: style and tests, one test process per core. Options go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
export OMP_NUM_THREADS=1  # each test process has its own core
exec python -m pytest --numprocesses auto --dist loadfile "$@"
