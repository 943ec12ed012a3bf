"""Commands killed with kill -9 at random moments: `python -m benchmarks.faults --runs 100`.

After each kill every output is as it stood before, or new and whole. Calibration and training are
killed up to three times and then finished: what they write is what a run writes that nothing
disturbed, byte for byte but for the seconds that it took. Then every command meets a full disk, a
folder where it may not write, too little memory, another checkpoint than the planned one, and
itself: each ends in one line of error and leaves nothing behind. Exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import torch

from benchmarks.faults.harsh import Fault, every_other_condition, inputs, little_memory
from benchmarks.faults.kills import Killed, import_late, kill_once, undisturbed
from benchmarks.faults.scene import Job, set_up

Say = Callable[[str], None]
NAMES = ("measure", "pack", "fix", "calibrate", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="in all, spread over the commands")
    parser.add_argument("--command", action="append", choices=NAMES, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--harsh", action="store_true", help="all but the kills")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the commands run in copies of this process
    say = _to_nobody if options.json else print
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "scene"
        folder.mkdir()
        Path(place).chmod(0o755)
        jobs = [job for job in set_up(folder) if job.name in (options.command or NAMES)]
        inputs(folder)
        # Memory first: what commands import late may find no room for itself either.
        faults = [] if options.command else _harsh(little_memory(folder), say)
        import_late(folder, jobs)
        kills = [] if options.harsh else _kills(folder, jobs, options, say)
        faults += [] if options.command else _harsh(every_other_condition(folder), say)
    failures = [*(one for one in kills if one.problem), *(one for one in faults if one.problem)]
    if options.json:
        runs = {"runs": len(kills), "kills": sum(one.kills for one in kills)}
        report = {**runs, "faults": [vars(one) for one in faults]}
        print(json.dumps({**report, "failures": [vars(one) for one in failures]}))
    for one in failures:
        print(f"FAILED {one}", file=sys.stderr)
    sys.exit(1 if failures else 0)


def _to_nobody(_: str) -> None:
    """Where the table goes when one object is asked for."""


def _kills(folder: Path, jobs: list[Job], options: argparse.Namespace, say: Say) -> list[Killed]:
    found: list[Killed] = []
    for job in jobs:
        of_it = _many(folder, job, -(-options.runs // len(jobs)), options.seed)
        say(_spelled(job.name, of_it))
        found += of_it
    return found


def _harsh(conditions: Iterable[Fault], say: Say) -> list[Fault]:
    found = list(conditions)
    for condition in dict.fromkeys(one.condition for one in found):
        of_it = [one for one in found if one.condition == condition]
        bad = sum(one.problem is not None for one in of_it)
        say(f"{condition}: {len(of_it)} commands, {bad} problems")
        for one in of_it:
            say(f"  {one.command}: {one.message.rpartition('Error: ')[2] or 'done'}")
    return found


def _many(folder: Path, job: Job, runs: int, seed: int) -> list[Killed]:
    baseline = undisturbed(folder, job)
    rng = Random(f"{job.name} {seed}")
    return [kill_once(folder, job, baseline, rng) for _ in range(runs)]


def _spelled(name: str, found: list[Killed]) -> str:
    kills, leftovers = sum(one.kills for one in found), sum(one.leftovers for one in found)
    bad = sum(one.problem is not None for one in found)
    return (
        f"{name}: {len(found)} runs, {kills} kills before the end, {bad} problems; "
        f"{leftovers} temporary files left by kills"
    )


if __name__ == "__main__":
    main()
