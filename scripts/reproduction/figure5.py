"""Figure 5: the same videos under the fusions of Table 6, attention and detections above each other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.html_report.finished_run import FinishedRun, read_runs
from eval.outputs import open_outputs
from eval.pictures import DETECTION, FUSED, GROUND_TRUTH
from eval.tables import Table as Detections
from utils.annotations import Annotations, Video, load_annotations
from utils.errors import InputError
from utils.formats.files import save_figure
from utils.segments import snippets_to_seconds

CHOSEN = 3  # videos, where none are named
STRONGEST = 0.9  # opacity of the best detection; the others fade with their score


def draw_figure5(
    folders: dict[str, Path], path_dataset: Path, videos: Sequence[str], stem: Path, title: str
) -> list[Path]:
    """Draw finished runs, by the name of their method, from top to bottom; STEM.png and STEM.pdf.

    Args:
        path_dataset: folder with the annotations.
        videos: video ids of the test subset; none: those of different classes with the most instances.
        title: says what the runs are, and whether their features are simulated.

    Raises:
        InputError: for a run that is not finished, or a video that the runs lack.
    """
    runs = dict(zip(folders, read_runs(list(folders.values()), path_dataset), strict=True))
    annotations = load_annotations(path_dataset)
    chosen = [_known(video, annotations, runs) for video in videos] or _varied(annotations, runs)
    figure = Figure(figsize=(11, len(chosen) * (0.9 + 0.95 * len(runs))), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for part, video in zip(np.atleast_1d(figure.subfigures(len(chosen), 1)), chosen, strict=True):
        _draw_video(part, video, runs)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for path in paths:
        save_figure(figure, path, dpi=130)
    return paths


def _known(video_id: str, annotations: Annotations, runs: dict[str, FinishedRun]) -> Video:
    for name, run in runs.items():
        with open_outputs(run.outputs) as outputs:
            if video_id not in outputs or video_id not in annotations.videos:
                raise InputError(f"{video_id}: not a test video of the run {name}, {run.folder}")
    return annotations.videos[video_id]


def _varied(annotations: Annotations, runs: dict[str, FinishedRun]) -> list[Video]:
    """Of each class its video with the most instances, the fullest first."""
    with open_outputs(next(iter(runs.values())).outputs) as outputs:
        videos = [annotations.videos[video_id] for video_id in outputs.video_ids if video_id in annotations.videos]
    fullest: dict[str, Video] = {}
    for video in sorted(videos, key=lambda video: len(video.segments), reverse=True):
        if len(video.segments):
            fullest.setdefault(_label(video), video)
    return list(fullest.values())[:CHOSEN]


def _label(video: Video) -> str:
    """The class with the most instances; a video's first label where none is annotated."""
    names = list(video.segment_labels)
    return max(names, key=names.count) if names else video.labels[0]


def _draw_video(part: Figure, video: Video, runs: dict[str, FinishedRun]) -> None:
    label = _label(video)
    truth = [s for s, name in zip(video.segments, video.segment_labels, strict=True) if name == label]
    axes = part.subplots(1 + len(runs), 1, sharex=True, height_ratios=(0.35, *[1] * len(runs)))
    axes[0].set_title(f"{video.video_id} · {label}", loc="left", fontsize=10)
    _draw_segments(axes[0], truth, GROUND_TRUTH)
    axes[0].set(yticks=[0.5], yticklabels=["truth"], ylim=(0, 1))
    for place, (name, run) in zip(axes[1:], runs.items(), strict=True):
        with open_outputs(run.outputs) as outputs:
            attention = outputs[video.video_id]["attention"]
        times = snippets_to_seconds(np.arange(len(attention)) + 0.5, run.snippet_rate)
        found, scores = _best_detections(run.detections, video.video_id, label, max(1, len(truth)))
        _draw_segments(place, found, DETECTION, STRONGEST * scores / max(scores.max(initial=0), 1e-9))
        place.plot(times, attention, color=FUSED, linewidth=1)
        place.set(ylim=(0, 1), yticks=[0, 1], ylabel=name, xlim=(0, times[-1]))
    axes[-1].set_xlabel("seconds; curve: attention; boxes: as many detections as there are instances, the best-scored")


def _best_detections(found: Detections, video_id: str, label: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments (n, 2) in seconds and scores (n,) of the best-scored detections of a class in a video."""
    if video_id not in found.videos or label not in found.classes:
        return np.zeros((0, 2)), np.zeros(0)
    mine = (found.video == found.videos.index(video_id)) & (found.label == found.classes.index(label))
    rows = np.flatnonzero(mine)[np.argsort(-found.score[mine], kind="stable")][:count]
    return np.stack([found.start[rows], found.end[rows]], axis=1), found.score[rows]


def _draw_segments(axes: Axes, segments: Sequence, color: str, strengths: Sequence[float] | None = None) -> None:
    for number, (start, end) in enumerate(segments):
        axes.axvspan(
            start, end, color=color, alpha=1 if strengths is None else max(0.1, strengths[number]), linewidth=0
        )
