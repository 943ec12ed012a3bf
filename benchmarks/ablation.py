"""What each part of the method is worth, in bits per weight: removed from all, and alone.

    python -m benchmarks.ablation CHECKPOINT --curvature curvature.safetensors
        [--data TEXT --tokenizer T [--config CONFIG]] [--label WORDS] [--only TEXT]...
    python -m benchmarks.ablation --plot docs/ablation.png

Every matrix is quantized with some of the parts, at a multiplier that brings the damage close to
that of everything. Bits are of real blocks, steps and all, interpolated between points on either
side: at the predicted damage of everything, and with --data at its measured KL over 128 windows of
256 tokens. Rows go to --csv as they come, and one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from benchmarks.ablation_points import Bench, Meter
from benchmarks.ablation_rows import Row, Worth
from benchmarks.ablation_ways import EVERYTHING, PARTS, Way, spell, ways
from benchmarks.bracketing import around, between, next_multiplier
from packer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from packer.curvature.file import read_curvature
from packer.planning.predicted_damage import bits_per_byte

MULTIPLIER = 2.2e-4
WINDOW, WINDOWS = 256, 128
SMALLEST = 16_384
MOST_POINTS = 9
CSV = Path("benchmarks/ablation.csv")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--curvature")
    parser.add_argument("--only", action="append", help="tensors with this in their name")
    parser.add_argument("--data", help="a text, to measure KL on")
    parser.add_argument("--tokenizer")
    parser.add_argument("--config")
    parser.add_argument("--label", help="the checkpoint in words")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = read(arguments.csv) if arguments.csv.exists() else []
    if arguments.checkpoint:
        rows = measured(arguments, rows)
    print("\n".join(table(rows)))
    if arguments.plot:
        from benchmarks.ablation_plot import draw

        labels = dict.fromkeys(row.checkpoint for row in rows)
        kls = {label: worths(rows, label, measured=True) for label in labels}
        draw(arguments.plot, {label: found for label, found in kls.items() if found})


def measured(arguments: argparse.Namespace, rows: list[Row]) -> list[Row]:
    """The rows, and after them those that were missing."""
    checkpoint = read_checkpoint(arguments.checkpoint)
    curvature = read_curvature(arguments.curvature, checkpoint)
    names = [
        name
        for name, weight in checkpoint.tensors.items()
        if weight.dim() >= 2
        and weight.numel() >= SMALLEST
        and name in curvature.by_tensor
        and curvature.by_tensor[name].fisher is not None
        and any(text in name for text in arguments.only or [""])
    ]
    bench = Bench(
        {name: checkpoint.tensors[name] for name in names},
        curvature.by_tensor,
        meter(arguments, checkpoint) if arguments.data else None,
    )
    label = arguments.label or Path(arguments.checkpoint).stem
    weights = sum(weight.numel() for weight in bench.weights.values())
    print(f"{label}: {len(names)} tensors, {weights:,} weights", flush=True)
    nats = bench.at(EVERYTHING, MULTIPLIER).nats
    kl = bench.kl(EVERYTHING, MULTIPLIER) if bench.meter else None
    predicted = bits_per_byte(nats, curvature)
    done = {row.way for row in rows if row.checkpoint == label}
    for way in ways():
        if spell(way) not in done:
            found = bits_at_damages(bench, way, nats, kl)
            rows = [*rows, Row(label, weights, spell(way), predicted, found[0], kl, found[1])]
            write(arguments.csv, rows)
            print(rows[-1], flush=True)
    return rows


def bits_at_damages(
    bench: Bench, way: Way, nats: float, kl: float | None
) -> tuple[float, float | None]:
    """Bits of a way at a predicted damage in nats and at a measured KL in bits per byte.

    Raises UnbracketedError: too many points, and none on one of the sides.
    """
    predicted = {MULTIPLIER: bench.at(way, MULTIPLIER).nats}
    surround(predicted, nats, lambda c: bench.at(way, c).nats)
    found = _interpolated(bench, way, predicted, nats)
    if kl is None:
        return found, None
    nearest = sorted(predicted, key=lambda c: abs(predicted[c] - nats))[:2]
    known = {c: bench.kl(way, c) for c in nearest}
    surround(known, kl, lambda c: bench.kl(way, c))
    return found, _interpolated(bench, way, known, kl)


def _interpolated(bench: Bench, way: Way, known: Mapping[float, float], wanted: float) -> float:
    multipliers, damages = list(known), list(known.values())
    low, high = around(damages, wanted)
    bits = bench.bits(way, multipliers[low]), bench.bits(way, multipliers[high])
    return between((damages[low], damages[high]), bits, wanted)


def surround(known: dict[float, float], wanted: float, at: Callable[[float], float]) -> None:
    """Adds multipliers and their damages to `known` until they lie closely around `wanted`."""
    while len(known) < MOST_POINTS:
        c = next_multiplier(list(known), list(known.values()), wanted)
        if c is None:
            return
        known[c] = at(c)


def meter(arguments: argparse.Namespace, checkpoint: Checkpoint) -> Meter:
    """Measures the KL of changed weights in bits per byte."""
    from packer.commands.models import load_model
    from packer.commands.options.model import ModelOptions
    from packer.evaluation import open_data
    from packer.planning.damage_trials import damage_evaluator

    options = ModelOptions(arguments.config, None, None, "cpu")
    bench = damage_evaluator(
        load_model(arguments.checkpoint, options),
        checkpoint,
        None,
        open_data([arguments.data], tokenizer=arguments.tokenizer),
        arguments.data,
        tokens=WINDOW * WINDOWS,
        window=WINDOW,
        held_out=False,
    )
    return lambda weights: bench.meter.divergence(weights).kl_bits_per_byte


def worths(rows: Sequence[Row], checkpoint: str, *, measured: bool) -> list[Worth]:
    """Of every part whose ways have all been measured, at equal KL or at equal predicted damage."""
    bits: Mapping[str, float | None] = {
        row.way: row.bits_at_kl if measured else row.bits_at_predicted
        for row in rows
        if row.checkpoint == checkpoint
    }
    found = []
    for part in PARTS:
        four = [bits.get(spell(way)) for way in (*part.removed(), *part.alone())]
        without, full, base, added = (value or 0.0 for value in four)
        if all(four):
            found.append(Worth(part.label, 100 * (without / full - 1), 100 * (1 - added / base)))
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown, a table a checkpoint."""
    lines = []
    for checkpoint in dict.fromkeys(row.checkpoint for row in rows):
        some = [row for row in rows if row.checkpoint == checkpoint]
        kl = f", measured KL {some[0].kl:.5f}" if some[0].kl else ""
        lines.append(
            f"{checkpoint}: {some[0].weights:,} weights, predicted damage {some[0].predicted:.5f} "
            f"bits per byte{kl}"
        )
        for row in some:
            if row.way in ("everything", "plain"):
                at_kl = f"{row.bits_at_kl:.4f}" if row.bits_at_kl else "–"
                lines.append(f"{row.way}: {row.bits_at_predicted:.4f} bits a weight, {at_kl} at KL")
        lines += ["", "| part | removed, predicted | removed, KL | alone, predicted | alone, KL |"]
        lines += ["|---|---:|---:|---:|---:|"]
        at_kl = {one.label: one for one in worths(rows, checkpoint, measured=True)}
        for one in worths(rows, checkpoint, measured=False):
            other = at_kl.get(one.label)
            removed, alone = (
                (f"{other.removed:+.2f} %", f"{-other.alone:+.2f} %") if other else ("–", "–")
            )
            cells = f"{one.removed:+.2f} % | {removed} | {-one.alone:+.2f} % | {alone}"
            lines.append(f"| {one.label} | {cells} |")
        lines.append("")
    return lines


def write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        names = [field.name for field in fields(Row)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            for row in rows
        )


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [
            Row(
                line["checkpoint"],
                int(line["weights"]),
                line["way"],
                float(line["predicted"]),
                float(line["bits_at_predicted"]),
                float(line["kl"]) if line["kl"] else None,
                float(line["bits_at_kl"]) if line["bits_at_kl"] else None,
            )
            for line in csv.DictReader(file)
        ]


if __name__ == "__main__":
    main()
