"""Time and memory against the number of parameters: `python -m benchmarks.scale`.

Seeded checkpoints of several sizes, as safetensors, go through measure, plan, pack, unpack and
verify, each step a process of its own; some with seeded curvature too. Writes benchmarks/scale.csv
and docs/scale.png, and says how each step grows: the slope of seconds against parameters, both in
logarithms, after the seconds of the same step on a tiny checkpoint, which are its start, are taken
off. A slope of 1 is linear growth. Rows of other sizes that the csv holds are kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from benchmarks.pack_speed import Run, run
from benchmarks.scale_rows import Row

SHAPES = {
    "9M": (12, 288),
    "27M": (11, 512),
    "36M": (15, 512),
    "124M": (13, 1024),
    "400M": (42, 1024),
}
TINY = (1, 64)
STEPS = ("measure", "plan", "pack", "unpack", "verify")
BYTES_PER_PARAMETER = 0.6  # of the cap: 16 MB for 27 M parameters
CSV = Path(__file__).with_name("scale.csv")
PICTURE = Path(__file__).parents[1] / "docs" / "scale.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="9M,27M,36M,124M", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--curved", default="9M,27M", help="sizes with curvature too; none: ''")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--plot", type=Path, default=PICTURE)
    parser.add_argument("--only-plot", action="store_true", help="draw what the csv holds")
    options = parser.parse_args()
    if options.only_plot:
        rows = read(options.csv)
    else:
        rows = read(options.csv) if options.csv.exists() else []
        for row in measured(_names(options.sizes), _names(options.curved)):
            rows = [one for one in rows if one.of != row.of] + [row]
            write(options.csv, rows)  # each time: a long run may be cut off
    from benchmarks.scale_growth import growth, seven_billion
    from benchmarks.scale_plot import draw

    draw(options.plot, rows)
    print("\n".join([*growth(rows), *seven_billion(rows)]))


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in SHAPES]
    if unknown:
        raise SystemExit(f"{unknown[0]} is no size; there are {', '.join(SHAPES)}")
    return names


def measured(sizes: Sequence[str], curved: Sequence[str]) -> Iterator[Row]:
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    print("  size  curved step       seconds    cpu s  peak MB  ckpt MB")
    for calibrated in (False, True):
        names = curved if calibrated else sizes
        if not names:
            continue
        start: dict[str, Run] = {}
        for again in (False, True):  # the first compiles, for all that come
            found = {step: one for step, one, _ in _steps(TINY, calibrated)}
            start = found if again else start
        for name in names:
            layers, width = SHAPES[name]
            for step, one, (parameters, largest) in _steps((layers, width), calibrated):
                print(
                    f"{name:>6}{'yes' if calibrated else 'no':>8} {step:9}{one.seconds:9.1f}"
                    f"{one.cpu_seconds:9.1f}{one.peak_bytes / 1e6:9.0f}{4 * parameters / 1e6:9.0f}",
                    flush=True,
                )
                yield Row(
                    parameters,
                    layers,
                    width,
                    calibrated,
                    step,
                    round(one.seconds, 2),
                    round(one.cpu_seconds, 2),
                    round(start[step].cpu_seconds, 2),
                    one.peak_bytes,
                    start[step].peak_bytes,
                    4 * parameters,
                    4 * largest,
                    one.output_bytes,
                )


def counts(checkpoint: Path) -> tuple[int, int]:
    """(parameters, parameters of the largest tensor) of a file."""
    # By hand: a process begins with the peak of the one that starts it, and torch would raise that.
    with checkpoint.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    elements = [math.prod(fields["shape"]) for fields in header.values() if "shape" in fields]
    return sum(elements), max(elements)


def _steps(shape: tuple[int, int], calibrated: bool) -> Iterator[tuple[str, Run, tuple[int, int]]]:
    """(step, what it took, counts) of a seeded checkpoint, in files that are gone afterwards."""
    layers, width = shape
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, curvature = folder / "s.safetensors", folder / "c.safetensors"
        candidates, plan = folder / "candidates.json", folder / "plan.json"
        packed, weights = folder / "m.pack", folder / "w.safetensors"
        options = ("--layers", str(layers), "--width", str(width))
        run("seeded", checkpoint, "benchmarks.seeded", str(checkpoint), *options)
        with_it: tuple[str, ...] = ()
        if calibrated:
            files = (str(checkpoint), str(curvature))
            run("seeded curvature", curvature, "benchmarks.seeded_curvature", *files)
            with_it = ("--curvature", str(curvature))
        counted = counts(checkpoint)
        cap = str(int(BYTES_PER_PARAMETER * counted[0]) + 4000)
        source, by = str(checkpoint), ("--plan", str(plan))
        commands = {
            "measure": (candidates, (source, *with_it, "-o", str(candidates))),
            "plan": (plan, (str(candidates), "--cap", cap, "-o", str(plan))),
            "pack": (packed, (source, *by, *with_it, "-o", str(packed))),
            "unpack": (weights, (str(packed), "-o", str(weights))),
            "verify": (packed, (str(packed), "--against", source, *by)),
        }
        for step in STEPS:
            output, arguments = commands[step]
            yield step, run(step, output, "packer", step, *arguments), counted


def write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        names = [field.name for field in fields(Row)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) | {"curvature": int(row.curvature)} for row in rows)


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [
            Row(
                curvature=line.pop("curvature") == "1",
                step=line.pop("step"),
                **{k: float(v) if "seconds" in k else int(v) for k, v in line.items()},  # type: ignore[arg-type]
            )
            for line in csv.DictReader(file)
        ]


if __name__ == "__main__":
    main()
