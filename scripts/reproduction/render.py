"""Tables to read, on the screen and as Markdown, from the DataFrame of finished runs."""

import shlex
from collections.abc import Sequence

import pandas as pd

from eval.average_precision import range_name
from eval.tables import format_table
from scripts.reproduction.plan import Table
from scripts.reproduction.results import CHECKPOINTS, dataset_of, measures_of, order_line, seeds_text, spread
from utils.datasets import DATASETS

# Bases whose features, unless simulated, are those of the paper.
PAPER_BASES = ("thumos14", "activitynet12", "ave", "activitynet12_audio_visual")
HOW_CHOSEN = (
    "`last` is the final checkpoint. `best` was chosen on the test subset, as the paper's checkpoints were: "
    "an upper bound. ± is the standard deviation over seeds (n - 1)."
)
SIMULATED = (
    "**SIMULATED** settings use simulated features. They rehearse an experiment and say nothing about real videos."
)


def table_frame(table: Table, group: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Return the cells of a table as text: name, paper, seeds, and mean ± standard deviation per checkpoint."""
    rows = [row for row in table.rows if row.key is None or row.only in (None, dataset_of(group))]
    columns = {"": [row.name for row in rows]}
    if any(row.paper is not None for row in rows):
        columns["paper"] = ["–" if row.paper is None else f"{row.paper:.1f}" for row in rows]
    measures = measures_of(group, protocol)
    names = ["seeds", *(f"{c} {m}" if len(measures) > 1 else c for m in measures for c in CHECKPOINTS)]
    scores = [f"{checkpoint}/{measure}/mean" for measure in measures for checkpoint in CHECKPOINTS]
    cells = group.groupby("key").agg({"seed": seeds_text, **dict.fromkeys(scores, spread)})
    cells = cells.reindex([row.key for row in rows]).fillna("–")
    return pd.concat(
        [pd.DataFrame(columns), cells.set_axis(names, axis="columns").reset_index(drop=True)], axis="columns"
    )


def heading(group: pd.DataFrame) -> str:
    """Return the name of a setting, with SIMULATED in front if its features are simulated."""
    return group["setting"].iloc[0]


def features_of(group: pd.DataFrame) -> str:
    """Return the features of a setting; some of its rows may use one modality alone."""
    return max(group["features"], key=len)


def caption(table: Table, group: pd.DataFrame, protocol: str) -> str:
    """Return the measure of the numbers in a table."""
    if group["note"].iloc[0]:
        return group["note"].iloc[0]
    text = f"{_mean_map(dataset_of(group))} in percent, `{protocol}` protocol"
    if all(row.paper is None for row in table.rows):
        return text
    published = " (CO2-Net: `snippet` protocol)" if table.method == "co2net" else ""
    return f"{text}; paper: {_mean_map(table.dataset)} with I3D features{published}"


def _mean_map(dataset: str) -> str:
    return f"mean mAP@{range_name(DATASETS[dataset].main_range)}"


def table_text(table: Table, group: pd.DataFrame, protocol: str) -> str:
    """Return the table of one setting for the screen."""
    frame = table_frame(table, group, protocol)
    title = f"{table.title} · {heading(group)} · {features_of(group)}"
    text = format_table([list(frame), *frame.to_numpy().tolist()])
    orders = _order_lines(table, group, protocol)
    return "\n".join([title, caption(table, group, protocol), text, *orders, HOW_CHOSEN])


def table_markdown(table: Table, groups: Sequence[pd.DataFrame], protocol: str) -> str:
    """Return the tables of several settings as Markdown, each with its measure and the order of its rows."""
    parts = [f"### {table.title}"]
    for group in groups:
        parts += [f"**{heading(group)}**: {caption(table, group, protocol)}."]
        parts += [_markdown(table_frame(table, group, protocol))]
        if orders := _order_lines(table, group, protocol):
            parts += ["\n".join(f"- {line}" for line in orders)]
    return "\n\n".join(parts)


def _markdown(frame: pd.DataFrame, text_columns: int = 1) -> str:
    align = ["left"] * text_columns + ["right"] * (frame.shape[1] - text_columns)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def _order_lines(table: Table, group: pd.DataFrame, protocol: str) -> list[str]:
    return [line for name in CHECKPOINTS if (line := order_line(table, group, name, protocol))]


def results_page(tables: Sequence[Table], groups: Sequence[pd.DataFrame], protocol: str, command: Sequence[str]) -> str:
    """Return docs/results.md: the settings of all finished runs, every table that has some, and the missing runs."""
    parts = ["# Results", f"Written by `{shlex.join(command)}`; not edited by hand. {HOW_CHOSEN}"]
    parts += ["## Settings", _settings(groups)] if groups else ["No run is finished."]
    parts += [SIMULATED] if any(group["simulated"].any() for group in groups) else []
    parts += ["## Tables"] if groups else []
    missing = []
    for table in tables:
        shown = [group for group in groups if _belongs(table, group)]
        features = "AVE's real features" if table.dataset == "ave" else "the paper's I3D features"
        command = f"`python scripts/reproduce.py {table.key} --path-dataset DIR --seeds 0 1 2`"
        if not any(group["base"].iloc[0] in PAPER_BASES and not group["simulated"].any() for group in shown):
            missing.append(f"- {table.title}, {features}: {command}")
        missing += [line for group in shown if (line := _missing_rows(table, group))]
        if shown:
            parts.append(table_markdown(table, shown, protocol))
    return "\n\n".join([*parts, "## Missing runs", "\n".join(missing) or "Nothing is missing."]) + "\n"


def _belongs(table: Table, group: pd.DataFrame) -> bool:
    """Return True if a setting has a run of this table's own rows, or of its base on its dataset."""
    name, keys = dataset_of(group), {row.key for row in table.rows_for(dataset_of(group))}
    if own := keys - {table.method}:
        same_measure = DATASETS[name].accuracy_subsets == DATASETS[table.dataset].accuracy_subsets
        return same_measure and group["key"].isin(own).any()
    return name == table.dataset and group["key"].isin(keys).any()


def _settings(groups: Sequence[pd.DataFrame]) -> str:
    runs = pd.concat(groups)
    frame = runs.groupby("setting", sort=False).agg(
        features=("features", lambda values: max(values, key=len)),
        seeds=("seed", seeds_text),
        device=("device", lambda values: ", ".join(sorted(set(values)))),
        code=("revision", lambda values: ", ".join(sorted(set(values.str[:10])))),
        runs=("key", "size"),
    )
    return _markdown(frame.reset_index(), text_columns=5)


def _missing_rows(table: Table, group: pd.DataFrame) -> str | None:
    """Return a line with the rows of a table that lack a seed of this setting."""
    seeds, gaps = set(group["seed"]), []
    for row in table.rows_for(dataset_of(group)):
        missing = seeds - set(group.loc[group["key"] == row.key, "seed"])
        gaps += [f"{row.name} (seed {' '.join(map(str, sorted(missing)))})"] if missing else []
    return f"- {table.title}, {heading(group)}: {', '.join(gaps)}" if gaps else None
