"""Settings of the ledger's runs, and statistics over their seeds."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
from scipy.stats import t

from scripts.reproduction.ledger import CHECKPOINTS
from scripts.reproduction.plan import ROOT, Row, Table, method_config, published_iterations
from utils.datasets import DATASETS
from utils.engine import TABLE_PROTOCOLS
from utils.run.folder import NUMERICS

CONFIDENCE = 0.95
# Runs that agree in these can be compared.
SETTING = ["base", "overrides", "base_iterations", "features_hash", "annotations_hash", "numerics"]


@dataclass(frozen=True)
class Pair:
    """Two rows of a table that the paper orders, and their difference over the seeds that both have."""

    higher: Row  # in the paper
    lower: Row
    differences: pd.Series  # by seed

    @property
    def mean(self) -> float:
        """Mean difference; positive if the order is the paper's."""
        return self.differences.mean()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of the mean (paired t), None for one seed."""
        count = len(self.differences)
        if count < 2:
            return None
        half = t.ppf((1 + CONFIDENCE) / 2, count - 1) * self.differences.std() / count**0.5
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> int:
        """1 if the interval is above zero, -1 if it is below zero, else 0."""
        low, high = self.interval or (0, 0)
        return int(low > 0) - int(high < 0)


def by_setting(ledger: pd.DataFrame) -> list[pd.DataFrame]:
    """Split runs into groups that can be compared, each with one run per row and seed: the newest one.

    Groups of simulated features come last.

    If the config of a row has changed between runs, only the runs with the newest options count. A method that ran with
    its own published number of iterations also belongs to the setting of its base.
    """
    runs = ledger.sort_values("finished", kind="stable")
    facts = zip(runs["base"], runs["key"], runs["iterations"], strict=True)
    runs = runs.assign(base_iterations=[base_iterations(*run) for run in facts])
    runs = runs.assign(is_own=runs["base_iterations"] != runs["iterations"])
    runs = pd.concat([runs[runs["is_own"]], runs.assign(base_iterations=runs["iterations"])])
    newest = runs.groupby([*SETTING, "key"])["options"].transform("last")
    runs = runs[runs["options"] == newest].drop_duplicates([*SETTING, "key", "seed"], keep="last")
    groups = [group.sort_values(["key", "seed"]) for _, group in runs.groupby(SETTING)]
    groups.sort(key=lambda group: group["simulated"].iloc[0])
    return [group.drop(columns="is_own") for group in groups if not group["is_own"].all()]


def base_iterations(base: str, key: str, iterations: int) -> int:
    """Return the base's number of iterations if a method ran with its own published number, else the given number."""
    config = ROOT / "configs" / f"{base}.yaml"
    own = method_config(config, key)
    return published_iterations(config) if own and iterations == published_iterations(own) else iterations


def heading(group: pd.DataFrame) -> str:
    """Return the name of a setting, with SIMULATED in front if its features are simulated."""
    first = group.iloc[0]
    place = first["base"] if first["data"] == first["base"] else f"{first['base']} on {first['data']}"
    iterations = " or ".join(f"{number:,}" for number in sorted(set(group["iterations"])))
    parts = [place, f"{iterations} iterations", *([first["overrides"]] if first["overrides"] else [])]
    parts += [f"numerics version {first['numerics']}"] if first["numerics"] != NUMERICS else []
    return f"{'SIMULATED ' if is_simulated(group) else ''}{', '.join(parts)}"


def is_simulated(group: pd.DataFrame) -> bool:
    """Return True if the features of a setting are simulated."""
    return bool(group["simulated"].any())


def features_of(group: pd.DataFrame) -> str:
    """Return the features of a setting; some of its rows may use one modality alone."""
    prefix = "SIMULATED features" if is_simulated(group) else "features"
    return f"{prefix} {max(group['features'], key=len)} of {group['data'].iloc[0]}"


def dataset_of(group: pd.DataFrame) -> str:
    """Return the dataset of the runs of one setting."""
    return group["dataset"].iloc[0]


def measures_of(group: pd.DataFrame) -> tuple[str, ...]:
    """Return the measures that a table shows; the first one decides on the order of rows."""
    spec = DATASETS.get(dataset_of(group))
    return (spec and spec.accuracy_subsets) or TABLE_PROTOCOLS


def checkpoints_of(group: pd.DataFrame) -> list[str]:
    """Return the checkpoints that some run of a setting has."""
    measure = measures_of(group)[0]
    columns = {name: f"{name}/{measure}/mean" for name in CHECKPOINTS}
    return [name for name, column in columns.items() if column in group and group[column].notna().any()]


def rows_that_ran(table: Table, group: pd.DataFrame) -> list[Row]:
    """Return the rows of a table with a run in a setting."""
    return [row for row in table.rows_for(dataset_of(group)) if (group["key"] == row.key).any()]


def belongs(table: Table, group: pd.DataFrame) -> bool:
    """Return True if a setting has a run of this table's own rows, or of its base on its dataset."""
    name, keys = dataset_of(group), {row.key for row in rows_that_ran(table, group)}
    rows = table.rows_for(name)
    if table.compares_methods:  # the rows of another dataset's table are the same runs
        return (group["experiment"].str.startswith(f"{table.key}: ") & (group["key"] != table.method)).any()
    # If some rows have options, those without are rows of other tables, for comparison: `scale` repeats Tables 5 and 6.
    own = {row.key for row in rows if row.options} or {row.key for row in rows} - {table.method}
    if own:
        same_measure = name in DATASETS and DATASETS[name].accuracy_subsets == DATASETS[table.dataset].accuracy_subsets
        return same_measure and bool(keys & own)
    return name == table.dataset and bool(keys)


def seeds_of(runs: pd.DataFrame) -> set[int]:
    """Return the different seeds of runs. A pool has several."""
    pooled = runs["options"].str.extract(r"pooled_seeds=\[([\d,]+)\]")[0]
    return {int(seed) for text in pooled.fillna(runs["seed"].astype(str)) for seed in text.split(",")}


def minutes_of(row: Row, group: pd.DataFrame) -> float:
    """Return the time of one run of a row in minutes, with the runs that it follows; nan if one was interrupted."""
    runs = group[group["key"] == row.key]
    minutes = runs["seconds"].median() / 60
    return minutes + len(seeds_of(runs[-1:])) * minutes_of(row.first, group) if row.after else minutes


def spread(values: pd.Series) -> str:
    """Return mean ± standard deviation over seeds (n - 1) as text; for one seed its value, for none an empty text."""
    count = values.count()
    if count < 2:
        return f"{values.mean():.1f}" if count else ""
    return f"{values.mean():.1f} ± {values.std():.1f}"


def ordered_pairs(table: Table, group: pd.DataFrame, checkpoint: str = "last") -> Iterator[Pair]:
    """Yield each pair of rows that the paper orders and that share a seed."""
    column = f"{checkpoint}/{measures_of(group)[0]}/mean"
    scores = group.pivot(index="seed", columns="key", values=column)
    rows = [row for row in rows_that_ran(table, group) if row.paper is not None]
    for first, second in combinations(rows, 2):
        scales = [row.options.get("feature_scale") for row in (first, second)]
        if first.paper != second.paper and scales[0] == scales[1]:  # the paper compares rows on the same features
            higher, lower = (first, second) if first.paper > second.paper else (second, first)
            differences = (scores[higher.key] - scores[lower.key]).dropna()
            if len(differences):
                yield Pair(higher, lower, differences)


def order_sentences(pairs: list[Pair]) -> list[str]:
    """Describe the pairs that have the paper's order, and the certainty of the order over seeds."""
    agree = sum(pair.mean > 0 for pair in pairs)
    sentences = [f"{agree} of {len(pairs)} pairs of rows have the paper's order, by their mean over seeds."]
    if all(pair.interval is None for pair in pairs):
        return [*sentences, "One seed says nothing about certainty."]
    certain = f"the {CONFIDENCE:.0%} interval of the paired difference excludes 0"
    confirmed = [pair for pair in pairs if pair.verdict > 0]
    reversed_pairs = [pair for pair in pairs if pair.verdict < 0]
    sentences.append(f"{len(confirmed)} of them are certain over seeds: {certain}.")
    if reversed_pairs:
        names = "; ".join(f"{pair.lower.name} above {pair.higher.name}" for pair in reversed_pairs)
        sentences.append(f"The opposite order is certain for {len(reversed_pairs)}: {names}.")
    return sentences
