"""Version 2 of the PGRP frame (PR #2135): all matrices in one stream, their rows in a new order.

"PGRP", u32 2, u32 matrices; of each u16 length and text of its key, which ends in .q, u32 rows,
u32 columns, u16 [rows] row numbers: row i of the stream is row order[i] of the matrix
u8 method (0 brotli, 1 lrzip), u32 length, that stream: int8, each matrix column by column
u32 length, brotli of the shuffled bytes (BSHF) of what torch.save wrote of {"w", "m"}, without
those matrices
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from packer.errors import CheckpointError
from packer.foreign.codecs import BSHF, expand, unshuffle
from packer.foreign.lrzip import lrzip_expand
from packer.foreign.lrzip_groups import Load, is_order, unsorted

VERSION = 2
BROTLI, LRZIP = 0, 1
ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Matrix:
    """key: in w. order: int64 [rows], where each row of the stream belongs."""

    key: str
    columns: int
    order: Any

    @property
    def elements(self) -> int:
        return len(self.order) * self.columns


class Cursor:
    """Reads a frame from its start; every length is held against the bytes that are left."""

    def __init__(self, data: bytes, start: int, source: str) -> None:
        self.data, self.at, self.source = data, start, source

    def take(self, length: int, what: str) -> bytes:
        """Raises CheckpointError: fewer bytes are left."""
        left = len(self.data) - self.at
        if length > left:
            raise CheckpointError(
                f"{self.source}: as PGRP of version 2 it has {what} of {length:,} bytes and "
                f"{left:,} are left; the file is truncated or damaged: copy it again"
            )
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")


def read_sorted_frame(data: bytes, source: str, limit: int, load: Load) -> dict[str, object]:
    """The dict {"w", "m"}. load: reads the container of what is no matrix.

    Raises CheckpointError: lengths that do not add up, rows in no order, a damaged stream, more
    than `limit` bytes, or lrzip is not installed.
    """
    cursor = Cursor(data, 8, source)
    matrices = _matrices(cursor, limit)
    method = cursor.number(1, "a method")
    packed = cursor.take(cursor.number(4, "a length"), "a stream of codes")
    rest = cursor.take(cursor.number(4, "a length"), "a stream of all else")
    if cursor.at != len(data):
        raise CheckpointError(
            f"{source}: {len(data) - cursor.at:,} bytes follow the end of its PGRP frame; the file "
            "is damaged: copy it again"
        )
    codes = _codes(method, packed, sum(one.elements for one in matrices), limit, source)
    value = _rest(rest, source, limit, load)
    parts, at = dict(value["w"]), 0
    for one in matrices:
        if one.key in parts:
            raise CheckpointError(f"{source}: has {one.key} twice; the file is damaged")
        stored = codes[at : at + one.elements].reshape(one.columns, len(one.order)).T
        parts[one.key] = torch.from_numpy(unsorted(stored, one.order))
        at += one.elements
    return {**value, "w": parts}


def _matrices(cursor: Cursor, limit: int) -> list[Matrix]:
    matrices: dict[str, Matrix] = {}
    total = 0
    for _ in range(cursor.number(4, "a number of matrices")):
        raw = cursor.take(cursor.number(2, "a length"), "a key")
        try:
            key = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(
                f"{cursor.source}: a key of its PGRP frame is no text ({raw[:16].hex(' ')}); the "
                "file is damaged: copy it again"
            ) from None
        rows, columns = cursor.number(4, "its rows"), cursor.number(4, "its columns")
        total += rows * columns
        if not key.endswith(".q") or key in matrices or total > limit:
            raise CheckpointError(
                f"{cursor.source}: the matrix {key!r} of [{rows:,}, {columns:,}] in its PGRP frame "
                f"has another ending than .q, is there twice, or takes the codes to {total:,} bytes"
                f" of {limit:,} allowed; the file is damaged, or allow more with --max-memory"
            )
        numbers = cursor.take(2 * rows, f"the row numbers of {key}")
        order = np.frombuffer(numbers, "<u2").astype(np.int64)
        if not is_order(order, rows):
            raise CheckpointError(
                f"{cursor.source}: the {rows:,} row numbers of {key} are in no order that has each "
                "row once; the file is damaged: copy it again"
            )
        matrices[key] = Matrix(key, columns, order)
    return list(matrices.values())


def _codes(method: int, packed: bytes, length: int, limit: int, source: str) -> Any:
    """int8 [length]."""
    if method not in (BROTLI, LRZIP):
        raise CheckpointError(
            f"{source}: its codes are compressed by method {method}; 0 (brotli) and 1 (lrzip) are "
            "known"
        )
    if not packed and not length:
        return np.zeros(0, np.int8)
    if method == LRZIP:
        return np.frombuffer(lrzip_expand(packed, length, limit, source), np.int8)
    raw = expand("brotli", packed, limit, source)
    if len(raw) != length:
        raise CheckpointError(
            f"{source}: its codes expand to {len(raw):,} bytes where its matrices have {length:,}; "
            "the file is damaged: copy it again"
        )
    return np.frombuffer(raw, np.int8)


def _rest(packed: bytes, source: str, limit: int, load: Load) -> Mapping[str, Any]:
    """The tensors that are no matrices: {"w", "m"}, and any other entry."""
    data = expand("brotli", packed, limit, source)
    if data.startswith(BSHF):
        data = unshuffle(data, source)
    value = load(data, source, limit)[0] if data.startswith(ZIP) else None
    if not isinstance(value, Mapping) or not all(
        isinstance(value.get(key), Mapping) for key in "wm"
    ):
        raise CheckpointError(
            f"{source}: all but the codes of its PGRP frame are no {{w, m}} that torch.save wrote; "
            "the file is damaged: copy it again"
        )
    return value
