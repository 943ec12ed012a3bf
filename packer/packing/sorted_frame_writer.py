"""Writes version 2 of the PGRP frame, which packer/foreign/sorted_frame.py specifies and reads.

Rows of every matrix are put in the order of a greedy walk to the nearest neighbour (PR #1855), so
that lrzip sees columns that vary slowly; the order is in the frame.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from typing import Any

import brotli
import numpy as np
import torch

from packer.foreign.codecs import BSHF
from packer.foreign.frames import PGRP
from packer.foreign.lrzip import lrzip_compress
from packer.foreign.sorted_frame import BROTLI, LRZIP, VERSION

MOST_SORTED = 8192  # rows: time grows with their square, and the contest's largest table has these
MOST_ROWS = 1 << 16  # of a matrix; a row number has 16 bits
STRIDE = 2
Array = np.ndarray[Any, Any]
Compress = Callable[[bytes], bytes]


def sorted_frame(
    matrices: Mapping[str, torch.Tensor], rest: Mapping[str, object], coder: str
) -> bytes:
    """A PGRP frame, in brotli once more, so that row numbers take no more than in version 1.

    matrices: int8 [rows, columns] by key, which ends in .q. rest: all else, {"w", "m"}. coder: of
    the matrices, lrzip or brotli.
    """
    codes = {key: matrices[key].numpy() for key in sorted(matrices)}
    orders = {key: row_order(one) for key, one in codes.items()}
    head = PGRP + struct.pack("<II", VERSION, len(codes))
    for key, one in codes.items():
        name = key.encode()
        head += struct.pack("<H", len(name)) + name + struct.pack("<II", *one.shape)
        head += orders[key].astype("<u2").tobytes()
    stream = b"".join(one[orders[key]].T.tobytes() for key, one in codes.items())
    method, compress = (LRZIP, lrzip_compress) if coder == "lrzip" else (BROTLI, _brotli)
    packed, other = compress(stream) if stream else b"", _brotli(_shuffled(_saved(rest)))
    body = struct.pack("<BI", method, len(packed)) + packed + struct.pack("<I", len(other)) + other
    compressor = brotli.Compressor(quality=11, lgwin=24)
    # Flushed, since brotli would not compress the row numbers in one block with the rest.
    blocks = (compressor.process(head), compressor.flush(), compressor.process(body))
    return b"".join((*blocks, compressor.finish()))


def row_order(codes: Array) -> Array:
    """int64 [rows]: row 0, then always the nearest of the rows left, by the sum of differences."""
    if not 1 < len(codes) <= MOST_SORTED:
        return np.arange(len(codes))
    wide, left, order = codes.astype(np.int16), np.arange(1, len(codes)), [0]
    while len(left):
        distances = np.abs(wide[left] - wide[order[-1]]).sum(axis=1, dtype=np.int64)
        nearest = int(distances.argmin())
        order.append(int(left[nearest]))
        left = np.delete(left, nearest)
    return np.array(order)


def _saved(value: Mapping[str, object]) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _shuffled(data: bytes) -> bytes:
    return BSHF + bytes([STRIDE]) + b"".join(data[first::STRIDE] for first in range(STRIDE))


def _brotli(data: bytes) -> bytes:
    return bytes(brotli.compress(data, quality=11, lgwin=24))
