"""One-line errors for bad input: what, where, expected, what to do."""

import argparse
import difflib
import io
import os
import reprlib
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

RANK_ZERO_HEAD_START = 5.0  # seconds other ranks wait, so that a shared error is reported once


class InputError(ValueError):
    """Unusable input of the user.

    The message is one line. Line breaks, as in a file's names or a library's message, become spaces.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def shorten(value: object, length: int = 80) -> str:
    """Return a short representation of a value from a file, for messages; safe for nested and huge values."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother, brief.maxlong = 3, length, length, length
    try:
        text = brief.repr(value)
    except ValueError:  # an integer with more digits than Python prints
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= length else text[: length - 3] + "..."


def name_some(names: Iterable[str], limit: int = 3, sep: str = ", ") -> str:
    """Return the first names of a list and the number of the others, for messages."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return sep.join(map(str, names[:limit])) + more


def count_noun(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1: `1 video`, `2 classes`."""
    plural = f"{noun}{'es' if noun.endswith('s') else 's'}"
    return f"{number:,} {noun if number == 1 else plural}"


class OneLineParser(argparse.ArgumentParser):
    """Parser that reports a wrong option in one line on stderr, without the usage, and exits with status 2.

    For an unknown option it suggests the most similar known one. Options cannot be abbreviated.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        kind, _, words = message.partition(": ")
        if kind == "unrecognized arguments":
            options = [option for action in self._actions for option in action.option_strings]
            unknown = next((word.split("=")[0] for word in words.split() if word.startswith("--")), "")
            for option in difflib.get_close_matches(unknown, options, n=1, cutoff=0.75):
                message += f"; did you mean {option}?"
            config = next((word for word in words.split() if word.endswith((".yaml", ".yml"))), "")
            if config and "--config" in options:
                message += f"; did you mean --config {config}?"
        self.exit(2, f"error: {_prefix_rank(_one_line(message))} (see {self.prog} --help)\n")


def exit_on_input_error(main: Callable[[], None]) -> None:
    """Run a command and report expected errors in one line on stderr instead of a traceback.

    * `InputError` and errors of the system (no permission, full disk): exit status 2.
    * Ctrl-C: exit status 130.
    * A closed pipe, as in `| head`: no message, exit status 1.

    Under torchrun each rank prefixes its message. An error that all ranks share is usually printed once.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may lack characters of a name
    try:
        main()
        sys.stdout.flush()  # raises here for a full disk or a closed pipe, instead of at exit
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        if _is_local_rank_zero():
            print("\ninterrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        _flush_or_drop_stdout()
        raise SystemExit(1) from None
    except OSError as error:
        _flush_or_drop_stdout()
        message = _one_line(_describe(error))
    else:
        return
    print(f"error: {_prefix_rank(message)}", file=sys.stderr)
    raise SystemExit(2)


def _is_local_rank_zero() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _prefix_rank(message: str) -> str:
    """Return the message, prefixed with the rank unless it is 0; other local ranks than 0 wait first.

    Local rank 0 reports at once and exits. torchrun then ends the waiting ranks before they repeat the message.
    """
    if not _is_local_rank_zero():
        time.sleep(RANK_ZERO_HEAD_START)
    rank = os.environ.get("RANK", "0") if "LOCAL_RANK" in os.environ else "0"
    return message if rank == "0" else f"rank {rank}: {message}"


def _describe(error: OSError) -> str:
    if error.strerror is None:  # errors of h5py carry only a message, or nothing
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _flush_or_drop_stdout() -> None:
    """Flush stdout; if that fails, discard its buffer so that the flush at exit raises no traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())
