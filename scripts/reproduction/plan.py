"""What there is to run: the paper's tables as data, and their rows as runs of main.py over a base config."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from options import default_options, parse_args, resume_options
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.formats.files import read_json, read_yaml
from utils.run.folder import require_same_options

ROOT = Path(__file__).resolve().parent.parent.parent
TABLES = Path(__file__).resolve().parent / "tables.yaml"
PUBLISHED = ROOT / "eval" / "published.json"
OURS = "CO2-Net"  # the row of Tables 1 and 2 that is ours to run


@dataclass(frozen=True)
class Row:
    """One row of a table; numbers are the paper's, in percent."""

    name: str
    key: str  # names the row's runs: the config's name, or the model's; tables that share a row share its runs
    config: str | None  # of configs/ablations; None: the base as it is
    paper: float | None  # mean mAP over the main range of tIoU
    at: dict[float, float]  # mAP@tIoU, where the table has it
    only: str | None = None  # the dataset that the row is about
    ours: bool = True  # False: another method's published row


@dataclass(frozen=True)
class Table:
    key: str
    title: str
    base: Path
    dataset: str  # of the base, and so of the paper's numbers
    model: str
    rows: tuple[Row, ...]

    def rows_for(self, dataset: str) -> list[Row]:
        """The rows that we run on a dataset."""
        return [row for row in self.rows if row.ours and row.only in (None, dataset)]


@dataclass(frozen=True)
class PlannedRun:
    """One training: its folder, the command, and the options that it resolves to."""

    key: str
    folder: Path
    command: tuple[str, ...]
    options: Namespace

    @property
    def name(self) -> str:
        return self.folder.name

    def is_done(self) -> bool:
        """Whether its folder holds this very run, finished.

        Raises:
            InputError: if it holds another one: other options, another data set, or more iterations.
        """
        if not (self.folder / "metrics.json").is_file():
            return False
        require_same_options(self.folder / "options.yaml", resume_options(self.options), default_options())
        told = Path(read_yaml(self.folder / "options.yaml")["path_dataset"])
        if told.exists() and told.resolve() != Path(self.options.path_dataset).resolve():
            raise InputError(
                f"{self.folder} was run on {told}, not {self.options.path_dataset}; choose another --run-dir"
            )
        iterations = read_json(self.folder / "metrics.json")["last"]["iteration"]
        if iterations > self.options.max_iter:
            raise InputError(
                f"{self.folder} has {iterations} iterations, {self.options.max_iter} were asked for; "
                "ask for as many or choose another --run-dir"
            )
        return iterations == self.options.max_iter


@dataclass(frozen=True)
class Setting:
    """What the runs of one call have in common.

    Attributes:
        base: config that the rows start from.
        path_dataset: folder of the data set.
        run_dir: where everything goes; the runs of this setting to run_dir/BASE/DATASET/ROW_sSEED.
        more: options of main.py for all runs.
    """

    base: Path
    path_dataset: Path
    run_dir: Path
    more: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.run_dir / self.base.stem / self.path_dataset.resolve().name

    def run(self, row: Row, seed: int) -> PlannedRun:
        """One row with one seed. A wrong option ends the program with one line (options.parse_args)."""
        folder = self.folder / f"{row.key}_s{seed}"
        config = ["--config", str(self.base)]
        if row.config:
            ablation = ROOT / "configs" / "ablations" / f"{row.config}.yaml"
            config = ["--config", os.path.relpath(ablation), "--base", str(self.base)]
        argv = [*config, "--path-dataset", str(self.path_dataset), "--run-dir", str(folder), "--seed", str(seed)]
        argv += self.more
        command = (sys.executable, str(ROOT / "main.py"), *argv, "--resume")
        return PlannedRun(row.key, folder, command, parse_args(argv))


def read_tables() -> dict[str, Table]:
    """Every table of tables.yaml, by its key."""
    return {key: _table(key, content) for key, content in read_yaml(TABLES).items()}


def _table(key: str, content: dict) -> Table:
    base = ROOT / "configs" / f"{content['base']}.yaml"
    options = parse_args(["--config", str(base), "--path-dataset", "."])
    published = "published" in content
    rows = _published_rows(content["published"], options.model) if published else _rows(content["rows"], options.model)
    return Table(key, content["title"], base, options.dataset, options.model, tuple(rows))


def _rows(rows: list[dict], model: str) -> list[Row]:
    return [
        Row(
            row["name"],
            row.get("config", model),
            row.get("config"),
            row.get("paper"),
            row.get("at", {}),
            row.get("only"),
        )
        for row in rows
    ]


def _published_rows(dataset: str, model: str) -> list[Row]:
    """Table 1 or 2, as eval/published.json has it."""
    table = read_json(PUBLISHED)[dataset]
    place = table["average_ranges"].index(list(DATASETS[dataset].main_range))
    return [
        Row(
            f"{row['method']} ({', '.join(_facts(row))})",
            model,
            None,
            row["averages"][place],
            {t: value for t, value in zip(table["tiou_thresholds"], row["map"], strict=True) if value is not None},
            ours=row["method"] == OURS,
        )
        for row in table["rows"]
    ]


def _facts(row: dict) -> list[str]:
    """Year, supervision where it is not the weak one, and protocol where it is known."""
    supervision = [row["supervision"]] if row["supervision"] != "weak" else []
    return [str(row["year"]), *supervision, *([row["protocol"]] if row["protocol"] else [])]


def planned_runs(table: Table, setting: Setting, seeds: Sequence[int]) -> list[PlannedRun]:
    """The runs of a table: all rows with the first seed, then with the next, so that a stopped table is whole."""
    base = setting.run(Row("", table.model, None, None, {}), 0).options
    if base.model != table.model:
        raise InputError(
            f"{table.key} is about --model {table.model}, {setting.base} trains {base.model}; name another"
        )
    return [setting.run(row, seed) for seed in seeds for row in table.rows_for(base.dataset)]
