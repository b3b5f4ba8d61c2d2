"""Tables of the papers as data, and their rows as runs of main.py over a base config."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from options import complete_options, parse_args, resume_options
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.formats.files import read_json, read_yaml
from utils.run.folder import require_same_options

ROOT = Path(__file__).resolve().parents[2]
TABLES = Path(__file__).resolve().parent / "tables.yaml"
PUBLISHED = ROOT / "eval" / "published.json"
REPRODUCED = "CO2-Net"  # the row of Tables 1 and 2 that this project trains


@dataclass(frozen=True)
class Row:
    """One row of a table. Numbers are the paper's, in percent."""

    name: str
    key: str | None  # name of the row's runs: its config or the method. None: a published row that is not trained
    config: str | None = None  # file in configs/ablations; None: the base config unchanged
    paper: float | None = None  # snippet accuracy, or mean mAP over the dataset's main range of tIoU
    at: dict[float, float] = field(default_factory=dict)  # mAP@tIoU
    only: str | None = None  # dataset that the row applies to; None: every dataset


@dataclass(frozen=True)
class Table:
    """One table of a paper, and the config that its rows start from."""

    key: str
    title: str
    base: Path
    dataset: str  # of the base, and of the paper's numbers
    method: str
    rows: tuple[Row, ...]

    def rows_for(self, dataset: str) -> list[Row]:
        """Return the rows to train on a dataset."""
        return [row for row in self.rows if row.key is not None and row.only in (None, dataset)]


@dataclass(frozen=True)
class PlannedRun:
    """One training run: its folder, its command, and the options that the command resolves to."""

    key: str
    folder: Path
    command: tuple[str, ...]
    options: Namespace

    @property
    def name(self) -> str:
        """Name of the run: row and seed."""
        return self.folder.name

    def is_done(self) -> bool:
        """Return True if the folder contains this run, finished.

        Raises:
            InputError: The folder contains a run with other options, another dataset, or more iterations.
        """
        if not (self.folder / "metrics.json").is_file():
            return False
        require_same_options(self.folder / "options.yaml", resume_options(self.options), complete_options)
        dataset, expected = Path(read_yaml(self.folder / "options.yaml")["path_dataset"]), self.options.path_dataset
        if dataset.exists() and dataset.resolve() != Path(expected).resolve():
            raise InputError(f"{self.folder} was trained on {dataset}, not {expected}; choose another --run-dir")
        iterations, expected = read_json(self.folder / "metrics.json")["last"]["iteration"], self.options.max_iter
        if iterations > expected:
            raise InputError(
                f"{self.folder} has {iterations} iterations, expected at most {expected}; "
                f"set --max-iter to {iterations} or choose another --run-dir"
            )
        return iterations == expected


@dataclass(frozen=True)
class Setting:
    """Settings shared by all runs of one command.

    Attributes:
        base: Config that the rows start from.
        path_dataset: Folder of the dataset.
        run_dir: Parent of all run folders, which are run_dir/BASE/DATASET/ROW_sSEED.
        more: Options of main.py for all runs.
    """

    base: Path
    path_dataset: Path
    run_dir: Path
    more: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Parent of the run folders of this setting."""
        return self.run_dir / self.base.stem / self.path_dataset.resolve().name

    def run(self, row: Row, seed: int) -> PlannedRun:
        """Return the run of one row and seed. A wrong option ends the program with one line."""
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
    """Return every table of tables.yaml by its key."""
    return {key: _table(key, content) for key, content in read_yaml(TABLES).items()}


def _table(key: str, content: dict) -> Table:
    base = ROOT / "configs" / f"{content['base']}.yaml"
    options = parse_args(["--config", str(base), "--path-dataset", "."])
    if "published" in content:
        rows = _published_rows(content["published"], options.method)
    else:
        rows = (Row(key=row.get("config", options.method), **row) for row in content["rows"])
    return Table(key, content["title"], base, options.dataset, options.method, tuple(rows))


def _published_rows(dataset: str, method: str) -> Iterator[Row]:
    """Yield the rows of Table 1 or 2 from eval/published.json."""
    table = read_json(PUBLISHED)[dataset]
    main_range = table["average_ranges"].index(list(DATASETS[dataset].main_range))
    for row in table["rows"]:
        supervision = [row["supervision"]] if row["supervision"] != "weak" else []
        facts = [str(row["year"]), *supervision, *([row["protocol"]] if row["protocol"] else [])]
        printed = zip(table["tiou_thresholds"], row["map"], strict=True)
        yield Row(
            f"{row['method']} ({', '.join(facts)})",
            key=method if row["method"] == REPRODUCED else None,
            paper=row["averages"][main_range],
            at={threshold: value for threshold, value in printed if value is not None},
        )


def planned_runs(table: Table, setting: Setting, seeds: Sequence[int]) -> list[PlannedRun]:
    """Return the runs of a table, all rows per seed, so that an interrupted table is complete for its first seeds."""
    base = setting.run(Row("", table.method), 0).options
    if base.method != table.method:
        raise InputError(f"{table.key} is about --method {table.method}, but {setting.base} trains {base.method}")
    return [setting.run(row, seed) for seed in seeds for row in table.rows_for(base.dataset)]
