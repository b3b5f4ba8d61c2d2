"""Dataset folder that receives the features of videos; an extraction can be killed at any moment."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from utils.errors import InputError
from utils.features.convert import FEATURES, write_dataset, write_features
from utils.features.recipes import RECIPE, recipe_to_text
from utils.features.sources import HDF5Source
from utils.formats.files import atomic_write, sweep_partial
from utils.video.backbones import CHANNELS
from utils.video.recipe import Recipe

STAGING = ".extraction"  # folder of finished videos, until features.h5 has them


class FeatureFolder:
    """Dataset folder that receives the features of videos; a context manager that locks it.

    Each finished video is written to a file of its own in the subfolder STAGING, atomically. `assemble` moves all of
    them into features.h5, atomically too. So a process can be killed at any moment, and the next one continues.

    Raises:
        InputError: Another process writes to the folder, or it has features of another recipe.
    """

    def __init__(self, path: Path, recipe: Recipe):
        self.path, self._staging, self._recipe = path, path / STAGING, recipe
        self._attributes = {"/": {RECIPE: recipe_to_text(recipe.as_dict())}}
        self._attributes |= {name: {"fps": recipe.fps, "stride": recipe.stride} for name in self.modalities}
        self._staging.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / f"{STAGING}.lock", timeout=0)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the feature streams."""
        return tuple(name for name in CHANNELS if name in self._recipe.weights)

    def __enter__(self) -> "FeatureFolder":
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{self.path}: another process extracts features into this folder") from None
        for folder in (self.path, self._staging):
            sweep_partial(folder)
        return self

    def __exit__(self, *exception) -> None:
        if self._staging.is_dir() and not any(self._staging.iterdir()):
            self._staging.rmdir()
        self._lock.release()

    def finished(self) -> set[str]:
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
        name = hashlib.sha256(video_id.encode()).hexdigest()[:32]
        with atomic_write(self._staging / f"{name}.h5") as partial:
            arrays = ((f"{modality}/{video_id}", values) for modality, values in features.items())
            write_features(partial, arrays, self._attributes)

    def assemble(self) -> None:
        """Write features.h5 with all stored videos, and SHA256SUMS."""
        staged = {}
        for path in self._staged():
            if source := self._open(path):
                staged |= dict.fromkeys(source.video_ids(self.modalities[0]), path)
                source.close()
        if staged:
            write_dataset(self.path, self._arrays(staged), self._attributes, None)
        shutil.rmtree(self._staging)

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
            path.unlink()
            return None
