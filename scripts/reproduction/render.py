"""Tables of the ledger's runs, as text for the screen and as pages of docs/."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from eval.average_precision import range_name
from eval.tables import format_table
from scripts.reproduction.code_lines import count_lines
from scripts.reproduction.ledger import LEDGER
from scripts.reproduction.plan import Table, slug
from scripts.reproduction.plot import plot_table
from scripts.reproduction.results import (
    CONFIDENCE,
    Pair,
    belongs,
    checkpoints_of,
    dataset_of,
    features_of,
    heading,
    is_simulated,
    measures_of,
    minutes_of,
    order_sentences,
    ordered_pairs,
    rows_that_ran,
    seeds_of,
    spread,
)
from scripts.reproduction.rivals import with_comparisons
from utils.datasets import DATASETS
from utils.formats.files import write_text

# Bases whose features, unless simulated, are those of the paper.
PAPER_BASES = ("thumos14", "activitynet12", "ave", "activitynet12_audio_visual")
HOW_CHOSEN = {
    "last": "`last` is the final checkpoint.",
    "best": "`best` was chosen on the test subset, as the paper's checkpoints were: an upper bound.",
    "selected": "`selected` was chosen on holdout training videos, by their video-level labels alone.",
}
SPREAD = "± is the standard deviation over seeds (n - 1)."
COLLAPSED = "*Collapsed*: the attention is below every threshold in almost all test videos, so nothing is detected."
SIMULATED = (
    "**SIMULATED** settings use simulated features. They rehearse an experiment and say nothing about real videos."
)
WRITTEN = "Written by `python scripts/reproduce.py results`; not edited by hand."
COMPARISON = (
    "The difference is that of `last` to CO2-Net under the `snippet` protocol, mean over the seeds that both have. Its "
    "interval is a bootstrap over test videos; it covers no other seeds. GFLOP counts the forward pass of one video, "
    "of as many snippets as in training. A step is a training step of the method's batch."
)
MINUTES = (
    "Minutes are the median time of one run, with the runs that it follows. Concurrent runs slow each other down. "
    "Lines are those of code that CO2-Net alone does not need; a row without any only sets options."
)
INTERVALS = (
    f"An interval is the {CONFIDENCE:.0%} interval of the mean difference over seeds (paired t). It is not corrected "
    "for the number of pairs, and does not cover other test videos."
)


def table_frame(table: Table, group: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of the rows that ran as text: name, paper, seeds, and mean ± standard deviation."""
    rows = rows_that_ran(table, group)
    columns = {"": [row.name for row in rows]}
    if any(row.paper is not None for row in rows):
        columns["paper"] = ["" if row.paper is None else f"{row.paper:.1f}" for row in rows]
    runs = [group[group["key"] == row.key] for row in rows]
    columns["seeds"] = [seeds_text(seeds_of(of_row)) for of_row in runs]
    for checkpoint in checkpoints_of(group):
        for measure in measures_of(group):
            scores = f"{checkpoint}/{measure}/mean"
            columns[f"{checkpoint} {measure}"] = [
                spread(of_row[scores]) + _collapsed(of_row, checkpoint) for of_row in runs
            ]
    if "difference" in group:
        columns |= _comparison_columns([of_row.iloc[0] for of_row in runs])
    if table.has_followers:
        minutes = [minutes_of(row, group) for row in rows]
        columns["minutes"] = ["" if math.isnan(number) else f"{number:.1f}" for number in minutes]
        columns["lines"] = [str(count_lines(row.code)) for row in rows]
    return pd.DataFrame(columns)


def _comparison_columns(methods: Sequence[pd.Series]) -> dict[str, list[str]]:
    """Return the cells of scripts/reproduction/rivals.py, one per method."""
    formats = {
        "difference [95 %]": "{difference:+.1f} [{low:+.1f}, {high:+.1f}]",
        "p": "{p_value:.3f}",
        "parameters": "{parameters:,.0f}",
        "GFLOP": "{gflops:.2f}",
        "ms per step": "{step_ms:.0f}",
    }
    cells = {name: [] for name in formats}
    for method in methods:
        values = {**method, "step_ms": 1000 * method["step_seconds"]}
        for name, text in formats.items():
            cell = text.format(**values)
            cells[name].append("" if "nan" in cell else cell)
    return cells


def _collapsed(runs: pd.DataFrame, checkpoint: str) -> str:
    """Return the number of runs of a row with a collapsed attention as text, empty for none."""
    count = runs["collapsed"].str.split().map(lambda names: checkpoint in names).sum()
    return f" ({count} of {len(runs)} collapsed)" if count else ""


def seeds_text(seeds: Iterable[int]) -> str:
    """Return seeds in order, separated by spaces."""
    return " ".join(map(str, sorted(seeds)))


def caption(table: Table, group: pd.DataFrame) -> str:
    """Return the measure of the numbers in a table."""
    if note := group["note"].iloc[0]:
        return note
    text = f"{_mean_map(dataset_of(group))} in percent under the `snippet` and `seconds` protocols"
    if all(row.paper is None for row in table.rows):
        return text
    published = " (CO2-Net: `snippet` protocol)" if table.method == "co2net" else ""
    return f"{text}; paper: {_mean_map(table.dataset)} with I3D features{published}"


def _mean_map(dataset: str) -> str:
    spec = DATASETS.get(dataset)
    return f"mean mAP@{range_name(spec.main_range)}" if spec else "mean mAP"


def legend(table: Table, group: pd.DataFrame) -> str:
    """Return the explanation of the columns of a table."""
    collapsed = [COLLAPSED] if group["collapsed"].str.len().any() else []
    chosen = (HOW_CHOSEN[name] for name in checkpoints_of(group))
    minutes = [MINUTES] if table.has_followers else []
    return " ".join([*chosen, SPREAD, *collapsed, *_comparison_legend(group), *minutes])


def _comparison_legend(group: pd.DataFrame) -> list[str]:
    if "difference" not in group:
        return []
    devices = ", ".join(sorted(set(group["cost_device"].dropna())))
    return [COMPARISON, *([f"Device of the steps: {devices}."] if devices else [])]


def table_text(table: Table, group: pd.DataFrame) -> str:
    """Return the table of one setting for the screen."""
    frame = table_frame(table, group)
    lines = [f"{table.title} · {heading(group)} · {features_of(group)}", caption(table, group)]
    lines.append(format_table([list(frame), *frame.to_numpy().tolist()]))
    if pairs := list(ordered_pairs(table, group)):
        lines.append(" ".join(["last:", *order_sentences(pairs)]))
    return "\n".join([*lines, legend(table, group)])


def write_pages(
    docs: Path, tables: Sequence[Table], groups: Sequence[pd.DataFrame], ledger: Path = LEDGER
) -> list[Path]:
    """Write results.md, and in results/ one page per table that has runs, with its plots; return the paths.

    Args:
        docs: Folder of results.md.
        tables: All tables.
        groups: Runs of the ledger by setting.
        ledger: The ledger; the comparison of methods is stored beside it.
    """
    folder = docs / "results"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in tables:
        if shown := [group for group in groups if belongs(table, group)]:
            if table.compares_methods:
                shown = [with_comparisons(group, ledger) for group in shown]
            path = folder / f"{table.key}.md"
            write_text(path, _table_page(table, shown, folder))
            plots = [plot_path(folder, table, group) for group in shown]
            for group, plot in zip(shown, plots, strict=True):
                plot_table(plot, table, group)
            written += [path, *plots]
    for path in {*folder.glob("*.md"), *folder.glob("*.svg")} - {*written}:  # of runs that have left the ledger
        path.unlink()
    index = docs / "results.md"
    write_text(index, _index(tables, groups))
    return [index, *written]


def plot_path(folder: Path, table: Table, group: pd.DataFrame) -> Path:
    """Return the path of the plot of a table in one setting."""
    first = group.iloc[0]
    parts = (table.key, first["base"], first["features_hash"][:6], first["base_iterations"], first["overrides"])
    return folder / f"{slug(' '.join(map(str, parts)))}.svg"


def _table_page(table: Table, groups: Sequence[pd.DataFrame], folder: Path) -> str:
    parts = [f"# {table.title}", f"{WRITTEN} [All results](../results.md)."]
    parts += [SIMULATED] if any(map(is_simulated, groups)) else []
    for group in groups:
        parts += [f"## {heading(group)}", f"{caption(table, group)}. {legend(table, group)}"]
        parts += [_markdown(table_frame(table, group))]
        plot = plot_path(folder, table, group).name
        parts += [f"![{table.title}, {heading(group)}: the score of each seed, their mean, the paper's value]({plot})"]
        if published := [row for row in table.rows if row.key is None and row.paper is not None]:
            parts.append(f"Published: {', '.join(f'{row.name} {row.paper:.1f}' for row in published)}.")
        if pairs := list(ordered_pairs(table, group)):
            parts += [f"`last`: {' '.join(order_sentences(pairs))} {INTERVALS}", _markdown(_pairs_frame(pairs), 2)]
        if line := _missing_rows(table, group):
            parts.append(f"Not run: {line}.")
    return "\n\n".join(parts) + "\n"


def _pairs_frame(pairs: Sequence[Pair]) -> pd.DataFrame:
    columns = {
        "higher in the paper": [pair.higher.name for pair in pairs],
        "lower": [pair.lower.name for pair in pairs],
        "paper": [f"{pair.higher.paper - pair.lower.paper:+.1f}" for pair in pairs],
        "ours": [spread_of_difference(pair.differences) for pair in pairs],
        "seeds": [str(len(pair.differences)) for pair in pairs],
    }
    if any(pair.interval for pair in pairs):
        columns["interval"] = ["{:+.1f} to {:+.1f}".format(*pair.interval) if pair.interval else "" for pair in pairs]
        words = {1: "as in the paper", 0: "open", -1: "opposite"}
        columns["order"] = [words[pair.verdict] for pair in pairs]
    return pd.DataFrame(columns)


def spread_of_difference(differences: pd.Series) -> str:
    """Return `spread` with a sign."""
    text = spread(differences)
    return text if text.startswith("-") else f"+{text}"


def _markdown(frame: pd.DataFrame, text_columns: int = 1) -> str:
    align = ["left"] * text_columns + ["right"] * (frame.shape[1] - text_columns)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def _seeds_per_row(table: Table, group: pd.DataFrame) -> str:
    """Return the number of seeds of the rows that ran, or its range."""
    counts = {len(seeds_of(group[group["key"] == row.key])) for row in rows_that_ran(table, group)}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _missing_rows(table: Table, group: pd.DataFrame) -> str:
    """Return the rows of a table that lack a seed of this setting."""
    seeds, gaps = seeds_of(group[group["key"].isin([row.key for row in table.rows])]), []
    for row in table.rows_for(dataset_of(group)):
        missing = seeds - seeds_of(group[group["key"] == row.key])
        gaps += [f"{row.name} (seed {seeds_text(missing)})"] if missing else []
    return ", ".join(gaps)


def _index(tables: Sequence[Table], groups: Sequence[pd.DataFrame]) -> str:
    """Return docs/results.md: an entry per table and setting, the settings, and the tables that did not run."""
    ledger = f"results/{os.path.basename(LEDGER)}"
    parts = ["# Results", f"{WRITTEN} Every finished run is a row of [{ledger}]({ledger})."]
    parts += [SIMULATED] if any(map(is_simulated, groups)) else []
    entries, on_paper_features = [], set()
    for table in tables:
        for group in (group for group in groups if belongs(table, group)):
            pairs = list(ordered_pairs(table, group))
            entries.append(
                {
                    "table": f"[{table.title}](results/{table.key}.md)",
                    "setting": heading(group),
                    "rows": f"{len(rows_that_ran(table, group))} of {len(table.rows_for(dataset_of(group)))}",
                    "seeds per row": _seeds_per_row(table, group),
                    "pairs in the paper's order": f"{sum(p.mean > 0 for p in pairs)} of {len(pairs)}" if pairs else "",
                    "certain": str(sum(p.verdict > 0 for p in pairs)) if any(p.interval for p in pairs) else "",
                    "opposite": str(sum(p.verdict < 0 for p in pairs)) if any(p.interval for p in pairs) else "",
                }
            )
            if group["base"].iloc[0] in PAPER_BASES and not is_simulated(group):
                on_paper_features.add(table.key)
    if entries:
        parts += ["## Tables", _markdown(pd.DataFrame(entries), 2)]
        parts += [
            "The order of rows is that of the means of `last`. *Certain* and *opposite* count the pairs whose interval "
            f"excludes 0. {INTERVALS}"
        ]
        parts += ["## Settings", _settings(groups)]
    missing = [f"- {table.title}" for table in tables if not any(belongs(table, group) for group in groups)]
    parts += ["## Not run", *(["On any features:\n\n" + "\n".join(missing)] if missing else [])]
    keys = ", ".join(f"`{table.key}`" for table in tables if table.key not in on_paper_features)
    parts += [f"On the paper's own features: {keys}. `python scripts/reproduce.py TABLE --path-dataset DIR` runs one."]
    return "\n\n".join(parts) + "\n"


def _settings(groups: Sequence[pd.DataFrame]) -> str:
    """Return a table of the settings with their devices, revisions and the time of a run."""
    lines = []
    for group in groups:
        minutes = (group["seconds"] / 60).dropna()
        lines.append(
            {
                "setting": heading(group),
                "features": features_of(group),
                "device": ", ".join(sorted(set(group["device"]))),
                "precision": ", ".join(sorted(set(group["precision"]))),
                "revision": ", ".join(sorted(set(group["revision"]))),
                "runs": str(len(group)),
                "minutes per run": f"{minutes.median():.1f}" if len(minutes) else "",
            }
        )
    return _markdown(pd.DataFrame(lines), 5)
