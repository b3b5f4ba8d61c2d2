"""The record of a run: progress bar, one JSON line an evaluation, TensorBoard."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.errors import InputError
from utils.formats.files import read_json_lines, write_text

SCALARS_EVERY = 10  # iterations between TensorBoard points of the losses


class RunLog:
    """Progress bar, log.jsonl and TensorBoard of a run; a context manager.

    Args:
        run: the run folder.
        first: iterations done before. Records of an interrupted attempt after it are dropped, and if the run goes on,
            so are those off the evaluation schedule: a resumed log is that of a run that was not stopped.
        total: iterations of the whole run.
        eval_every: iterations between evaluations.
        snippets: snippets of one batch.
    """

    def __init__(self, run: Path, first: int, total: int, eval_every: int, snippets: int):
        self._path, self._snippets = run / "log.jsonl", snippets
        before = read_json_lines(self._path) if first and self._path.exists() else []
        done = [record for record in before if record["iteration"] <= first]
        self.records = [record for record in done if first == total or record["iteration"] % eval_every == 0]
        self._write()
        self._events = _Events(run, purge_step=first + 1 if first else None)
        self._bar = tqdm(total=total, initial=first, desc="training", unit="it", dynamic_ncols=True)
        self._steps, self._seconds = 0, 0.0
        self._clock = time.perf_counter()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()
        self._events.close()

    def step(self, iteration: int, terms: dict[str, Tensor], lr: float) -> None:
        """After each training step; looks at the values, and so waits for them, only every SCALARS_EVERY."""
        self._bar.update()
        self._steps += 1
        if iteration % SCALARS_EVERY == 0:
            values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))  # waits once
            for name, value in values.items():
                self._events.add_scalar(f"loss/{name}", value, iteration)
            self._events.add_scalar("lr", lr, iteration)
            self._bar.set_postfix(loss=f"{values['total']:.3f}", **self._scores())

    def pause(self) -> None:
        """Before an evaluation, whose time does not count towards the training speed."""
        self._seconds += time.perf_counter() - self._clock

    def evaluation(
        self,
        iteration: int,
        losses: dict[str, float],
        metrics: dict,
        holdout: dict[str, float] | None = None,
        skipped: int = 0,
    ) -> None:
        """One line in log.jsonl, and its scalars: mean losses since the last one, mAPs, scores on held-out videos,
        steps skipped so far, snippets a second."""
        speed = self._steps * self._snippets / self._seconds if self._steps else None
        record = {
            "iteration": iteration,
            "losses": losses,
            "scores": _summary(metrics) | {f"holdout/{name}": value for name, value in (holdout or {}).items()},
            "skipped": skipped,
            "snippets_per_second": speed,
        }
        self.records.append(record)
        self._write()
        for name, value in record["scores"].items():
            if value is not None:
                self._events.add_scalar(name, value, iteration)
        if speed:
            self._events.add_scalar("snippets_per_second", speed, iteration)
        self._events.flush()
        self._steps, self._seconds, self._clock = 0, 0.0, time.perf_counter()

    def _write(self) -> None:
        """All lines anew: an appended one could be cut off by a stop."""
        write_text(self._path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in self.records))

    def _scores(self) -> dict[str, str]:
        last = self.records[-1]["scores"] if self.records else {}
        return {"mAP": f"{100 * last['snippet/mean_mAP']:.1f}"} if last else {}


class NoLog:
    """What the other ranks of a run have in the place of RunLog, which rank 0 alone keeps."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *exception) -> None: ...
    def step(self, *what) -> None: ...
    def pause(self) -> None: ...
    def evaluation(self, *what) -> None: ...


class _Events:
    """TensorBoard's writer; what the system refuses it, as on a full disk, is an InputError in one line.

    It writes in a thread of its own, which would print a traceback as it ends; the next call raises the same here.
    """

    def __init__(self, run: Path, purge_step: int | None):
        self._run, self._hook = run, threading.excepthook
        threading.excepthook = self._in_thread
        self._writer = SummaryWriter(run, purge_step=purge_step)

    def add_scalar(self, name: str, value: float, iteration: int) -> None:
        with self._said():
            self._writer.add_scalar(name, value, iteration)

    def flush(self) -> None:
        with self._said():
            self._writer.flush()

    def close(self) -> None:
        try:
            with self._said():
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, OSError):
            self._hook(arguments)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._run}: TensorBoard's events cannot be written ({error.strerror or error})"
            ) from None


def _summary(metrics: dict) -> dict[str, float]:
    """metrics.json's form, flat: the scalars that are worth a curve."""
    scores = {"classification_mAP": metrics["classification_map"]}
    scores |= {f"{subset}/accuracy": value["accuracy"] for subset, value in metrics.get("snippet_accuracy", {}).items()}
    for protocol, values in metrics.items():
        if protocol in ("classification_map", "snippet_accuracy"):
            continue
        for threshold, value in zip(values["tiou_thresholds"], values["map"], strict=True):
            scores[f"{protocol}/mAP@{threshold:g}"] = value
        scores[f"{protocol}/mean_mAP"] = values["average_map"]
    return scores
