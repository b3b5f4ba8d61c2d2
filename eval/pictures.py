"""Pictures of videos: ground truth, detections, attention and T-CAM over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.annotations import Annotations, Video
from utils.formats.files import save_figure
from utils.segments import snippets_to_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUND_TRUTH_COLOR, DETECTION_COLOR, FUSED_COLOR = "#2a9d4a", "#3465a4", "#333333"
MODALITY_COLORS = ("#d1495b", "#edae49")
TITLE_HEIGHT, VIDEO_HEIGHT = 0.35, 2.9  # inches
# A constrained layout takes longer than all drawing. These margins fit the labels of every video.
MARGINS = {"left": 0.1, "right": 0.985, "bottom": 0.17, "top": 0.9, "hspace": 0.45}
SHOWN_DETECTIONS = 12  # best-scored per video; the scores of the others are decayed by soft-NMS


def plot_videos(
    path: Path,
    results: Sequence,
    annotations: Annotations,
    snippet_rate: float,
    modalities: Sequence[str],
    title: str,
    count: int = 4,
) -> None:
    """Draw some videos: ground truth and detections, attention, and the T-CAM of the video's class.

    Args:
        path: Image file to write.
        results: Outputs and detections of the test videos, with the attributes of a `VideoResult`.
        annotations: Ground truth of these videos.
        snippet_rate: Snippets per second.
        modalities: Names of the modalities.
        title: Title of the picture: the source of the results, and whether the data are simulated.
        count: Number of videos to draw.

    Raises:
        InputError: The file cannot be written.
    """
    figure = draw_videos(_varied(results, annotations, count), annotations, snippet_rate, modalities, title)
    save_figure(figure, path, dpi=110)


def draw_videos(
    results: Sequence, annotations: Annotations, snippet_rate: float, modalities: Sequence[str], title: str
) -> Figure:
    """Return a picture of all these videos; see `plot_videos`."""
    from matplotlib.figure import Figure  # here, because it would slow down the start of every command

    heights = [TITLE_HEIGHT, *[VIDEO_HEIGHT] * len(results)]
    figure = Figure(figsize=(11, sum(heights)))
    first, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    first.text(0.5, 0.4, title, ha="center", va="center", fontsize=12, parse_math=False)  # a path may contain a $
    for part, result in zip(parts, results, strict=True):
        video = annotations.videos[result.video_id]
        _plot_video(part, result, video, annotations.classes, snippet_rate, modalities)
    return figure


def _varied(results: Sequence, annotations: Annotations, count: int) -> list:
    """Return the first video of each class, then further videos, `count` in total."""
    first_of_class = {}
    for result in results:
        label = _main_class(result, annotations.videos[result.video_id], annotations.classes)
        first_of_class.setdefault(label, result)
    chosen = list(first_of_class.values())
    taken = {result.video_id for result in chosen}
    return (chosen + [result for result in results if result.video_id not in taken])[:count]


def _plot_video(
    part: Figure, result, video: Video, classes: Sequence[str], snippet_rate: float, modalities: Sequence[str]
) -> None:
    label = _main_class(result, video, classes)
    index = classes.index(label)
    times = snippets_to_seconds(np.arange(len(result.attention)) + 0.5, snippet_rate)
    bars, attention, activation = part.subplots(3, 1, sharex=True, height_ratios=(1.1, 1, 1), gridspec_kw=MARGINS)
    bars.set_title(f"{video.video_id} · {label}", loc="left", fontsize=10, parse_math=False)

    truth = [s for s, name in zip(video.segments, video.segment_labels, strict=True) if name == label]
    _draw_segments(bars, truth, 1.0, GROUND_TRUTH_COLOR)
    detections = np.sort(result.detections[result.detections["label"] == index], order="score")
    detections = detections[-SHOWN_DETECTIONS:]
    strengths = detections["score"] / max(detections["score"].max(initial=0), 1e-9)
    for detection, strength in zip(detections, strengths, strict=True):
        segment = snippets_to_seconds(np.array([detection["start"], detection["end"]]), snippet_rate)
        _draw_segments(bars, [segment], 0.0, DETECTION_COLOR, alpha=float(np.clip(strength, 0.1, 1)))
    bars.set(yticks=[0.4, 1.4], yticklabels=["detections", "ground truth"], ylim=(-0.1, 1.9 if truth else 0.9))

    per_modality = result.modality_attention  # (2, T); (0, T) if the network has one attention for both
    for values, color, name in zip(per_modality, MODALITY_COLORS, modalities, strict=False):
        attention.plot(times, values, color=color, linewidth=0.8, label=name)
    attention.plot(
        times, result.attention, color=FUSED_COLOR, linewidth=1.3, label="fused" if len(per_modality) else "foreground"
    )
    attention.set(ylim=(0, 1), ylabel="attention")
    attention.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=7, ncols=3, frameon=False)

    activation.plot(times, result.cas[:, index], color=DETECTION_COLOR, linewidth=1)
    activation.set(ylabel="T-CAM", xlabel="seconds", xlim=(0, times[-1]))


def _main_class(result, video: Video, classes: Sequence[str]) -> str:
    """Return the class with the longest total duration in a video.

    Without segments this is its first label, and without labels the class of its best detection.
    """
    best = result.detections[result.detections["score"].argsort()[-1:]]["label"]
    shown = dict.fromkeys(video.labels or [classes[label] for label in best] or classes[:1], 0.0)
    for label, (start, end) in zip(video.segment_labels, video.segments, strict=True):
        shown[label] = shown.get(label, 0.0) + end - start
    return max(shown, key=shown.get)


def _draw_segments(axes: Axes, segments: Sequence, bottom: float, color: str, alpha: float = 1.0) -> None:
    for start, end in segments:
        axes.barh(bottom + 0.4, end - start, left=start, height=0.7, color=color, alpha=alpha)
