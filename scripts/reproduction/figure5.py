"""Figure 5: attention and detections of the same videos under several consensus modules of Table 6."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.html_report.finished_run import FinishedRun, read_runs
from eval.outputs import open_outputs
from eval.pictures import DETECTION_COLOR, FUSED_COLOR, GROUND_TRUTH_COLOR
from eval.tables import Table as Detections
from utils.annotations import Annotations, Video, load_annotations
from utils.errors import InputError
from utils.formats.files import save_figure
from utils.segments import snippets_to_seconds

DEFAULT_VIDEOS = 3
MAX_OPACITY = 0.9  # of the best detection; the others fade with their score


def draw_figure5(
    folders: dict[str, Path], path_dataset: Path, videos: Sequence[str], stem: Path, title: str
) -> list[Path]:
    """Draw finished runs above each other and return the paths of the PNG and the PDF file.

    Args:
        folders: Run folders by the name of their row, from top to bottom.
        path_dataset: Folder with the annotations.
        videos: Ids of test videos. If empty, the videos with the most segments, each of a different class.
        stem: Path of the files without suffix.
        title: Description of the runs that says whether their features are simulated.

    Raises:
        InputError: A run is not finished, or lacks a video.
    """
    runs = dict(zip(folders, read_runs(list(folders.values()), path_dataset), strict=True))
    annotations = load_annotations(path_dataset)
    chosen = [_find_video(video, annotations, runs) for video in videos] or _default_videos(annotations, runs)
    figure = Figure(figsize=(11, len(chosen) * (0.9 + 0.95 * len(runs))), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for part, video in zip(np.atleast_1d(figure.subfigures(len(chosen), 1)), chosen, strict=True):
        _draw_video(part, video, runs)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for path in paths:
        save_figure(figure, path, dpi=130)
    return paths


def _find_video(video_id: str, annotations: Annotations, runs: dict[str, FinishedRun]) -> Video:
    for name, run in runs.items():
        with open_outputs(run.outputs) as outputs:
            if video_id not in outputs or video_id not in annotations.videos:
                raise InputError(f"{video_id}: not a test video of the run {name}, {run.folder}")
    return annotations.videos[video_id]


def _default_videos(annotations: Annotations, runs: dict[str, FinishedRun]) -> list[Video]:
    """Return the video with the most segments per class, the largest counts first."""
    with open_outputs(next(iter(runs.values())).outputs) as outputs:
        videos = [annotations.videos[video_id] for video_id in outputs.video_ids if video_id in annotations.videos]
    by_class: dict[str, Video] = {}
    for video in sorted(videos, key=lambda video: len(video.segments), reverse=True):
        if len(video.segments):
            by_class.setdefault(_main_label(video), video)
    return list(by_class.values())[:DEFAULT_VIDEOS]


def _main_label(video: Video) -> str:
    """Return the class with the most segments, or the first label of a video without segments."""
    names = list(video.segment_labels)
    return max(names, key=names.count) if names else video.labels[0]


def _draw_video(part: Figure, video: Video, runs: dict[str, FinishedRun]) -> None:
    label = _main_label(video)
    truth = [s for s, name in zip(video.segments, video.segment_labels, strict=True) if name == label]
    axes = part.subplots(1 + len(runs), 1, sharex=True, height_ratios=(0.35, *[1] * len(runs)))
    axes[0].set_title(f"{video.video_id} · {label}", loc="left", fontsize=10)
    axes[0].set(yticks=[0.5], yticklabels=["truth"], ylim=(0, 1))
    _draw_segments(axes[0], truth, GROUND_TRUTH_COLOR, np.ones(len(truth)))
    for track, (name, run) in zip(axes[1:], runs.items(), strict=True):
        with open_outputs(run.outputs) as outputs:
            attention = outputs[video.video_id]["attention"]
        times = snippets_to_seconds(np.arange(len(attention)) + 0.5, run.snippet_rate)
        segments, scores = _best_detections(run.detections, video.video_id, label, max(1, len(truth)))
        _draw_segments(track, segments, DETECTION_COLOR, MAX_OPACITY * scores / max(scores.max(initial=0), 1e-9))
        track.plot(times, attention, color=FUSED_COLOR, linewidth=1)
        track.set(ylim=(0, 1), yticks=[0, 1], ylabel=name, xlim=(0, times[-1]))
    axes[-1].set_xlabel("seconds; curve: attention; boxes: the best detections, as many as there are segments")


def _best_detections(table: Detections, video_id: str, label: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return segments (n, 2) in seconds and scores (n,) of the best detections of a class in a video."""
    if video_id not in table.videos or label not in table.classes:
        return np.zeros((0, 2)), np.zeros(0)
    rows = (table.video == table.videos.index(video_id)) & (table.label == table.classes.index(label))
    best = np.flatnonzero(rows)[np.argsort(-table.score[rows], kind="stable")][:count]
    return np.stack([table.start[best], table.end[best]], axis=1), table.score[best]


def _draw_segments(axes: Axes, segments: Sequence, color: str, opacities: Sequence[float]) -> None:
    for (start, end), opacity in zip(segments, opacities, strict=True):
        axes.axvspan(start, end, color=color, alpha=max(0.1, opacity), linewidth=0)
