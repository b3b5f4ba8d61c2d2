"""Log of a run: progress, one line of log.jsonl per evaluation, and TensorBoard events."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from utils.errors import InputError
from utils.formats.files import read_json_lines, write_text

SCALARS_EVERY = 10  # iterations between TensorBoard points of the losses
PROTOCOL = "snippet"  # of the mean mAP shown as progress


class RunLog:
    """Progress, log.jsonl and TensorBoard events of a run; a context manager.

    Progress is a bar on a terminal, and otherwise one plain line per evaluation.

    Args:
        run_dir: Folder of the run; None logs nothing (ranks other than 0).
        first: Number of steps taken so far. Records after it, of an interrupted attempt, are dropped. If the run
            continues, so are those off the evaluation schedule: a resumed log equals an uninterrupted one.
        total: Number of steps of the whole run.
        eval_every: Number of steps between evaluations.
        snippets: Number of snippets per batch.
        main_range: TIoU range whose mean mAP is shown as progress.
    """

    def __init__(
        self,
        run_dir: Path | None,
        first: int,
        total: int,
        eval_every: int,
        snippets: int,
        main_range: tuple[float, float],
    ):
        self._is_silent = run_dir is None
        if self._is_silent:
            return
        self._path = Path(run_dir) / "log.jsonl"
        self._first, self._total, self._snippets, self._main_range = first, total, snippets, main_range
        previous = read_json_lines(self._path) if first and self._path.exists() else []
        done = [record for record in previous if record["iteration"] <= first]
        self.records = [record for record in done if first == total or record["iteration"] % eval_every == 0]
        self._write()
        self._events = _Events(run_dir, purge_step=first + 1 if first else None)
        # Disabled where standard error is not a terminal.
        self._bar = tqdm(total=total, initial=first, desc="training", unit="it", dynamic_ncols=True, disable=None)
        if first < total:
            self._print(f"iterations {first + 1} to {total}, an evaluation every {eval_every}")
        self._steps, self._seconds = 0, 0.0  # since the last evaluation
        self._clock = self._start = time.perf_counter()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception) -> None:
        if not self._is_silent:
            self._bar.close()
            self._events.close()

    def step(self, iteration: int, terms: dict[str, Tensor], lr: float) -> None:
        """Count a step. Its loss terms are read, which waits for the device, only every SCALARS_EVERY steps."""
        if self._is_silent:
            return
        now = time.perf_counter()
        self._steps, self._seconds, self._clock = self._steps + 1, self._seconds + now - self._clock, now
        self._bar.update()
        if iteration % SCALARS_EVERY == 0:
            values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))  # waits once
            for name, value in values.items():
                self._events.add_scalar(f"loss/{name}", value, iteration)
            self._events.add_scalar("lr", lr, iteration)
            self._bar.set_postfix({"loss": f"{values['total']:.3f}", **self._mean_map()})

    def evaluation(
        self,
        iteration: int,
        losses: dict[str, float],
        metrics: dict,
        holdout: dict[str, float] | None = None,
        skipped: int = 0,
    ) -> None:
        """Log an evaluation: a line of log.jsonl, and its scalars.

        Args:
            iteration: Number of steps taken.
            losses: Mean loss terms since the last evaluation.
            metrics: Metrics of the test subset, in the form of metrics.json.
            holdout: Scores of the holdout training videos.
            skipped: Number of non-finite steps so far.
        """
        if self._is_silent:
            return
        speed = self._steps * self._snippets / self._seconds if self._steps else None
        record = {
            "iteration": iteration,
            "losses": losses,
            "scores": _summarize(metrics) | {f"holdout/{name}": value for name, value in (holdout or {}).items()},
            "skipped": skipped,
            "snippets_per_second": speed,
        }
        collapsed = metrics.get("collapsed")
        if collapsed:
            record["collapsed"] = collapsed
        self.records.append(record)
        self._write()
        for name, value in record["scores"].items():
            if value is not None:
                self._events.add_scalar(name, value, iteration)
        if speed:
            self._events.add_scalar("snippets_per_second", speed, iteration)
        self._events.flush()
        self._print_evaluation(iteration, losses, collapsed)
        self._steps, self._seconds, self._clock = 0, 0.0, time.perf_counter()

    def _write(self) -> None:
        """Rewrite all lines: an appended line could be cut off by a stop."""
        write_text(self._path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in self.records))

    def _print_evaluation(self, iteration: int, losses: dict[str, float], collapsed: str | None) -> None:
        parts = [f"iteration {iteration}/{self._total}"]
        if "total" in losses:
            parts.append(f"loss {losses['total']:.3f}")
        parts += [f"{name} {value}" for name, value in self._mean_map().items()]
        if collapsed:
            parts.append(f"collapsed: {collapsed}")
            if not self._bar.disable:
                tqdm.write(f"iteration {iteration} collapsed: {collapsed}", file=sys.stderr)
        if self._first < iteration < self._total:
            seconds = (time.perf_counter() - self._start) / (iteration - self._first) * (self._total - iteration)
            parts.append(f"ETA {tqdm.format_interval(seconds)}")
        self._print(", ".join(parts))

    def _print(self, message: str) -> None:
        if self._bar.disable:
            print(f"training: {message}", file=sys.stderr, flush=True)

    def _mean_map(self) -> dict[str, str]:
        """Return the last mean mAP over the main range in percent, by its name; {} before an evaluation."""
        scores, prefix = self.records[-1]["scores"] if self.records else {}, f"{PROTOCOL}/mAP@"
        by_tiou = {float(name.removeprefix(prefix)): v for name, v in scores.items() if name.startswith(prefix)}
        low, high = self._main_range
        values = [value for tiou, value in by_tiou.items() if low <= tiou <= high]
        if not values or None in values:  # None is an undefined mAP
            return {}
        return {f"mAP@{low:g}:{high:g} ({PROTOCOL})": f"{100 * sum(values) / len(values):.1f}"}


class _Events:
    """TensorBoard writer that reports an error of the system, such as a full disk, as an InputError.

    Its background thread would print a traceback when it fails. The next call raises the same error here.
    """

    def __init__(self, run_dir: Path, purge_step: int | None):
        from torch.utils.tensorboard import SummaryWriter  # here, because it would slow down the start of every command

        self._run_dir, self._hook = run_dir, threading.excepthook
        threading.excepthook = self._ignore_os_error
        self._writer = SummaryWriter(run_dir, purge_step=purge_step)

    def add_scalar(self, name: str, value: float, iteration: int) -> None:
        with self._os_error_as_input_error():
            self._writer.add_scalar(name, value, iteration)

    def flush(self) -> None:
        with self._os_error_as_input_error():
            self._writer.flush()

    def close(self) -> None:
        try:
            with self._os_error_as_input_error():
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _ignore_os_error(self, arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, OSError):
            self._hook(arguments)

    @contextmanager
    def _os_error_as_input_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._run_dir}: TensorBoard events cannot be written ({error.strerror or error})"
            ) from None


def _summarize(metrics: dict) -> dict[str, float]:
    """Return the scalars of metrics.json that are worth a curve, in a flat dict; {} without ground truth."""
    if not metrics:
        return {}
    scores = {"classification_mAP": metrics["classification_map"]}
    scores |= {f"{subset}/accuracy": value["accuracy"] for subset, value in metrics.get("snippet_accuracy", {}).items()}
    for protocol, values in metrics.items():
        if protocol in ("classification_map", "snippet_accuracy", "collapsed"):
            continue
        for threshold, value in zip(values["tiou_thresholds"], values["map"], strict=True):
            scores[f"{protocol}/mAP@{threshold:g}"] = value
        scores[f"{protocol}/mean_mAP"] = values["average_map"]
    return scores
