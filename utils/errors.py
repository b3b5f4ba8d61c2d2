"""Bad input, said in one line: what, where, what was expected, what to do."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """The user's input cannot be used; the message is one line that says what, where and what to do."""


def exit_on_input_error(main: Callable[[], None]) -> None:
    """Run a command; a bad input ends it with its one line on stderr and exit status 2, never a traceback.

    A reader that stops early (``| head``) is no error.
    """
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        raise SystemExit(1) from None
