"""Match the names of two files: video ids and classes that differ in form only, and advice on how they differ."""

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.tables import GroundTruth, Table
from utils.errors import InputError

MOST_NAMES = 3  # listed in a message
SAMPLE = 50  # names that are searched for a common prefix or suffix
_BYTES_TEXT = re.compile(r"b(['\"])(.*)\1", re.DOTALL)  # what str() makes of bytes
_EXTENSION = re.compile(r"\.[A-Za-z]\w{1,4}")


@dataclass(frozen=True)
class NameRule:
    """Rule by which two names count as the same."""

    strip: tuple[str, ...] = ()  # texts removed from both ends of a name
    loose: bool = False  # ignore case, blanks, `-`, `_` and the form b'...'

    def key(self, name: str) -> str:
        """Return the form of a name that is compared."""
        if self.loose:
            name = _without_form(name)
        for text in self.strip:
            text = text.casefold() if self.loose else text
            name = name.removeprefix(text).removesuffix(text) or name
        return (re.sub(r"[\s_-]+", "", name) or name) if self.loose else name

    def options(self) -> str:
        """Return the options of the evaluation commands that apply this rule."""
        texts = [shlex.quote(text) for text in self.strip if not text.startswith("-")]
        words = ["--strip", *texts] if texts else []
        words += [f"--strip={shlex.quote(text)}" for text in self.strip if text.startswith("-")]
        return " ".join([*words, *(["--loose-names"] if self.loose else [])])


@dataclass(frozen=True)
class Difference:
    """Difference in form between names found and names expected."""

    found: str  # an example
    expected: str  # its counterpart
    rule: NameRule  # makes both the same
    share: float  # of the names found that have a counterpart by this rule

    def __str__(self) -> str:
        """Return the example, the kind of difference and the option that removes it."""
        kinds = ", ".join(_kinds(self.found, self.expected, self.rule))
        pair = f"found '{self.found:.80}', expected '{self.expected:.80}'"
        return f"{pair} ({kinds}); {self.rule.options()} makes them match"


def _without_form(name: str) -> str:
    return _without_bytes_text(name).strip().casefold()


def _without_bytes_text(name: str) -> str:
    text = _BYTES_TEXT.fullmatch(name.strip())
    return text[2] if text else name


def _kinds(found: str, expected: str, rule: NameRule) -> list[str]:
    """Return the kinds of difference between two names that a rule makes equal."""
    kinds, pair = [], [found, expected]
    plain = [_without_bytes_text(name) for name in pair]
    if rule.loose and plain != pair:
        kinds.append("text of bytes")
    pair = [name.strip() for name in plain]
    if rule.loose and plain != pair:
        kinds.append("blanks")
    ends = []
    for text in rule.strip:
        pattern = re.compile(re.escape(text), re.IGNORECASE)
        is_prefix = any(pattern.match(name) for name in pair)
        pair = [re.sub(f"^{pattern.pattern}|{pattern.pattern}$", "", name, flags=re.IGNORECASE) for name in pair]
        ends.append(
            f"{'prefix' if is_prefix else 'file extension' if _EXTENSION.fullmatch(text) else 'suffix'} '{text}'"
        )
    if rule.loose and pair[0] != pair[1]:
        is_case = pair[0].casefold() == pair[1].casefold()
        kinds.append("case" if is_case else "case, blanks, '-' or '_'")
    return kinds + ends


def find_difference(found: Sequence[str], expected: Sequence[str]) -> Difference | None:
    """Find the simplest rule by which most of the names found are among those expected; None if there is none."""
    best = None
    rules = [NameRule(loose=True)]
    for loose in (False, True):
        if texts := _common_ends(found, expected, loose):
            rules.append(NameRule(texts, loose))
    for rule in rules:
        index = {rule.key(name): name for name in expected}
        pairs = [(name, index[rule.key(name)]) for name in found if rule.key(name) in index]
        if pairs and (best is None or len(pairs) / len(found) > best.share):
            best = Difference(*pairs[0], rule, len(pairs) / len(found))
    return best if best is not None and best.share >= 0.5 else None


def _common_ends(found: Sequence[str], expected: Sequence[str], loose: bool) -> tuple[str, ...]:
    """Return the most frequent prefix and suffix by which a name found and a name expected differ."""
    if loose:
        found, expected = list(map(_without_form, found)), list(map(_without_form, expected))
    ends: Counter[tuple[str, str]] = Counter()
    for name in found[:SAMPLE]:
        pairs = []
        for other in expected:
            long, short = (name, other) if len(name) > len(other) else (other, name)
            before, core, after = long.partition(short) if short else ("", "", long)
            # A prefix ends, and a suffix begins, with a character such as `_` or `.`: v1 and v10 are two names.
            if core and before + after and not (before[-1:].isalnum() or after[:1].isalnum()):
                pairs.append((-len(core), before, after))
        if pairs:
            ends[min(pairs)[1:]] += 1
    texts = tuple(filter(None, ends.most_common(1)[0][0])) if ends else ()
    return () if any(re.search(r"[\s'\"]", text) for text in texts) else texts  # blanks and b'...' are form


def rename(detections: Table, truth: GroundTruth, rule: NameRule) -> Table:
    """Return the detections with the ground truth's name for every video and class that is the same by the rule.

    Raises:
        InputError: A name has several counterparts in the ground truth.
    """
    names = truth.segments
    return _renamed(
        detections,
        _counterparts(detections.videos, names.videos, rule, "video"),
        _counterparts(detections.classes, names.classes, rule, "class"),
    )


def _counterparts(found: Iterable[str], expected: Sequence[str], rule: NameRule, what: str) -> list[str]:
    index: dict[str, list[str]] = {}
    for name in expected:
        index.setdefault(rule.key(name), []).append(name)
    exact, names = set(expected), []
    for name in found:
        same = [name] if name in exact else index.get(rule.key(name), [name])
        if len(same) > 1:
            options = rule.options()
            raise InputError(f"{what} '{name}' of the detections: {options} makes it match {list_names(same)}")
        names.append(same[0])
    return names


def _renamed(table: Table, videos: Sequence[str], classes: Sequence[str]) -> Table:
    """Return the table with other names, several of which may be equal."""
    renamed = replace(table, videos=tuple(videos), classes=tuple(classes))
    return renamed.renumber(tuple(dict.fromkeys(videos)), tuple(dict.fromkeys(classes)))


def read_labels_as_indices(detections: Table, class_numbers: Mapping[int, str]) -> Table:
    """Return the detections with class names in place of class numbers.

    Args:
        detections: Detections whose labels are numbers.
        class_numbers: Class name of each number; see `eval.tables.GroundTruth`.

    Raises:
        InputError: The order of the classes is unknown, or a label is not among the numbers.
    """
    if not class_numbers:
        raise InputError(
            '--labels-are-indices: the ground truth states no order of its classes; add "classes": [...] to it, or '
            "a label_id to each annotation"
        )
    names = {str(number): name for number, name in class_numbers.items()}
    if unknown := [label for label in detections.classes if label not in names]:
        numbers = f"{min(class_numbers)} to {max(class_numbers)}"
        raise InputError(f"--labels-are-indices: expected class numbers {numbers}, got {list_names(unknown)}")
    return _renamed(detections, detections.videos, [names[label] for label in detections.classes])


def require_matches(detections: Table, truth: GroundTruth, where: str = "detections") -> None:
    """Raise an InputError if no detection has a video, or none has a class, of the ground truth.

    The message names the nearest names, how they differ, and the option that removes the difference.
    """
    known = truth.segments
    videos = used_names(detections.videos, detections.video), known.videos
    classes = used_names(detections.classes, detections.label), known.classes
    for what, (found, expected) in {"videos": videos, "classes": classes}.items():
        if len(known) and found and not set(found) & set(expected):
            problem = f"{where}: none of the {len(found)} {what} is in the ground truth"
            raise InputError(f"{problem}: {_advice(what, found, expected, truth)}")


def _advice(what: str, found: Sequence[str], expected: Sequence[str], truth: GroundTruth) -> str:
    """Describe how the names found differ from those expected, and the option to use."""
    if what == "videos" and (subsets := {truth.annotated[name].subset for name in found if name in truth.annotated}):
        return f"found {list_names(found)} of another subset; choose --subset {shlex.quote(sorted(subsets)[0])}"
    if (difference := find_difference(found, expected)) is not None:
        return str(difference)
    nearest = difflib.get_close_matches(found[0], expected[:1000], n=1, cutoff=0.0)
    expected = list(dict.fromkeys([*nearest, *expected]))
    text = f"found {list_names(found)}; expected {list_names(expected) or 'none'}"
    if what == "classes" and all(re.fullmatch(r"[0-9]{1,9}", name) for name in found):
        if max(map(int, found)) <= max(truth.class_numbers, default=len(expected) - 1):
            return f"{text}; --labels-are-indices reads class numbers as indices"
        return f"{text}; the class numbers reach {max(map(int, found))}, for {len(expected)} classes"
    return text


def used_names(names: Sequence[str], numbers: np.ndarray) -> list[str]:
    """Return the names that rows of a table use, in the order of the table's list."""
    return [str(names[number]) for number in np.flatnonzero(np.bincount(numbers[numbers >= 0]))]


def list_names(names: Sequence[str]) -> str:
    """Return the first names in quotes and the number of further ones, for messages."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(f"'{name:.80}'" for name in names[:MOST_NAMES]) + more
