"""Run of main.py on its machine: run folder, log, distributed processes, stop signals, CPU speedups."""

from utils.run.folder import RunFolder
from utils.run.log import RunLog
from utils.run.ranks import SINGLE_PROCESS, Ranks, join_ranks
from utils.run.stop import StopSignal

__all__ = ["SINGLE_PROCESS", "Ranks", "RunFolder", "RunLog", "StopSignal", "join_ranks"]
