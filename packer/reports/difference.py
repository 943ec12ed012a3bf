"""The differences between two reports, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packer.checkpoint.natural_order import natural_key
from packer.reports.report import Report, TensorRow


@dataclass(frozen=True)
class Difference:
    """One tensor in two reports; None if it is missing there."""

    name: str
    before: TensorRow | None
    after: TensorRow | None

    @property
    def size_change(self) -> int:
        after = self.after.size_bytes if self.after else 0
        return after - (self.before.size_bytes if self.before else 0)


def compare(before: Report, after: Report) -> tuple[Difference, ...]:
    """Tensors whose choice or size differs, largest change first.

    A plan leaves coders open, and an artifact does not store how its codes were rounded: between
    the two, only formats are compared.
    """
    same_kind = before.kind == after.kind

    def compared(row: TensorRow) -> str:
        return row.choice if same_kind else row.choice.partition("+")[0].partition("~")[0]

    rows_before: Mapping[str, TensorRow] = {row.name: row for row in before.rows}
    rows_after: Mapping[str, TensorRow] = {row.name: row for row in after.rows}
    differences = [
        Difference(name, rows_before.get(name), rows_after.get(name))
        for name in sorted({*rows_before, *rows_after})
    ]
    changed = [
        one
        for one in differences
        if one.before is None
        or one.after is None
        or one.size_change
        or compared(one.before) != compared(one.after)
    ]
    return tuple(sorted(changed, key=lambda one: (-abs(one.size_change), natural_key(one.name))))
