#!/usr/bin/env bash
# Set up on a fresh machine, then every check: style and tests. Options go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
exec python -m pytest "$@"
