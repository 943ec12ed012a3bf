"""Artifact bytes to weights as numpy arrays, without torch, for loaders of coder `numpy`.

Like decoder.py this module is closed and part of the shipped loader. Its arithmetic is that of
dequantize.py, operation by operation in float32, so that every bit agrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact.decoder import (
    CHECKSUM_BYTES,
    MAX_DECODED_BYTES,
    StoredTensor,
    check_end,
    check_magic,
    check_sizes,
    decode_factors,
    decode_kept,
    decode_scaled,
    decode_stepping,
    keep_checksum,
    kept_name,
    read_header,
    read_tensor,
)
from packer.artifact.reader import Reader

Array = npt.NDArray[Any]
HEADER_AT = 25  # after magic, version, cap and code bytes
KEPT_BFLOAT16 = 3  # of a format byte


def read_arrays(data: bytes) -> dict[str, Array]:
    """Weights by name, each with its own shape and dtype; tied names share one array.

    What numpy has no dtype for comes as its bits: bfloat16 as uint16 (`(bits.astype(np.uint32) <<
    16).view(np.float32)` gives the values), float8 as uint8, complex32 as uint32.
    Raises ArtifactError: not an artifact, damaged, or decoded larger than 16 GiB.
    """
    whole = memoryview(data)
    reader = Reader(whole[:-CHECKSUM_BYTES])
    check_magic(data, reader)
    keep_checksum(whole)
    reader.at = HEADER_AT
    header = read_header(reader)
    check_sizes(header["tensors"], MAX_DECODED_BYTES)
    stored = [read_tensor(reader, *fields) for fields in header["tensors"]]
    check_end(reader)
    arrays = {tensor.name: decode_array(tensor) for tensor in stored}
    arrays.update({tied: arrays[kept] for tied, kept in header["ties"].items()})
    return arrays


def decode_array(stored: StoredTensor) -> Array:
    """The weights of one tensor. Raises ArtifactError."""
    if stored.steps:
        values = stepped_values(*decode_stepping(stored))
    elif stored.scale is None:
        bits = bits_dtype(kept_name(stored))
        values = decode_kept(stored, bits.itemsize).reshape(-1).view(bits)
        if stored.format == KEPT_BFLOAT16:
            values = (values.astype("u4") << 16).view("f4")
    elif stored.rank:
        values = corrected_values(*decode_scaled(stored), *decode_factors(stored))
    else:
        values = scaled_values(*decode_scaled(stored))
    return cast(values, stored.dtype).reshape(stored.shape)


def bits_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name, or of its bits where numpy has none."""
    wide = name.replace("bfloat", "uint").replace("complex32", "uint32")
    return np.dtype("u1" if "8_" in name else wide)


def scaled_values(codes: Array, scale: Array) -> Array:
    """As dequantize_scaled: float32 [rows, columns]."""
    return codes * scale.astype("f4")[:, None]  # type: ignore[no-any-return]


def corrected_values(codes: Array, scale: Array, left: Array, right: Array, steps: Array) -> Array:
    """As dequantize_low_rank: component by component, each step one rounding."""
    values = scaled_values(codes, scale)
    for rows, columns, step in zip(left, right, steps, strict=True):
        values += rows.astype("f4")[:, None] * columns * step
    return values


def stepped_values(codes: Array, row: Array, column: Array | None, shrink: Array) -> Array:
    """As dequantize_stepped: (value · row) · column."""
    nearer = np.array([0, *(shrink >> np.arange(3))], "f4") / 256
    values = scaled_values(codes - np.sign(codes) * nearer[np.minimum(abs(codes), 3)], row)
    return values if column is None else values * column


def cast(values: Array, dtype: str) -> Array:
    """To a dtype by name: floats to bfloat16 are rounded to even, bits are unchanged."""
    if dtype != "bfloat16" or values.dtype.kind != "f":
        return values.astype(bits_dtype(dtype))
    bits = values.astype("f4").view("u4")
    return (bits + 32767 + (bits >> 16 & 1) >> 16).astype("u2")  # type: ignore[no-any-return]
