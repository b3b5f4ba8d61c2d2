"""Trainings killed at random moments until they end, which must end as the undisturbed one does.

Each run has a folder of its own and a few attempts on it, all with --resume. An attempt is disturbed by

* a signal, SIGKILL, SIGTERM or Ctrl-C: at a uniformly drawn moment of a whole training or of its steps, or as soon as a
  file is partly written after such a moment;
* damage before it: one byte of the newest state (last.pt) changed, that state removed, or partial files left behind;
* a second process on the same folder;
* a full disk: no file may grow beyond a random size.

Ends are compared bit for bit: weights, optimizer, batches, random states and choices in last.pt, best.pt and
selected.pt; log.jsonl without its speed; metrics.json, detections.json and outputs.h5.
"""

import re
import shutil
import signal
from collections import Counter
from itertools import count
from pathlib import Path
from random import Random

from tqdm import tqdm

from eval.html_report.finished_run import read_runs
from eval.outputs import open_outputs
from tests.torture.compare import compare
from tests.torture.training_process import TrainingProcess
from tests.torture.workspace import ITERATIONS, Budget, Workspace
from utils.checkpoint import STATES, read_checkpoint
from utils.errors import InputError
from utils.formats.files import PARTIAL, read_json, read_json_lines

PART = "kills"
MAX_KILLS = 8  # per run; the attempt after them is not disturbed
SIGNALS = {signal.SIGKILL: 0.7, signal.SIGTERM: 0.15, signal.SIGINT: 0.15}
AIMS = {"any moment": 0.5, "steps": 0.3, "write": 0.2}
FAULTS = {None: 0.5, "flip": 0.14, "remove": 0.08, "partial files": 0.08, "second process": 0.1, "full disk": 0.1}
DISKS = ((200, 2**12), (2**12, 2**15), (2**15, 2**20), (2**20, 2**25))  # bytes; last.pt has about 19 MB
TIMEOUT = 600.0  # seconds
# Words of a training's messages.
RESUMABLE, RESUMING, REFUSED = "--resume continues the run", "resuming from", "by another process"

COUNTS = {
    "runs started": None,
    "runs finished": "compared with the undisturbed training",
    "attempts": "processes that trained or tried to",
    "kills": "signals that reached a training",
    "SIGKILL": None,
    "  during a write": "a partial file was left, and removed later",
    "SIGTERM": None,
    "SIGINT": None,
    "  reported how to resume": "one line, exit status 143 or 130",
    "  before or after the steps": "ended by the signal, or 'interrupted'",
    "  ignored by Python": "Ctrl-C during the callback of a weak reference; the training goes on",
    "newest state damaged": "one byte of last.pt changed between two attempts",
    "  noticed": "the previous state was used; the rest changed nothing that is read",
    "newest state removed": None,
    "partial files left": None,
    "second process refused": "in one line, while the first one went on",
    "disk full": "attempts with a limit on the size of files",
    "  reported": "the limit was reached: one line, and the last good state is whole",
}


def run_kills(workspace: Workspace, budget: Budget) -> Counter:
    """Disturb runs until the budget is spent; the last run goes on to its end."""
    counts = Counter(dict.fromkeys(COUNTS, 0))
    expected = outcome(workspace.reference)
    seconds = _undisturbed_training(workspace, expected, counts)
    with tqdm(desc=PART, total=budget.limit, disable=None) as bar:
        for number in count(budget.first):
            if not budget.allows(counts["kills"]):
                break
            _Run(workspace, budget, number, seconds, expected, counts).finish()
            bar.set_postfix(failures=len(workspace.failures), refresh=False)
            bar.update(counts["kills"] - bar.n)
    return counts


def outcome(run_dir: Path) -> dict:
    """Return everything that a training ends with, without its clock and its path."""
    (run,) = read_runs([run_dir])  # checks the checksums of its files
    with open_outputs(run.outputs) as outputs:
        curves = {video_id: outputs[video_id] for video_id in outputs.video_ids}
    checkpoints = {name: read_checkpoint(run_dir / f"checkpoints/{name}.pt") for name in ("last", "best", "selected")}
    for checkpoint in checkpoints.values():
        del checkpoint["options"]["run_dir"]
    log = read_json_lines(run_dir / "log.jsonl")
    for record in log:
        del record["snippets_per_second"]
    files = {name: read_json(run_dir / name) for name in ("metrics.json", "detections.json")}
    return {"checkpoints": checkpoints, "log": log, "outputs": curves, **files}


def _undisturbed_training(workspace: Workspace, expected: dict, counts: Counter) -> tuple[float, float]:
    """Train in a forked process as `python main.py` does; return the seconds of all and of the steps alone."""
    folder = workspace.root / "undisturbed"
    process = TrainingProcess(workspace.argv(folder))
    process.runs_for(TIMEOUT, until=lambda: process.steps > 0)
    first = process.seconds
    process.runs_for(TIMEOUT, until=lambda: process.steps == ITERATIONS)
    steps = process.seconds - first
    process.runs_for(TIMEOUT)
    whole = process.seconds
    counts.update(["runs started", "attempts"])
    if process.wait(1) != 0 or compare(expected, outcome(folder)):
        workspace.fail("differing resume", PART, -1, "a forked training", process.text[-2000:], folder)
    else:
        counts["runs finished"] += 1
    return whole, steps


class _Run:
    """One run folder and the attempts on it."""

    def __init__(
        self,
        workspace: Workspace,
        budget: Budget,
        number: int,
        seconds: tuple[float, float],
        expected: dict,
        counts: Counter,
    ):
        self._workspace, self._budget, self._number = workspace, budget, number
        (self._whole, self._steps), self._expected, self._counts = seconds, expected, counts
        self._random = Random(f"{workspace.seed}/kills/{number}")
        self._folder = workspace.root / "runs" / str(number)
        self._checkpoints = self._folder / "checkpoints"
        self._kills, self._must_notice, self._story = 0, False, []

    def finish(self) -> None:
        """Make attempts until the run ends or cannot continue."""
        before = len(self._workspace.failures)
        self._counts["runs started"] += 1
        while not self._attempt():
            pass
        if len(self._workspace.failures) == before:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _attempt(self) -> bool:
        """Run one process; return whether the run is over."""
        fault, max_file_bytes, sent = self._draw(FAULTS), None, None
        disturbed = self._kills < MAX_KILLS and self._budget.allows(self._counts["kills"])
        if disturbed:
            self._damage(fault)
            if fault == "full disk":
                max_file_bytes = int(self._random.uniform(*self._random.choice(DISKS)))
        process = TrainingProcess(self._workspace.argv(self._folder), max_file_bytes)
        self._counts["attempts"] += 1
        if disturbed:
            if fault == "second process":
                self._start_second(process)
            sent = self._send_signal(process)
        status = process.wait(60 + 20 * self._whole)
        self._story.append(f"status {status}")
        return self._judge(process, status, sent, max_file_bytes is not None)

    def _draw(self, weights: dict) -> object:
        return self._random.choices([*weights], [*weights.values()])[0]

    def _damage(self, fault: str | None) -> None:
        """Damage the files of the last attempt, where they exist."""
        last, previous = (self._checkpoints / name for name in STATES)
        both = last.exists() and previous.exists()
        if fault == "partial files" and self._checkpoints.is_dir():
            for path in (last, self._folder / "metrics.json", self._folder / "options.yaml"):
                path.with_name(f"{path.name}{PARTIAL}1").write_bytes(b"half of the n")
            self._counts["partial files left"] += 1
        elif fault == "flip" and both:
            content = bytearray(last.read_bytes())
            content[self._random.randrange(len(content))] ^= self._random.randrange(1, 256)
            last.write_bytes(content)
            self._must_notice = self._must_notice or not _is_whole(last)
            self._counts["newest state damaged"] += 1
        elif fault == "remove" and both:
            last.unlink()
            self._must_notice = False
            self._counts["newest state removed"] += 1
        else:
            return
        self._story.append(fault)

    def _send_signal(self, process: TrainingProcess) -> int | None:
        """Send a signal at a random moment; return None if the training ended before."""
        number, aim = self._draw(SIGNALS), self._draw(AIMS)
        moment = self._random.uniform(0, self._steps if aim == "steps" else self._whole)
        if aim == "steps":
            runs = process.runs_for(TIMEOUT, until=lambda: process.steps > 0) and process.runs_for(moment)
        else:
            runs = process.runs_for(max(0.0, moment - process.seconds))
        if runs and aim == "write":
            runs = process.runs_for(TIMEOUT, until=lambda: bool(self._partials()))
        if not runs:
            return None
        process.send(number)
        self._story.append(f"{signal.Signals(number).name} after {process.seconds:.2f} s")
        return number

    def _start_second(self, first: TrainingProcess) -> None:
        """Start a second process on the folder as soon as the first one prints."""
        if not first.runs_for(TIMEOUT, until=lambda: bool(first.output)):
            return
        second = TrainingProcess(self._workspace.argv(self._folder))
        status = second.wait(60 + 20 * self._whole)
        if status == 0 and not first.runs_for(0):
            return  # the first one was over
        self._story.append("second process")
        self._check_traceback(second)
        errors = second.lines("error: ")
        if status == 2 and len(errors) == 1 and REFUSED in errors[0]:
            self._counts["second process refused"] += 1
        else:
            self._fail("other", f"the second process on a folder ended with status {status}", second)

    def _judge(self, process: TrainingProcess, status: int | None, sent: int | None, full: bool) -> bool:
        """Count the end of an attempt; return whether the run is over."""
        self._check_traceback(process)
        if process.lines(RESUMING):
            self._counts["  noticed"] += self._must_notice
            self._must_notice = False
        self._counts["disk full"] += full
        if status == 0:
            return self._judge_finished(process)
        if status is None:
            return self._fail("hang", "the training did not end", process)
        if sent is not None and self._is_kill(process, sent, status):
            return False
        if full and status == 2:
            return self._judge_full_disk(process)
        return self._fail("lost run", f"an attempt ended with status {status}", process)

    def _is_kill(self, process: TrainingProcess, sent: int, status: int) -> bool:
        """Count a kill; return False if the attempt did not end as this signal ends one."""
        resumable = status == 128 + sent and len(process.lines(RESUMABLE)) == 1
        outside = status == -sent if sent == signal.SIGTERM else status == 130 and bool(process.lines("interrupted"))
        if sent == signal.SIGKILL and status == -sent:
            self._counts["  during a write"] += bool(self._partials())
        elif sent != signal.SIGKILL and (resumable or outside):
            self._counts["  reported how to resume" if resumable else "  before or after the steps"] += 1
        else:
            return False
        self._counts.update([signal.Signals(sent).name, "kills"])
        self._kills += 1
        return True

    def _judge_full_disk(self, process: TrainingProcess) -> bool:
        """Expect one line, and whole states except one that was damaged on purpose."""
        errors = process.lines("error: ")
        paths = [self._checkpoints / name for name in STATES]
        damaged = [path.name for path in paths if path.exists() and not _is_whole(path)]
        if len(errors) != 1 or not re.search("cannot|File too large", errors[0]):
            return self._fail("other", "a full disk was not reported in one line", process)
        if damaged and not (damaged == ["last.pt"] and self._must_notice):
            return self._fail("lost run", f"a full disk damaged {damaged}", process)
        self._counts["  reported"] += 1
        return False

    def _judge_finished(self, process: TrainingProcess) -> bool:
        if self._must_notice:
            return self._fail("differing resume", "a damaged state was not noticed", process)
        if partials := self._partials():
            return self._fail("other", f"partial files are left: {partials}", process)
        try:
            difference = compare(self._expected, outcome(self._folder))
        except InputError as error:
            return self._fail("lost run", f"finished, and cannot be read: {error}", process)
        if difference:
            return self._fail("differing resume", str(difference), process)
        self._counts["runs finished"] += 1
        return True

    def _check_traceback(self, process: TrainingProcess) -> None:
        ignored = r"Exception ignored in: [^\n]*\nTraceback[^\n]*\n(?:\s[^\n]*\n|\n)*KeyboardInterrupt"
        text, number = re.subn(ignored, "", process.text)
        self._counts["  ignored by Python"] += number
        if "Traceback" in text or "Fatal Python error" in text:
            self._fail("traceback", "a traceback was printed", process)

    def _fail(self, kind: str, what: str, process: TrainingProcess) -> bool:
        story = "; ".join(self._story)
        self._workspace.fail(kind, PART, self._number, f"{what} ({story})", process.text[-4000:], self._folder)
        return True

    def _partials(self) -> list[str]:
        return [path.name for folder in (self._folder, self._checkpoints) for path in folder.glob(f"*{PARTIAL}*")]


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True
