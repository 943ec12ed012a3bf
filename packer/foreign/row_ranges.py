"""Rows of a quantized matrix that are kept as floats: `row_group_passthrough` next to int8 codes.

By tensor name a list of {"row_start", "row_end", "value"}: rows row_start to row_end - 1 are value,
whatever the codes say; the tensor's qmeta lists the pairs once more.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from packer.errors import CheckpointError
from packer.foreign.keys import refuse_unknown, shown
from packer.foreign.tensors import ForeignTensor, computed, plain
from packer.quantizers.quantize import dequantize

RANGES = "row_group_passthrough"
ENTRY_KEYS = ("row_start", "row_end", "value")


def with_ranges(
    name: str,
    tensor: ForeignTensor,
    ranges: object,
    listed: object,
    stored: torch.dtype | None,
) -> ForeignTensor:
    """The tensor with its kept rows in place.

    listed: the pairs (row_start, row_end) by the tensor's qmeta, or None.
    stored: dtype that kept rows are cast to before the tensor's own.
    Raises CheckpointError: rows out of range or there twice, other shapes, other pairs in qmeta.
    """
    weight = dequantize(tensor.quantized).clone()
    parts, pairs = dict(tensor.parts), []
    for entry in ranges if isinstance(ranges, list | tuple) else [ranges]:
        if not isinstance(entry, dict):
            raise CheckpointError(f"{name}: an entry of its {RANGES} is a {type(entry).__name__}")
        refuse_unknown(entry, ENTRY_KEYS, f"{name}: an entry of its {RANGES}")
        start, end = entry.get("row_start"), entry.get("row_end")
        value = plain(entry.get("value"), f"the kept rows of {name}")
        if not (type(start) is int and type(end) is int and 0 <= start < end <= len(weight)):
            raise CheckpointError(
                f"{name}: rows {shown(start)} to {shown(end)} of {len(weight):,} are said to be "
                "kept"
            )
        if value.shape != weight[start:end].shape or not value.is_floating_point():
            raise CheckpointError(
                f"{name}: its kept rows {start:,} to {end:,} are {value.dtype} "
                f"{list(value.shape)}; floats {list(weight[start:end].shape)} belong there"
            )
        weight[start:end] = (value if stored is None else value.to(stored)).to(weight.dtype)
        parts[f"rows {start}:{end}"] = value
        pairs.append((start, end))
    _check_pairs(name, pairs, listed)
    return ForeignTensor(f"{tensor.stored}+rows", parts, computed(weight))


def _check_pairs(name: str, pairs: list[tuple[int, int]], listed: object) -> None:
    ordered = sorted(pairs)
    for (_, end), (start, _) in pairwise(ordered):
        if start < end:
            raise CheckpointError(f"{name}: row {start:,} is kept twice in its {RANGES}")
    if listed is None:
        return
    declared = [tuple(pair) for pair in listed] if isinstance(listed, list | tuple) else listed
    if declared != pairs:
        raise CheckpointError(
            f"{name}: its {RANGES} keeps the rows {pairs} and its qmeta says {shown(listed)}"
        )
