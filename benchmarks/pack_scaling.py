"""How planning and packing scale over cores: `python -m benchmarks.pack_scaling`.

A seeded checkpoint with seeded curvature is planned on a trellis, refined and packed on one core
and on two, each in a process of its own. Processor seconds inside the work that threads share are
the parallel part, all others the serial one; the machine may be busy with something else. Amdahl's
law gives the seconds on more cores from the run on one: serial + max(parallel / cores, the longest
tensor), stage by stage. It leaves out what threads lose to the lock of the interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.pack_speed import run

BYTES_PER_PARAMETER = 0.58
TINY = (1, 64)
CORES = (1, 2, 16, 64)
THREADS = 8  # packer.threads.MAX_SIDE_BY_SIDE; importing it would import torch


@dataclass(frozen=True)
class Stage:
    """Processor seconds of one stage: serial, in threads, and in the longest work of one; seconds
    by the clock.
    """

    name: str
    serial: float
    parallel: float
    longest: float
    clock: float

    def __add__(self, other: Stage) -> Stage:
        """Both, one after the other."""
        return Stage(
            self.name,
            self.serial + other.serial,
            self.parallel + other.parallel,
            max(self.longest, other.longest),
            self.clock + other.clock,
        )

    def on(self, cores: int) -> float:
        """Seconds by Amdahl's law on so many idle cores."""
        return self.serial + max(self.parallel / cores, self.longest)


class Stopwatch:
    """Divides the processor seconds of this process by stage, and into serial and parallel ones."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._work: list[float] = []
        self._processor, self._clock = 0.0, time.perf_counter()

    def lap(self, name: str) -> None:
        """End the stage of this name."""
        processor, clock = time.process_time(), time.perf_counter()
        parallel = sum(self._work)
        serial = processor - self._processor - parallel
        longest = max(self._work, default=0.0)
        self.stages.append(Stage(name, serial, parallel, longest, clock - self._clock))
        self._work.clear()
        self._processor, self._clock = processor, clock

    def watch(self, workers: Callable[..., Any]) -> Callable[..., Any]:
        """`packer.threads.workers`, with the work of each thread timed."""

        @contextlib.contextmanager
        def watched(*settings: Any, **named: Any) -> Iterator[Callable[..., Any]]:
            with workers(*settings, **named) as submit:
                yield lambda work, *given: submit(self._timed, work, *given)

        return watched

    def _timed(self, work: Callable[..., Any], *given: Any) -> Any:
        begun = time.thread_time()
        try:
            return work(*given)
        finally:
            self._work.append(time.thread_time() - begun)


def measured(checkpoint: str, curvature: str, output: str) -> list[Stage]:
    """The stages from the files of a checkpoint and its curvature to an artifact."""
    watch = Stopwatch()
    from packer import threads

    threads.workers = watch.watch(threads.workers)
    from packer import api
    from packer.curvature.file import read_curvature
    from packer.planning.account import Limits
    from packer.planning.damage_trials import Calibration
    from packer.planning.options import MeasureOptions
    from packer.planning.pipeline import plan_checkpoint

    watch.lap("imports")
    weights = api.load(checkpoint)
    known = read_curvature(curvature, weights)
    parameters = sum(info.numel() for info in weights.meta_tensors.values())
    watch.lap("reading")

    @contextlib.contextmanager
    def shown(stage: str) -> Iterator[Callable[[str, int, int], None]]:
        watch.lap("solving")
        yield lambda *_: None
        watch.lap(stage)

    limits = Limits(int(BYTES_PER_PARAMETER * parameters))
    options = MeasureOptions(trellis=True)
    plan = plan_checkpoint(weights, limits, options, Calibration(known), shown)
    watch.lap("solving")
    api.pack(weights, plan, curvature=known, out=output)
    watch.lap("packing")
    return watch.stages


def on_cores(cores: int, *arguments: str) -> list[Stage]:
    """`measured` in a process that may use so many cores, stages of one name together."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.pack_scaling", "--measure", *arguments],
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    found: dict[str, Stage] = {}
    for fields in json.loads(process.stdout):
        one = Stage(**fields)
        found[one.name] = one + found[one.name] if one.name in found else one
    return list(found.values())


def prepared(folder: str, layers: int, width: int) -> tuple[str, str, str]:
    """Paths of a seeded checkpoint, of its seeded curvature, and of the artifact to come."""
    names = ("checkpoint.safetensors", "curvature.safetensors", "model.pack")
    paths = [Path(folder) / f"{width}-{name}" for name in names]
    checkpoint, curvature, packed = (str(path) for path in paths)
    shape = ("--layers", str(layers), "--width", str(width))
    run("seeded", paths[0], "benchmarks.seeded", checkpoint, *shape)
    run("seeded curvature", paths[1], "benchmarks.seeded_curvature", checkpoint, curvature)
    return checkpoint, curvature, packed


def report(layers: int, width: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        on_cores(1, *prepared(folder, *TINY))  # compiles, for all that come
        files = prepared(folder, layers, width)
        parameters = Path(files[0]).stat().st_size / 4e6
        print(f"{parameters:.1f} M parameters, load {os.getloadavg()[0]:.1f}")
        both = {cores: on_cores(cores, *files) for cores in (1, 2)}
    print(
        f"\n{'processor seconds':18}{'serial':>9}{'parallel':>10}{'longest':>9}{'on 2 cores':>12}"
    )
    for one, two in zip(*both.values(), strict=True):
        busy = two.serial + two.parallel
        print(f"{one.name:18}{one.serial:9.1f}{one.parallel:10.1f}{one.longest:9.1f}{busy:12.1f}")
    print(f"\n{'cores':>5}{'by the clock':>14}{'by the model':>14}{'of 8 threads':>14}")
    for cores in CORES:
        clock = f"{sum(one.clock for one in both[cores]):.1f}" if cores in both else ""
        model, limited = (
            sum(one.on(count) for one in both[1]) for count in (cores, min(cores, THREADS))
        )
        print(f"{cores:5}{clock:>14}{model:14.1f}{limited:14.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--measure", nargs=3, metavar=("CKPT", "CURVATURE", "OUT"))
    options = parser.parse_args()
    if options.measure:
        print(json.dumps([asdict(stage) for stage in measured(*options.measure)]))
    else:
        report(options.layers, options.width)


if __name__ == "__main__":
    main()
