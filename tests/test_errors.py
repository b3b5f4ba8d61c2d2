"""Errors of the user and of the system end a command with one line."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import InputError, OneLineParser, exit_on_input_error

ROOT = Path(__file__).resolve().parent.parent


def ended(main, capsys) -> tuple[int, str]:
    """Return the exit status and stderr of a command."""
    with pytest.raises(SystemExit) as end:
        exit_on_input_error(main)
    return end.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("truth.json: video 'two\n  lines'"), "truth.json: video 'two lines'"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b.json"), "a/b.json: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", Path("a")), "a: Is a directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("Unable to open file\n(truncated file)"), "Unable to open file (truncated file)"),
        (OSError(), "OSError"),
    ],
)
def test_expected_error_ends_a_command_with_one_line(error, line, capsys):
    assert ended(raising(error), capsys) == (2, f"error: {line}\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError):
        exit_on_input_error(raising(KeyError("x")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--two\nlines"], "unrecognized arguments: --two lines"),
        (["--max_iter", "5"], "unrecognized arguments: --max_iter 5; did you mean --max-iter?"),
        (["--max", "5"], "unrecognized arguments: --max 5"),
        (["demo.yaml"], "unrecognized arguments: demo.yaml; did you mean --config demo.yaml?"),
        (["x", "--maxiter=5"], "unrecognized arguments: x --maxiter=5; did you mean --max-iter?"),
        (["--max-iter", "five"], "argument --max-iter: invalid int value: 'five'"),
    ],
)
def test_wrong_option_is_one_line_without_the_usage(words, message, capsys):
    parser = OneLineParser(prog="tool")
    parser.add_argument("--max-iter", type=int)
    parser.add_argument("--config")
    assert ended(lambda: parser.parse_args(words), capsys) == (2, f"error: {message} (see tool --help)\n")


COMMAND = "from utils.errors import exit_on_input_error; exit_on_input_error(lambda: print('x' * {}))"


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_is_one_line(size):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND.format(size)], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_closed_pipe_is_no_error(size):
    command = [sys.executable, "-c", COMMAND.format(size)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1
