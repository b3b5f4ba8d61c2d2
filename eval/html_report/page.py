"""Runs -> one HTML page that needs nothing else: what was run, results, curves, classes, diagnosis, videos.

All that comes from files is escaped: by jinja2 in the tables, by `_json_for_script` in the data block, and in
report.js before Plotly, which reads some HTML, sees it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from eval.average_precision import range_name
from eval.detection import DetectionResult, evaluate_detections
from eval.diagnosis import KINDS, MIN_TIOU, diagnose
from eval.html_report.finished_run import DETECTED, FinishedRun
from eval.html_report.page_tables import (
    diagnosis_rows,
    headline,
    mean_or_none,
    options_table,
    protocol_rows,
    results_tables,
    run_facts,
)
from eval.html_report.videos import JUDGED_AT, SHOWN, Verdicts, judge, read_curves, shown_detections
from eval.protocols import PROTOCOLS, applicable_protocols
from eval.tables import GroundTruth, read_ground_truth
from utils.annotations import Annotations, load_annotations

HERE = Path(__file__).resolve().parent
SAME = 1e-9  # mAP of detections.json against metrics.json: the same numbers, read back


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A run's detections, evaluated again: by protocol, and judged one by one under the run's first protocol."""

    results: dict[str, DetectionResult]
    verdicts: Verdicts
    diagnosis: dict


def render_report(runs: Sequence[FinishedRun]) -> str:
    """The page of one or several runs of one dataset, compared."""
    annotations, spec = load_annotations(runs[0].dataset), runs[0].spec
    truth = read_ground_truth(runs[0].dataset, spec.test_subset)
    evaluated = [_evaluate(run, annotations, truth) for run in runs]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        title=", ".join(run.name for run in runs),
        runs=runs,
        spec=spec,
        checkpoints={name for run in runs for name in run.metrics},
        detected=DETECTED,
        main_range=range_name(spec.main_range),
        ranges=[range_name(bounds) for bounds in spec.average_ranges],
        headlines=[headline(run) for run in runs],
        facts=run_facts(runs),
        options=options_table(runs),
        results=results_tables(runs),
        protocols=[protocol_rows(run, each.results) for run, each in zip(runs, evaluated, strict=True)],
        presets=PROTOCOLS,
        notes=[note for run, each in zip(runs, evaluated, strict=True) for note in _notes(run, each)],
        diagnoses=[diagnosis_rows(each.diagnosis, JUDGED_AT) for each in evaluated],
        kinds=KINDS,
        judged_at=JUDGED_AT,
        overlaps=MIN_TIOU,
        shown=SHOWN,
        data=_json_for_script(_page_data(runs, evaluated, annotations)),
        # These three are the project's and Plotly's own texts, not data.
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),  # nosec B704
        script=Markup((HERE / "report.js").read_text(encoding="utf-8")),  # nosec B704
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),  # nosec B704
    )


def _evaluate(run: FinishedRun, annotations: Annotations, truth: GroundTruth) -> Evaluated:
    # Where the run was told to skip videos without features, only those count that it gives an answer for.
    skips = run.options.get("missing_features") == "skip"
    videos = [video for video in run.detections.videos if video in truth.segments.videos] if skips else None
    results = {
        protocol: evaluate_detections(
            truth,
            run.detections,
            run.spec.tiou_thresholds,
            protocol=protocol,
            snippet_rate=run.snippet_rate,
            videos=videos,
            classes=annotations.classes,
        )
        for protocol in _protocols(run, applicable_protocols(truth), videos)
    }
    first = results[run.protocols[0]]
    durations = {name: video.duration for name, video in annotations.videos.items() if video.duration}
    return Evaluated(results, judge(first), diagnose(first, durations, run.spec.name, run.snippet_rate))


def _protocols(run: FinishedRun, applicable: Sequence[str], videos: Sequence[str] | None) -> list[str]:
    """The run's own, then the published variants that say something else: not those that leave out videos which
    the run has left out itself, nor the ambiguous-segment rule, which the run has applied."""
    variants = [
        name
        for name in applicable
        if not PROTOCOLS[name].drops_ambiguous
        and (videos is None or set(PROTOCOLS[name].videos_left_out) <= set(videos))
    ]
    return list(dict.fromkeys((*run.protocols, *variants)))


def _notes(run: FinishedRun, evaluated: Evaluated) -> list[str]:
    """What was not counted as it stands, and whether detections.json says what metrics.json says."""
    notes = dict.fromkeys(note for result in evaluated.results.values() for note in result.notes)
    for protocol in run.protocols:
        told = run.metrics.get(DETECTED, {}).get(protocol)
        again = evaluated.results[protocol].map
        if told and not np.allclose(np.array(told["map"], dtype=float), again, rtol=0, atol=SAME, equal_nan=True):
            notes[
                f"detections.json gives other mAPs than metrics.json ({protocol}, {DETECTED}): diagnosis and videos "
                "do not belong to the tables; were the annotations changed?"
            ] = None
    return [f"{run.name}: {note}" for note in notes]


def _page_data(runs: Sequence[FinishedRun], evaluated: Sequence[Evaluated], annotations: Annotations) -> dict:
    """What report.js draws; its times are in seconds, its scores fractions."""
    spec = runs[0].spec
    return {
        "classes": list(annotations.classes),
        "kinds": list(KINDS),
        "judgedAt": JUDGED_AT,
        "mainRange": range_name(spec.main_range),
        "runs": [
            {
                "name": run.name,
                "modalities": [str(name) for name in run.options.get("modalities", ("first", "second"))],
                "protocols": list(run.protocols),
                "log": [_log_point(record, run) for record in run.log],
                "best": run.metrics.get("best", {}).get("iteration"),
                "checkpoints": {
                    name: {protocol: metrics[protocol] for protocol in run.protocols}
                    for name, metrics in run.metrics.items()
                },
                "diagnosis": each.diagnosis,
            }
            for run, each in zip(runs, evaluated, strict=True)
        ],
        "videos": _videos(runs, evaluated, annotations),
    }


def _log_point(record: dict, run: FinishedRun) -> dict:
    """One evaluation of log.jsonl: losses, and the scores that are worth a curve; None for a gap in it."""
    scores = record["scores"]
    curves = {}
    for protocol in run.protocols:
        names = [f"{protocol}/mAP@{t:g}" for t in run.spec.tiou_thresholds]
        if all(name in scores for name in names):
            at = dict(zip(run.spec.tiou_thresholds, map(scores.get, names), strict=True))
            told = {"tiou_thresholds": list(at), "map": list(at.values())}
            curves[f"mAP@{range_name(run.spec.main_range)}, {protocol}"] = mean_or_none(told, run.spec.main_range)
            curves[f"mAP@{JUDGED_AT:g}, {protocol}"] = at[JUDGED_AT]
    names = {"classification_mAP": "classification mAP", "holdout/classification_mAP": "classification mAP, held out"}
    curves |= {curve: scores[name] for name, curve in names.items() if name in scores}
    losses = dict(record["losses"])
    if "holdout/loss" in scores:
        losses["total, held out"] = scores["holdout/loss"]
    return {"iteration": record["iteration"], "losses": losses, "scores": curves}


def _videos(runs: Sequence[FinishedRun], evaluated: Sequence[Evaluated], annotations: Annotations) -> list[dict]:
    """Every video that a run has an answer for, in the order of the annotations."""
    answers = [_video_answers(run, each, annotations) for run, each in zip(runs, evaluated, strict=True)]
    return [
        _video(video_id, [answer.get(video_id) for answer in answers], annotations)
        for video_id in annotations.videos
        if any(video_id in answer for answer in answers)
    ]


def _video(video_id: str, answers: Sequence[dict | None], annotations: Annotations) -> dict:
    video = annotations.videos[video_id]
    number = annotations.classes.index
    rows = zip(video.segment_labels, video.segments.tolist(), strict=True)
    lengths = [answer["snippets"] / answer["rate"] for answer in answers if answer]
    return {
        "id": video_id,
        "duration": round(max(video.duration or 0.0, *lengths), 3),
        "truth": [[number(label), round(start, 3), round(end, 3)] for label, (start, end) in rows],
        "ambiguous": [[round(start, 3), round(end, 3)] for start, end in video.ambiguous.tolist()],
        "runs": answers,
    }


def _video_answers(run: FinishedRun, evaluated: Evaluated, annotations: Annotations) -> dict[str, dict]:
    """{video_id: curves, detections, AP and counts} of the videos of one run."""
    result, verdicts = evaluated.results[run.protocols[0]], evaluated.verdicts
    rate = run.snippet_rate if PROTOCOLS[result.protocol].on_grid else 1.0
    detections = shown_detections(result, verdicts.kinds, rate)
    places = {video: place for place, video in enumerate(result.ground_truth.videos)}
    drawn = {}  # classes whose T-CAM the page holds
    for video in places:
        found = {row[0] for row in detections.get(video, [])}
        annotated = {annotations.classes.index(label) for label in annotations.videos[video].segment_labels}
        drawn[video] = sorted(found | annotated)
    answers = read_curves(run.outputs, drawn, annotations)
    for video, answer in answers.items():
        place = places[video]
        ap = float(verdicts.ap[place])
        answer["detections"] = detections.get(video, [])
        answer["ap"] = None if math.isnan(ap) else ap
        answer["missed"] = int(verdicts.missed[place])
        answer["counts"] = verdicts.counts[place].tolist()
    return answers


def _json_for_script(content: dict) -> Markup:
    """JSON that can stand in a <script> element: no character there can end it."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # nosec B704 - nothing in it can end the script any more
