"""State of a training run: counters, running losses, checkpoints, and all that a bit-for-bit resume needs."""

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from utils.checkpoint import STATES, has_training_state, load_state, read_checkpoint, require_classes, save_checkpoint
from utils.errors import InputError, shorten
from utils.features.recipes import RECIPE, recipe_difference
from utils.formats.checksums import sha256_of
from utils.run.random_states import random_states, restore_random_states, seed_everything
from utils.run.ranks import SINGLE_PROCESS, Ranks
from wsad_dataset import Batch, BatchLoader, WeakVideoDataset


class StepOutcome(NamedTuple):
    """Outcome of a training step, as tensors on the device. Reading a value waits for the step."""

    terms: dict[str, Tensor]  # loss terms and their total, detached scalars, averaged over ranks
    finite: Tensor  # bool: whether the weights were updated


class Training:
    """State of a training run, saved as a whole and resumed as if it had never stopped.

    Methods that read or write files are collective: all ranks call them, and only rank 0 accesses the files. They
    return on all ranks when the files are complete. `table_rows` is the exception: it only reads, on the calling rank.

    Attributes:
        iteration: Number of steps taken.
        metrics: Metrics of the last evaluation; None if a step was taken since.
        chosen: Iteration and score of each chosen checkpoint by name; `best` is best.pt.
        skipped: Number of steps whose loss or gradient was not finite, and which therefore changed nothing.
        untrained: Metrics before the first step, None if not evaluated.
        checkpoints: Folder of the checkpoint files.
        evaluated: Network to evaluate, which checkpoints have as `model`: the moving average, or `net` without one.

    Args:
        net: Network, already on its device.
        optimizer: Optimizer of the network.
        loader: Training batches.
        identity: Entries of every checkpoint; see `run_identity`.
        run_dir: Folder of the run.
        ranks: Processes that train together.
        ema: Decay of an exponential moving average of the weights; 0 for none.
        max_iter: Number of steps of the whole run.
        eval_every: Number of steps between evaluations.
        skip_nonfinite: Number of non-finite steps to tolerate before the run stops.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: BatchLoader,
        identity: dict,
        run_dir: Path,
        ranks: Ranks = SINGLE_PROCESS,
        ema: float = 0.0,
        *,
        max_iter: int,
        eval_every: int,
        skip_nonfinite: int = 0,
    ):
        self.net, self.optimizer, self.loader, self.identity, self.ranks = net, optimizer, loader, identity, ranks
        # The first update copies the weights.
        self._average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
        self.evaluated = self._average.module if self._average else net
        self.max_iter, self.eval_every, self.skip_nonfinite = max_iter, eval_every, skip_nonfinite
        self.checkpoints = Path(run_dir) / "checkpoints"
        self.iteration, self.metrics, self.untrained = 0, None, None
        self.chosen: dict[str, dict] = {}
        self.skipped = 0
        self._sums: dict[str, Tensor] = {}  # of the loss terms since the last evaluation
        self._count: Tensor | int = 0  # of the finite steps since then
        self._unchecked: deque[tuple[int, StepOutcome, Batch, list[str]]] = deque()

    @property
    def progress(self) -> float:
        """Share of the run's steps that are taken, in [0, 1) before a step."""
        return self.iteration / self.max_iter

    @property
    def evaluation_is_due(self) -> bool:
        """True if an evaluation follows the last step: on schedule, or at the end of the run."""
        return self._is_scheduled(self.iteration) or self.iteration == self.max_iter

    def batches(self) -> Iterator[Batch]:
        """Yield batches until the run has `max_iter` steps. `advance` must follow each."""
        while self.iteration < self.max_iter:
            yield next(self.loader)

    def advance(self, outcome: StepOutcome, batch: Batch) -> None:
        """Count a step and add its loss terms to the running means.

        A CPU step is checked for non-finite values here. A GPU step is checked while the next one runs, so that the GPU
        never waits for the host. Before an evaluation, a save or a stop it is always checked.

        Args:
            outcome: Outcome of the step.
            batch: Last batch of the loader, on which the step was taken.

        Raises:
            InputError: If more than `skip_nonfinite` steps were not finite. fault.pt then has the newest state
                and the batch.
        """
        self.iteration += 1
        self.metrics = None
        if self._average:
            self._average.update_parameters(self.net)
        self._count = self._count + outcome.finite
        for name, value in outcome.terms.items():  # summed on the device, without waiting for it
            self._sums[name] = self._sums.get(name, 0.0) + torch.where(outcome.finite, value, 0.0).double()
        self._unchecked.append((self.iteration, outcome, batch, list(self.loader.video_ids)))
        self._check_steps(delay=1 if outcome.finite.is_cuda and not self.evaluation_is_due else 0)

    def losses(self) -> dict[str, float]:
        """Return the mean of each loss term over the finite steps since the last evaluation; {} without any."""
        count = int(self._count)
        return {name: value.item() / count for name, value in self._sums.items()} if count else {}

    def save(self, metrics: dict, scores: dict[str, list[float]]) -> None:
        """Save last.pt, and NAME.pt for each score that is the highest of its name so far.

        An evaluation off the schedule, at the end of a run, cannot replace a chosen checkpoint. A longer run that
        resumes from it must equal a run that was never stopped there.

        Args:
            metrics: Metrics of the current weights.
            scores: Score by name of the chosen checkpoint. Lists are compared from the left.
        """
        self.metrics = metrics
        is_scheduled = self._is_scheduled(self.iteration)
        if is_scheduled:
            self._sums, self._count = {}, 0
        for name, score in scores.items():
            if name not in self.chosen or (is_scheduled and score > self.chosen[name]["score"]):
                self.chosen[name] = {"iteration": self.iteration, "score": score}
                self._save(self.checkpoints / f"{name}.pt", self._weights())
        self.save_last()

    def table_rows(self, metrics: dict) -> list[tuple[str, int, dict]]:
        """Return name, iteration and metrics of each checkpoint for the final table.

        Args:
            metrics: Metrics of the last checkpoint.
        """
        rows = [("untrained", 0, self.untrained)] if self.untrained else []
        rows.append(("last", self.iteration, metrics))
        for name in self.chosen:
            checkpoint = read_checkpoint(self.checkpoints / f"{name}.pt")
            rows.append((name, checkpoint["iteration"], checkpoint["metrics"]))
        return rows

    def save_last(self) -> None:
        """Save last.pt: the weights and all that the next step depends on. The file before it becomes previous.pt."""
        self._check_steps()
        last, previous = (self.checkpoints / name for name in STATES)
        self._save(last, {**self._weights(), "training": self._state()}, previous)

    def resume(self, seed: int) -> None:
        """Continue from last.pt, or from previous.pt if last.pt is damaged or missing; do nothing without both.

        Args:
            seed: Seed of the run. With another number of ranks than before, dropout continues with new random streams.

        Raises:
            InputError: If there is a state but it cannot be used.
        """
        path, checkpoint = self.ranks.on_rank_zero(self._read_newest_state)
        if checkpoint is None:
            return
        require_classes(checkpoint, self.identity["classes"], path)
        self._require_scale(checkpoint, path)
        self._require_recipe(checkpoint, path)
        self._require_pseudo_labels(checkpoint, path)
        load_state(self.evaluated, checkpoint, path)
        if self._average:
            self._average.n_averaged.fill_(1)  # PyTorch only asks if it has begun
            load_state(self.net, {"model": checkpoint["training"].get("weights")}, path)
        try:
            self._load_state(checkpoint, checkpoint["training"])
            self._load_random_states(checkpoint["training"], seed)
        except Exception as error:  # setters of PyTorch and Python raise almost any exception for an invalid state
            raise InputError(f"{path}: training state cannot be used ({type(error).__name__}: {error})") from None
        if self.iteration > self.max_iter:
            raise InputError(
                f"{path}: is at iteration {self.iteration}, beyond --max-iter {self.max_iter}; raise --max-iter "
                "or choose another --run-dir"
            )
        if self.iteration < self.max_iter:
            self.chosen = {n: choice for n, choice in self.chosen.items() if self._is_scheduled(choice["iteration"])}
        else:
            print(f"already at iteration {self.iteration} of {self.max_iter}; raise --max-iter to train on")

    def _require_scale(self, checkpoint: dict, path: Path) -> None:
        """Raise InputError if `--feature-scale auto` gives another number than before, because the features changed."""
        trained, now = (part.get("options", {}).get("feature_scale", 1.0) for part in (checkpoint, self.identity))
        if trained != now:
            raise InputError(
                f"{path}: was trained with the feature scale {shorten(trained)}, the training features now give "
                f"{now}; use the features of the run, or choose another --run-dir"
            )

    def _require_recipe(self, checkpoint: dict, path: Path) -> None:
        """Raise InputError if the features were extracted again, by another recipe."""
        if difference := recipe_difference(self.identity.get(RECIPE), checkpoint.get(RECIPE)):
            raise InputError(
                f"{path}: was trained on features of another recipe than these ({difference}); use the features of "
                "the run, or choose another --run-dir"
            )

    def _require_pseudo_labels(self, checkpoint: dict, path: Path) -> None:
        """Raise InputError if the run had other pseudo labels, or none."""
        name = "pseudo_labels_sha256"
        trained, now = (part.get("options", {}).get(name) for part in (checkpoint, self.identity))
        if trained != now:
            had, given = (f"of SHA-256 {shorten(digest)}" if digest else "none" for digest in (trained, now))
            raise InputError(
                f"{path}: expected the pseudo labels of the run ({had}), got {given}; give its --pseudo-labels, or "
                "choose another --run-dir"
            )

    def _is_scheduled(self, iteration: int) -> bool:
        return iteration % self.eval_every == 0

    def _check_steps(self, delay: int = 0) -> None:
        """Report non-finite steps among all but the last `delay` steps."""
        while len(self._unchecked) > delay:
            iteration, outcome, batch, video_ids = self._unchecked.popleft()
            if not outcome.finite:
                self._skip(iteration, outcome.terms, batch, video_ids)

    def _skip(self, iteration: int, terms: dict[str, Tensor], batch: Batch, video_ids: list[str]) -> None:
        self.skipped += 1
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
        fault = f"the loss or its gradient is not finite at iteration {iteration} ({values})"
        shares = self.ranks.gather((video_ids, batch.features.cpu(), batch.labels.cpu()))
        ids, features, labels = zip(*shares, strict=True)
        video_ids = sum(ids, [])
        videos = ", ".join(video_ids)
        if self.skipped <= self.skip_nonfinite:
            tqdm.write(f"skipped: {fault}, videos {videos}", file=sys.stderr)
            return
        path = self.checkpoints / "fault.pt"
        step = {"terms": terms, "video_ids": video_ids, "features": torch.cat(features), "labels": torch.cat(labels)}
        self._save(path, {**self._weights(), "training": self._state(), "fault": step})
        raise InputError(
            f"{fault} with the videos {videos}; lower --lr, check the features with python -m utils.features DIR "
            f"--check, or tolerate such steps with --skip-nonfinite N; {path} has the newest state and the "
            "batch of that step"
        )

    def _save(self, path: Path, checkpoint: dict, previous: Path | None = None) -> None:
        if self.ranks.is_main:
            save_checkpoint(path, checkpoint, previous)
        self.ranks.barrier()

    def _weights(self) -> dict:
        current = {"model": self.evaluated.state_dict(), "iteration": self.iteration, "metrics": self.metrics}
        return {**self.identity, **current}

    def _state(self) -> dict:
        own, *others = self.ranks.gather(random_states())
        return {
            **({"weights": self.net.state_dict()} if self._average else {}),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.loader.state_dict(),
            "random": own,
            "random_of_other_ranks": others,
            "losses": {"sums": self._sums, "count": int(self._count)},
            "chosen": self.chosen,
            "untrained": self.untrained,
            "skipped": self.skipped,
        }

    def _load_state(self, checkpoint: dict, state: dict) -> None:
        self.iteration, self.metrics = int(checkpoint["iteration"]), checkpoint["metrics"]
        self.optimizer.load_state_dict(state["optimizer"] if "optimizer" in state else state["optimiser"])  # older
        for group in self.optimizer.param_groups:  # an older run may have used another implementation of Adam
            group.update({name: self.optimizer.defaults[name] for name in ("fused", "foreach")})
        for parameter, values in self.optimizer.state.items():
            if not values["exp_avg"].shape == values["exp_avg_sq"].shape == parameter.shape:
                raise ValueError("the optimizer's state does not fit the network")
        self.loader.load_state_dict(state["batches"])
        device = next(self.net.parameters()).device
        self._sums = {name: value.to(device) for name, value in state["losses"]["sums"].items()}
        self._count = state["losses"]["count"]
        if not isinstance(state["untrained"], dict | None):
            raise TypeError("expected `untrained` to be a dict or None")
        self.untrained, self.skipped = state["untrained"], int(state.get("skipped", 0))
        self.chosen = {
            name: {"iteration": int(choice["iteration"]), "score": choice["score"]}
            for name, choice in state["chosen"].items()
        }

    def _load_random_states(self, state: dict, seed: int) -> None:
        states = [state["random"], *state.get("random_of_other_ranks", [])]
        if len(states) == self.ranks.size:
            restore_random_states(states[self.ranks.rank])
            return
        seed_everything(seed, self.ranks.rank, self.iteration)
        print(
            f"number of processes changed from {len(states)} to {self.ranks.size}: "
            "the batches continue, dropout uses new random streams"
        )

    def _read_newest_state(self) -> tuple[Path, dict | None]:
        """Return the newest intact state; rename a damaged newer one, so that it never replaces an intact one."""
        if not has_training_state(self.checkpoints):
            return self.checkpoints, None
        last, previous = (self.checkpoints / name for name in STATES)
        try:
            return last, _read_state(last)
        except InputError as error:
            if not previous.exists():
                raise
            checkpoint = _read_state(previous)
            print(f"{error}; resuming from {previous}, iteration {checkpoint['iteration']}", file=sys.stderr)
            if last.exists():
                last.replace(last.with_name("damaged.pt"))
            return previous, checkpoint


def run_identity(architecture: dict, train_set: WeakVideoDataset, options: dict) -> dict:
    """Return the entries of every checkpoint that a run never changes.

    Args:
        architecture: Arguments of the network.
        train_set: Training videos. The feature scale in `options` becomes theirs, a number instead of `auto`.
        options: Options of the run. The digest of its pseudo labels is added as `pseudo_labels_sha256`.
    """
    store, options = train_set.store, {**options, "feature_scale": train_set.store.scale}
    if options.get("pseudo_labels"):
        options["pseudo_labels_sha256"] = sha256_of(Path(options["pseudo_labels"]))
    identity = {"architecture": architecture, "classes": list(train_set.classes), "options": options}
    return {**identity, RECIPE: store.recipe} if store.recipe else identity


def _read_state(path: Path) -> dict:
    checkpoint = read_checkpoint(path)
    if not {"training", "iteration", "metrics"} <= set(checkpoint):
        raise InputError(f"{path}: has weights but no training state; it cannot be resumed from")
    return checkpoint
