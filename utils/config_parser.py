"""Parser of a command line over YAML configs. options.py has the options themselves."""

import argparse
import difflib
from pathlib import Path
from typing import NoReturn

from utils.errors import InputError, OneLineParser, shorten
from utils.formats.files import read_yaml
from utils.number_types import non_negative_float

NOT_IN_CONFIG = ("config", "base", "resume")  # options of the command line alone
OLD_NAMES = {"model": "method", "pseudo_neighbours": "pseudo_neighbors"}  # options of older runs


class ConfigParser(OneLineParser):
    """Parser of a command line and of configs; an error in a config names its file."""

    where = ""  # prefix of messages: the config that is being applied

    def error(self, message: str) -> NoReturn:
        """End the program with one line, which names the config, and status 2."""
        super().error(f"{self.where}{message}")

    def apply_config(
        self, args: argparse.Namespace, path: Path, base: Path | None = None, seen: tuple[Path, ...] = ()
    ) -> None:
        """Set the options of a YAML file in `args`, after those of its `base`.

        Args:
            args: Options so far; changed in place.
            path: The YAML file.
            base: Replaces the `base` of the file.
            seen: Configs whose `base` led to this one, to detect a cycle.
        """
        if "\0" in str(path):
            self.error(f"base: {shorten(str(path))} is not a file name")
        if path.resolve() in seen:
            self.error(f"{path}: configs name each other as base")
        if not path.exists():
            existing = sorted(path.parent.glob("*.yaml")) or sorted(Path("configs").glob("*.yaml"))
            self.error(f"{path}: not found; expected a YAML file such as {', '.join(map(str, existing))}")
        try:
            values = read_yaml(path)
        except InputError as error:
            self.error(str(error))
        if not isinstance(values, dict):
            self.error(f"{path}: expected lines of 'option: value'")
        own_base = values.pop("base", None)
        if base is None and own_base is not None:
            base = path.parent / str(own_base)
        if base is not None:
            self.apply_config(args, base, seen=(*seen, path.resolve()))
        known = {*vars(self.parse_args([])), *OLD_NAMES} - {*NOT_IN_CONFIG}
        self.where = f"{path}: "
        for name, value in values.items():
            if name not in known:
                close = difflib.get_close_matches(str(name).replace("-", "_"), known, 1)
                options = (
                    f"did you mean {close[0]}?" if close else f"options are: {', '.join(sorted(known - {*OLD_NAMES}))}"
                )
                self.error(f"unknown option '{name}'; {options}")
            _, rest = self.parse_known_args(as_words(name, value), args)
            if rest or value is None:
                expected = "true or false" if isinstance(getattr(args, name, None), bool) else "a single value"
                self.error(f"{name} is {shorten(value)}, expected {expected}")
        self.where = ""


def as_words(name: str, value: object) -> list[str]:
    """Return an option of a config as words of a command line."""
    flag = "--" + str(name).replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, dict):
        return [flag, *(f"{key}={item}" for key, item in value.items())] if value else []
    if isinstance(value, list):
        return [flag, *map(str, value)]
    if value is None:
        return []
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


class DefaultsHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each option, except None and False."""

    def _get_help_string(self, action: argparse.Action) -> str:
        hidden = action.default is None or action.default is False or action.default in ({}, argparse.SUPPRESS)
        return action.help if hidden else super()._get_help_string(action)


class UpdateWeights(argparse.Action):
    """Updates the weights by term: `mil=1 oppo=0` adds {"mil": 1.0, "oppo": 0.0} to those of the config."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Parse the words TERM=WEIGHT after the option."""
        weights = dict(getattr(namespace, self.dest))
        for item in values:
            name, _, number = item.partition("=")
            try:
                weights[name] = non_negative_float(number)
            except argparse.ArgumentTypeError:
                parser.error(f"{option_string}: expected TERM=NUMBER, NUMBER at least 0, as in oppo=0.8; got '{item}'")
        setattr(namespace, self.dest, weights)
