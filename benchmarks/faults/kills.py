"""A command in a process that is killed at a random moment, again and again."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from packer.train.run_state import read_state

from benchmarks.faults.scene import Job
from packer.cli import main
from packer.curvature import resume

OLD = b"the previous file"
KILLS_PER_RUN = 3  # of work that goes on; then it may finish


@dataclass(frozen=True)
class Baseline:
    """A run that nothing disturbed: seconds that it took, and what it wrote by output."""

    seconds: float
    wrote: dict[str, object]


@dataclass(frozen=True)
class Killed:
    """What was left. problem: in words, None where all is as it must be. leftovers: temporary
    files, which no process is left to remove. kills: that came before the end.
    """

    job: str
    problem: str | None
    leftovers: int
    kills: int


def import_late(folder: Path, jobs: Sequence[Job]) -> None:
    """Runs commands in this process: what they import only then, no copy has to import again."""
    before = Path.cwd()
    os.chdir(folder)
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for job in jobs:
            main(list(job.arguments), standalone_mode=False)
    os.chdir(before)


def start(folder: Path, arguments: Sequence[str]) -> int:
    """Begins a command in a copy of this process, which has everything imported; its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.chdir(folder)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        resume.SECONDS_BETWEEN = resume.COST_SHARE = 0.0001  # save whenever it is possible
        main(list(arguments), standalone_mode=False)
        os._exit(0)
    except BaseException:
        os._exit(1)


def undisturbed(folder: Path, job: Job) -> Baseline:
    """Raises SystemExit: the command does not work at all."""
    _clear(folder, job)
    began = time.monotonic()
    _, status = os.waitpid(start(folder, job.arguments), 0)
    if status:
        raise SystemExit(f"{job.name} failed undisturbed: packer {' '.join(job.arguments)}")
    seconds = time.monotonic() - began
    return Baseline(seconds, {name: job.compare(folder / name) for name in job.outputs})


def kill_once(folder: Path, job: Job, baseline: Baseline, rng: Random) -> Killed:
    """One run: killed, looked at, and where the work goes on, finished and compared."""
    _clear(folder, job)
    if job.goes_on is not None:
        return _kill_and_go_on(folder, job, baseline, rng)
    for name in job.outputs:
        (folder / name).write_bytes(OLD)
    ended = _killed(folder, job.arguments, rng.uniform(0, 1.1) * baseline.seconds)
    leftovers = _remove_leftovers(folder)
    return Killed(job.name, _problem(folder, job, baseline, ended), leftovers, int(not ended))


def _kill_and_go_on(folder: Path, job: Job, baseline: Baseline, rng: Random) -> Killed:
    kills, leftovers, arguments = 0, 0, job.arguments
    while kills < KILLS_PER_RUN:
        ended = _killed(folder, arguments, rng.uniform(0, 1.1) * baseline.seconds)
        leftovers += _remove_leftovers(folder)
        problem = _problem(folder, job, baseline, ended)
        if problem is not None or ended:
            return Killed(job.name, problem, leftovers, kills)
        kills, arguments = kills + 1, _next(folder, job)
    _, status = os.waitpid(start(folder, arguments), 0)
    if status:
        return Killed(job.name, f"it did not go on: packer {' '.join(arguments)}", leftovers, kills)
    return Killed(job.name, _problem(folder, job, baseline, True), leftovers, kills)


def _killed(folder: Path, arguments: Sequence[str], seconds: float) -> bool:
    """Whether it had ended before the signal came."""
    child = start(folder, arguments)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _next(folder: Path, job: Job) -> tuple[str, ...]:
    """How the work goes on: a run of which nothing was saved begins anew."""
    assert job.goes_on is not None
    if job.name == "train" and not (folder / "run" / "state.pt").exists():
        return job.arguments
    return job.goes_on


def _problem(folder: Path, job: Job, baseline: Baseline, ended: bool) -> str | None:
    """What is wrong with the outputs; after the end only the new ones are right."""
    for name in job.outputs:
        path = folder / name
        if not path.exists():
            if ended:
                return f"{name} is missing"
            continue
        if not ended and path.read_bytes() == OLD:
            continue
        try:
            found = job.compare(path)
        except Exception as error:
            return f"{name} is neither old nor whole: {error!r}"
        if found != baseline.wrote[name]:
            return f"{name} differs from that of a run that nothing disturbed"
    state = folder / "run" / "state.pt"
    if job.name == "train" and state.exists():
        read_state(state)  # raises where it is half a file
    return None


def _clear(folder: Path, job: Job) -> None:
    for path in [*(folder / name for name in job.outputs), *(folder / "run").glob("*")]:
        path.unlink(missing_ok=True)
    (folder / "curvature.safetensors.partial").unlink(missing_ok=True)
    if (folder / "run").exists():
        (folder / "run").rmdir()


def _remove_leftovers(folder: Path) -> int:
    found = [*folder.glob(".*.tmp"), *folder.glob("run/.*.tmp")]
    for path in found:
        path.unlink()
    return len(found)
