"""Jobs of a SLURM cluster, through submitit."""

from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from utils.errors import InputError


def slurm_parameter(text: str) -> tuple[str, str]:
    """Split NAME=VALUE, a parameter of submitit's executor; for argparse."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentTypeError(f"expected NAME=VALUE, got '{text}'")
    return name, value


def run_jobs(
    commands: Sequence[Sequence[str]], name: str, folder: Path, parameters: Mapping[str, str], advice: str
) -> Iterator[tuple[int, str | None]]:
    """Submit commands as one job array, and yield each one's number and error as it ends.

    Args:
        commands: Words of each command.
        name: Name of the job array.
        folder: Folder for submitit's files. Every node must see it.
        parameters: Parameters of submitit's AutoExecutor, for example slurm_partition=gpu. `cluster` selects
            submitit's executor ("slurm", "local", or "debug").
        advice: Message after Ctrl-C, which does not stop the jobs.

    Raises:
        InputError: Submitit is not installed, finds no cluster, or does not know a parameter.
    """
    try:
        import submitit
        from submitit.helpers import CommandFunction, as_completed
    except ImportError:
        raise InputError("--slurm needs submitit: pip install submitit") from None
    values = {name: int(value) if value.isdigit() else value for name, value in parameters.items()}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=values.pop("cluster", "slurm"))
        executor.update_parameters(name=name, **values)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"--slurm: {' '.join(str(error).split())}") from None
    with executor.batch():
        jobs = [executor.submit(CommandFunction(list(command))) for command in commands]
    print(f"submitted {len(jobs)} jobs as an array, first id {jobs[0].job_id}; output in {folder}", flush=True)
    numbers = {job.job_id: number for number, job in enumerate(jobs)}
    try:
        for job in as_completed(jobs, poll_frequency=1):
            error = job.exception()
            yield numbers[job.job_id], error and str(error)
    except KeyboardInterrupt:
        raise SystemExit(advice) from None
