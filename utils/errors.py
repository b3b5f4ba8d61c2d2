"""Bad input, said in one line: what, where, what was expected, what to do."""

import argparse
import io
import os
import reprlib
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

RANK_ZERO_HEAD_START = 5.0  # seconds that torchrun's other processes on a machine leave its first one to say the same


class InputError(ValueError):
    """The user's input cannot be used; the message is one line that says what, where and what to do.

    It stays one line whatever a file had in it: line ends that a name or a library's message brings become spaces.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def shorten(value: object, length: int = 80) -> str:
    """A value of a file, as a message shows it: short, however long, deep or entangled it is."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother, brief.maxlong = 3, length, length, length
    try:
        text = brief.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= length else text[: length - 3] + "..."


class OneLineParser(argparse.ArgumentParser):
    """A wrong option ends the command with one line on stderr and exit status 2, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_by_rank(_one_line(message))} (see {self.prog} --help)\n")


def exit_on_input_error(main: Callable[[], None]) -> None:
    """Run a command; a bad input ends it with its one line on stderr and exit status 2, never a traceback.

    So does a file that the system does not give or take (no permission, a full disk, a folder in its place).
    A reader that stops early (`| head`) is no error. Ctrl-C ends it with one line and exit status 130.

    Of many processes that torchrun started each says its own line, under its rank; what all of them would say is
    said once.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name need not be in the terminal's character set
    try:
        main()
        sys.stdout.flush()  # so that a full disk or a closed pipe shows here and not after the end
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        if _is_first():
            print("\ninterrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        _let_go_of_stdout()
        raise SystemExit(1) from None
    except OSError as error:
        _let_go_of_stdout()
        message = _one_line(_system_message(error))
    else:
        return
    print(f"error: {_by_rank(message)}", file=sys.stderr)
    raise SystemExit(2)


def _is_first() -> bool:
    """Whether this process is the only one, or the first that torchrun started on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _by_rank(message: str) -> str:
    """The message, with the rank of a process that is not the main one.

    The first process on a machine speaks at once, and ends. Where the others were to say the same, torchrun ends
    them while they wait.
    """
    if not _is_first():
        time.sleep(RANK_ZERO_HEAD_START)
    rank = os.environ.get("RANK", "0") if "LOCAL_RANK" in os.environ else "0"
    return message if rank == "0" else f"rank {rank}: {message}"


def _system_message(error: OSError) -> str:
    """`PATH: what is wrong` as far as the error knows; h5py's may know neither."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _let_go_of_stdout() -> None:
    """Write out what was printed; where that fails, drop it, or the flush at exit fails again, with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())
