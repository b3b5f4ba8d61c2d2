"""Comparison of methods beyond their scores: difference to the base method by bootstrap, size, and cost.

The difference comes from run folders, and the cost is measured on this machine. Both are stored in rivals.csv beside
the ledger, one line per setting and method. So the pages can be written on any machine.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from eval.average_precision import named_means
from eval.compare import bootstrap_interval, bootstrap_maps, two_sided_p_value
from eval.detection import DetectionResult, evaluate_detections
from eval.detection_formats import read_detections
from options import method_options
from scripts.benchmarks.measure import device_name, time_in_turns
from scripts.benchmarks.yardstick import count_flops
from scripts.reproduction.plan import PlannedRun, Setting, Table
from scripts.reproduction.results import SETTING
from utils.annotations import load_annotations
from utils.datasets import dataset_spec
from utils.engine import TABLE_PROTOCOLS, BatchLoss, train_step
from utils.errors import InputError
from utils.features import open_features
from utils.formats.files import atomic_write
from utils.methods import build_method
from utils.optimizer import FusedAdam
from utils.run.devices import choose_device
from utils.run.fast_cpu import use_fast_layers
from wsad_dataset import Batch

FILE = "rivals.csv"
KEY = [*SETTING, "key"]
DIFFERENCE = ["difference", "low", "high", "p_value"]  # of the mean over seeds, in percentage points
COST = ["parameters", "gflops", "step_seconds", "cost_device"]
STEPS, STEP_BUDGET = 10, 10.0  # steps to time at most, and seconds after which no further one begins


def read_comparisons(ledger: Path) -> pd.DataFrame:
    """Return the stored comparisons beside a ledger; none if there is no file.

    Raises:
        InputError: The file is not one of comparisons.
    """
    path = ledger.with_name(FILE)
    columns = [*KEY, "seeds", *DIFFERENCE, *COST]
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        frame = pd.read_csv(path, dtype={"overrides": "str", "seeds": "str"}, keep_default_na=False, na_values=["nan"])
        return frame[columns]
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{path}: not a file of comparisons ({str(error).splitlines()[0]})") from None


def with_comparisons(group: pd.DataFrame, ledger: Path) -> pd.DataFrame:
    """Return the runs of a setting with the columns of their comparison, empty where nothing is stored."""
    return group.merge(read_comparisons(ledger), how="left", on=KEY)


def compare_methods(table: Table, setting: Setting, seeds: Sequence[int], ledger: Path) -> None:
    """Compare the rows of a table that have run folders, measure the cost of new ones, and store both."""
    stored = read_comparisons(ledger).set_index(KEY)
    rows = table.rows_for(setting.base_options()["dataset"])
    runs = {row.key: [run for run in setting.runs(row, seeds) if run.is_done()] for row in rows}
    for key, of_row in runs.items():
        if not of_row:
            continue
        identity = {**of_row[0].identity, "base_iterations": setting.base_run().identity["iterations"]}
        place = tuple(identity[name] for name in KEY)
        line = dict(stored.loc[place]) if place in stored.index else {}
        line |= difference(runs[table.method], of_row) if key != table.method else {}
        device = cost_device(of_row[0])
        if not of_row[0].after and line.get("cost_device") != device:  # a follower has more than one network
            line |= {**cost(of_row[0]), "cost_device": device}
        if line:
            stored.loc[place, list(line)] = list(line.values())
    _write(stored, ledger)


def add_comparisons(ledger: Path, other: Path) -> None:
    """Add the comparisons beside another ledger to those beside a ledger. Their values replace earlier ones."""
    stored, added = (read_comparisons(path).set_index(KEY) for path in (ledger, other))
    if len(added):
        _write(added.combine_first(stored)[list(stored)], ledger)


def _write(comparisons: pd.DataFrame, ledger: Path) -> None:
    frame = comparisons.sort_index().reset_index().astype({"parameters": "Int64"})
    with atomic_write(ledger.with_name(FILE)) as partial_path:
        frame.to_csv(partial_path, index=False, lineterminator="\n", na_rep="nan")


def difference(base_runs: Sequence[PlannedRun], runs: Sequence[PlannedRun]) -> dict[str, object]:
    """Compare the mean mAP of two methods over the seeds that both have, in percentage points.

    The bootstrap draws videos, and each resample has the same videos for all runs. So an interval covers other test
    videos, but not other seeds.

    Returns:
        `seeds`, and the values named in DIFFERENCE; {} without a seed in common.
    """
    by_seed = {run.options.seed: run for run in base_runs}
    pairs = [(by_seed[seed], run) for run in runs for seed in run.seeds if seed in by_seed]
    if not pairs:
        return {}
    evaluated = {run.folder: last_result(run) for pair in pairs for run in pair}  # a pool is in several pairs
    results = [evaluated[run.folder] for pair in pairs for run in pair]
    spec = dataset_spec(vars(pairs[0][0].options))
    (inside,) = named_means(results[0].tiou_thresholds, spec.tiou_thresholds, [spec.main_range]).values()
    maps = [100 * result.map[inside].mean() for result in results]
    samples = [100 * sample[:, inside].mean(axis=1) for sample in bootstrap_maps(results)]
    value, sampled = (sum(x[1::2]) / len(pairs) - sum(x[::2]) / len(pairs) for x in (maps, samples))
    low, high = bootstrap_interval(value, sampled)
    p_value = two_sided_p_value(value, sampled)
    seeds = " ".join(str(run.options.seed) for run, _ in pairs)
    return {"seeds": seeds, "difference": value, "low": low, "high": high, "p_value": float(p_value)}


def last_result(run: PlannedRun) -> DetectionResult:
    """Return the evaluation of the last checkpoint of a finished run, as in its metrics."""
    spec, detections = dataset_spec(vars(run.options)), read_detections(run.folder / "detections.json")
    return evaluate_detections(
        load_annotations(run.options.path_dataset),
        detections,
        spec.tiou_thresholds,
        subset=spec.test_subset,
        protocol=TABLE_PROTOCOLS[0],
        snippet_rate=detections.snippet_rate,
        videos=detections.videos,
    )


def cost_device(run: PlannedRun) -> str:
    """Return the name of the device on which the steps of a run are timed."""
    device = choose_device(run.options.device)
    return device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def cost(run: PlannedRun) -> dict[str, float]:
    """Measure a method with the settings of a run: parameters, GFLOPs to test one video, seconds of a training step.

    The video has as many snippets as a training video. The step has random features.
    """
    options = run.options
    device = choose_device(options.device)
    num_classes = len(load_annotations(options.path_dataset).classes)
    dims = open_features(options.path_dataset, options.modalities).modality_dims
    method = build_method(options.method, num_classes, dims, **method_options(options))
    network = method.network.to(device)
    features = torch.rand(options.batch_size, options.num_snippets, sum(dims), device=device)
    with torch.no_grad():
        flops = count_flops(partial(network.eval(), features[:1]))
    pairs = torch.arange(2 * options.num_pairs).view(-1, 2)
    labels = torch.eye(num_classes)[torch.arange(options.batch_size) // 2 % num_classes]
    batch = Batch(features, labels, pairs)
    if device.type == "cpu":
        use_fast_layers(network, options.precision)
    optimizer = FusedAdam(network.parameters(), options.lr, weight_decay=options.weight_decay)
    step = BatchLoss(network.train(), method.objective, options.precision)
    (seconds,) = time_in_turns(lambda: train_step(step, optimizer, batch), budget=STEP_BUDGET, rounds=STEPS)
    size = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": size, "gflops": flops / 1e9, "step_seconds": seconds}
