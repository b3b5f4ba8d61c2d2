"""What a dataset folder holds, and all that is wrong with it, found in one pass: python -m utils.features DIR [--check]

The kinds of fault are in utils/features/faults.py. A training looks for the cheap ones before it starts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.annotations import RELEASE_SUFFIX, Annotations, Video, load_annotations, parse_annotations
from utils.datasets import DATASETS, SNIPPET_RATE, DatasetSpec
from utils.errors import InputError, OneLineParser
from utils.features.faults import (
    ERROR,
    FAR_SNIPPETS,
    MISSING,
    NOTE,
    RATE_NOT_GIVEN,
    SEVERITIES,
    WARNING,
    Finding,
    cheap_findings,
    duration_gaps,
    file_error,
    is_used,
    subsets_of,
    sum_findings,
    value_findings,
)
from utils.features.store import FeatureStore, open_features
from utils.formats.files import read_json, write_json
from utils.formats.npy import load_names

LISTED, FEW = 5, 3  # how many names a report has of a kind, and a training's start


@dataclass(frozen=True)
class Check:
    """What was looked at, as far as it could be read, and what was found."""

    store: FeatureStore | None
    annotations: Annotations | None
    spec: DatasetSpec | None
    findings: list[Finding]

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)


def check_dataset(
    path: str | Path,
    modalities: Sequence[str] | None = None,
    dataset: str | None = None,
    missing_features: str = "error",
) -> Check:
    """Look for every fault of a dataset folder (or feature file and what lies beside it).

    Args:
        modalities: those to look at; None for all that are stored.
        dataset: whose subsets the annotations should have; None to guess it by them.
        missing_features: what training is going to do about videos without: "error" or "skip".
    InputError: no such path, a modality that is not there. All else is a finding.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    findings = list(sum_findings(folder))
    annotations, where, faults = _read_annotations(folder)
    findings += faults
    store, faults = _open_store(path, modalities)
    findings += faults
    spec = DATASETS[dataset] if dataset else None
    if annotations is not None and spec is None:
        spec, faults = _guess_spec(annotations, where)
        findings += faults
    findings += cheap_findings(store, annotations, spec, _severity_of_missing(missing_features), where)
    if store is not None:
        findings += value_findings(store)
    unique: dict[str, Finding] = {}
    for finding in findings:  # what cannot be read is found again wherever it is wanted
        unique.setdefault(str(finding), finding)
    return Check(store, annotations, spec, list(unique.values()))


def startup_warnings(
    store: FeatureStore, annotations: Annotations, spec: DatasetSpec, missing_features: str
) -> list[str]:
    """Return one warning per kind of fault among the videos that a training uses.

    Missing features are left to `WeakVideoDataset`, which refuses or skips them.

    Args:
        store: features to train on.
        annotations: annotations to train on.
        spec: dataset, which names the subsets in use.
        missing_features: treatment of videos without features, "error" or "skip".

    Raises:
        InputError: The dataset has errors; the message names their kinds, or the only error in full.
    """

    def matters(finding: Finding) -> bool:
        if finding.video is None:
            return True
        video = annotations.videos.get(finding.video)
        return video is not None and is_used(spec, video)

    severity = _severity_of_missing(missing_features)
    findings = [finding for finding in cheap_findings(store, annotations, spec, severity) if matters(finding)]
    errors = [finding for finding in findings if finding.severity == ERROR and finding.kind != MISSING]
    if len(errors) == 1:
        raise InputError(str(errors[0]))
    if errors:
        path, kinds = store.source.path, "; ".join(_summaries(errors))
        raise InputError(f"{path}: {kinds}; python -m utils.features {path} --check lists every error")
    return _summaries(finding for finding in findings if finding.severity == WARNING)


def _summaries(findings: Iterable[Finding]) -> list[str]:
    """A line a kind: how often, and of which videos (or classes, or files) first."""
    return [f"{kind}: {len(group)} ({_subjects(group, FEW)})" for (_, kind), group in _by_kind(findings).items()]


def _open_store(path: Path, modalities: Sequence[str] | None) -> tuple[FeatureStore | None, list[Finding]]:
    """InputError only for modalities that are not there."""
    try:
        source = open_features(path, None).source
    except InputError as error:
        return None, [file_error("unreadable features", path, error)]
    store = FeatureStore(source, modalities or source.modalities)
    try:
        for stored in store.stored_modalities:
            source.video_ids(stored)
    except InputError as error:
        return None, [file_error("unreadable features", source.path, error)]
    return store, []


def _read_annotations(folder: Path) -> tuple[Annotations | None, str, list[Finding]]:
    """As many videos as can be read, where they stand, and what is wrong with the others."""
    releases = sorted(path for path in folder.glob(f"*{RELEASE_SUFFIX}") if path.is_dir())
    path = folder / "annotations.json"
    if not path.is_file():
        path = releases[0] if len(releases) == 1 else folder
    try:
        return load_annotations(folder), str(path), []
    except InputError as error:
        if path.is_dir():
            faults = list(_repeated_names(path))
            return None, str(path), faults or [file_error("unreadable annotations", path, error)]
        annotations, faults = _readable_videos(path)
        return annotations, str(path), faults or [file_error("unreadable annotations", path, error)]


def _repeated_names(folder: Path) -> Iterator[Finding]:
    """Videos that a release's videoname.npy names more than once."""
    path = folder / "videoname.npy"
    try:
        counts = Counter(load_names(path))
    except InputError:  # which reading the annotations says
        return
    for video_id, count in counts.items():
        if count > 1:
            message = f"expected one row per video, got {count} rows of '{video_id}'"
            yield Finding(ERROR, "duplicated video", str(path), message, video=video_id)


def _readable_videos(path: Path) -> tuple[Annotations | None, list[Finding]]:
    """The videos of an annotations.json that can be used, read one by one, and those that cannot."""
    try:
        content = read_json(path)
        database = content["database"]
        classes = content.get("classes") or _named_classes(database)
        known = parse_annotations({"classes": classes, "database": {"any": {"subset": "any"}}}, str(path)).classes
    except (InputError, KeyError, TypeError, AttributeError):  # not a file of videos at all, or not of these classes
        return None, []
    videos: dict[str, Video] = {}
    faults = []
    for video_id, entry in database.items():
        try:
            videos |= parse_annotations({"classes": classes, "database": {video_id: entry}}, str(path)).videos
        except InputError as error:
            faults.append(file_error("unreadable annotations", path, error, video=video_id))
    return (Annotations(known, videos) if videos else None), faults


def _named_classes(database: dict[str, dict]) -> list[str]:
    """The classes that videos are labeled with, of a file that does not list them."""
    labels = [label for entry in database.values() for label in entry.get("labels", [])]
    labels += [row["label"] for entry in database.values() for row in entry.get("annotations", [])]
    return list(dict.fromkeys(labels))


def _guess_spec(annotations: Annotations, where: str) -> tuple[DatasetSpec | None, list[Finding]]:
    """The only dataset all of whose subsets are there."""
    present = subsets_of(annotations)
    wanted = {spec: {*spec.train_subset.split("+"), *spec.test_subset.split("+")} for spec in DATASETS.values()}
    fitting = [spec for spec, subsets in wanted.items() if subsets.issubset(present)]
    most = max((len(wanted[spec]) for spec in fitting), default=0)  # AVE has the subsets of the demo, and more
    fitting = [spec for spec in fitting if len(wanted[spec]) == most]
    if len(fitting) == 1:
        return fitting[0], []
    known = ", ".join(f"{spec.name}: {spec.train_subset} and {spec.test_subset}" for spec in DATASETS.values())
    message = (
        f"the subsets {present} do not tell the dataset, so nothing was checked that training or test videos need; "
        f"name it with --dataset ({known})"
    )
    return None, [Finding(NOTE, "unknown dataset", where, message)]


def _severity_of_missing(missing_features: str) -> str:
    return NOTE if missing_features == "skip" else ERROR


def _by_kind(findings: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """By severity and kind, errors first."""
    groups = defaultdict(list)
    for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        groups[finding.severity, finding.kind].append(finding)
    return groups


def _subjects(findings: Sequence[Finding], count: int) -> str:
    subjects = list(dict.fromkeys(finding.subject for finding in findings))
    return ", ".join(subjects[:count]) + (", ..." if len(subjects) > count else "")


def report(check: Check) -> str:
    """A table of the kinds with an example of each, and a last line that counts errors, warnings and notes."""
    lines = [f"checked   {_what(check)}"]
    groups = _by_kind(check.findings)
    width = max((len(kind) for _, kind in groups), default=0)
    for (severity, kind), group in groups.items():
        lines.append(f"{severity:9} {kind:{width}} {len(group):5}  {_subjects(group, LISTED)}")
        lines.append(f"{'':9} {group[0]}")
    counts = [(check.count(severity), severity) for severity in SEVERITIES]
    lines.append(", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for count, severity in counts))
    return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def _what(check: Check) -> str:
    parts = []
    if check.store is not None:
        parts.append(f"{check.store.source.path} ({_form(check.store)})")
        parts.append(f"{' + '.join(check.store.modalities)} of {len(check.store.video_ids)} videos")
    if check.annotations is not None:
        parts.append(f"annotations of {len(check.annotations.videos)} videos, {len(check.annotations.classes)} classes")
    if check.spec is not None:
        parts.append(f"dataset {check.spec.name}")
    return "; ".join(parts) or "nothing that could be read"


def _form(store: FeatureStore) -> str:
    return store.source.form + (", SIMULATED" if store.source.simulated else "")


def describe(path: str | Path, modalities: Sequence[str] | None = None) -> None:
    """Print what the features in a folder or file are and how they fit the annotations beside them.

    InputError as `open_features` and `FeatureStore` raise it: every video is read, so no NaN stays hidden.
    """
    path = Path(path)
    store = open_features(path, modalities)
    print(f"features     {store.source.path} ({_form(store)})")
    for modality, width in zip(store.modalities, store.modality_dims, strict=True):
        print(f"modality     {modality}: {width} channels")
    lengths = {video_id: store.num_snippets(video_id) for video_id in store.video_ids}
    counts = sorted(lengths.values())
    print(f"videos       {len(counts)}")
    print(f"snippets     {counts[0]} / {int(np.median(counts))} / {counts[-1]} a video (min / median / max)")
    rate = store.snippet_rate
    print(f"rate         {f'{rate:g} snippets a second' if rate else RATE_NOT_GIVEN}")
    try:
        annotations = load_annotations(path if path.is_dir() else path.parent)
    except InputError as error:
        print(f"annotations  none used: {error}")
    else:
        _describe_fit(annotations, store, lengths)
    for video_id in tqdm(store.video_ids, desc="reading all values", unit="video"):
        store[video_id]
    print("values       all finite")


def _describe_fit(annotations: Annotations, store: FeatureStore, lengths: dict[str, int]) -> None:
    """Which annotated videos have features, and whether T / rate is the annotated duration."""
    for subset in dict.fromkeys(video.subset for video in annotations.videos.values()):
        videos = annotations.subset(subset)
        lacking = [video.video_id for video in videos if video.video_id not in store]
        print(f"subset       {subset}: {len(videos) - len(lacking)} of {len(videos)} videos have features")
        if lacking:
            print(f"             lacking: {_first(lacking)}")
    rate = store.snippet_rate or SNIPPET_RATE  # the assumed one too: this is where a wrong one shows
    gaps = duration_gaps(annotations.videos.values(), lengths, rate)
    far = sorted((video_id for video_id, gap in gaps.items() if gap > FAR_SNIPPETS), key=gaps.get, reverse=True)
    print(f"durations    {len(gaps) - len(far)} of {len(gaps)} agree with T / rate within {FAR_SNIPPETS} snippets")
    if far:
        print(f"             largest gaps, in snippets: {_first([f'{v} {gaps[v]:.1f}' for v in far])}")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f", ... ({len(names)} in all)" if len(names) > LISTED else "")


def command() -> None:
    """`python -m utils.features`; with --check its exit status is 1 if there are errors."""
    parser = OneLineParser(prog="python -m utils.features", description=describe.__doc__.split("\n")[0])
    parser.add_argument("path", type=Path, help="a dataset folder or a feature file")
    parser.add_argument("--modalities", nargs="+", help="which to look at (default: all that are stored)")
    check = parser.add_argument_group("look for faults instead")
    check.add_argument("--check", action="store_true", help="find all faults; exit status 1 if there is an error")
    check.add_argument("--dataset", choices=DATASETS, help="whose subsets it should have (default: by its subsets)")
    check.add_argument(
        "--missing-features", choices=("error", "skip"), default="error", help="what training will do (default: error)"
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="write all findings, each in full")
    arguments = parser.parse_args()
    if not arguments.check:
        if arguments.dataset or arguments.json or arguments.missing_features != "error":
            parser.error("--dataset, --missing-features and --json need --check")
        describe(arguments.path, arguments.modalities)
        return
    found = check_dataset(arguments.path, arguments.modalities, arguments.dataset, arguments.missing_features)
    print(report(found))
    if arguments.json:
        write_json(arguments.json, _content(found), indent=1)
    if found.count(ERROR):
        raise SystemExit(1)


def _content(check: Check) -> dict:
    """A check as --json writes it."""
    return {
        "features": None if check.store is None else check.store.describe(),
        "dataset": None if check.spec is None else check.spec.name,
        "counts": {severity: check.count(severity) for severity in SEVERITIES},
        "findings": [asdict(finding) for finding in check.findings],
    }
