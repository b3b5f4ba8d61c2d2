"""Evaluation protocols of published tables, as data.

On identical detections they differ by up to 2 points of mean mAP and 4 points of mAP@0.5. Few papers state theirs.
The tests have the scores of one real detection list under each protocol.
"""

from dataclasses import dataclass, replace

import numpy as np

from eval.tables import GroundTruth, Table
from utils.segments import seconds_to_snippets

# Two wrongly annotated THUMOS14 test videos that many papers leave out.
LEFT_OUT = ("video_test_0000270", "video_test_0001496")


@dataclass(frozen=True)
class Protocol:
    """Changes to ground truth and detections before they are matched."""

    papers: str  # that publish numbers under this protocol
    on_grid: bool = False  # times are rounded to the snippet grid, otherwise left in seconds
    videos_without_detections: tuple[str, ...] = ()  # detections dropped, ground truth counted
    videos_left_out: tuple[str, ...] = ()  # detections and ground truth dropped
    longer_than: int | None = None  # snippets; detections of this length or less are dropped
    drops_ambiguous: bool = False  # detections that share a snippet with an ambiguous segment are dropped


PROTOCOLS = {
    "snippet": Protocol("W-TALC, CO2-Net, DELU, DDG-Net, P-MIL", on_grid=True),
    "seconds": Protocol("ActivityNet's own code, HAM-Net, UM, ASM-Loc"),
    "snippet-ddgnet": Protocol("DDG-Net", on_grid=True, videos_without_detections=LEFT_OUT),
    "snippet-210": Protocol("the 210-video list on the snippet grid", on_grid=True, videos_left_out=LEFT_OUT),
    "snippet-delu": Protocol("DELU (2024)", on_grid=True, longer_than=1),
    "seconds-210": Protocol("the 210-video list", videos_left_out=LEFT_OUT),
    "snippet-ambiguous": Protocol(
        "THUMOS14's rule, which CO2-Net applies during localization; for lists made without it",
        on_grid=True,
        drops_ambiguous=True,
    ),
}


def applicable_protocols(ground_truth: GroundTruth) -> list[str]:
    """Return the protocols whose left-out videos and ambiguous segments exist in this ground truth."""
    videos, has_ambiguous = set(ground_truth.segments.videos), len(ground_truth.ambiguous) > 0
    return [
        name
        for name, protocol in PROTOCOLS.items()
        if videos.issuperset(protocol.videos_left_out + protocol.videos_without_detections)
        and (has_ambiguous or not protocol.drops_ambiguous)
    ]


def apply_protocol(
    protocol: Protocol, ground_truth: GroundTruth, detections: Table, snippet_rate: float
) -> tuple[Table, Table]:
    """Return annotated segments and detections as the protocol matches them.

    Args:
        protocol: Protocol to apply.
        ground_truth: Annotated segments in seconds.
        detections: Detections in seconds, with the ground truth's numbering of videos.
        snippet_rate: Snippets per second.

    Returns:
        Segments and detections, in snippets if the protocol is on the snippet grid, otherwise in seconds.
    """
    segments = _without(ground_truth.segments, protocol.videos_left_out)
    detections = _without(detections, protocol.videos_left_out + protocol.videos_without_detections)
    in_snippets = _to_snippets(detections, snippet_rate)
    keep = np.ones(len(detections), dtype=bool)
    if protocol.longer_than is not None:
        keep &= in_snippets.end - in_snippets.start > protocol.longer_than
    if protocol.drops_ambiguous:
        keep &= ~_shares_snippet(in_snippets, _to_snippets(ground_truth.ambiguous, snippet_rate))
    if protocol.on_grid:
        segments, detections = _to_snippets(segments, snippet_rate), in_snippets
    return segments, detections if keep.all() else detections.select(keep)


def _without(table: Table, names: tuple[str, ...]) -> Table:
    numbers = [number for number, video in enumerate(table.videos) if video in names]
    return table.select(~np.isin(table.video, numbers)) if numbers else table


def _to_snippets(table: Table, snippet_rate: float) -> Table:
    start, end = (seconds_to_snippets(times, snippet_rate) for times in (table.start, table.end))
    return replace(table, start=start, end=end)


def _shares_snippet(detections: Table, ambiguous: Table) -> np.ndarray:
    """Mark the detections (N,) that share a snippet with an ambiguous segment of their video; both in snippets."""
    shares = np.zeros(len(detections), dtype=bool)
    for video, start, end in zip(ambiguous.video, ambiguous.start, ambiguous.end, strict=True):
        latest_start = np.maximum(detections.start, start)
        shares |= (detections.video == video) & (latest_start < np.minimum(detections.end, end))
    return shares
