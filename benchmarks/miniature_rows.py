"""Rows of benchmarks/miniature.csv, their table, and what entries differ by."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev


@dataclass(frozen=True)
class Row:
    """One entry at one cap and seed. seconds: of training. predicted: bits per byte of held_out
    and tails together, before it was trained. trained: tails before packing. held_out, tails:
    through the file.
    """

    seconds: float
    cap: int
    entry: str
    seed: int
    layers: int
    width: int
    weights: int
    tokens: int
    total_bytes: int
    predicted: float
    trained: float
    held_out: float
    tails: float

    @property
    def key(self) -> tuple[float, int, str, int]:
        return self.seconds, self.cap, self.entry, self.seed

    @property
    def score(self) -> float:
        """Bits per byte, the mean of both texts."""
        return (self.held_out + self.tails) / 2


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    kinds = {"float": float, "int": int, "str": str}
    with path.open(newline="") as file:
        return [
            Row(**{one.name: kinds[str(one.type)](line[one.name]) for one in fields(Row)})
            for line in csv.DictReader(file)
        ]


def add(path: Path, row: Row) -> None:
    """Append a row, below a header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [one.name for one in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        values = asdict(row).items()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values})


def difference(rows: Sequence[Row], other: Sequence[Row]) -> tuple[float, float | None]:
    """(mean difference of the scores over the seeds that both have, its standard error)."""
    by_seed = {row.seed: row.score for row in other}
    deltas = [row.score - by_seed[row.seed] for row in rows if row.seed in by_seed]
    error = stdev(deltas) / math.sqrt(len(deltas)) if len(deltas) > 1 else None
    return (fmean(deltas) if deltas else math.nan), error


def table(rows: Sequence[Row], reference: str) -> list[str]:
    """Markdown, a table for every training time, and in it a row an entry and cap."""
    lines = []
    for seconds in sorted({row.seconds for row in rows}):
        lines += [f"{seconds:g} s of training", "", *_HEADER]
        timed = [row for row in rows if row.seconds == seconds]
        for cap in sorted({row.cap for row in timed}):
            here = [row for row in timed if row.cap == cap]
            base = [row for row in here if row.entry.startswith(reference)]
            for entry in dict.fromkeys(row.entry for row in here):
                lines.append(_line([row for row in here if row.entry == entry], base))
        lines.append("")
    return lines


_HEADER = (
    "| cap | entry | size | weights | tokens | seeds | bytes | trained | held out | tails "
    "| against the leader's |",
    "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
)


def _line(rows: Sequence[Row], base: Sequence[Row]) -> str:
    first = rows[0]
    scores = (
        fmean(getattr(row, name) for row in rows) for name in ("trained", "held_out", "tails")
    )
    delta, error = difference(rows, base)
    against = "–" if math.isnan(delta) else f"{delta:+.4f}"
    against += "" if error is None else f" ± {error:.4f}"
    cells = (
        f"{first.cap:,}",
        first.entry,
        f"{first.layers} × {first.width}",
        f"{first.weights:,}",
        f"{first.tokens:,}",
        str(len(rows)),
        f"{fmean(row.total_bytes for row in rows):,.0f}",
        *(f"{score:.4f}" for score in scores),
        "–" if first.entry == (base[0].entry if base else "") else against,
    )
    return f"| {' | '.join(cells)} |"
