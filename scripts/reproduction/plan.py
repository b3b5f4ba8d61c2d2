"""Tables of the papers as data, and their rows as runs of main.py over a base config."""

import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

from options import complete_options, parse_args, resume_options
from utils.annotations import find_annotations
from utils.config_parser import as_words
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.features import open_features
from utils.features.convert import find_features
from utils.formats.checksums import sha256_of
from utils.formats.files import read_json, read_yaml
from utils.run.folder import NUMERICS, require_same_options

ROOT = Path(__file__).resolve().parents[2]
TABLES = Path(__file__).resolve().parent / "tables.yaml"
PUBLISHED = ROOT / "eval" / "published.json"
REPRODUCED = "CO2-Net"  # the row of Tables 1 and 2 that this project trains
HASH_DIGITS = 12
# Kinds of runs that follow other runs.
SECOND_STAGE, SELF_TRAINING, LOCALIZATION, POOL = "second_stage", "self_training", "localization", "pool"


@dataclass(frozen=True)
class Row:
    """One row of a table. Numbers are the paper's, in percent."""

    name: str
    key: str | None  # name of the row's runs, from its config and options. None: a published row that is not trained
    config: str | None = None  # file in configs/ablations or configs; None: the base config
    method: str | None = None  # other method than the base's, with its own config for this base if there is one
    options: Mapping[str, object] = field(default_factory=dict)  # options of main.py, over the config
    paper: float | None = None  # snippet accuracy, or mean mAP over the dataset's main range of tIoU
    at: dict[float, float] = field(default_factory=dict)  # mAP@tIoU
    only: str | None = None  # dataset that the row applies to; None: every dataset
    after: str | None = None  # kind of run that follows the row's own runs, such as SECOND_STAGE
    after_options: Mapping[str, object] = field(default_factory=dict)  # options of the command that follows
    code: Sequence[str] = ()  # files, or FILE::NAME, that the row has and the base method has not

    @property
    def first(self) -> "Row":
        """The row of the runs that this row's runs follow."""
        return replace(self, key=self.key.removesuffix(f"_{self.after}"), after=None)


@dataclass(frozen=True)
class Table:
    """One table of a paper, and the config that its rows start from."""

    key: str
    title: str
    base: Path
    dataset: str  # of the base, and of the paper's numbers
    method: str
    rows: tuple[Row, ...]

    @property
    def has_followers(self) -> bool:
        """True if rows follow others, and so differ in time."""
        return any(row.after for row in self.rows)

    @property
    def compares_methods(self) -> bool:
        """True if the difference of rows to the base method is of interest, their size and their cost."""
        return self.has_followers or any(row.method for row in self.rows)

    def rows_for(self, dataset: str) -> list[Row]:
        """Return the rows to train on a dataset."""
        return [row for row in self.rows if row.key is not None and row.only in (None, dataset)]

    def is_about(self, dataset: str) -> bool:
        """Return True if the paper's table is on this dataset, or if it has several rows to compare on it."""
        return dataset == self.dataset or len(self.rows_for(dataset)) > 1


@dataclass(frozen=True)
class PlannedRun:
    """One training run: its folder, its command, and the options that the command resolves to.

    Attributes:
        experiment: Table and row that the run is planned for. Other tables may share it.
        options: Options of the run, or of the first run that it follows.
        identity: Values that decide whether a run of the ledger is this run; see `ledger.IDENTITY`.
        after: Runs that must be finished first.
    """

    experiment: str
    folder: Path
    command: tuple[str, ...]
    options: Namespace
    identity: Mapping[str, object]
    after: tuple["PlannedRun", ...] = ()

    @property
    def name(self) -> str:
        """Name of the run: row and seed."""
        return self.folder.name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of the run; several for a pool."""
        return tuple(run.options.seed for run in self.after) or (self.options.seed,)

    def is_done(self) -> bool:
        """Return True if the folder contains this run, finished.

        Raises:
            InputError: The folder contains a run with other options, another numerics version, or more iterations.
        """
        metrics = self.folder / "metrics.json"
        if not metrics.is_file():
            return False
        if self.after:  # done unless a run that it follows was trained again
            firsts = [path for run in self.after if (path := run.folder / metrics.name).is_file()]
            return all(path.stat().st_mtime <= metrics.stat().st_mtime for path in firsts)
        require_same_options(self.folder / "options.yaml", resume_options(self.options), complete_options)
        numerics = read_json(self.folder / "environment.json").get("numerics")
        if numerics != NUMERICS:
            raise InputError(
                f"{self.folder} has numerics version {numerics}, expected {NUMERICS}; move it away or choose another "
                "--run-dir"
            )
        iterations, expected = read_json(metrics)["last"]["iteration"], self.options.max_iter
        if iterations > expected:
            raise InputError(
                f"{self.folder} has {iterations} iterations, expected at most {expected}; "
                f"set --max-iter to {iterations} or choose another --run-dir"
            )
        return iterations == expected


@dataclass(frozen=True)
class Setting:
    """Settings shared by all runs on one config.

    Attributes:
        base: Config that the rows start from.
        path_dataset: Folder of the dataset.
        run_dir: Parent of all run folders, which are run_dir/BASE_OVERRIDES/DATASET-HASH/ROW_sSEED.
        more: Further options of main.py for all runs.
    """

    base: Path
    path_dataset: Path
    run_dir: Path
    more: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Parent of the run folders."""
        return self.base_run().folder.parent

    def base_run(self) -> "PlannedRun":
        """Return a run of the config without any change."""
        return self.run(Row("", "base"), 0)

    def base_options(self) -> dict:
        """Return the options of the config and the further ones."""
        argv = ("--config", str(self.base), "--path-dataset", str(self.path_dataset), *self.more)
        return _plain_options(argv)

    def run(self, row: Row, seed: int, experiment: str = "") -> PlannedRun:
        """Return the run of one row and seed. A wrong option ends the program with one line."""
        config = ["--config", str(self.base)]
        if row.config:
            config = ["--config", os.path.relpath(row_config(row.config)), "--base", str(self.base)]
        elif row.method:
            own = method_config(self.base, row.method)
            config = ["--config", str(own)] if own else [*config, "--method", row.method]
        config += [word for name, value in row.options.items() for word in as_words(name, value)]
        argv = [*config, "--path-dataset", str(self.path_dataset), "--seed", str(seed), *self.more]
        args, plain = parse_args([*argv, "--run-dir", "."]), _plain_options((*config, "--path-dataset", "."))
        options = {name: value for name, value in resume_options(args).items() if name != "seed"}
        overrides = _assignments(options, plain)
        hashes = data_hashes(self.path_dataset, tuple(args.modalities))
        data = f"{self.path_dataset.resolve().name}-{hashes['features_hash'][:6]}"
        folder = self.run_dir / slug(f"{self.base.stem} {overrides}") / data / f"{row.key}_s{seed}"
        args.run_dir = str(folder)
        command = (sys.executable, str(ROOT / "main.py"), *argv, "--run-dir", str(folder), "--resume")
        identity = {
            "base": self.base.stem,
            "key": row.key,
            "overrides": overrides,
            "options": _assignments(options, _defaults()),
            "seed": seed,
            "iterations": args.max_iter,
            **hashes,
            "numerics": NUMERICS,
        }
        return PlannedRun(experiment, folder, command, args, identity)

    def runs(self, row: Row, seeds: Sequence[int], experiment: str = "") -> list[PlannedRun]:
        """Return the runs of one row: one per seed, or one for all seeds of a pool, which needs at least two."""
        if row.after is None:
            return [self.run(row, seed, experiment) for seed in seeds]
        firsts = [self.run(row.first, seed) for seed in seeds]
        if row.after == POOL:
            return [_following_run(row, firsts, experiment)] if len(firsts) > 1 else []
        return [_following_run(row, [first], experiment) for first in firsts]


def _following_run(row: Row, firsts: Sequence[PlannedRun], experiment: str) -> PlannedRun:
    """Return the run that follows the given ones. Its folder has their iterations in its name.

    It also has a digest of the options that follow, if there are any.
    """
    options, checkpoints = firsts[0].options, [run.folder / "checkpoints" / "last.pt" for run in firsts]
    identity = {**firsts[0].identity, "key": row.key}
    seeds = [str(run.options.seed) for run in firsts]
    more = [word for name, value in row.after_options.items() for word in as_words(name, value)]
    parts = [row.key, str(options.max_iter)]
    if more:
        identity["options"] += f" {row.after}=[{' '.join(more)}]"
        parts.append(sha256(" ".join(more).encode()).hexdigest()[:6])
    folder = firsts[0].folder.with_name("_".join([*parts, f"s{'_'.join(seeds)}"]))
    common = ("--path-dataset", options.path_dataset, "--device", options.device, *more)
    if row.after in (SECOND_STAGE, SELF_TRAINING):
        resume = ("--resume",) if row.after == SELF_TRAINING else ()
        own = ("--run", firsts[0].folder, "--run-dir", folder, "--seed", *seeds)
        words = (f"scripts/{row.after}.py", *own, *common, *resume)
    else:
        words = ("test.py", "--checkpoint", *checkpoints, "--output-dir", folder, *common)
    if row.after == POOL:
        identity["options"] += f" pooled_seeds=[{','.join(seeds)}]"
    command = (sys.executable, str(ROOT / words[0]), *map(str, words[1:]))
    return PlannedRun(experiment, folder, command, options, identity, tuple(firsts))


def row_config(name: str) -> Path:
    """Return the file of a row's config: in configs/ablations, or a whole recipe in configs."""
    ablation = ROOT / "configs" / "ablations" / f"{name}.yaml"
    return ablation if ablation.is_file() else ROOT / "configs" / ablation.name


def method_config(base: Path, method: str) -> Path | None:
    """Return the config METHOD_BASE.yaml beside a base config, with the method's own settings; None without one."""
    path = base.with_name(f"{method}_{base.name}")
    return path if path.is_file() else None


@cache
def published_iterations(config: Path) -> int:
    """Return the number of iterations of a config."""
    return parse_args(["--config", str(config), "--path-dataset", "."]).max_iter


def slug(text: str) -> str:
    """Return text that is safe as part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def _assignments(options: Mapping[str, object], reference: Mapping[str, object]) -> str:
    """Return the options that differ from the reference, as `name=value name=value`."""
    changed = {name: value for name, value in sorted(options.items()) if value != reference[name]}
    return " ".join(
        f"{name}={json.dumps(value, separators=(',', ':'))}".replace('"', "") for name, value in changed.items()
    )


@cache
def _defaults() -> dict:
    return complete_options({})


@cache
def _plain_options(argv: tuple[str, ...]) -> dict:
    return resume_options(parse_args([*argv, "--run-dir", "."]))


@cache
def data_hashes(path_dataset: Path, modalities: tuple[str, ...]) -> dict[str, str]:
    """Return the first digits of the SHA-256 of the features and of the annotations of a dataset."""
    source = open_features(path_dataset, modalities).source.path
    features = [source] if source.is_file() else sorted(find_features(path_dataset))
    annotations = find_annotations(path_dataset)
    return {"features_hash": _hash(features), "annotations_hash": _hash([annotations] if annotations else [])}


def _hash(paths: Sequence[Path]) -> str:
    """Return the first digits of the SHA-256 of a file, or of the digests of several files."""
    digests = [_sha256(path.resolve()) for path in paths]
    return (digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest())[:HASH_DIGITS]


_sha256 = cache(sha256_of)


def read_tables() -> dict[str, Table]:
    """Return every table of tables.yaml by its key."""
    return {key: _table(key, content) for key, content in read_yaml(TABLES).items()}


def _table(key: str, content: dict) -> Table:
    base = ROOT / "configs" / f"{content['base']}.yaml"
    options = parse_args(["--config", str(base), "--path-dataset", "."])
    if "published" in content:
        rows = _published_rows(content["published"], options.method)
    else:
        rows = (Row(key=_row_key(row, options.method), **row) for row in content["rows"])
    return Table(key, content["title"], base, options.dataset, options.method, tuple(rows))


def _row_key(row: Mapping, method: str) -> str:
    """Return the name of a row's runs: its config, else its method, then its other options, and what follows."""
    options = dict(row.get("options", {}))
    method = row.get("method") or options.pop("method", method)
    words = [row.get("config", method), *(f"{name}_{value}" for name, value in options.items()), row.get("after", "")]
    return slug(" ".join(words))


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


def planned_runs(pairs: Sequence[tuple[Table, Setting]], seeds: Sequence[int]) -> list[PlannedRun]:
    """Return the runs of tables in settings, each run once.

    All rows come first with the first seed, so that an interrupted table has the same seeds in each row.
    """
    for table, setting in pairs:
        if (method := setting.base_options()["method"]) != table.method:
            raise InputError(f"{table.key} is about --method {table.method}, but {setting.base} trains {method}")
    runs = [
        run
        for table, setting in pairs
        for row in table.rows_for(setting.base_options()["dataset"])
        for run in setting.runs(row, seeds, f"{table.key}: {row.name}")
    ]
    runs.sort(key=lambda run: seeds.index(run.seeds[-1]))
    return list({run.folder: run for run in reversed(runs)}.values())[::-1]  # of equal runs, the first
