"""A comparison of recipes and our planner as a text table."""

from __future__ import annotations

from collections.abc import Sequence

from packer.packing.comparison import EqualKL, Refused, Row
from packer.printable import spelled
from packer.reports import tables


def print_comparison(
    rows: Sequence[Row], equal: Sequence[EqualKL], refused: Sequence[Refused]
) -> None:
    """One line a file, then what could not be done as its recipe says, then bytes at equal KL."""
    columns = ["recipe", "parameter", ">cap", ">total bytes", ">bits/w", ">KL bpb", ">predicted"]
    columns += [">bits per byte", ">difference", ">± s.e.", ">seconds"]
    lines = [_line(row) for row in rows]
    if len({row.source for row in rows}) > 1:
        columns = ["checkpoint", *columns]
        lines = [[row.source, *line] for row, line in zip(rows, lines, strict=True)]
    tables.print_table(columns, lines)
    for row in rows:
        for name, problem in row.entry.problems.items():
            print(spelled(f"{row.entry.recipe}: {name}: {problem}"))
    for one in refused:
        print(spelled(f"{one.recipe}: {one.reason}"))
    for point in equal:
        print(
            f"at KL {point.kl_bits_per_byte:.5f}: {point.recipe} {point.recipe_bytes:,} bytes, "
            f"ours {point.ours_bytes:,.0f}: {point.ratio:.3f}×"
        )


def _line(row: Row) -> list[str]:
    entry, difference = row.entry, row.evaluated.difference
    assert difference is not None  # only the checkpoint itself has none
    return [
        entry.recipe,
        "" if entry.position is None else str(entry.position),
        "" if entry.cap_bytes is None else f"{entry.cap_bytes:,}",
        f"{entry.total_bytes:,}",
        f"{row.bits_per_weight:.3f}",
        tables.number(row.kl_bits_per_byte, ".6f"),
        tables.number(entry.predicted_bits_per_byte, ".6f"),
        f"{row.evaluated.score.bits_per_byte:.6f}",
        f"{difference.delta_bpb:+.6f}",
        tables.number(difference.stderr_bits_per_byte, ".6f"),
        tables.number(entry.seconds, ".1f"),
    ]
