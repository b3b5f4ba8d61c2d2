"""Pseudo labels of snippets, for self-training: from outputs of trained networks to labels, their file and their loss.

The steps are the common core of RSKP, UGCT, ASM-Loc and GauFuse. Their combination and the constants are choices of
this project. Equation numbers S1 to S5 are those of docs/beyond.md.

A pseudo label x_tc in [0, 1] is the certainty that snippet t shows class c. It is 0 for a class that is no weak label
of the video, so it is not stored there.

Shapes: B videos, T snippets, C action classes, L weak labels of a video, N segments.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.proposals import outer_inner_contrast, softmax
from utils.errors import InputError, count_noun, name_some
from utils.formats.checksums import verify_checksum
from utils.formats.files import atomic_write
from utils.formats.hdf5 import create_hdf5, follow, group_name, read_checked, set_attributes
from utils.losses import CLAMP
from utils.segments import runs
from wsad_dataset import WeakVideoDataset

THRESHOLDS = np.linspace(0.1, 0.9, 20)  # on the normalized activation
MIN_LENGTH = 2  # snippets of the shortest segment
OUTER_MARGIN = 0.25  # margin on either side of a segment, as a share of its length
MIN_OVERLAP = 0.25  # share of a segment in the best one from which both are fused
TEMPERATURE = 0.1  # of the weights of fused segments
RAMP_SHARE = 0.2  # share of training in which the weight of the loss rises


def class_activation(cas: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Return A * softmax(S), S1, per class (T, C + 1), or (T, C) without background column.

    Args:
        cas: T-CAM logits or log probabilities (T, C + 1), or (T, C) without background.
        attention: Attention (T,).
    """
    return attention[:, None].astype(np.float64) * softmax(cas.astype(np.float64))


def pseudo_labels(activation: np.ndarray, relative: bool = False) -> np.ndarray:
    """Return the pseudo labels (T, L) of one video, S1 to S4.

    Args:
        activation: Activation (T, L) of its weak labels.
        relative: Divide the labels of each class by the highest: a weak label is certain somewhere.
    """
    low, high = activation.min(axis=0), activation.max(axis=0)
    normalized = (activation - low) / np.where(high > low, high - low, 1.0)  # S1
    labels = np.zeros_like(normalized)
    for column, values in zip(labels.T, normalized.T, strict=True):
        column[:] = snippet_labels(fuse_segments(*score_segments(values)), len(values))
    highest = labels.max(axis=0)
    return labels / np.where(highest > 0, highest, 1.0) if relative else labels


def score_segments(activation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the segments of one class above any threshold, S2.

    Args:
        activation: Activation (T,), normalized to [0, 1].

    Returns:
        Segments (N, 2) in snippets, their outer-inner contrast (N,) and their inner mean (N,). A segment occurs once
        for each threshold that gives it.
    """
    _, start, end = runs(activation > THRESHOLDS[:, None])
    segments = np.stack([start, end], axis=1)[end - start >= MIN_LENGTH]
    contrast = outer_inner_contrast(activation[:, None], segments, OUTER_MARGIN)[:, 0]
    inner = np.array([activation[first:last].mean() for first, last in segments])
    return segments, contrast, inner


def fuse_segments(segments: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fuse overlapping segments by Gaussian weighted fusion (GauFuse), S3.

    The segment with the highest score and those that lie in it by more than MIN_OVERLAP of their length become one.
    Repeat until no segment is left.

    Args:
        segments: Segments (N, 2).
        scores: Scores (N,).
        weights: Weights (N,). The share of a segment in a mean is proportional to exp(weight / TEMPERATURE).

    Returns:
        Start, end and score of each fused segment (M, 3).
    """
    fused = []
    while len(segments):
        start, end = segments[scores.argmax()]
        intersection = np.minimum(segments[:, 1], end) - np.maximum(segments[:, 0], start)
        joins = intersection > MIN_OVERLAP * (segments[:, 1] - segments[:, 0])
        shares = np.exp((weights[joins] - weights[joins].max()) / TEMPERATURE)
        rows = np.column_stack([segments[joins], scores[joins]])
        fused.append(shares @ rows / shares.sum())
        segments, scores, weights = segments[~joins], scores[~joins], weights[~joins]
    return np.array(fused).reshape(-1, 3)


def snippet_labels(segments: np.ndarray, num_snippets: int) -> np.ndarray:
    """Return the label (T,) of each snippet, S4: the highest score of the fused segments (M, 3) around its middle."""
    start, end, score = segments.T[:, :, None]  # (M, 1) each
    middle = np.arange(num_snippets) + 0.5
    is_inside = (start <= middle) & (middle < end)  # (M, T)
    return np.where(is_inside, score.clip(0, 1), 0.0).max(axis=0, initial=0.0)


def pseudo_label_loss(cas: Tensor, attention: Tensor, labels: Tensor) -> Tensor:
    """Compute the loss of the pseudo labels L_ps, S5: cross-entropies of the T-CAM and of the attention.

    A snippet counts by its certainty |2f - 1|, where f is the pseudo label of the foreground.

    Args:
        cas: T-CAM logits or log probabilities (B, T, C + 1), background last.
        attention: Fused attention (B, T).
        labels: Pseudo labels (B, T, C).
    """
    foreground = labels.amax(dim=-1)  # f (B, T)
    targets = torch.cat([labels, 1 - foreground.unsqueeze(-1)], dim=-1)
    targets = targets / targets.sum(dim=-1, keepdim=True)  # q (B, T, C + 1)
    weights = (2 * foreground - 1).abs()
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=CLAMP)
    of_classes = -(targets * cas.log_softmax(dim=-1)).sum(dim=-1)
    of_attention = F.binary_cross_entropy(attention.clamp(CLAMP, 1 - CLAMP), foreground, reduction="none")
    return (weights * (of_classes + of_attention)).sum(dim=1).mean()


def ramp_up(progress: float | Tensor) -> Tensor:
    """Return the factor of L_ps at a point of training, S5; `progress` is the share that has passed."""
    return torch.exp(-5 * (1 - (torch.as_tensor(progress) / RAMP_SHARE).clamp(max=1)) ** 2)


def write_pseudo_labels(
    path: str | Path,
    videos: Mapping[str, tuple[np.ndarray, np.ndarray]],
    classes: Sequence[str],
    checkpoints: Mapping[str, str],
) -> None:
    """Write an HDF5 file of pseudo labels.

    It has one dataset (T, L) float32 per video. Its attribute `labels` has the class of each column.

    Args:
        path: File to write.
        videos: Indices of the weak labels (L,) and their pseudo labels (T, L), by video.
        classes: Names of the classes.
        checkpoints: SHA-256 of each checkpoint by its path, for the record.

    Raises:
        InputError: The file cannot be written.
    """
    names = {"classes": classes, "checkpoints": list(checkpoints), "checkpoints_sha256": list(checkpoints.values())}
    with atomic_write(path) as partial, create_hdf5(partial) as file:
        set_attributes(file, {key: [name.encode() for name in values] for key, values in names.items()})
        for video_id, (labels, values) in videos.items():
            dataset = file.create_dataset(group_name(video_id), data=values.astype(np.float32), fletcher32=True)
            dataset.attrs["labels"] = labels


def read_pseudo_labels(path: str | Path, dataset: WeakVideoDataset) -> list[np.ndarray]:
    """Return the pseudo labels (T, L) float32 of each video of a dataset, in its order.

    Raises:
        InputError: The file is missing, damaged or of another kind, or does not fit the dataset.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: pseudo labels not found; scripts/pseudo_labels.py writes them")
    try:
        verify_checksum(path)
        with h5py.File(path, "r") as file:
            classes = [name.decode() for name in file.attrs["classes"].tolist()]
            _require_videos(path, file, classes, dataset)
            return [_read_video(path, file, dataset, index) for index in range(len(dataset))]
    except InputError:
        raise
    except Exception as error:  # h5py raises almost any exception for flipped bits
        raise InputError(f"{path}: not a file of pseudo labels ({error!s:.300})") from None


def _require_videos(path: Path, file: h5py.File, classes: Sequence[str], dataset: WeakVideoDataset) -> None:
    if classes != list(dataset.classes):
        raise InputError(
            f"{path}: has labels of {count_noun(len(classes), 'class')} ({name_some(classes)}), the annotations have "
            f"{len(dataset.classes)} ({name_some(dataset.classes)}); write it again for this dataset"
        )
    if missing := [video_id for video_id in dataset.video_ids if group_name(video_id) not in file]:
        raise InputError(
            f"{path}: has no labels of {count_noun(len(missing), 'training video')} ({name_some(missing)}); "
            "write it again for this dataset"
        )


def _read_video(path: Path, file: h5py.File, dataset: WeakVideoDataset, index: int) -> np.ndarray:
    name = group_name(dataset.video_ids[index])
    where = f"{path}: video '{dataset.video_ids[index]}'"
    values = read_checked(file, name, path.stat().st_size)
    labels = np.asarray(follow(file, name).attrs["labels"])
    expected = np.flatnonzero(dataset.labels[index])
    if not np.array_equal(labels, expected):
        got, wanted = (name_some(dataset.classes[label] for label in part) for part in (labels, expected))
        raise InputError(f"{where} has labels of {got}, the annotations have {wanted}; write it again")
    if values.shape != (dataset.lengths[index], len(labels)):
        raise InputError(
            f"{where} has {count_noun(len(values), 'snippet')}, its features have {dataset.lengths[index]}; "
            "write it again from these features"
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"{where} has values outside [0, 1]; the file is damaged")
    return values.astype(np.float32)
