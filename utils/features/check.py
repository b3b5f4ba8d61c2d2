"""Check of a dataset folder: its content and all of its faults, by `python -m utils.features DIR [--check]`.

utils/features/faults.py defines the kinds of fault. A training runs the fast ones before it starts.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.annotations import (
    RELEASE_SUFFIX,
    Annotations,
    InvertedSegments,
    Video,
    find_annotations,
    load_annotations,
    parse_annotations,
)
from utils.datasets import DATASETS, SNIPPET_RATE, DatasetSpec, find_dataset
from utils.errors import InputError, OneLineParser, count_noun, name_some
from utils.features.faults import (
    ERROR,
    FAR_SNIPPETS,
    MISSING,
    NO_RATE,
    NOTE,
    SEVERITIES,
    WARNING,
    Finding,
    duration_gaps,
    error_finding,
    find_checksum_faults,
    find_faults,
    find_value_faults,
    is_used,
)
from utils.features.index import remember
from utils.features.recipes import describe_recipe
from utils.features.store import FeatureStore, open_features
from utils.formats.files import read_json, write_json
from utils.formats.npy import load_names

REPORT_NAMES, WARNING_NAMES = 5, 3  # names listed per kind of fault, in a report and in a warning


def startup_warnings(
    store: FeatureStore,
    annotations: Annotations,
    spec: DatasetSpec,
    missing_features: str,
    config: str | None = None,
) -> list[str]:
    """Return one warning per kind of fault in the videos that a training uses.

    Missing features are left to `WeakVideoDataset`. `config` is the file that defines a dataset which is not published.

    Raises:
        InputError: The dataset has errors. The message counts them by kind, or is the only error.
    """
    find = partial(_find_warnings, store, annotations, spec, missing_features, config)
    return remember(store, (spec, missing_features), find)


def _find_warnings(
    store: FeatureStore, annotations: Annotations, spec: DatasetSpec, missing_features: str, config: str | None
) -> list[str]:
    used = {video.video_id for video in annotations.videos.values() if is_used(spec, video)} | {None}
    faults = find_faults(store, annotations, spec, _missing_severity(missing_features), annotations.where)
    findings = [finding for finding in faults if finding.video in used and finding.kind != MISSING]
    errors = [finding for finding in findings if finding.severity == ERROR]
    if len(errors) == 1:
        raise InputError(str(errors[0]))
    if errors:
        path, kinds = store.source.path, "; ".join(_summarize(errors))
        name = spec.name if DATASETS.get(spec.name) == spec else config
        words = ["python", "-m", "utils.features", str(path), "--check", "--modalities", *store.modalities]
        words += ["--dataset", str(name)] if name else []
        words += ["--missing-features", "skip"] if missing_features == "skip" else []
        raise InputError(f"{path}: {kinds}; {shlex.join(words)} lists every error")
    return _summarize(finding for finding in findings if finding.severity == WARNING)


@dataclass(frozen=True)
class Check:
    """Result of a check: what could be read, and the findings."""

    store: FeatureStore | None
    annotations: Annotations | None
    spec: DatasetSpec | None
    findings: list[Finding]

    def count(self, severity: str) -> int:
        """Return the number of findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)


def check_dataset(
    path: str | Path,
    modalities: Sequence[str] | None = None,
    dataset: str | None = None,
    missing_features: str = "error",
) -> Check:
    """Find every fault of a dataset folder, or of a feature file and the annotations beside it.

    Args:
        path: Folder or feature file.
        modalities: Modalities to check; None for all.
        dataset: Dataset whose subsets are expected; None to guess it from the annotations.
        missing_features: Treatment of videos without features in training, "error" or "skip".

    Raises:
        InputError: The path or a modality does not exist. Every other fault is a finding.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    findings = list(find_checksum_faults(folder))
    annotations, where = _read_annotations(folder, findings)
    store = _open_store(path, modalities, findings)
    if store is not None and modalities is None and len(store.modalities) == 1:
        name = store.modalities[0]
        message = (
            f"'{name}' is the only modality; methods of two streams need --modalities {name} {name}_diff, or, if its "
            'channels are joined streams, "split" in features.json or --split (docs/data.md)'
        )
        findings.append(Finding(NOTE, "one modality", str(path), message))
    spec = find_dataset(dataset) if dataset else None
    if annotations is not None and spec is None:
        spec = _guess_spec(annotations, where, findings)
    findings += find_faults(store, annotations, spec, _missing_severity(missing_features), where)
    if store is not None:
        findings += find_value_faults(store)
    unique: dict[str, Finding] = {}
    for finding in findings:  # several checks find the same unreadable file
        unique.setdefault(str(finding), finding)
    return Check(store, annotations, spec, list(unique.values()))


def _missing_severity(missing_features: str) -> str:
    return NOTE if missing_features == "skip" else ERROR


def _open_store(path: Path, modalities: Sequence[str] | None, findings: list[Finding]) -> FeatureStore | None:
    """Open the features; InputError only for a modality that does not exist, other faults are added to the findings."""
    try:
        source = open_features(path, None).source
        for stored in set(source.modalities).intersection(modalities or source.modalities):
            source.video_ids(stored)
    except InputError as error:
        findings.append(error_finding("unreadable features", path, error))
        return None
    return FeatureStore(source, modalities or source.modalities)


def _read_annotations(folder: Path, findings: list[Finding]) -> tuple[Annotations | None, str]:
    """Return as many annotated videos as possible and their path; faults are added to the findings."""
    releases = sorted(path for path in folder.glob(f"*{RELEASE_SUFFIX}") if path.is_dir())
    path = find_annotations(folder) or (releases[0] if len(releases) == 1 else folder)
    annotations, count = None, len(findings)
    try:
        annotations = load_annotations(folder)
    except InvertedSegments as error:
        findings += [Finding(ERROR, "inverted segment", error.where, text, video_id) for video_id, text in error.rows]
        annotations = load_annotations(folder, drop_inverted=True)
    except InputError as error:
        if path.is_dir():
            findings += _repeated_names(path)
        else:
            annotations = _read_valid_videos(path, findings)
        if len(findings) == count:
            findings.append(error_finding("unreadable annotations", path, error))
    return annotations, str(path)


def _repeated_names(folder: Path) -> list[Finding]:
    """Return the videos that a release's videoname.npy names more than once."""
    path = folder / "videoname.npy"
    try:
        counts = Counter(load_names(path))
    except InputError:  # loading the annotations reports it
        return []
    return [
        Finding(ERROR, "duplicated video", str(path), f"expected one row per video, got {count} rows of '{name}'", name)
        for name, count in counts.items()
        if count > 1
    ]


def _read_valid_videos(path: Path, findings: list[Finding]) -> Annotations | None:
    """Parse an annotations.json video by video; invalid videos are added to the findings."""
    try:
        content = read_json(path)
        database = content["database"]
        classes = content.get("classes") or _labels_in(database)
        known = parse_annotations({"classes": classes, "database": {"any": {"subset": "any"}}}, str(path)).classes
    except (InputError, KeyError, TypeError, AttributeError):  # not a file of videos, or invalid classes
        return None
    videos: dict[str, Video] = {}
    for video_id, entry in database.items():
        try:
            videos |= parse_annotations({"classes": classes, "database": {video_id: entry}}, str(path)).videos
        except InputError as error:
            findings.append(error_finding("unreadable annotations", path, error, video_id))
    return Annotations(known, videos) if videos else None


def _labels_in(database: dict[str, dict]) -> list[str]:
    """Return the labels of all videos, in order of appearance."""
    labels = [label for entry in database.values() for label in entry.get("labels", [])]
    labels += [row["label"] for entry in database.values() for row in entry.get("annotations", [])]
    return list(dict.fromkeys(labels))


def _guess_spec(annotations: Annotations, where: str, findings: list[Finding]) -> DatasetSpec | None:
    """Return the only dataset with all subsets present; otherwise a note is added to the findings."""
    present = annotations.subsets
    names = {spec: f"{spec.train_subset}+{spec.test_subset}".casefold().split("+") for spec in DATASETS.values()}
    wanted = {spec: set(subsets) for spec, subsets in names.items()}
    specs = [spec for spec, subsets in wanted.items() if subsets.issubset(map(str.casefold, present))]
    most = max((len(wanted[spec]) for spec in specs), default=0)  # AVE has the subsets of the demo, and more
    specs = [spec for spec in specs if len(wanted[spec]) == most]
    if len({replace(spec, name="") for spec in specs}) == 1:  # THUMOS14 and MultiTHUMOS differ only in their classes
        return specs[0]
    known = ", ".join(f"{spec.name}: {spec.train_subset} and {spec.test_subset}" for spec in DATASETS.values())
    message = (
        f"the subsets [{name_some(map(repr, present), 8)}] fit no single dataset, so requirements of training and "
        f"test were not checked; name it with --dataset ({known})"
    )
    findings.append(Finding(NOTE, "unknown dataset", where, message))
    return None


def _group_by_kind(findings: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Return the findings by severity and kind, errors first."""
    groups = defaultdict(list)
    for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        groups[finding.severity, finding.kind].append(finding)
    return groups


def _summarize(findings: Iterable[Finding]) -> list[str]:
    """Return one line per kind: its count and the first subjects."""
    groups = _group_by_kind(findings).items()
    return [f"{kind}: {len(group)} ({_list_subjects(group, WARNING_NAMES)})" for (_, kind), group in groups]


def _list_subjects(findings: Sequence[Finding], count: int) -> str:
    subjects = list(dict.fromkeys(finding.subject for finding in findings))
    return ", ".join(subjects[:count]) + (", ..." if len(subjects) > count else "")


def format_report(check: Check) -> str:
    """Return a table with one example per kind of fault, and a last line with the counts by severity."""
    store, annotations, parts = check.store, check.annotations, []
    if store is not None:
        parts.append(f"{store.source.path} ({_describe_form(store)})")
        parts.append(f"{name_some(store.modalities, sep=' + ')} of {count_noun(len(store.video_ids), 'video')}")
    if annotations is not None:
        videos, classes = count_noun(len(annotations.videos), "video"), count_noun(len(annotations.classes), "class")
        parts.append(f"annotations of {videos}, {classes}")
    if check.spec is not None:
        parts.append(f"dataset {check.spec.name}")
    lines = [f"checked   {'; '.join(parts) or 'nothing, because nothing could be read'}"]
    groups = _group_by_kind(check.findings)
    width = max((len(kind) for _, kind in groups), default=0)
    for (severity, kind), group in groups.items():
        lines.append(f"{severity:9} {kind:{width}} {len(group):5}  {_list_subjects(group, REPORT_NAMES)}")
        lines.append(f"{'':9} {group[0]}")
    counts = [(check.count(severity), severity) for severity in SEVERITIES]
    lines.append(", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for count, severity in counts))
    return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def _describe_form(store: FeatureStore) -> str:
    return store.source.form + (", SIMULATED" if store.source.simulated else "")


def describe(path: str | Path, modalities: Sequence[str] | None = None) -> None:
    """Print the features in a folder or file and how they match the annotations beside them.

    Every video is read, so that NaN and damage are detected. None describes all modalities.

    Raises:
        InputError: The features cannot be used.
    """
    path = Path(path)
    store = open_features(path, modalities)
    print(f"features     {store.source.path} ({_describe_form(store)})")
    for modality, width in zip(store.modalities, store.modality_dims, strict=True):
        print(f"modality     {modality}: {width} channels")
    lengths = {video_id: store.num_snippets(video_id) for video_id in store.video_ids}
    counts = sorted(lengths.values())
    print(f"videos       {len(counts)}")
    print(f"snippets     {counts[0]} / {int(np.median(counts))} / {counts[-1]} per video (min / median / max)")
    rate = store.snippet_rate
    print(f"rate         {f'{rate:g} snippets per second' if rate else NO_RATE}")
    for number, line in enumerate(describe_recipe(store.recipe or {})):
        print(f"{'' if number else 'recipe':12} {line}")
    try:
        annotations = load_annotations(path if path.is_dir() else path.parent)
    except InputError as error:
        print(f"annotations  not used: {error}")
    else:
        _describe_match(annotations, store, lengths)
    for video_id in tqdm(store.video_ids, desc="reading all values", unit="video", disable=None):
        store[video_id]
    print("values       all finite")


def _describe_match(annotations: Annotations, store: FeatureStore, lengths: dict[str, int]) -> None:
    """Print how many annotated videos have features, and how many lengths match the annotated durations."""
    for subset in dict.fromkeys(video.subset for video in annotations.videos.values()):
        videos = annotations.subset(subset)
        missing = [video.video_id for video in videos if video.video_id not in store]
        print(f"subset       {subset}: {len(videos) - len(missing)} of {len(videos)} videos have features")
        if missing:
            print(f"             missing: {_list_first(missing)}")
    rate = store.snippet_rate or SNIPPET_RATE  # shows whether the assumed rate is right, too
    gaps = duration_gaps(annotations.videos.values(), lengths, rate)
    far = sorted((video_id for video_id, gap in gaps.items() if gap > FAR_SNIPPETS), key=gaps.get, reverse=True)
    print(f"durations    {len(gaps) - len(far)} of {len(gaps)} match T / rate within {FAR_SNIPPETS} snippets")
    if far:
        print(f"             largest gaps, in snippets: {_list_first([f'{v} {gaps[v]:.1f}' for v in far])}")


def _list_first(names: Sequence[str]) -> str:
    return name_some(names, REPORT_NAMES)


def main() -> None:
    """Run `python -m utils.features`; with --check the exit status is 1 if there is an error."""
    parser = OneLineParser(prog="python -m utils.features", description=describe.__doc__.split("\n")[0])
    parser.add_argument("path", type=Path, help="dataset folder or feature file")
    parser.add_argument("--modalities", nargs="+", help="modalities to read (default: all)")
    check = parser.add_argument_group("report faults instead")
    check.add_argument("--check", action="store_true", help="report every fault; exit status 1 if one is an error")
    check.add_argument(
        "--dataset", metavar="NAME", help="dataset, or config file, with the expected subsets (default: guessed)"
    )
    check.add_argument(
        "--missing-features",
        choices=("error", "skip"),
        default="error",
        help="treatment of videos without features in training (default: error)",
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="file for all findings in full, as JSON")
    args = parser.parse_args()
    if not args.check:
        if args.dataset or args.json or args.missing_features != "error":
            parser.error("--dataset, --missing-features and --json need --check")
        describe(args.path, args.modalities)
        return
    result = check_dataset(args.path, args.modalities, args.dataset, args.missing_features)
    print(format_report(result))
    if args.json:
        content = {
            "features": result.store and result.store.describe(),
            "dataset": result.spec and result.spec.name,
            "counts": {severity: result.count(severity) for severity in SEVERITIES},
            "findings": [asdict(finding) for finding in result.findings],
        }
        write_json(args.json, content, indent=1)
    if result.count(ERROR):
        raise SystemExit(1)
