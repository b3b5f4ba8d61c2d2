"""Command line of a dataset check: python -m utils.features DIR [--check]."""

from utils.errors import exit_on_input_error
from utils.features.check import command

if __name__ == "__main__":
    exit_on_input_error(command)
