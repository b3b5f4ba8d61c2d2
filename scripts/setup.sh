# Sourced by the other scripts: a virtual environment in .venv with the locked versions, made once and again when
# the lock changes. An environment that is already active is used as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
  python=$(command -v python3 || command -v python) || { echo "error: Python 3.10 or newer is needed" >&2; exit 2; }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "error: $("$python" --version) is too old, Python 3.10 or newer is needed" >&2; exit 2; }
  # The lock holds for Python 3.11 and later; an older one gets the newest versions that setup.py admits.
  requirements=(-r requirements.lock)
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || requirements=(-e '.[dev]')
  if ! cmp -s requirements.lock .venv/requirements.lock; then
    echo "setting up .venv (once; downloads PyTorch)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${requirements[@]}"
    cp requirements.lock .venv/requirements.lock
  fi
  source .venv/bin/activate
fi
