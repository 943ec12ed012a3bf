"""Reports as text tables: rich on a terminal, plain columns when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from packer.checkpoint.natural_order import natural_key
from packer.printable import spelled
from packer.reports.difference import Difference
from packer.reports.report import Report, Share, by_role

if TYPE_CHECKING:
    from packer.reports.report_data import ReportData

PIPE_WIDTH = 10_000  # columns are never cut or wrapped when another program reads them

Cells = tuple[Sequence[str], Sequence[Sequence[str]]]
"""(columns, lines) of a table, independent of how it is drawn."""


LEAST_TEXT = 20  # letters of a name or other text before its column is folded further


def console() -> Console:
    """Standard output."""
    piped = not sys.stdout.isatty()
    return Console(width=PIPE_WIDTH, highlight=False) if piped else Console(highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Prints a table. Columns whose name starts with '>' are right-aligned numbers."""
    rich_table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        rich_table.add_column(
            column.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    for row in rows:
        rich_table.add_row(*(Text(spelled(cell)) for cell in row))
    return rich_table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The table, split into several on a narrow terminal, each with the first column.

    Numbers are never cut. Text folds within its column, to no fewer than `LEAST_TEXT` letters or
    a third of the terminal while other columns can go elsewhere.
    """
    out = console()
    for kept in _side_by_side(out, columns, rows):
        out.print(table([columns[at] for at in kept], [[row[at] for at in kept] for row in rows]))


def _side_by_side(
    out: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[list[int]]:
    """The columns of each table, by number."""
    every = list(range(len(columns)))
    if out.width >= PIPE_WIDTH or _fits(out, columns, rows, every):
        return [every]
    parts = [[0]]
    for at in every[1:]:
        if len(parts[-1]) > 1 and not _fits(out, columns, rows, [*parts[-1], at]):
            parts.append([0])
        parts[-1].append(at)
    return parts


def _fits(
    out: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int]
) -> bool:
    """Whether these columns go side by side, text folded and numbers whole."""
    least = min(LEAST_TEXT, out.width // 3)
    titles = [columns[at] for at in kept]
    cells = [
        [row[at] if columns[at].startswith(">") else spelled(row[at])[:least] for at in kept]
        for row in rows
    ]
    wide = out.options.update(width=PIPE_WIDTH)
    return out.measure(table(titles, cells), options=wide).maximum <= out.width


def number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(str(size) for size in shape) or "scalar"


def tensor_rows(report: Report) -> Cells:
    """(columns, a line per tensor): bytes, bits per weight, share, choice, damage."""
    predicted = any(row.damage_bpb is not None for row in report.rows)
    total = max(sum(row.size_bytes for row in report.rows), 1)
    rows = [
        (
            row.name,
            row.role,
            shape_text(row.shape),
            row.choice,
            f"{row.size_bytes:,}",
            number(row.bits_per_weight, ".3f"),
            f"{100 * row.size_bytes / total:.2f}",
            number(row.damage_bpb if predicted else row.weight_error, ".3g"),
        )
        for row in sorted(report.rows, key=lambda row: natural_key(row.name))
    ]
    columns = ("tensor", "role", "shape", "choice", ">bytes", ">bits/w", ">share %")
    return (*columns, ">damage bpb" if predicted else ">weight error"), rows


def foreign_rows(report: Report) -> Cells:
    """(columns, a line per tensor of another's artifact): uncompressed, and within the file."""
    rows = [
        (
            row.name,
            row.role,
            shape_text(row.shape),
            row.choice,
            f"{row.raw_bytes:,}",
            number(row.entropy_bits, ".3f"),
            f"{row.size_bytes:,}",
            number(row.bits_per_weight, ".3f"),
            f"{100 * row.size_bytes / max(report.artifact_bytes, 1):.2f}",
        )
        for row in sorted(report.rows, key=lambda row: natural_key(row.name))
    ]
    columns = ("tensor", "role", "shape", "stored as", ">raw bytes", ">entropy/w")
    return (*columns, ">bytes", ">bits/w", ">share %"), rows


def share_rows(title: str, shares: Sequence[Share]) -> Cells:
    """(columns, a line per role or layer)."""
    total = max(sum(share.size_bytes for share in shares), 1)
    with_damage = any(share.damage_bpb is not None for share in shares)
    rows = [
        (
            share.name,
            f"{share.tensors}",
            f"{share.elements:,}",
            f"{share.size_bytes:,}",
            number(share.bits_per_weight, ".3f"),
            f"{100 * share.size_bytes / total:.2f}",
            number(share.damage_bpb if with_damage else share.weight_error, ".3g"),
        )
        for share in shares
    ]
    damage = ">damage bpb" if with_damage else ">weight error"
    return (title, ">tensors", ">weights", ">bytes", ">bits/w", ">share %", damage), rows


def tensor_cells(report: Report) -> Cells:
    """(columns, a line per tensor), with the columns that suit the kind of report."""
    return foreign_rows(report) if report.kind == "foreign" else tensor_rows(report)


def known(cells: Cells) -> Cells:
    """The table without its empty columns."""
    columns, lines = cells
    kept = [at for at in range(len(columns)) if not lines or any(one[at] != "-" for one in lines)]
    return [columns[at] for at in kept], [[line[at] for at in kept] for line in lines]


def curve_rows(data: ReportData) -> Cells:
    """(columns, a line per size): the damage of the best plan of this size, and the bound."""
    total = data.report.total_bytes
    rows = []
    for point in data.points:
        size = point.total_bytes
        cells = [f"{size:,}", f"{size / total:.2f}", f"{point.damage:.4g}"]
        if data.bounded is not None:
            bound = point.bound_bytes
            share = None if bound is None else bound / size
            cells += [number(bound, ",d"), number(share, ".3f")]
        rows.append(cells)
    columns = [">total bytes", ">of the plan's", ">predicted damage"]
    if data.bounded is not None:
        columns += [">Shannon bound, bytes", ">of these"]
    return columns, rows


def print_report(report: Report, *, every_tensor: bool) -> None:
    """Prints tables per tensor and per role."""
    if every_tensor:
        print_table(*tensor_cells(report))
        print()
    print_table(*share_rows("role", by_role(report)))


def difference_rows(differences: Sequence[Difference]) -> Cells:
    """(columns, a line per tensor that differs)."""
    rows = [
        (
            one.name,
            one.before.choice if one.before else "missing",
            one.after.choice if one.after else "missing",
            f"{one.before.size_bytes:,}" if one.before else "-",
            f"{one.after.size_bytes:,}" if one.after else "-",
            f"{one.size_change:+,}",
        )
        for one in differences
    ]
    return ("tensor", "before", "after", ">bytes before", ">bytes after", ">change"), rows
