"""Ledger of finished runs: a CSV file with one line per run, from several machines and days.

Facts of a run are plain columns. Its scores are columns named CHECKPOINT/MEASURE/SCORE in percent, as in
`last/snippet/mean` and `best/seconds/mAP@0.5`. A measure is a protocol, or a subset with a snippet accuracy.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
from filelock import FileLock

from eval.average_precision import mean_over_range
from eval.html_report.finished_run import protocols_of
from eval.snippet_accuracy import accuracy_note
from scripts.reproduction.plan import ROOT, PlannedRun
from utils.datasets import dataset_spec
from utils.errors import InputError
from utils.formats.files import atomic_write, read_json, read_yaml

LEDGER = ROOT / "docs" / "results" / "runs.csv"
CHECKPOINTS = ("last", "best", "selected")
# Values that make two runs the same experiment: config and row, options, seed, data and numerics version.
IDENTITY = {
    "base": "str",
    "key": "str",
    "overrides": "str",
    "options": "str",
    "seed": "Int64",
    "iterations": "Int64",
    "features_hash": "str",
    "annotations_hash": "str",
    "numerics": "Int64",
}
PLACE = {"revision": "str", "device": "str"}
FACTS = {
    "experiment": "str",
    **IDENTITY,
    **PLACE,
    "data": "str",
    "dataset": "str",
    "features": "str",
    "simulated": "Int64",
    "precision": "str",
    "eval_every": "Int64",
    "best_iteration": "Int64",
    "selected_iteration": "Int64",
    "collapsed": "str",
    "threads": "Int64",
    "jobs": "Int64",
    "seconds": "float64",
    "finished": "str",
    "note": "str",
}


def read_ledger(path: Path) -> pd.DataFrame:
    """Return the runs of a ledger; none if the file does not exist.

    Raises:
        InputError: The file is not a ledger.
    """
    if not path.exists():
        return _typed(pd.DataFrame())
    try:
        frame = pd.read_csv(path, dtype={name: "str" for name, kind in FACTS.items() if kind == "str"})
        if missing := [name for name in (*IDENTITY, *PLACE) if name not in frame]:
            raise ValueError(f"no column '{missing[0]}'")
        return _typed(frame)
    except (ValueError, TypeError, OSError) as error:  # errors of the CSV reader are ValueErrors
        raise InputError(f"{path}: not a ledger of runs ({str(error).splitlines()[0]})") from None


def append_runs(path: Path, rows: Iterable[dict] | pd.DataFrame) -> None:
    """Add runs to a ledger. A run replaces an earlier one of the same identity, revision and device.

    Several processes may append at the same time.

    Args:
        path: The ledger; created if it does not exist.
        rows: Rows of `ledger_row`, or another ledger.
    """
    added = _typed(rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        before = read_ledger(path)
        frame = _typed(pd.concat([before, added]) if len(before) else added)
        key = [*IDENTITY, *PLACE]
        frame = frame.drop_duplicates(key, keep="last").sort_values(key, kind="stable")
        with atomic_write(path) as partial:
            frame.round(4).to_csv(partial, index=False, lineterminator="\n")


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with all facts in order and of their types, then its scores in order."""
    scores = sorted((name for name in frame if name not in FACTS), key=_score_order)
    frame = frame.reindex(columns=[*FACTS, *scores]).reset_index(drop=True)
    text = [name for name, kind in FACTS.items() if kind == "str"]
    frame[text] = frame[text].astype(object).fillna("")
    return frame.astype({**FACTS, **dict.fromkeys(scores, "float64")})


def _score_order(name: str) -> tuple:
    checkpoint, _, rest = name.partition("/")
    order = CHECKPOINTS.index(checkpoint) if checkpoint in CHECKPOINTS else len(CHECKPOINTS)
    return order, rest.replace("/mean", "/"), rest


def contains(ledger: pd.DataFrame, run: PlannedRun) -> bool:
    """Return True if a ledger has a run, of any revision and device."""
    same = pd.Series(True, ledger.index)
    for name in IDENTITY:
        same &= ledger[name] == run.identity[name]
    return bool(same.any())


def ledger_row(run: PlannedRun, seconds: float | None = None, jobs: int | None = None) -> dict:
    """Return the row of a finished run, from its folder.

    Args:
        run: The run.
        seconds: Duration of the whole run, if it was trained without interruption.
        jobs: Number of concurrent runs.
    """
    metrics = read_json(run.folder / "metrics.json")
    if "last" not in metrics:  # a pool has one evaluation
        metrics = {"last": next(iter(metrics.values()))}
    # A pool also has no options and no environment of its own.
    source = run.folder if (run.folder / "options.yaml").exists() else run.after[0].folder
    options, environment = read_yaml(source / "options.yaml", verify=True), read_json(source / "environment.json")
    spec, simulated = dataset_spec(options), bool(environment["features"]["simulated"])
    data = Path(options["path_dataset"]).resolve().name
    dirty = "+changes" if environment.get("uncommitted_changes") else ""
    finished = datetime.fromtimestamp((run.folder / "metrics.json").stat().st_mtime, timezone.utc)
    row = {
        "experiment": run.experiment,
        **run.identity,
        "revision": f"{str(environment.get('revision'))[:10]}{dirty}",
        "device": environment["device"],
        "data": data,
        "dataset": spec.name,
        "features": " + ".join(options["modalities"]),
        "simulated": int(simulated),
        "precision": options["precision"],
        "eval_every": options["eval_every"],
        "best_iteration": metrics["best"]["iteration"] if "best" in metrics else None,
        "selected_iteration": metrics["selected"]["iteration"] if "selected" in metrics else None,
        "collapsed": " ".join(name for name in CHECKPOINTS if metrics.get(name, {}).get("collapsed")),
        "threads": environment["threads"],
        "jobs": jobs,
        "seconds": None if seconds is None else round(seconds, 1),
        "finished": finished.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "note": accuracy_note(metrics["last"]["snippet_accuracy"]) if spec.accuracy_subsets else "",
    }
    for checkpoint in (name for name in CHECKPOINTS if name in metrics):
        for measure, scores in _scores(metrics[checkpoint], spec):
            row |= {f"{checkpoint}/{measure}/{name}": value for name, value in scores.items()}
    return row


def _scores(metrics: dict, spec) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Yield each measure of a checkpoint with its scores in percent."""
    for protocol in protocols_of(metrics):
        thresholds, values = (metrics[protocol][name] for name in ("tiou_thresholds", "map"))
        scores = {"mean": 100 * mean_over_range(thresholds, values, *spec.main_range)}
        pairs = zip(thresholds, values, strict=True)
        yield protocol, scores | {f"mAP@{t:g}": None if value is None else 100 * value for t, value in pairs}
    for subset in spec.accuracy_subsets:
        yield subset, {"mean": 100 * metrics["snippet_accuracy"][subset]["accuracy"]}
