"""python -m eval.detection on detection files, the whole command; and detections.json written."""

import json
import tempfile
from pathlib import Path

import pandas as pd

from eval.detection_columns import COLUMNS
from eval.detection_formats import write_detections
from eval.tables import Table
from scripts.benchmarks.command import run_python
from scripts.benchmarks.measure import Settings, progress, time_in_turns
from scripts.benchmarks.synthetic import ACTIVITYNET12, make_annotations, make_detections, make_ground_truth
from scripts.benchmarks.table import ResultTable
from utils.formats.files import write_json

DATASET = "activitynet12"
FORMATS = {"JSON": 240_000, "CSV": 240_000, "Parquet": 240_000, "large Parquet": 10_000_000}  # detections
QUICK_FORMATS = {"JSON": 2_000, "Parquet": 2_000}
PLAIN_UNTIL = 1_000_000  # detections

NOTES = (
    "seconds: python -m eval.detection from start to end, one thread; import: `python -c 'import eval.detection'`, a "
    "part of it, same run; peak MB: the process; SIMULATED detections",
    "plain: the same metric after json.load, csv.DictReader or pandas.read_parquet and a loop over the rows with the "
    f"same checks of numbers, same run; not run for more than {PLAIN_UNTIL:,} detections",
    "JSON, written: write_detections alone; plain: a list of dicts and json.dump",
)


def measure_files(settings: Settings) -> ResultTable:
    """Return one row per file."""
    formats, budget = (QUICK_FORMATS if settings.quick else FORMATS), settings.budget(15.0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        folder = Path(folder)
        write_json(folder / "annotations.json", make_annotations(ACTIVITYNET12))
        jobs = progress(formats.items(), "evaluation of files")
        rows = [settings.run_apart(file_row, name, count, folder, budget) for name, count in jobs]
        rows.append(settings.run_apart(written_row, formats["JSON"], folder, budget))
    return ResultTable("evaluation_files", "python -m eval.detection on files, the whole command", rows, NOTES)


def file_row(name: str, count: int, folder: Path, budget: float) -> dict:
    """Measure the command on one file."""
    path = folder / f"detections.{name.split()[-1].lower()}"
    write_file(path, make_detections(make_ground_truth(ACTIVITYNET12), count))
    truth = str(folder / "annotations.json")
    options = ["--dataset", DATASET, "--ground-truth", truth, "--predictions", str(path)]
    runs = {}

    def start() -> None:
        run_python(1, "-c", "import eval.detection")

    def fast() -> None:
        runs["fast"] = run_python(1, "-m", "eval.detection", *options)

    def plain() -> None:
        runs["plain"] = run_python(1, "-m", "scripts.benchmarks.plain_evaluation", DATASET, truth, str(path))

    has_plain = count <= PLAIN_UNTIL
    start_seconds, seconds, *plain_seconds = time_in_turns(start, fast, *([plain] if has_plain else []), budget=budget)
    row = {"file": name, "detections": count, "file MB": path.stat().st_size / 1e6}
    row |= {"seconds": seconds, "import seconds": start_seconds}
    path.unlink()
    if not has_plain:
        return {**row, "peak MB": runs["fast"].peak_mb}
    row |= {"plain seconds": plain_seconds[0], "ratio": plain_seconds[0] / seconds}
    tables = {tuple(run.output.splitlines()[-2:]) for run in runs.values()}  # without notes
    row |= {"results": "equal" if len(tables) == 1 else "differ"}
    return {**row, "peak MB": runs["fast"].peak_mb, "plain peak MB": runs["plain"].peak_mb}


def written_row(count: int, folder: Path, budget: float) -> dict:
    """Measure writing one list of detections."""
    table = make_detections(make_ground_truth(ACTIVITYNET12), count)
    fast, plain = folder / "fast.json", folder / "plain.json"
    seconds = time_in_turns(
        lambda: write_detections(fast, table), lambda: plain.write_text(plain_json(table)), budget=budget
    )
    equal = json.loads(fast.read_bytes())["results"] == json.loads(plain.read_bytes())["results"]
    return {
        "file": "JSON, written",
        "detections": count,
        "file MB": fast.stat().st_size / 1e6,
        "seconds": seconds[0],
        "plain seconds": seconds[1],
        "ratio": seconds[1] / seconds[0],
        "results": "equal" if equal else "differ",
    }


def plain_json(table: Table) -> str:
    """Return detections in ActivityNet's submission format, by a loop."""
    results = {video: [] for video in table.videos}
    columns = (table.video, table.label, table.start, table.end, table.score)
    for video, label, start, end, score in zip(*(column.tolist() for column in columns), strict=True):
        results[table.videos[video]].append({"label": table.classes[label], "score": score, "segment": [start, end]})
    return json.dumps({"results": results})


def write_file(path: Path, table: Table) -> None:
    """Write detections in the format of the file's name."""
    if path.suffix == ".json":
        write_detections(path, table)
        return
    video, label = (
        pd.Categorical.from_codes(numbers, names)
        for numbers, names in ((table.video, table.videos), (table.label, table.classes))
    )
    frame = pd.DataFrame(dict(zip(COLUMNS, (video, table.start, table.end, label, table.score), strict=True)))
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)
