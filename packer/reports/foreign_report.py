"""The byte report of another author's artifact."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from packer.planning.account import Limits
from packer.reports.report import Report, report_row

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint


def report_foreign(checkpoint: Checkpoint, limits: Limits) -> Report:
    """Another author's artifact. It was compressed as a whole, so the file's bytes are divided
    among the tensors in proportion to the order-0 entropy of their contents.
    """
    from packer.planning.measure import tensor_infos

    foreign = checkpoint.foreign
    assert foreign is not None
    infos = {info.name: info for info in tensor_infos(checkpoint)}
    names = [name for name in foreign.tensors if name in infos]
    entropy = {name: foreign.tensors[name].entropy_bits for name in names}
    sizes = _shared_out(foreign.file_bytes, list(entropy.values()))
    rows = tuple(
        replace(
            report_row(infos[name], f"{tensor.stored}~{foreign.codec}", size),
            raw_bytes=tensor.raw_bytes,
            entropy_bits=entropy[name] / max(infos[name].elements, 1),
        )
        for name, size in zip(names, sizes, strict=True)
        for tensor in [foreign.tensors[name]]
    )
    note = (
        f"{foreign.payload_bytes:,} bytes before {foreign.codec}, an order-0 entropy of "
        f"{math.ceil(sum(entropy.values()) / 8):,}; bytes per tensor are the file's, shared out by "
        "entropy"
    )
    return Report(
        source=checkpoint.source,
        kind="foreign",
        rows=rows,
        cap_bytes=limits.cap_bytes,
        code_bytes=limits.code_bytes,
        artifact_bytes=foreign.file_bytes,
        header_bytes=0,
        notes=(*checkpoint.notes, note),
    )


def _shared_out(total: int, weights: list[float]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to weights as nearly as that allows."""
    whole = sum(weights)
    if not whole:
        return [total, *[0] * (len(weights) - 1)] if weights else []
    passed, before, parts = 0.0, 0, []
    for weight in weights:
        passed += weight
        upto = round(total * passed / whole)
        parts.append(upto - before)
        before = upto
    return parts
