"""Detect actions in videos without labels, with a trained checkpoint.

    detector = load_detector("runs/NAME/checkpoints/best.pt")
    detections = detector("my_video/")  # or {"rgb": array, "flow": array}, or one array (T, D)
    detector.plot("my_video/")

Classes, modalities and settings come from the checkpoint. scripts/detect.py is the same as a command.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eval.localizations import LOCALIZATION_SETTINGS
from eval.pictures import draw_videos
from utils.annotations import Annotations, Video
from utils.checkpoint import read_checkpoint
from utils.datasets import DatasetSpec, Rate, dataset_spec
from utils.engine import VideoResult, localized_videos
from utils.errors import InputError, shorten
from utils.features.recipes import RECIPE, require_recipe
from utils.features.sources import JOINT_SUFFIX, Source
from utils.features.store import DIFFERENCE_SUFFIX, FeatureStore, open_features
from utils.formats.files import save_figure
from utils.formats.npy import load_plain_array
from utils.methods import Method
from utils.run.devices import choose_device, memory_advice
from utils.segments import snippets_to_seconds
from utils.trained import load_method, override_localization, stored_options, stored_scale
from wsad_dataset import WeakVideoDataset

SUBSET = "unlabeled"
Features = np.ndarray | Mapping[str, np.ndarray] | str | Path


class Detector:
    """Trained method that detects actions in the features of any video; see `load_detector`.

    Attributes:
        method: Network with its weights, and localization.
        classes: Names of the classes.
        modalities: Names of the feature streams, in order.
        spec: Dataset of the training; its snippet rate is that of features that store none.
        name: Checkpoint, for titles.
        scale: Factor of all features, as in training.
        recipe: Recipe of the training features, None if not stored; see utils/features/recipes.py.
        any_recipe: Features may have another recipe.
    """

    def __init__(
        self,
        method: Method,
        classes: Sequence[str],
        modalities: Sequence[str],
        spec: DatasetSpec,
        name: str,
        scale: float = 1.0,
        recipe: dict | None = None,
        any_recipe: bool = False,
    ):
        self.method, self.classes, self.modalities = method, tuple(classes), tuple(modalities)
        self.spec, self.name, self.scale = spec, name, scale
        self.recipe, self.any_recipe = recipe, any_recipe

    def __call__(
        self, features: Features, snippet_rate: float | None = None, video_id: str | None = None
    ) -> pd.DataFrame:
        """Return the detections of one video, best first: label, start and end in seconds, score.

        Args:
            features: Array (T, D), the modalities side by side; a dict of an array (T, D) per modality; or the path
                of a feature file or folder.
            snippet_rate: Snippets per second, if the features do not store it. The default is that of the dataset
                that the detector was trained on, with a warning.
            video_id: The video, if the path has several.

        Raises:
            InputError: The features do not fit the network or cannot be read.
        """
        store = self.open(features, video_id)
        result, rate = self._result(store, snippet_rate, video_id)
        rows = result.detections[np.argsort(-result.detections["score"], kind="stable")]
        return pd.DataFrame(
            {
                "label": [self.classes[label] for label in rows["label"]],
                "start": snippets_to_seconds(rows["start"], rate),
                "end": snippets_to_seconds(rows["end"], rate),
                "score": rows["score"],
            }
        )

    def plot(
        self,
        features: Features,
        snippet_rate: float | None = None,
        video_id: str | None = None,
        path: str | Path | None = None,
    ) -> Figure:
        """Draw detections, attention and T-CAM of one video, for the class of its best detection.

        Args:
            features: Features of the video; see `__call__`.
            snippet_rate: Snippets per second; see `__call__`.
            video_id: The video, if the path has several.
            path: Image file to write.
        """
        store = self.open(features, video_id)
        result, rate = self._result(store, snippet_rate, video_id)
        figure = self.draw(store, [result], rate)
        if path is not None:
            save_figure(figure, path, dpi=110)
        return figure

    def open(self, features: Features, video_id: str | None = None) -> FeatureStore:
        """Open features of any kind, and check that their widths fit the network and their recipe the training.

        Raises:
            InputError: The features do not fit the network or cannot be read.
        """
        is_path = isinstance(features, str | Path)
        if is_path and (Path(features).suffix != ".npy" or str(features).endswith(JOINT_SUFFIX)):
            return self._checked(open_features(features, self.modalities))
        return self._checked(FeatureStore(self._array_source(features, video_id), self.modalities))

    def open_video(self, features: Mapping[str, np.ndarray], path: Path, rate: Rate) -> FeatureStore:
        """Return a store of the features of a video file, whose name without the extension is the video_id.

        Args:
            features: Array (T, D) by modality.
            path: Video file.
            rate: Rate of the snippets.

        Raises:
            InputError: The features do not fit the network.
        """
        return self._checked(FeatureStore(ArraySource(features, path.stem, path, rate), self.modalities))

    def _checked(self, store: FeatureStore) -> FeatureStore:
        for modality, got, width in zip(self.modalities, store.modality_dims, self._dims, strict=True):
            if got != width:
                raise InputError(
                    f"{store.source.path}: '{modality}' has {got} channels, {self.name} was trained on {width}"
                )
        if not self.any_recipe:
            require_recipe(store.recipe, self.recipe, store.source.path, self.name)
        return store.scaled(self.scale)

    def rate(self, store: FeatureStore, snippet_rate: float | None = None) -> tuple[float, bool]:
        """Return snippets per second, and True if this is an assumption: neither stored nor given.

        Raises:
            InputError: The given rate is not positive, or not the stored one.
        """
        if snippet_rate is not None and not 0 < snippet_rate < math.inf:
            raise InputError(f"the snippet rate is {snippet_rate}, expected a number above 0")
        if store.snippet_rate is None:
            return snippet_rate or self.spec.snippet_rate, snippet_rate is None
        if snippet_rate is not None and not math.isclose(snippet_rate, store.snippet_rate, rel_tol=1e-6):
            raise InputError(
                f"{store.source.path}: the features store {store.snippet_rate:g} snippets per second, the rate given "
                f"is {snippet_rate:g}; leave it out, or correct fps and stride"
            )
        return store.snippet_rate, False

    def results(self, store: FeatureStore, rate: float, video_ids: Sequence[str]) -> Iterator[VideoResult]:
        """Yield outputs and detections of each video, shortest videos first; a video without snippets is left out."""
        annotations = self._unlabeled(video_ids)
        dataset = WeakVideoDataset(annotations, store, SUBSET, device=None)  # each video is read once
        for _, result in localized_videos(self.method, dataset, annotations, rate, np.arange(len(dataset))):
            yield result

    def draw(self, store: FeatureStore, results: Sequence[VideoResult], rate: float) -> Figure:
        """Return a picture of videos; see `plot`."""
        annotations = self._unlabeled([result.video_id for result in results])
        title = f"{self.name}, SIMULATED features" if store.source.simulated else self.name
        return draw_videos(results, annotations, rate, self.modalities, title)

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(self.method.architecture["modality_dims"])

    def _result(
        self, store: FeatureStore, snippet_rate: float | None, video_id: str | None
    ) -> tuple[VideoResult, float]:
        """Return result and rate of the only video, or of the one asked for."""
        if video_id is None and len(store.video_ids) > 1:
            names = ", ".join(store.video_ids[:3])
            raise InputError(
                f"{store.source.path}: has {len(store.video_ids)} videos ({names}, ...); choose one with video_id="
            )
        rate, is_assumed = self.rate(store, snippet_rate)
        if is_assumed:
            warnings.warn(assumed_rate(rate), stacklevel=3)
        with memory_advice("use device='cpu'"):
            [result] = self.results(store, rate, [video_id or store.video_ids[0]])
        return result, rate

    def _unlabeled(self, video_ids: Sequence[str]) -> Annotations:
        none = np.empty((0, 2))
        videos = {video_id: Video(video_id, SUBSET, None, (), none, (), none) for video_id in video_ids}
        return Annotations(self.classes, videos)

    def _array_source(self, features: Features, video_id: str | None) -> "ArraySource":
        path = Path("features")
        if isinstance(features, str | Path):
            path = Path(features)
            video_id = video_id or path.stem
            features = load_plain_array(path)
        if not isinstance(features, Mapping):
            features = self._split(np.asarray(features), path)
        return ArraySource({name: np.asarray(values) for name, values in features.items()}, video_id or "video", path)

    def _split(self, features: np.ndarray, path: Path) -> dict[str, np.ndarray]:
        """Return the modalities of one array."""
        shape, dims = features.shape, self._dims
        if len(shape) == 2 and shape[1] == sum(dims):
            return dict(zip(self.modalities, np.split(features, np.cumsum(dims)[:-1], axis=1), strict=True))
        streams = {modality.removesuffix(DIFFERENCE_SUFFIX) for modality in self.modalities}
        if len(shape) == 2 and len(streams) == 1 and shape[1] == dims[0]:  # a stream and its difference
            return {streams.pop(): features}
        parts = " + ".join(f"{name} {dim}" for name, dim in zip(self.modalities, dims, strict=True))
        raise InputError(f"{path}: has shape {shape}, expected (snippets, {sum(dims)}): {parts}, side by side")


class ArraySource(Source):
    """Features of one video in memory, an array (T, D) per modality."""

    form = "arrays"
    simulated = False

    def __init__(self, arrays: Mapping[str, np.ndarray], video_id: str, path: Path, rate: Rate | None = None):
        self.path, self.modalities = path, tuple(arrays)
        self._arrays, self._video_id, self._rate = arrays, video_id, rate

    def video_ids(self, modality: str) -> list[str]:
        """Return the only video."""
        return [self._video_id]

    def rate(self, modality: str) -> Rate | None:
        """Return the rate, None for an array of the user."""
        return self._rate

    def read(self, modality: str, video_id: str) -> np.ndarray:
        """Return the array of a modality."""
        return self._arrays[modality]


def load_detector(path: str | Path, device: str = "auto", any_recipe: bool = False, **settings: object) -> Detector:
    """Load a detector from a checkpoint of a run.

    Args:
        path: best.pt, selected.pt or last.pt.
        device: `auto`, `cpu` or `cuda`.
        any_recipe: Accept features of another recipe than those of the training.
        **settings: Settings of localization that differ from those of training, e.g. `class_threshold=0.1`.

    Raises:
        InputError: The checkpoint cannot be read, does not describe itself, or a setting is not valid.
    """
    if unknown := sorted(set(settings) - set(LOCALIZATION_SETTINGS)):
        raise InputError(f"unknown setting '{unknown[0]}'; settings are {', '.join(LOCALIZATION_SETTINGS)}")
    settings = {name: np.asarray(value).tolist() for name, value in settings.items()}
    checkpoint = read_checkpoint(path)
    options = override_localization(stored_options(checkpoint, path, "use a checkpoint of main.py"), settings)
    classes, dims = checkpoint.get("classes"), checkpoint.get("architecture", {}).get("modality_dims")
    if not classes:
        raise InputError(f"{path}: has no class names; use a checkpoint of main.py")
    if not isinstance(dims, list) or len(dims) != len(options.modalities) or not all(type(d) is int for d in dims):
        raise InputError(f"{path}: its modality_dims are {shorten(dims)}, expected one width per modality")
    method = load_method(checkpoint, path, options, classes, dims)
    method.network.to(choose_device(device)).eval()
    spec, scale = dataset_spec(vars(options)), stored_scale(checkpoint, path, options)
    return Detector(method, classes, options.modalities, spec, str(path), scale, checkpoint.get(RECIPE), any_recipe)


def assumed_rate(rate: float) -> str:
    """Return the warning about features without a snippet rate."""
    return f"the features have no snippet rate; assuming {rate:g} snippets per second, as of the training dataset"
