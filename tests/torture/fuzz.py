"""Look for a file that the readers of strangers' files do not stand: coverage-guided fuzzing, a check beside the tests.

python tests/torture/fuzz.py {npy,json} [--seconds N] [--seed N]
"""

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from utils.errors import InputError, OneLineParser, exit_on_input_error  # noqa: E402

MEGABYTES, SECONDS_EACH = 1024, 10  # what an input of some KB may take at most
MAX_BYTES = 8192  # of an input
FOLLOWED = ["utils", "eval", "pickletools", "json"]  # where new branches are looked for

EPILOG = """\
npy     utils.formats.npy: plain .npy files and pickles, starting from some that numpy wrote
json    utils.formats.files.read_json, and on it annotations (utils.annotations) and detections (eval.tables)

An input must be read, or refused with an InputError. Anything else is a finding: another exception, more than 1 GB of
memory, more than 10 seconds. Its traceback is printed, it is kept as fuzz-WHAT-... in the folder where you are, and
the exit status is 1. atheris does the work and is no part of the project's requirements: pip install atheris

  python tests/torture/fuzz.py npy --seconds 600
  python tests/torture/fuzz.py json --seed 7
"""


def main() -> None:
    """The command line: how many inputs were tried, and that none was a finding."""
    args = _parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        raise InputError("the fuzzer needs atheris, which is not installed here: pip install atheris") from None
    tried = multiprocessing.RawValue("Q", 0)
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("fork").Process(target=_fuzz, args=(args, Path(folder), tried))
        process.start()
        process.join()
    if process.exitcode:
        print(f"a finding after {tried.value:,} executions; its input is kept as fuzz-{args.what}-*")
        raise SystemExit(1)
    print(f"{tried.value:,} executions of {args.what} in {args.seconds} s, seed {args.seed}: no crash")


def _parse_args() -> argparse.Namespace:
    parser = OneLineParser(
        prog="tests/torture/fuzz.py",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", choices=list(TARGETS), help="see below")
    add("--seconds", type=int, default=60, metavar="N", help="how long; default: 60")
    add("--seed", type=int, default=1, metavar="N", help="of the random changes; default: 1")
    args = parser.parse_args()
    if args.seconds < 1 or args.seed < 1:  # by 0 libFuzzer means for ever, and any
        parser.error("--seconds and --seed: expected at least 1")
    return args


def _fuzz(args: argparse.Namespace, folder: Path, tried) -> None:
    """Try inputs until the time is over, which ends the process; `tried` counts them."""
    import atheris

    with atheris.instrument_imports(include=FOLLOWED):
        readers, seeds = TARGETS[args.what]()
    corpus, path = folder / "corpus", folder / f"input.{args.what}"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def try_one(data: bytes) -> None:
        tried.value += 1
        path.write_bytes(data)
        for read in readers:
            with suppress(InputError):
                read(path)

    limits = {"max_total_time": args.seconds, "rss_limit_mb": MEGABYTES, "timeout": SECONDS_EACH, "max_len": MAX_BYTES}
    options = limits | {"seed": args.seed, "artifact_prefix": f"fuzz-{args.what}-", "verbosity": 0}
    atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)], try_one)
    atheris.Fuzz()


def _npy() -> tuple[list[Callable], list[bytes]]:
    """The readers of .npy files, and files to start from. Imported here, where `atheris` follows imports."""
    import io
    import pickle

    import numpy as np

    from utils.formats.npy import array_shape, load_array

    rows = np.empty(6, dtype=object)
    rows[:2] = np.eye(2, dtype=np.float32), np.array(["a", "bc"])
    rows[2:] = [[b"Dive", "Clap"], [1.5, 2]], np.float64(1), {"a": (1, None, True)}, np.array([], dtype=">i4")
    seeds = []
    for array in (np.eye(3, dtype=np.float16), np.array([b"v1", b"v2"]), rows):
        content = io.BytesIO()
        np.save(content, array)
        seeds.append(content.getvalue())
    start = seeds[-1][: seeds[-1].index(b"\n") + 1]
    seeds.extend(start + pickle.dumps(rows, protocol) for protocol in (2, 3, 5))
    return [array_shape, load_array], seeds


def _json() -> tuple[list[Callable], list[bytes]]:
    """The readers of annotations and of detections, and files to start from."""
    import json

    from eval.tables import read_detections
    from utils.annotations import parse_annotations
    from utils.formats.files import read_json

    video = {
        "subset": "test",
        "duration": 9.5,
        "labels": ["Dive"],
        "annotations": [{"label": "Dive", "segment": [1, "2.5"]}],
        "ambiguous": [[3, 4.5]],
    }
    detection = {"label": "Dive", "score": 0.5, "segment": [1, 2.5]}
    contents = [
        {"classes": ["Dive"], "database": {"v1": video}},
        {"v1": video},
        {"version": "1", "results": {"v1": [detection], "v2": []}, "snippet_rate": 1.5},
    ]
    return [lambda path: parse_annotations(read_json(path), str(path)), read_detections], [
        json.dumps(content).encode() for content in contents
    ]


TARGETS = {"npy": _npy, "json": _json}

if __name__ == "__main__":
    exit_on_input_error(main)
