"""HTML page of runs in one file: settings, results, curves, classes, diagnosis and videos.

Every text from a file is escaped: by jinja2 in the tables, by `json_for_script` in the data block. Plotly interprets
some HTML, so report.js escapes the texts for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from eval.average_precision import nan_to_none, range_name
from eval.detection import DetectionResult, evaluate_detections
from eval.diagnosis import KINDS, MIN_TIOU, diagnose
from eval.html_report.finished_run import FinishedRun
from eval.html_report.page_tables import (
    diagnosis_rows,
    headline,
    options_table,
    protocol_rows,
    range_mean,
    results_tables,
    run_facts,
)
from eval.html_report.template import embed, json_for_script, load_template
from eval.html_report.videos import MAX_SHOWN, Verdicts, judge, read_curves, shown_detections, verdict_threshold
from eval.protocols import PROTOCOLS, applicable_protocols
from eval.sorting import score_order
from eval.tables import GroundTruth, read_ground_truth
from utils.annotations import Annotations, load_annotations
from utils.errors import count_noun

TOLERANCE = 1e-9  # between the mAP of detections.json, evaluated again, and that of metrics.json


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Detections of a run, evaluated again, with verdicts and diagnosis under the run's first protocol."""

    results: dict[str, DetectionResult]  # by protocol
    verdicts: Verdicts
    diagnosis: dict


def render_report(runs: Sequence[FinishedRun]) -> str:
    """Return the page of one or several runs on one dataset."""
    annotations = load_annotations(runs[0].dataset)
    return render_detections(runs, annotations, read_ground_truth(runs[0].dataset, runs[0].spec.test_subset))


def render_detections(
    runs: Sequence[FinishedRun],
    annotations: Annotations,
    truth: GroundTruth | None,
    players: Mapping[str, str] | None = None,
) -> str:
    """Return the page of runs, or of detection files.

    Args:
        runs: Runs on one dataset, or detection files.
        annotations: Classes and videos.
        truth: Ground truth; None leaves out everything that needs it.
        players: Address of the player of a video, by video_id.
    """
    spec = runs[0].spec
    evaluated = [None if truth is None else _evaluate(run, annotations, truth) for run in runs]
    scored = [(run, each) for run, each in zip(runs, evaluated, strict=True) if each is not None]
    tiou = verdict_threshold(spec.tiou_thresholds)
    return load_template("report.html.j2").render(
        title=", ".join(run.name for run in runs),
        lead=_lead(runs, truth),
        runs=runs,
        spec=spec,
        is_trained=runs[0].is_trained,
        is_scored=truth is not None,
        checkpoints={name for run in runs for name in run.metrics},
        output_checkpoint=runs[0].checkpoint,
        main_range=range_name(spec.main_range),
        ranges=[range_name(bounds) for bounds in spec.average_ranges],
        headlines=[headline(run) for run, _ in scored],
        facts=run_facts(runs),
        options=options_table(runs),
        results=results_tables(runs) if scored else [],
        protocols=[protocol_rows(run, each.results) for run, each in scored],
        presets=PROTOCOLS,
        notes=[note for run, each in scored for note in _notes(run, each)],
        diagnoses=[diagnosis_rows(each.diagnosis, tiou) for _, each in scored],
        kinds=KINDS,
        verdict_tiou=tiou,
        min_tiou=MIN_TIOU,
        max_shown=MAX_SHOWN,
        data=json_for_script({**_page_data(runs, evaluated, annotations), "players": dict(players or {})}),
        style=embed("report.css"),
        script=embed("common.js", "report.js"),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),  # nosec B704 - not data
    )


def _lead(runs: Sequence[FinishedRun], truth: GroundTruth | None) -> str:
    """Return the line below the title."""
    spec, options = runs[0].spec, runs[0].options
    if truth is None:
        return "detections without ground truth"
    if not runs[0].is_trained:
        return f"detections with ground truth, {count_noun(len(truth.segments), 'annotated segment')}"
    seed = f", seed {options['seed']}" if len(runs) == 1 and "seed" in options else ""
    return f"{spec.name}, {spec.test_subset} subset{seed}"


def _evaluate(run: FinishedRun, annotations: Annotations, truth: GroundTruth) -> Evaluated:
    # With --missing-features skip, only videos with features count.
    skips = run.options.get("missing_features") == "skip"
    videos = [video for video in run.detections.videos if video in truth.segments.videos] if skips else run.videos
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
    """Return the run's own protocols, then the published variants that differ from them.

    A variant does not differ if it only leaves out videos that the run lacks anyway. Neither does the
    ambiguous-segment rule for a run, which has already applied it.
    """
    variants = [
        name
        for name in applicable
        if not (PROTOCOLS[name].drops_ambiguous and run.is_trained)
        and (videos is None or set(PROTOCOLS[name].videos_left_out) <= set(videos))
    ]
    return list(dict.fromkeys((*run.protocols, *variants)))


def _notes(run: FinishedRun, evaluated: Evaluated) -> list[str]:
    """Return the notes of the evaluation, and a warning if detections.json contradicts metrics.json."""
    notes = dict.fromkeys([*run.notes, *(note for result in evaluated.results.values() for note in result.notes)])
    for protocol in run.protocols:
        expected = np.array(run.metrics[run.checkpoint][protocol]["map"], dtype=float)
        if not np.allclose(expected, evaluated.results[protocol].map, rtol=0, atol=TOLERANCE, equal_nan=True):
            notes[
                f"the mAP of detections.json differs from metrics.json ({protocol}, {run.checkpoint}): diagnosis "
                "and videos do not match the tables; did the annotations change?"
            ] = None
    return [f"{run.name}: {note}" for note in notes]


def _page_data(runs: Sequence[FinishedRun], evaluated: Sequence[Evaluated | None], annotations: Annotations) -> dict:
    """Return the data that report.js draws. Times are in seconds, scores are fractions."""
    spec = runs[0].spec
    return {
        "classes": list(annotations.classes),
        "kinds": list(KINDS),
        "isScored": evaluated[0] is not None,
        "verdictTiou": verdict_threshold(spec.tiou_thresholds),
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
                "diagnosis": each and each.diagnosis,
            }
            for run, each in zip(runs, evaluated, strict=True)
        ],
        "videos": video_data(runs, evaluated, annotations),
    }


def _log_point(record: dict, run: FinishedRun) -> dict:
    """Return the losses and the plotted scores of one evaluation; None leaves a gap in the curve."""
    scores = record["scores"]
    curves = {}
    thresholds = list(run.spec.tiou_thresholds)
    for protocol in run.protocols:
        values = [scores.get(f"{protocol}/mAP@{threshold:g}", "missing") for threshold in thresholds]
        if "missing" not in values:
            mean = range_mean({"tiou_thresholds": thresholds, "map": values}, run.spec.main_range)
            curves[f"mAP@{range_name(run.spec.main_range)}, {protocol}"] = mean
            middle = verdict_threshold(thresholds)
            curves[f"mAP@{middle:g}, {protocol}"] = values[thresholds.index(middle)]
    names = {"classification_mAP": "classification mAP", "holdout/classification_mAP": "classification mAP, holdout"}
    curves |= {curve: scores[name] for name, curve in names.items() if name in scores}
    losses = dict(record["losses"])
    if "holdout/loss" in scores:
        losses["total, holdout"] = scores["holdout/loss"]
    return {"iteration": record["iteration"], "losses": losses, "scores": curves}


def video_data(
    runs: Sequence[FinishedRun], evaluated: Sequence[Evaluated | None], annotations: Annotations
) -> list[dict]:
    """Return every video that a run has outputs or detections for, in the order of the annotations."""
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
    lengths = [answer["snippets"] / answer["rate"] for answer in answers if answer and "rate" in answer]
    if not video.duration and not lengths:
        lengths = [row[2] for answer in answers if answer for row in answer["detections"]]
        lengths += video.segments[:, 1].tolist()
    return {
        "id": video_id,
        "duration": round(max([video.duration or 0.0, *lengths]), 3),
        "truth": [[number(label), round(start, 3), round(end, 3)] for label, (start, end) in rows],
        "ambiguous": [[round(start, 3), round(end, 3)] for start, end in video.ambiguous.tolist()],
        "runs": answers,
    }


def _video_answers(run: FinishedRun, evaluated: Evaluated | None, annotations: Annotations) -> dict[str, dict]:
    """Return {video_id: curves, detections, AP and counts} of one run."""
    if evaluated is None:
        return _unscored_answers(run, annotations)
    result, verdicts = evaluated.results[run.protocols[0]], evaluated.verdicts
    rate = run.snippet_rate if PROTOCOLS[result.protocol].on_grid else 1.0
    detections = shown_detections(result.detections, verdicts.kinds, rate)
    rows = {video: row for row, video in enumerate(result.ground_truth.videos)}
    answers = _answers(run, list(rows), detections, annotations)
    for video, answer in answers.items():
        row = rows[video]
        answer["ap"] = nan_to_none(float(verdicts.ap[row]))
        answer["missed"] = int(verdicts.missed[row])
        answer["counts"] = verdicts.counts[row].tolist()
    return answers


def _unscored_answers(run: FinishedRun, annotations: Annotations) -> dict[str, dict]:
    """Return {video_id: curves and detections} without ground truth."""
    table = run.detections.renumber(run.detections.videos, annotations.classes)
    table = table.select(score_order(table.score))
    answers = _answers(run, table.videos, shown_detections(table, None, 1.0), annotations)
    for number, video in enumerate(table.videos):
        if video in answers:
            answers[video]["total"] = int((table.video == number).sum())
    return answers


def _answers(
    run: FinishedRun, videos: Sequence[str], detections: dict[str, list], annotations: Annotations
) -> dict[str, dict]:
    """Return {video_id: curves, if there are any, and detections}."""
    drawn = {}  # {video_id: classes whose T-CAM the page draws}
    for video in videos:
        detected = {row[0] for row in detections.get(video, [])}
        annotated = {annotations.classes.index(label) for label in annotations.videos[video].segment_labels}
        drawn[video] = sorted(detected | annotated)
    if run.outputs is None:
        answers = {video: {"cas": {}} for video in videos if video in run.detections.videos}
    else:
        answers = read_curves(run.outputs, drawn, annotations)
    for video, answer in answers.items():
        answer["detections"] = detections.get(video, [])
    return answers
