"""Entry point of `python -m utils.features DIR [--check]`, see utils/features/check.py."""

from utils.errors import exit_on_input_error
from utils.features.check import main

if __name__ == "__main__":
    exit_on_input_error(main)
