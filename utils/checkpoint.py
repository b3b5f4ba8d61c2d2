"""Checkpoints: written whole or not at all, opened without running code, resumed bit for bit.

They are zip archives, as torch.save writes them, and their CRC-32 of each record is checked here (PyTorch's own reader
does not look at it), so a flipped bit is noticed. A released .pkl of the old form has no checksum.

A checkpoint is one dict: `model` (state dict), `architecture` (the network's arguments), `classes` (in the order
of its outputs), `options` (the run's), `iteration`, `metrics` of its evaluation, and, in `last.pt`,
`training`: optimizer, batches, running losses and every random state that the next step depends on, of each of the
processes that train together.
"""

import random
import sys
import zipfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import InputError, shorten
from utils.formats.files import atomic_write
from utils.run.ranks import ALONE, Ranks
from utils.training_step import StepOutcome

# The release's module names -> ours. X.channel_conv keeps only its middle tap; see model.ConsensusModule.
RELEASED_MODULES = {
    "vAttn.channel_conv.0": "consensus.0.global_context.0",
    "vAttn.bit_wise_attn.0": "consensus.0.cross_modal.0",
    "vAttn.attention.0": "attention_units.0.layers.0",
    "vAttn.attention.3": "attention_units.0.layers.3",
    "vAttn.attention.5": "attention_units.0.layers.5",
    "fAttn.channel_conv.0": "consensus.1.global_context.0",
    "fAttn.bit_wise_attn.0": "consensus.1.cross_modal.0",
    "fAttn.attention.0": "attention_units.1.layers.0",
    "fAttn.attention.3": "attention_units.1.layers.3",
    "fAttn.attention.5": "attention_units.1.layers.5",
    "fusion.0": "fusion.0",
    "classifier.1": "classifier.1",
    "classifier.4": "classifier.4",
}
RELEASED_UNUSED = ("feat_encoder.",)  # declared in the release, never in its forward pass
# What a checkpoint of ours has beside its weights; a released one has none of it.
PARTS = {"architecture": dict, "classes": list, "options": dict, "iteration": int, "training": dict}
PARTS["metrics"] = dict | None
STATES = ("last.pt", "previous.pt")  # what a training is resumed from: the first of them that is whole


def save_checkpoint(path: str | Path, checkpoint: dict, keep: Path | None = None) -> None:
    """Write a checkpoint, whole or not at all; `keep`: where the one that is there now goes.

    Raises:
        InputError: if it cannot be written (a full disk, ...); what was there is still there then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        with partial.open("wb") as file:  # PyTorch's own file writer would hide what the system says
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # its archive could not be closed, because it could not be written
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        if keep is not None and path.exists():
            path.replace(keep)


def holds_training(folder: Path) -> bool:
    """Whether a run's checkpoints folder holds a state to resume from."""
    return any((folder / name).exists() for name in STATES)


def read_checkpoint(path: str | Path) -> dict:
    """The dict of a checkpoint file, on the CPU; weights-only, so a stranger's file cannot run code.

    Raises:
        InputError: if there is no such file or it is not a checkpoint of tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; expected a .pt file of a run or a released .pkl")
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception:  # a damaged file fails anywhere in the reader, a hostile one at its first global
        raise InputError(f"{path}: damaged, or not a checkpoint of tensors and plain values alone") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}, expected a dict of weights")
    for name, kind in PARTS.items():
        if name in checkpoint and not isinstance(checkpoint[name], kind):
            raise InputError(f"{path}: its {name} is {shorten(checkpoint[name])}, which is none of a run's")
    if not all(isinstance(name, str) for name in checkpoint.get("classes", [])):
        raise InputError(f"{path}: its classes are {shorten(checkpoint['classes'])}, expected names")
    return checkpoint


def _check_archive(path: Path) -> None:
    """Every record of a zip archive against its CRC-32, and none that would grow when it is read."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise InputError(f"{path}: has compressed records, which no checkpoint has")
        if any(record.external_attr for record in records):  # PyTorch reads a record marked as a folder as zeros
            raise InputError(f"{path}: damaged; a record of it is marked as no file")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise InputError(f"{path}: its records promise more bytes than the file holds")
        if damaged := archive.testzip():
            raise InputError(f"{path}: damaged; its record {damaged} differs from its checksum")


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of ours, or a released .pkl (legacy or zip, CUDA tensors) by its own parameter names.

    Raises:
        InputError: if the file cannot be opened, or its weights are not those of `net`; `net` is then unchanged.
    """
    load_state(net, read_checkpoint(path), path)


def load_state(net: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Load the weights of an opened checkpoint into `net`; see load_weights."""
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path}: not the weights of a network; expected tensors by name")
    if any(name.startswith(("vAttn.", "fAttn.", "module.vAttn.")) for name in state):
        state = _from_release(state, path)
    _check_state(net, state, path)
    net.load_state_dict(state)


def require_classes(checkpoint: dict, classes: Sequence[str], path: str | Path) -> None:
    """InputError if a checkpoint was trained on these classes in another order: it would score the wrong ones."""
    trained = checkpoint.get("classes", list(classes))  # a released checkpoint does not say
    if len(trained) == len(classes) and list(trained) != list(classes):
        index = next(i for i, (ours, theirs) in enumerate(zip(trained, classes, strict=True)) if ours != theirs)
        raise InputError(
            f"{path}: was trained with '{trained[index]}' as class {index}, the annotations have '{classes[index]}' "
            "there; give them the 'classes' list of the annotations that it was trained on"
        )


def _from_release(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    converted = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if name.startswith(RELEASED_UNUSED):
            continue
        module, _, parameter = name.rpartition(".")
        if module not in RELEASED_MODULES:
            raise InputError(f"{path}: has the weight {name}, which no CO2-Net has; is it of another network?")
        if ".channel_conv." in name and tensor.ndim == 3 and tensor.shape[2] == 3:
            tensor = tensor[:, :, 1:2]
        converted[f"{RELEASED_MODULES[module]}.{parameter}"] = tensor
    return converted


def _check_state(net: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """One line that says what differs, rather than PyTorch's list of all that does."""
    own = net.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        example = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}"
        raise InputError(
            f"{path}: not the weights of this network ({len(missing)} missing, {len(unknown)} unknown: {example})"
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
            raise InputError(f"{path}: {name} is {value.layout}, {value.dtype}, expected an array of real numbers")
    classes = state[net.CLASS_LAYER].shape[0] - 1 if state[net.CLASS_LAYER].ndim else 0
    if classes != net.num_classes:
        raise InputError(
            f"{path}: the checkpoint has {classes} classes, the dataset has {net.num_classes}; "
            "give the annotations that it was trained on"
        )
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}; "
                "are the features of another width?"
            )
        if not torch.isfinite(state[name]).all():
            raise InputError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")


class Stateful(Protocol):
    """What a training needs of its batches: a state that is saved and restored."""

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


class Training:
    """What changes while a network trains: saved whole, and resumed as if it had never stopped.

    Attributes:
        iteration: steps done.
        metrics: of the last evaluation, None before it or after a stop between evaluations.
        chosen: iteration and score of each chosen checkpoint, by its name; `best` is best.pt.
        skipped: steps whose loss or gradient was not finite, and which therefore changed nothing.
        untrained: metrics before the first step, if they were asked for.

    Args:
        identity: `architecture`, `classes` and `options`, written into every checkpoint.
        run: the run folder; checkpoints go to its `checkpoints`.
        ranks: the processes that train together. Rank 0 reads and writes the files for all of them; whatever touches
            a file is called on all together, and returns when the file is there.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Stateful,
        identity: dict,
        run: Path,
        ranks: Ranks = ALONE,
    ):
        self.ranks = ranks
        self.net, self.optimizer, self.loader, self.identity = net, optimizer, loader, identity
        self.folder = run / "checkpoints"
        self.iteration, self.metrics, self.untrained = 0, None, None
        self.chosen: dict[str, dict] = {}
        self.skipped = 0
        self._sums: dict[str, Tensor] = {}
        self._count: Tensor | int = 0
        self._unread: deque[tuple[int, StepOutcome, Sequence[Tensor], list[str]]] = deque()

    def advance(self, outcome: StepOutcome, batch: Sequence[Tensor], video_ids: Sequence[str]) -> None:
        """Count a step; its losses are summed on the device, so that no step waits for them.

        Args:
            outcome: of the step.
            batch, video_ids: what it was taken on, kept until `require_finite` has looked at the step.
        """
        self.iteration += 1
        self.metrics = None  # those of other weights
        self._count = self._count + outcome.finite
        for name, value in outcome.terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + torch.where(outcome.finite, value, 0.0).double()
        self._unread.append((self.iteration, outcome, batch, list(video_ids)))

    def losses(self) -> dict[str, float]:
        """Means of the loss terms over the steps since the last evaluation; {} where there was none."""
        count = int(self._count)
        return {name: value.item() / count for name, value in self._sums.items()} if count else {}

    def require_finite(self, allowed: int, late: bool = False) -> None:
        """Look whether the steps so far, with `late` all but the last one, had a finite loss and gradient.

        One that had not has changed nothing. `allowed`: how many such steps a run may have.

        Raises:
            InputError: if it had more; fault.pt then holds the state, and the batch of that step.
        """
        while len(self._unread) > late:
            iteration, outcome, batch, video_ids = self._unread.popleft()
            if not outcome.finite:
                self._skip(iteration, outcome.terms, batch, video_ids, allowed)

    def _skip(
        self, iteration: int, terms: dict[str, Tensor], batch: Sequence[Tensor], video_ids: list[str], allowed: int
    ) -> None:
        self.skipped += 1
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
        fault = f"the loss or its gradient is not finite at iteration {iteration} ({values})"
        batches = self.ranks.gather((video_ids, *(part.cpu() for part in batch[:2])))
        video_ids = [video_id for ids, *_ in batches for video_id in ids]
        videos = ", ".join(video_ids)
        if self.skipped <= allowed:
            print(f"\nskipped: {fault}, videos {videos}", file=sys.stderr)
            return
        path = self.folder / "fault.pt"
        features, labels = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[1:])
        step = {"terms": terms, "video_ids": video_ids, "features": features, "labels": labels}
        self._save(path, {**self._weights(), "training": self._state(), "fault": step})
        raise InputError(
            f"{fault} with the videos {videos}; lower --lr, check the features with python -m utils.features DIR "
            f"--check, or let such steps pass with --skip-nonfinite N; the state, which that step has not changed, and "
            f"its batch are in {path}"
        )

    def evaluated(self, metrics: dict, scores: dict[str, list[float]], on_schedule: bool) -> None:
        """Save last.pt, and NAME.pt of every score that is the highest of its name so far.

        An evaluation off the schedule, at the end of a run whose length is no multiple of its interval, is no
        candidate: the run may be resumed, and must then be the run that was not stopped there.
        """
        self.metrics = metrics
        if on_schedule:
            self._sums, self._count = {}, 0
        for name, score in scores.items():
            if name not in self.chosen or (on_schedule and score > self.chosen[name]["score"]):
                self.chosen[name] = {"iteration": self.iteration, "score": score}
                self._save(self.folder / f"{name}.pt", self._weights())
        self.save_last()

    def save_last(self) -> None:
        """Save last.pt: the weights, and all that the next step depends on; the one before becomes previous.pt."""
        last, previous = (self.folder / name for name in STATES)
        self._save(last, {**self._weights(), "training": self._state()}, keep=previous)

    def _save(self, path: Path, checkpoint: dict, keep: Path | None = None) -> None:
        if self.ranks.is_main:
            save_checkpoint(path, checkpoint, keep)
        self.ranks.wait()

    def _state(self) -> dict:
        random, *others = self.ranks.gather(random_states())
        return {
            "optimizer": self.optimizer.state_dict(),
            "batches": self.loader.state_dict(),
            "random": random,
            "random_of_other_ranks": others,
            "losses": {"sums": self._sums, "count": int(self._count)},
            "chosen": self.chosen,
            "untrained": self.untrained,
            "skipped": self.skipped,
        }

    def resume(self, eval_every: int, max_iter: int, seed: int) -> None:
        """Continue from last.pt, or where it is damaged or missing from previous.pt; without either, begin.

        seed: of the run; on another number of ranks than before, dropout goes on with new streams.

        Raises:
            InputError: if there is a state but none that can be used.
        """
        path, checkpoint = self.ranks.once(self._newest_state)
        if checkpoint is None:
            return
        require_classes(checkpoint, self.identity["classes"], path)
        load_state(self.net, checkpoint, path)
        try:
            self._continue_from(checkpoint, checkpoint["training"])
            self._continue_random(checkpoint["training"], seed)
        except Exception as error:  # PyTorch's and Python's setters raise almost anything for a state that is none
            raise InputError(
                f"{path}: its state of a training cannot be used ({type(error).__name__}: {error})"
            ) from None
        if self.iteration < max_iter:
            on_schedule = [name for name, choice in self.chosen.items() if choice["iteration"] % eval_every == 0]
            self.chosen = {name: self.chosen[name] for name in on_schedule}

    def _continue_from(self, checkpoint: dict, training: dict) -> None:
        self.iteration, self.metrics = int(checkpoint["iteration"]), checkpoint["metrics"]
        self.optimizer.load_state_dict(training["optimizer"])
        for group in self.optimizer.param_groups:  # whatever it was when the run began
            group.update({name: self.optimizer.defaults[name] for name in ("fused", "foreach")})
        for parameter, values in self.optimizer.state.items():
            if not values["exp_avg"].shape == values["exp_avg_sq"].shape == parameter.shape:
                raise ValueError("the optimizer's state is of another network")
        self.loader.load_state_dict(training["batches"])
        device = next(self.net.parameters()).device
        self._sums = {name: value.to(device) for name, value in training["losses"]["sums"].items()}
        self._count = training["losses"]["count"]
        if not isinstance(training["untrained"], dict | None):
            raise TypeError("untrained scores that are none")
        self.untrained, self.skipped = training["untrained"], int(training.get("skipped", 0))
        self.chosen = {
            name: {"iteration": int(c["iteration"]), "score": c["score"]} for name, c in training["chosen"].items()
        }

    def _continue_random(self, training: dict, seed: int) -> None:
        states = [training["random"], *training.get("random_of_other_ranks", [])]
        if len(states) == self.ranks.size:
            restore_random_states(states[self.ranks.rank])
            return
        seed_everything(seed, self.ranks.rank, self.iteration)
        print(f"processes: {len(states)} before, {self.ranks.size} now; the batches go on, dropout has new streams")

    def _newest_state(self) -> tuple[Path, dict | None]:
        """The newest state that is whole; a damaged newer one is put aside, so that it never replaces a whole one."""
        if not holds_training(self.folder):
            return self.folder, None
        last, previous = (self.folder / name for name in STATES)
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

    def _weights(self) -> dict:
        return {
            **self.identity,
            "model": self.net.state_dict(),
            "iteration": self.iteration,
            "metrics": self.metrics,
        }


def _read_state(path: Path) -> dict:
    checkpoint = read_checkpoint(path)
    if not {"training", "iteration", "metrics"} <= set(checkpoint):
        raise InputError(f"{path}: holds weights but no state of a training; it cannot be resumed from")
    return checkpoint


def seed_everything(seed: int, rank: int = 0, iteration: int = 0) -> None:
    """Seed all global random generators that training may draw from: each rank's with a stream of its own.

    iteration: of a training that goes on without the states that it had; its streams are others too.
    """
    if rank or iteration:
        seed = int(np.random.SeedSequence([seed, rank, iteration]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - whoever adds an idea may use it
    torch.manual_seed(seed)


def random_states() -> dict:
    """The states of all global random generators that training draws from."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what is being kept
    states = {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict) -> None:
    """Set all global random generators to what random_states returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
