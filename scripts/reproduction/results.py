"""Finished runs as a pandas DataFrame with one row per run, and their statistics over seeds.

Facts of a run are plain columns. Its scores are columns named CHECKPOINT/MEASURE/SCORE in percent, as in
`last/snippet/mean` and `best/seconds/mAP@0.5`. A measure is a protocol or a subset with a snippet accuracy.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from eval.average_precision import mean_over_range
from eval.html_report.finished_run import protocols_of
from eval.snippet_accuracy import accuracy_note
from scripts.reproduction.plan import Table
from utils.datasets import DATASETS, dataset_spec
from utils.formats.files import atomic_write, read_json, read_yaml

CHECKPOINTS = ("last", "best")
SETTING = ("base", "data", "iterations", "setting")  # runs that agree in these can be compared
FACTS = (*SETTING, "key", "seed", "dataset", "features", "simulated", "best_iteration", "device", "revision", "note")
CSV_FACTS = ["table", "row", "source", "features", "iterations", "seed", "checkpoint", "at_iteration", "protocol"]


def find_runs(run_dir: Path) -> list[Path]:
    """Return the folders of all finished runs, RUN_DIR/BASE/DATASET/ROW_sSEED."""
    return [path.parent for path in sorted(run_dir.glob("*/*/*_s*/metrics.json"))]


def read_results(folders: Iterable[Path]) -> pd.DataFrame:
    """Return finished runs as a DataFrame, one row per run folder."""
    return pd.DataFrame([_read_run(folder) for folder in folders])


def _read_run(folder: Path) -> dict:
    """Return one row: the facts of a run, then its scores."""
    options = read_yaml(folder / "options.yaml", verify=True)
    environment, metrics = (read_json(folder / f"{name}.json") for name in ("environment", "metrics"))
    spec, simulated = dataset_spec(options), bool(environment["features"]["simulated"])
    (base, data), prefix = folder.parts[-3:-1], "SIMULATED " if simulated else ""
    iterations = metrics["last"]["iteration"]
    place = base if data == base else f"{base} on {data}"
    row = {
        "base": base,
        "data": data,
        "iterations": iterations,
        "setting": f"{prefix}{place}, {iterations} iterations",
        "key": folder.name.rpartition("_s")[0],
        "seed": options["seed"],
        "dataset": spec.name,
        "features": f"{prefix}features {' + '.join(options['modalities'])} of {data}",
        "simulated": simulated,
        "best_iteration": metrics["best"]["iteration"],
        "device": environment["device"],
        "revision": str(environment.get("revision")),
        "note": accuracy_note(metrics["last"]["snippet_accuracy"]) if spec.accuracy_subsets else "",
    }
    for checkpoint in CHECKPOINTS:
        for protocol in protocols_of(metrics[checkpoint]):
            thresholds, values = (metrics[checkpoint][protocol][name] for name in ("tiou_thresholds", "map"))
            row[f"{checkpoint}/{protocol}/mean"] = 100 * mean_over_range(thresholds, values, *spec.main_range)
            for threshold, value in zip(thresholds, values, strict=True):
                row[f"{checkpoint}/{protocol}/mAP@{threshold:g}"] = None if value is None else 100 * value
        for subset in spec.accuracy_subsets:
            row[f"{checkpoint}/{subset}/mean"] = 100 * metrics[checkpoint]["snippet_accuracy"][subset]["accuracy"]
    return row


def by_setting(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Split runs into groups that can be compared: one base, dataset, and number of iterations each."""
    return [group for _, group in runs.groupby(list(SETTING))] if len(runs) else []


def dataset_of(group: pd.DataFrame) -> str:
    """Return the dataset of the runs of one setting."""
    return group["dataset"].iloc[0]


def measures_of(group: pd.DataFrame, protocol: str) -> tuple[str, ...]:
    """Return the measures that a table shows; the first one decides on the order of rows."""
    spec = DATASETS.get(dataset_of(group))
    return (spec and spec.accuracy_subsets) or (protocol,)


def spread(values: pd.Series) -> str:
    """Return mean ± standard deviation over seeds (n - 1), the value alone for one seed, or a dash for none."""
    count = values.count()
    if count < 2:
        return f"{values.mean():.1f}" if count else "–"
    return f"{values.mean():.1f} ± {values.std():.1f}"


def seeds_text(seeds: pd.Series) -> str:
    """Return the different seeds in order, separated by spaces."""
    return " ".join(map(str, sorted(set(seeds))))


def order_line(table: Table, group: pd.DataFrame, checkpoint: str, protocol: str) -> str | None:
    """Return how many pairs of rows are ordered as in the paper; None if it has no order or a row did not run."""
    rows = [row for row in table.rows_for(dataset_of(group)) if row.paper is not None]
    values = f"{checkpoint}/{measures_of(group, protocol)[0]}/mean"
    scores = group.pivot_table(values, index="key", columns="seed").reindex([row.key for row in rows]).dropna(axis=1)
    if len(rows) < 2 or scores.empty:
        return None
    paper = [row.paper for row in rows]
    pairs = [(a, b) for a, b in combinations(range(len(rows)), 2) if paper[a] != paper[b]]
    scores["mean"] = scores.mean(axis=1)
    agree = sum((paper[a] - paper[b]) * (scores.iloc[a] - scores.iloc[b]) > 0 for a, b in pairs)  # by seed
    mean, seeds = agree["mean"], agree.drop("mean")
    return (
        f"{checkpoint}: {mean} of {len(pairs)} pairs of rows are ordered as in the paper (mean over seeds); "
        f"all pairs agree in {sum(seeds == len(pairs))} of {len(seeds)} seeds"
    )


def write_csv(path: Path, tables: Sequence[Table], groups: Sequence[pd.DataFrame]) -> None:
    """Write one line per run, checkpoint and measure, and one per row of the paper, in percent."""
    lines = pd.DataFrame([line for table in tables for line in _csv_lines(table, groups)])
    thresholds = sorted((name for name in lines if name.startswith("mAP@")), key=lambda name: float(name[4:]))
    lines = lines.reindex(columns=[*CSV_FACTS, "mean", *thresholds])
    whole_numbers = dict.fromkeys(("iterations", "seed", "at_iteration"), "Int64")  # the paper's rows have none
    with atomic_write(path) as partial:
        lines.astype(whole_numbers).round(4).to_csv(partial, index=False)


def _csv_lines(table: Table, groups: Sequence[pd.DataFrame]) -> Iterator[dict]:
    for row in table.rows:
        if row.paper is not None:
            printed = {f"mAP@{threshold:g}": value for threshold, value in row.at.items()}
            yield {"table": table.key, "row": row.name, "source": "paper", "mean": row.paper, **printed}
    for group in groups:
        scores = group.set_index(list(FACTS))
        scores.columns = scores.columns.str.split("/", expand=True).set_names(["checkpoint", "protocol", None])
        scores = scores.stack([0, 1], future_stack=True).dropna(how="all").reset_index()
        scores["at_iteration"] = scores["iterations"].where(scores["checkpoint"] == "last", scores["best_iteration"])
        for row in table.rows_for(dataset_of(group)):
            lines = scores[scores["key"] == row.key].assign(table=table.key, row=row.name, source="ours")
            yield from lines.to_dict("records")
