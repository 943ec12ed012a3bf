"""Time and memory from checkpoint to artifact and back: `python -m benchmarks.pack_speed`.

Every step runs as a process of its own on the seeded 27 M-parameter checkpoint, so that its time
is what a user waits and its memory what the machine needs. Beside it in the same run: the contest's
own pipeline, written anew (int6 with the largest weight of each row, torch.save, zstd level 22).
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One step: wall-clock seconds, peak memory of the process, size of what it wrote, and seconds
    of all its threads on a processor.
    """

    name: str
    seconds: float
    peak_bytes: int
    output_bytes: int
    cpu_seconds: float


def run(name: str, output: Path, *command: str, checkout: Path | None = None) -> Run:
    """checkout: run its code, in the folder of the output.

    Raises SystemExit with the step's own message when it fails.
    """
    started = time.monotonic()
    where, environment = None, None
    if checkout is not None:
        where, environment = output.parent, {**os.environ, "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, cwd=where, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{name} failed: {' '.join(command)}")
    seconds = time.monotonic() - started
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Run(name, seconds, usage.ru_maxrss * 1024, output.stat().st_size, cpu_seconds)


def contest_pipeline(checkpoint: str, output: str) -> None:
    """int6 per row for matrices of at least 8,192 weights, fp16 for the rest, pickled, zstd-22."""
    import torch
    import zstandard

    entries: dict[str, torch.Tensor] = {}
    for name, weight in torch.load(checkpoint, weights_only=True).items():
        if weight.dim() < 2 or weight.numel() < 8192:
            entries[name] = weight.half()
            continue
        scale = (weight.abs().amax(1) / 31).half()
        entries[name + ".q"] = (weight / scale.float()[:, None]).round().clamp(-32, 31).char()
        entries[name + ".scale"] = scale
    buffer = io.BytesIO()
    torch.save(entries, buffer)
    Path(output).write_bytes(zstandard.ZstdCompressor(level=22).compress(buffer.getvalue()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cap", default="16MB")
    parser.add_argument("--contest-pipeline", nargs=2, metavar=("CKPT", "OUT"))
    parser.add_argument("--curvature", action="store_true", help="plan with curvature at hand")
    options = parser.parse_args()
    if options.contest_pipeline:
        contest_pipeline(*options.contest_pipeline)
        return
    with tempfile.TemporaryDirectory() as folder:
        report(Path(folder), options.cap, options.curvature)


def report(folder: Path, cap: str, curved: bool) -> None:
    checkpoint, candidates, plan = folder / "s.pt", folder / "c.json", folder / "p.json"
    packed, weights, contest = folder / "m.pack", folder / "w.safetensors", folder / "m.ptz"
    run("seeded checkpoint", checkpoint, "benchmarks.seeded", str(checkpoint))
    with_curvature: tuple[str, ...] = ()
    if curved:
        curvature = folder / "curvature.safetensors"
        arguments = (str(checkpoint), str(curvature))
        run("seeded curvature", curvature, "benchmarks.seeded_curvature", *arguments)
        with_curvature = ("--curvature", str(curvature))
    arguments = ("measure", str(checkpoint), *with_curvature, "-o", str(candidates))
    runs = [run("packer measure", candidates, "packer", *arguments)]
    arguments = ("plan", str(candidates), "--cap", cap, "-o", str(plan))
    runs.append(run("packer plan", plan, "packer", *arguments))
    arguments = ("pack", str(checkpoint), "--plan", str(plan), *with_curvature, "-o", str(packed))
    runs.append(run("packer pack", packed, "packer", *arguments))
    arguments = ("unpack", str(packed), "-o", str(weights))
    runs.append(run("packer unpack", weights, "packer", *arguments))
    arguments = ("--contest-pipeline", str(checkpoint), str(contest))
    runs.append(run("int6 row-max + zstd-22", contest, "benchmarks.pack_speed", *arguments))
    size = checkpoint.stat().st_size
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    print(f"{size:,} bytes of float32 checkpoint, cap {cap}, {cores} cores, load {load:.1f}")
    print(f"{'step':24}{'seconds':>9}{'peak MB':>9}{'× ckpt':>8}{'output bytes':>14}")
    for one in runs:
        print(
            f"{one.name:24}{one.seconds:9.1f}{one.peak_bytes / 1e6:9.0f}"
            f"{one.peak_bytes / size:8.2f}{one.output_bytes:14,}"
        )


if __name__ == "__main__":
    main()
