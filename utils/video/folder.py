"""Dataset folder that receives the features of videos; its processes can be killed at any moment."""

import hashlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from utils.errors import InputError
from utils.features.convert import FEATURES, write_dataset, write_features
from utils.features.hdf5_source import HDF5Source
from utils.features.recipes import RECIPE, recipe_to_text
from utils.formats.files import atomic_write, sweep_partial
from utils.video.backbones import CHANNELS
from utils.video.recipe import Recipe

STAGING = ".extraction"  # folder of finished videos, until features.h5 has them
POLL = 0.5  # seconds
_PROCESS = "process-"


class FeatureFolder:
    """Dataset folder that receives the features of videos; a context manager.

    Each finished video is written to a file of its own in the subfolder STAGING, atomically. `assemble` moves all of
    them into features.h5, atomically too. So a process can be killed at any moment, and the next one continues.

    Several processes may use the folder at the same time, also on several machines. Each extracts the videos that it
    can `claim`, and the last one assembles. Their locks end with them.

    Attributes:
        claim: Function that reserves a video for this process. It returns False if another process has reserved or
            finished the video.

    Raises:
        InputError: Another process extracts by another recipe, or the folder has features of another recipe.
    """

    def __init__(self, path: Path, recipe: Recipe):
        self.path, self._staging, self._recipe = path, path / STAGING, recipe
        text = recipe_to_text(recipe.as_dict())
        self._attributes = {"/": {RECIPE: text}}
        self._attributes |= {name: {"fps": recipe.fps, "stride": recipe.stride} for name in self.modalities}
        self._entrance = _lock(path / f"{STAGING}.lock")  # taken briefly, when a process starts or ends
        self._process = self._staging / f"{_PROCESS}{_hash(text)}-{uuid.uuid4().hex}.lock"
        self._lock = _lock(self._process)
        self.claim = _Claims(self._staging)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the feature streams."""
        return tuple(name for name in CHANNELS if name in self._recipe.weights)

    def __enter__(self) -> "FeatureFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        with self._entrance:
            self._staging.mkdir(exist_ok=True)
            others = self._others()
            if any(path.name.split("-")[1] != self._process.name.split("-")[1] for path in others):
                raise InputError(
                    f"{self.path}: another process extracts features by another recipe; choose another --out"
                )
            for folder in () if others else (self.path, self._staging):
                sweep_partial(folder)
            self._lock.acquire()
        return self

    def __exit__(self, *exception) -> None:
        with self._entrance:
            self._leave()
            if self._staging.is_dir() and not self._staged() and not self._others():
                shutil.rmtree(self._staging)

    def wait(self) -> None:
        """Wait until no other process uses the folder."""
        while True:
            with self._entrance:
                if not self._others():
                    return
            time.sleep(POLL)

    def list_finished(self) -> set[str]:
        """Return the videos whose features are stored.

        Raises:
            InputError: The stored features have another recipe.
        """
        videos = set()
        for path in [*self._staged(), self.path / FEATURES]:
            if not path.exists() or (source := self._open(path)) is None:
                continue
            if source.recipe != self._recipe.as_dict():
                raise InputError(f"{path}: has features of another recipe; choose another --out, or move the file away")
            videos.update(source.video_ids(self.modalities[0]))
            source.close()
        return videos

    def add(self, video_id: str, features: Mapping[str, np.ndarray]) -> None:
        """Store the features of a video, (T, D) float32 by modality."""
        with atomic_write(self._staging / f"{_hash(video_id)}.h5") as partial:
            arrays = ((f"{modality}/{video_id}", values) for modality, values in features.items())
            write_features(partial, arrays, self._attributes)

    def assemble(self) -> int:
        """Write features.h5 with all stored videos, and SHA256SUMS, unless other processes will.

        Returns:
            The number of other processes, the last of which assembles.
        """
        with self._entrance:
            others = self._others()
            self._leave()
            if others:
                return len(others)
            staged = {}
            for path in self._staged():
                if source := self._open(path):
                    staged |= dict.fromkeys(source.video_ids(self.modalities[0]), path)
                    source.close()
            if staged:
                write_dataset(self.path, self._arrays(staged), self._attributes, None)
            shutil.rmtree(self._staging)
        return 0

    def _others(self) -> list[Path]:
        """Return the locks of the other processes; remove those of processes that ended."""
        others = []
        for path in set(self._staging.glob(f"{_PROCESS}*.lock")) - {self._process}:
            if lock := _try_lock(path):
                path.unlink()
                lock.release()
            else:
                others.append(path)
        return others

    def _leave(self) -> None:
        self.claim.release()
        self._process.unlink(missing_ok=True)
        self._lock.release()

    def _arrays(self, staged: Mapping[str, Path]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the arrays of features.h5 and of the staged files."""
        old = HDF5Source(self.path / FEATURES) if (self.path / FEATURES).exists() else None
        others = [name for name in old.video_ids(self.modalities[0]) if name not in staged] if old else []
        for video_id in sorted((*staged, *others)):
            source = HDF5Source(staged[video_id]) if video_id in staged else old
            for modality in self.modalities:
                yield f"{modality}/{video_id}", source.read(modality, video_id)
            if source is not old:
                source.close()

    def _staged(self) -> list[Path]:
        return sorted(self._staging.glob("*.h5"))

    def _open(self, path: Path) -> HDF5Source | None:
        """Open a feature file; remove a damaged staged one, whose video is extracted again."""
        try:
            source = HDF5Source(path)
            for modality in source.modalities if path.parent == self._staging else ():
                for video_id in source.video_ids(modality):
                    source.read(modality, video_id)
            return source
        except InputError:
            if path.parent != self._staging:
                raise
            path.unlink(missing_ok=True)
            return None


class _Claims:
    """Locks of the videos that a process or its worker extracts."""

    def __init__(self, staging: Path):
        self._staging, self._locks = staging, {}

    def __call__(self, video_id: str) -> bool:
        for name in [name for name in self._locks if self._is_stored(name)]:
            self._locks.pop(name).release()
        name = _hash(video_id)
        if self._is_stored(name) or (lock := _try_lock(self._staging / f"{name}.lock")) is None:
            return False
        self._locks[name] = lock
        return not self._is_stored(name)  # another process may just have stored it, and released its lock

    def release(self) -> None:
        """Release all locks."""
        while self._locks:
            self._locks.popitem()[1].release()

    def _is_stored(self, name: str) -> bool:
        return (self._staging / f"{name}.h5").exists()


def _hash(text: str) -> str:
    """Return a file name for any text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _lock(path: Path, timeout: float = -1) -> FileLock:
    """Return a lock that ends with its process; where the file system has none, it cannot be acquired."""
    return FileLock(path, timeout, fallback_to_soft=False)


def _try_lock(path: Path) -> FileLock | None:
    """Lock a file; return None if another process has locked it."""
    lock = _lock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
