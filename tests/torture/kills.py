"""Trainings that are killed at random moments until they end, and must end as the one that nobody disturbed.

Each run has a folder of its own and a few attempts on it, all with --resume. What disturbs an attempt:

* a signal, SIGKILL, or SIGTERM or Ctrl-C: at a moment drawn uniformly from the time that a whole training takes; or
  from that of its steps alone; or from a uniform moment on as soon as a file is half written;
* before it, one byte of the newest state (last.pt) changed, that state removed, or half-written files left behind;
* beside it, a second process on the same folder;
* a disk that is full: no file may grow beyond a random size.

An end is compared bit for bit: weights, optimizer, batches, random states and what was chosen, in last.pt, best.pt and
selected.pt; log.jsonl but for its snippets a second; metrics.json, detections.json and outputs.h5.
"""

import re
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

from eval.html_report.finished_run import read_runs
from eval.outputs import open_outputs
from tests.torture.attempt import Attempt
from tests.torture.compare import compare
from tests.torture.progress import Progress
from tests.torture.setting import ITERATIONS, Budget, Setting
from utils.checkpoint import STATES, read_checkpoint
from utils.errors import InputError
from utils.formats.files import PARTIAL, read_json, read_json_lines

PART = "kills"
MAX_KILLS = 8  # of one run; the attempt after them is let through
SIGNALS = {signal.SIGKILL: 0.7, signal.SIGTERM: 0.15, signal.SIGINT: 0.15}
AIMS = {"any moment": 0.5, "steps": 0.3, "write": 0.2}
MISCHIEF = {None: 0.5, "flip": 0.14, "remove": 0.08, "leftovers": 0.08, "rival": 0.1, "full disk": 0.1}
DISKS = ((200, 2**12), (2**12, 2**15), (2**15, 2**20), (2**20, 2**25))  # bytes; last.pt has about 19 MB
BAR = b"training:"  # printed as soon as a training takes steps
TIMEOUT = 600.0  # seconds
STOPPED = "run the same command with --resume to continue"

COUNTS = {
    "runs begun": None,
    "runs finished": "ended, and compared with the training that nobody disturbed",
    "attempts": "processes that trained, or tried to",
    "kills": "all signals that reached a training",
    "SIGKILL": None,
    "  in the middle of a write": "a half-written file was left, and swept away later",
    "SIGTERM": None,
    "SIGINT": None,
    "  said how to resume": "SIGTERM or SIGINT while it trained: one line, exit status 143 or 130",
    "  before or after the steps": "SIGTERM or SIGINT while nothing was trained: ended by the signal, or 'interrupted'",
    "newest state damaged": "one byte of last.pt changed between two attempts",
    "  noticed": "the state before was used, in one line; the rest changed nothing that is read",
    "newest state removed": None,
    "half-written files left": None,
    "second process refused": "in one line; the first went on",
    "disk full": "attempts under a limit on the size of files",
    "  said in one line": "the limit was reached: one line, the last good state whole",
}


def run_kills(setting: Setting, budget: Budget) -> Counter:
    """As many runs as the budget has time or kills for; the last one is let through to its end."""
    counts = Counter(dict.fromkeys(COUNTS, 0))
    expected = outcome(setting.reference)
    clock = _whole_training(setting, expected, counts)
    with Progress(setting, PART, budget) as bar:
        for number in count(budget.first):
            if not budget.allows(counts["kills"]):
                break
            _Run(setting, budget, number, clock, expected, counts).torment()
            bar.update(counts["kills"])
    return counts


def outcome(run: Path) -> dict:
    """What a training ended with, but for its clock and where it was."""
    (read,) = read_runs([run])  # holds its files to their checksums
    with open_outputs(read.outputs) as outputs:
        curves = {video_id: outputs[video_id] for video_id in outputs.video_ids}
    checkpoints = {name: read_checkpoint(run / f"checkpoints/{name}.pt") for name in ("last", "best", "selected")}
    for checkpoint in checkpoints.values():
        del checkpoint["options"]["run_dir"]
    log = read_json_lines(run / "log.jsonl")
    for record in log:
        del record["snippets_per_second"]
    files = {name: read_json(run / name) for name in ("metrics.json", "detections.json")}
    return {"checkpoints": checkpoints, "log": log, "outputs": curves, **files}


@dataclass(frozen=True)
class Clock:
    """Seconds of a training that nobody disturbs."""

    whole: float
    steps: float  # from its first step to its last one


def _whole_training(setting: Setting, expected: dict, counts: Counter) -> Clock:
    """How long a training takes in a forked process, where it must be the one of `python main.py`."""
    folder = setting.root / "whole"
    attempt = Attempt(setting.argv(folder))
    attempt.runs(TIMEOUT, until=lambda: BAR in attempt.output)
    first = attempt.seconds
    attempt.runs(TIMEOUT, until=lambda: f"iteration {ITERATIONS}/{ITERATIONS},".encode() in attempt.output)
    steps = attempt.seconds - first
    attempt.runs(TIMEOUT)
    clock = Clock(attempt.seconds, steps)
    counts["runs begun"] += 1
    counts["attempts"] += 1
    if attempt.end(1) != 0 or compare(expected, outcome(folder)):
        setting.fail("differing resume", PART, -1, "a forked training", attempt.text[-2000:], folder)
    else:
        counts["runs finished"] += 1
    return clock


@dataclass(frozen=True)
class Plan:
    """What disturbs an attempt."""

    number: int  # of the signal
    aim: str
    moment: float  # seconds after the beginning, or after the first step
    mischief: str | None
    disk: int | None  # bytes that a file may have

    @classmethod
    def drawn(cls, random: Random, clock: Clock) -> "Plan":
        number, aim, mischief = (random.choices(list(d), list(d.values()))[0] for d in (SIGNALS, AIMS, MISCHIEF))
        moment = random.uniform(0, clock.steps if aim == "steps" else clock.whole)
        disk = int(random.uniform(*random.choice(DISKS))) if mischief == "full disk" else None
        return cls(number, aim, moment, mischief, disk)


class _Run:
    """One run folder and what is done to it."""

    def __init__(self, setting: Setting, budget: Budget, number: int, clock: Clock, expected: dict, counts: Counter):
        self._setting, self._budget, self._number, self._clock = setting, budget, number, clock
        self._expected, self._counts = expected, counts
        self._random = Random(f"{setting.seed}/kills/{number}")
        self.folder = setting.root / "runs" / str(number)
        self._checkpoints = self.folder / "checkpoints"
        self._kills, self._must_notice, self._story = 0, False, []

    def torment(self) -> None:
        """Attempts until the run ends, or cannot be continued."""
        self._counts["runs begun"] += 1
        while not self._attempt():
            pass
        if not any(failure.number == self._number and failure.part == PART for failure in self._setting.failures):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _attempt(self) -> bool:
        """One process; whether the run is over, well or not."""
        plan = Plan.drawn(self._random, self._clock)
        if self._kills >= MAX_KILLS or not self._budget.allows(self._counts["kills"]):
            plan = None  # let through
        if plan:
            self._prepare(plan.mischief)
        attempt = Attempt(self._setting.argv(self.folder), plan and plan.disk)
        self._counts["attempts"] += 1
        sent = self._disturb(attempt, plan) if plan else None
        status = attempt.end(60 + 20 * self._clock.whole)
        self._story.append(f"status {status}")
        return self._judge(attempt, status, sent, plan.disk if plan else None)

    def _prepare(self, mischief: str | None) -> None:
        """Mischief before an attempt, where there is something to do it to."""
        last, previous = (self._checkpoints / name for name in STATES)
        if mischief == "leftovers" and self._checkpoints.is_dir():
            for path in (last, self.folder / "metrics.json", self.folder / "options.yaml"):
                path.with_name(f"{path.name}{PARTIAL}1").write_bytes(b"half of the n")
        elif mischief == "flip" and last.exists() and previous.exists():
            content = bytearray(last.read_bytes())
            content[self._random.randrange(len(content))] ^= self._random.randrange(1, 256)
            last.write_bytes(content)
            self._must_notice = self._must_notice or not _is_whole(last)
        elif mischief == "remove" and last.exists() and previous.exists():
            last.unlink()
            self._must_notice = False
        else:
            return
        names = {"leftovers": "half-written files left", "flip": "newest state damaged"}
        self._counts[names.get(mischief, "newest state removed")] += 1
        self._story.append(mischief)

    def _rival(self, attempt: Attempt) -> None:
        """A second process on the folder, as soon as the first one has it."""
        if not attempt.runs(10 * self._clock.whole, until=lambda: bool(attempt.output)):
            return
        rival = Attempt(self._setting.argv(self.folder))
        status = rival.end(10 + 10 * self._clock.whole)
        if not attempt.runs(0) and status == 0:
            return  # the first had ended
        self._story.append("rival")
        self._traceback(rival)
        errors = rival.lines("error: ")
        if status == 2 and len(errors) == 1 and "is being trained by another process" in errors[0]:
            self._counts["second process refused"] += 1
        else:
            self._fail("other", f"the second process on a folder ended with status {status}", rival)

    def _disturb(self, attempt: Attempt, plan: Plan) -> int | None:
        """A second process if there is to be one, and a signal; None where the training ended before."""
        if plan.mischief == "rival":
            self._rival(attempt)
        if plan.aim == "steps":
            there = attempt.runs(TIMEOUT, until=lambda: BAR in attempt.output) and attempt.runs(plan.moment)
        else:
            there = attempt.runs(max(0.0, plan.moment - attempt.seconds))
        if there and plan.aim == "write":
            there = attempt.runs(TIMEOUT, until=lambda: bool(self._partials()))
        if not there:
            return None
        attempt.send(plan.number)
        self._story.append(f"{signal.Signals(plan.number).name} after {attempt.seconds:.2f} s")
        return plan.number

    def _judge(self, attempt: Attempt, status: int | None, sent: int | None, disk: int | None) -> bool:
        """Count what an attempt ended with; whether the run is over."""
        self._traceback(attempt)
        if attempt.lines("resuming from"):
            self._counts["  noticed"] += self._must_notice
            self._must_notice = False
        if disk is not None:
            self._counts["disk full"] += 1
        if status == 0:
            return self._finished(attempt)
        if status is None:
            return self._fail("hang", "the training did not end", attempt)
        if sent is not None and self._killed(attempt, sent, status):
            return False
        if disk is not None and status == 2:
            return self._disk_was_full(attempt)
        return self._fail("lost run", f"an attempt ended with status {status}", attempt)

    def _killed(self, attempt: Attempt, sent: int, status: int) -> bool:
        """Count a kill if it is one; whether the attempt ended as that signal ends it."""
        name, said = signal.Signals(sent).name, attempt.lines(STOPPED)
        resumable = status == 128 + sent and len(said) == 1
        outside = status == -sent if sent == signal.SIGTERM else status == 130 and bool(attempt.lines("interrupted"))
        if sent == signal.SIGKILL and status == -sent:
            self._counts["  in the middle of a write"] += bool(self._partials())
        elif sent != signal.SIGKILL and (resumable or outside):
            self._counts["  said how to resume" if resumable else "  before or after the steps"] += 1
        else:
            return False
        self._counts[name] += 1
        self._counts["kills"] += 1
        self._kills += 1
        return True

    def _disk_was_full(self, attempt: Attempt) -> bool:
        """One line, and every state that is there whole, but for one that was damaged on purpose."""
        errors = attempt.lines("error: ")
        damaged = [name for name in STATES if (self._checkpoints / name).exists() and not self._holds(name)]
        if len(errors) != 1 or not re.search("cannot be|File too large", errors[0]):
            return self._fail("other", "a full disk was not said in one line", attempt)
        if damaged and not (damaged == ["last.pt"] and self._must_notice):
            return self._fail("lost run", f"a full disk damaged {damaged}", attempt)
        self._counts["  said in one line"] += 1
        return False

    def _finished(self, attempt: Attempt) -> bool:
        if self._must_notice:
            return self._fail("differing resume", "a damaged state was not noticed", attempt)
        if partials := self._partials():
            return self._fail("other", f"half-written files stay: {partials}", attempt)
        try:
            difference = compare(self._expected, outcome(self.folder))
        except InputError as error:
            return self._fail("lost run", f"finished, and cannot be read: {error}", attempt)
        if difference:
            return self._fail("differing resume", f"{difference.kind}: {difference.leaves} values differ", attempt)
        self._counts["runs finished"] += 1
        return True

    def _traceback(self, attempt: Attempt) -> None:
        if attempt.lines("Traceback") or attempt.lines("Fatal Python error"):
            self._fail("traceback", "a traceback was printed", attempt)

    def _fail(self, kind: str, what: str, attempt: Attempt) -> bool:
        told = "; ".join(self._story)
        self._setting.fail(kind, PART, self._number, f"{what} ({told})", attempt.text[-4000:], self.folder)
        return True

    def _holds(self, name: str) -> bool:
        return _is_whole(self._checkpoints / name)

    def _partials(self) -> list[str]:
        return [path.name for folder in (self.folder, self._checkpoints) for path in folder.glob(f"*{PARTIAL}*")]


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True
