"""Version 1 of the PGRP frame (PR #1855): seven groups of matrices, each through the program
lrzip, and a rest.

The magic PGRP, a u32 count (9), that many u32 lengths, then the streams. Streams 0 to 6 hold the
codes of one kind of matrix, layer after layer, each column by column; stream 7 every other tensor,
what they are, and the shapes; stream 8 how rows were put in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from packer.errors import CheckpointError
from packer.foreign.codecs import expand
from packer.foreign.keys import OWN_READER
from packer.foreign.lrzip import lrzip_expand

GROUPS = (
    "tok_emb.weight.q",
    "attn.c_k.weight.q",
    "attn.c_q.weight.q",
    "attn.c_v.weight.q",
    "attn.proj.weight.q",
    "mlp.fc.weight.q",
    "mlp.proj.weight.q",
)
SORTED_GROUPS = ("tok_emb.weight.q", "attn.c_q.weight.q", "mlp.fc.weight.q")
STREAMS = len(GROUPS) + 2
Load = Callable[[bytes, str, int], tuple[object, dict[str, str]]]


def read_groups(data: bytes, source: str, limit: int, load: Load) -> dict[str, object]:
    """The dict {"w", "m"} of the artifact. load: reads the container inside stream 7.

    Raises CheckpointError: lengths that do not add up, lrzip is not installed, damaged streams.
    """
    try:
        return _read(data, source, limit, load)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: its PGRP frame is damaged ({type(error).__name__}: {error}); copy it again"
        ) from None


def _read(data: bytes, source: str, limit: int, load: Load) -> dict[str, object]:
    streams = split(data, source)
    packed = expand("brotli", streams[7], limit, source)
    rest = load(packed, source, limit)[0] if packed[:4] != data[:4] else None
    if not isinstance(rest, Mapping):
        raise ValueError(f"its eighth stream is a {type(rest).__name__}, not a dict")
    odd = sorted(str(key) for key in set(rest) - {"r", "m", "s"})
    if odd:
        raise CheckpointError(
            f"{source}: beside r, m and s its PGRP frame has {', '.join(odd)}, which is not known "
            f"here; {OWN_READER}"
        )
    parts, meanings, shapes = dict(rest["r"]), dict(rest["m"]), dict(rest["s"])
    permutations = expand("brotli", streams[8], limit, source) if streams[8] else b""
    orders = np.frombuffer(permutations, "<u2").astype(np.int64)
    if "_tok_emb.weight.q" in parts:
        parts["tok_emb.weight.q"] = parts.pop("_tok_emb.weight.q")
    used = 0
    for group, stream in zip(GROUPS, streams, strict=False):
        names = _names(group, meanings)
        sizes = [_shape(shape) for shape in shapes.get(group, [])]
        if not stream and not sizes:
            continue
        if len(sizes) != len(names):
            raise ValueError(f"{len(sizes)} matrices of {group} for {len(names)} layers")
        total = sum(rows * columns for rows, columns in sizes)
        codes = np.frombuffer(lrzip_expand(stream, total, limit, source), np.int8)
        at = 0
        for name, (rows, columns) in zip(names, sizes, strict=True):
            matrix = codes[at : at + rows * columns].reshape(columns, rows).T
            at += rows * columns
            if group in SORTED_GROUPS and len(orders):
                order = orders[used : used + rows]
                if not is_order(order, rows):
                    raise ValueError(f"the rows of {name} are in no order that has each once")
                matrix = unsorted(matrix, order)
                used += rows
            parts[name] = torch.from_numpy(np.ascontiguousarray(matrix))
    if used != len(orders):
        raise ValueError(f"{len(orders):,} row numbers where {used:,} belong")
    return {"w": parts, "m": meanings}


def split(data: bytes, source: str) -> list[bytes]:
    """The streams. Raises CheckpointError: another count, or lengths that do not add up."""
    count = int.from_bytes(data[4:8], "little")
    start = 8 + 4 * count
    lengths = [int.from_bytes(data[at : at + 4], "little") for at in range(8, 8 + 4 * STREAMS, 4)]
    if count != STREAMS or len(data) < start or start + sum(lengths) != len(data):
        raise CheckpointError(
            f"{source}: as PGRP it has {count} streams of {sum(lengths):,} bytes in a frame of "
            f"{len(data):,}; the file is truncated or damaged: copy it again"
        )
    streams = []
    for length in lengths:
        streams.append(data[start : start + length])
        start += length
    return streams


def _names(group: str, meanings: Mapping[str, Any]) -> list[str]:
    """The keys of a group's codes, in order of their layers."""
    keys = [
        f"{name}.q"
        for name, meaning in meanings.items()
        if f"{name}.q".endswith(group) and "passthrough" not in str(meaning)
    ]
    if group == GROUPS[0]:
        return [name for name in keys if name == group]
    inside = [name for name in keys if name.split(".")[0] == "blocks"]
    return sorted(inside, key=lambda name: int(name.split(".")[1]))


def _shape(value: Any) -> tuple[int, int]:
    rows, columns = (int(size) for size in value)
    if not (0 <= rows < 1 << 24 and 0 <= columns < 1 << 24):
        raise ValueError(f"a matrix of shape {value}")
    return rows, columns


def is_order(order: Any, rows: int) -> bool:
    """Whether int64 [rows] is a permutation of the rows."""
    return np.array_equal(np.sort(order), np.arange(rows))


def unsorted(matrix: Any, order: Any) -> Any:
    """Rows where they were: row i of what is stored is row order[i] of the matrix."""
    rows = np.empty_like(matrix, order="C")
    rows[order] = matrix
    return rows
