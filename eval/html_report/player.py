"""HTML page of one video: a player beside the time axis of its detections, in one file.

The page loads nothing but the video. Without a video it shows the time axis alone.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from eval.html_report.finished_run import FinishedRun
from eval.html_report.page import video_data
from eval.html_report.template import embed, json_for_script, load_template
from eval.html_report.videos import MAX_SHOWN
from utils.annotations import Annotations
from utils.errors import InputError, count_noun, shorten
from utils.formats.files import atomic_write, file_name, write_text


def require_annotated(video_ids: Collection[str], truth: Annotations, where: str) -> None:
    """Raise an InputError if none of the videos is annotated.

    Args:
        video_ids: Videos of pages.
        truth: Annotated videos.
        where: File of the annotated videos, for the message.
    """
    if not any(video_id in truth.videos for video_id in video_ids):
        names = [shorten(next(iter(videos), "none")) for videos in (video_ids, truth.videos)]
        raise InputError(f"{where}: none of the videos is annotated (a video: {names[0]}, annotated: {names[1]})")


def add_segments(annotations: Annotations, truth: Annotations) -> Annotations:
    """Return the videos of pages with their annotated segments; other annotated videos are left out."""
    annotated = {name: truth.videos[name] for name in annotations.videos if name in truth.videos}
    used = [label for video in annotated.values() for label in video.segment_labels]
    return Annotations(tuple(dict.fromkeys((*annotations.classes, *used))), {**annotations.videos, **annotated})


def write_players(
    folder: Path, run: FinishedRun, annotations: Annotations, paths: Mapping[str, Path | None], is_copied: bool
) -> dict[str, str]:
    """Write the page of each video, and return its address, relative to the folder, by video_id.

    Args:
        folder: Folder of the pages.
        run: Detections and curves; see `open_detections`.
        annotations: Classes and videos; see `render_players`.
        paths: Video file by video_id, None for a page without a player.
        is_copied: Copy the video files beside the pages, in place of links to where they are.

    Raises:
        InputError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    links = {video_id: path and _link(path, folder, is_copied) for video_id, path in paths.items()}
    addresses = {}
    for video_id, page in render_players(run, annotations, links):
        path = folder / f"{file_name(video_id)}.html"
        write_text(path, page)
        addresses[video_id] = quote(path.name)
    return addresses


def _link(path: Path, folder: Path, is_copied: bool) -> str:
    """Return the address of a video file for a page in the folder."""
    if is_copied and path.resolve().parent != folder.resolve():
        with atomic_write(folder / path.name) as partial:
            shutil.copyfile(path, partial)
        path = folder / path.name
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def render_players(
    run: FinishedRun, annotations: Annotations, links: Mapping[str, str | None]
) -> Iterator[tuple[str, str]]:
    """Yield the page of each video, with its video_id.

    Args:
        run: Detections and curves; see `open_detections`.
        annotations: Classes and videos. A video without `subset` is one without ground truth.
        links: Address of the video file by video_id, relative to the page; None for a page without a player.
    """
    template = load_template("player.html.j2")
    shown = replace(run, detections=run.detections.renumber(tuple(links), run.detections.classes))
    for video in video_data([shown], [None], annotations):
        video_id, [answer] = video["id"], video.pop("runs")
        labels = {row[0] for row in answer["detections"]}
        yield (
            video_id,
            template.render(
                title=video_id,
                lead=f"{count_noun(answer['total'], 'detection')} of {count_noun(len(labels), 'class')}",
                link=links[video_id],
                has_truth=bool(annotations.videos[video_id].subset),
                simulated=run.simulated,
                facts=run.facts,
                max_shown=MAX_SHOWN,
                data=json_for_script(
                    {
                        **video,
                        **answer,
                        "classes": list(annotations.classes),
                        "modalities": list(run.options.get("modalities", ())),
                        "isAnnotated": bool(annotations.videos[video_id].subset),
                    }
                ),
                style=embed("report.css", "player.css"),
                script=embed("common.js", "player.js"),
            ),
        )
