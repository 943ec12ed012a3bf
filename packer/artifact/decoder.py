"""Artifact bytes to weights. The layout is specified in docs/format.md.

This module is closed: the standard library, numpy, torch, the codecs a file uses, and the
dequantize functions. Its source text goes into the shipped loader, so codecs are imported where
they are used: a loader needs only the packages that its own file needs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from packer.artifact.reader import ArtifactError as ArtifactError
from packer.artifact.reader import Reader
from packer.artifact.step_decoder import STEPPED_BYTE, StoredSteps, decode_stepped, read_stepped
from packer.artifact.stream_decoder import decode_elements, decode_stream, decompress
from packer.quantizers.dequantize import (
    dequantize_low_rank,
    dequantize_scaled,
    dequantize_stepped,
    dequantize_stored,
)

MAGIC = b"\x93BYTECAP"
VERSION = 1
CHECKSUM_BYTES = 8
MAX_HEADER_BYTES = 1 << 26
MAX_DECODED_BYTES = 1 << 34
# Format bytes: 0 raw, 1 fp32, 2 fp16, 3 bf16; 0x40 ternary.row; 0x60 step, plus 2 per row and 1 per
# column; integers are 0x80 + (bits - 1) * 8, plus 4 for scales per row, 2 for the wide range, 1 for
# float32 scales. Before the byte of a scaled format may stand a correction of low rank: 0xC0 to
# 0xC2 for factors of 2, 4 or 8 bits, and a rank.
TERNARY = 0x40
LOW_RANK = 0xC0
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file, not yet decoded; streams are (coder, bytes).

    rank: of the correction, 0 without one. factor_bits: of its factors. factors: its streams, of
    rank_scale, left and right. steps: of a stepped format, of rows and then of columns; shrink: its
    reconstruction offset, in 256ths of a step; steps_bytes: the size of both.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    format: int
    scale: tuple[int, memoryview] | None
    codes: tuple[int, memoryview]
    size_bytes: int
    rank: int = 0
    factor_bits: int = 0
    factors: tuple[tuple[int, memoryview], ...] = ()
    steps: tuple[StoredSteps, ...] = ()
    shrink: int = 0
    steps_bytes: int = 0

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class StoredArtifact:
    """The parsed file. Tensors are in file order, which is sorted by name.

    cap_bytes, code_bytes: the cap and counted code that the file was packed for. ties: tied name ->
    stored name. header_bytes: everything but the tensors, checksum included.
    """

    cap_bytes: int
    code_bytes: int
    ties: dict[str, str]
    metadata: dict[str, str]
    tensors: tuple[StoredTensor, ...]
    header_bytes: int


def read_weights(data: bytes, max_bytes: int = MAX_DECODED_BYTES) -> dict[str, torch.Tensor]:
    """Weights by name, each with its own shape and dtype; tied names share one tensor.

    Raises ArtifactError: not an artifact, damaged, or larger decoded than `max_bytes`.
    """
    return decode_weights(parse(data, max_bytes))


def decode_weights(stored: StoredArtifact) -> dict[str, torch.Tensor]:
    """Weights of a parsed file. Raises ArtifactError: a stream is damaged."""
    weights = {tensor.name: decode_weight(tensor) for tensor in stored.tensors}
    weights.update({tied: weights[kept] for tied, kept in stored.ties.items()})
    return weights


def parse(data: bytes, max_bytes: int = MAX_DECODED_BYTES) -> StoredArtifact:
    """Check magic, version, checksum, header and lengths; decode nothing yet.

    Raises ArtifactError.
    """
    whole = memoryview(data)  # slices of it copy nothing
    reader = Reader(whole[:-CHECKSUM_BYTES])
    check_magic(data, reader)
    keep_checksum(whole)
    reader.at = len(MAGIC) + 1
    cap_bytes, code_bytes = (int.from_bytes(reader.take(8), "little") for _ in range(2))
    header = read_header(reader)
    fixed_bytes = reader.at + CHECKSUM_BYTES
    check_sizes(header["tensors"], max_bytes)
    tensors = tuple(read_tensor(reader, *fields) for fields in header["tensors"])
    check_end(reader)
    return StoredArtifact(
        cap_bytes, code_bytes, header["ties"], header["metadata"], tensors, fixed_bytes
    )


def check_magic(data: bytes, reader: Reader) -> None:
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"not an artifact: it starts with {data[:8].hex(' ') or 'nothing'}")
    reader.take(len(MAGIC))
    version = reader.take(1)[0]
    if version != VERSION:
        raise ArtifactError(f"format version {version}; this reader knows version {VERSION}")


def keep_checksum(whole: memoryview) -> None:
    """The one check that a shipped loader keeps. Raises ArtifactError."""
    body, checksum = whole[:-CHECKSUM_BYTES], whole[-CHECKSUM_BYTES:]
    if hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest() != checksum:
        raise ArtifactError("the checksum is wrong: the file is truncated or damaged")


def check_end(reader: Reader) -> None:
    if reader.at != len(reader.data):
        raise ArtifactError(f"{len(reader.data) - reader.at} bytes follow the last tensor")


def read_header(reader: Reader) -> dict[str, Any]:
    """The JSON header: tensors [name, dtype, shape], ties and metadata."""
    length = reader.varint()
    if length > MAX_HEADER_BYTES:
        raise ArtifactError(f"a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    coder, packed = reader.stream()
    raw = decompress(coder, packed, length)
    check_header(raw)
    return json.loads(bytes(raw))  # type: ignore[no-any-return]


def check_header(raw: bytes | memoryview) -> None:
    try:
        header = json.loads(bytes(raw))
        names = [check_fields(*fields) for fields in header["tensors"]]
        ties, metadata = header["ties"], header["metadata"]
        texts = [*ties, *ties.values(), *metadata, *metadata.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"the header is not as specified: {error!r}") from None
    if names != sorted(set(names)) or not all(isinstance(text, str) for text in texts):
        raise ArtifactError("the header's names are not sorted, unique texts")
    if not set(ties.values()) <= set(names) or set(ties) & set(names):
        raise ArtifactError("a tie names a tensor that is not there, or one that is stored")


def check_fields(name: str, dtype: str, shape: list[int]) -> str:
    known = dtype in DTYPES and hasattr(torch, dtype)
    if not isinstance(name, str) or not known or not isinstance(shape, list):
        raise ValueError(f"tensor {name!r} has dtype {dtype!r} and shape {shape!r}")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape) or len(shape) > 32:
        raise ValueError(f"tensor {name!r} has shape {shape}")
    return name


def check_sizes(tensors: list[list[Any]], max_bytes: int) -> None:
    total = sum(math.prod(shape) * getattr(torch, dtype).itemsize for _, dtype, shape in tensors)
    if total > max_bytes:
        raise ArtifactError(
            f"decoded, this file takes {total:,} bytes and {max_bytes:,} are allowed; "
            "allow more (--max-memory) if you trust it"
        )


def read_tensor(reader: Reader, name: str, dtype: str, shape: list[int]) -> StoredTensor:
    start = reader.at
    format, rank, bits = reader.take(1)[0], 0, 0
    if LOW_RANK <= format < LOW_RANK + 3:
        bits, rank, format = read_correction(reader, format)
        check_rank(name, rank, format, shape)
    scale: tuple[int, memoryview] | None = None
    steps: tuple[StoredSteps, ...] = ()
    shrink, side = 0, 0
    if STEPPED_BYTE <= format < STEPPED_BYTE + 8 and not rank:
        shrink, steps = read_stepped(reader, format)
        side = reader.at - start - 1
    else:
        check_format(name, format)
        if format >= TERNARY:
            scale = read_scale(reader)
    codes = reader.stream()
    factors = read_factors(reader) if rank else ()
    size = reader.at - start
    tensor = name, dtype, tuple(shape), format
    return StoredTensor(*tensor, scale, codes, size, rank, bits, factors, steps, shrink, side)


def read_scale(reader: Reader) -> tuple[int, memoryview]:
    return reader.stream()


def check_format(name: str, format: int) -> None:
    if not (format <= 3 or format == TERNARY or 0x88 <= format < 0xC0):
        raise ArtifactError(f"tensor {name}: format byte {format:#04x} is unknown")


def read_correction(reader: Reader, format: int) -> tuple[int, int, int]:
    """(bits, rank, format corrected)."""
    rank, corrected = reader.take(2)
    return 2 << (format - LOW_RANK), rank, corrected


def read_factors(reader: Reader) -> tuple[tuple[int, memoryview], ...]:
    return reader.stream(), reader.stream(), reader.stream()


def check_rank(name: str, rank: int, format: int, shape: list[int]) -> None:
    """Factors are then no larger than the tensor itself."""
    smaller = min(math.prod(shape[:-1]), shape[-1]) if shape else 1
    if not 1 <= rank <= smaller or format < TERNARY:
        raise ArtifactError(
            f"tensor {name}: a correction of rank {rank} to format byte {format:#04x} and shape "
            f"{shape}"
        )


def decode_weight(stored: StoredTensor) -> torch.Tensor:
    """The weights of one tensor. Raises ArtifactError."""
    shape, dtype = stored.shape, getattr(torch, stored.dtype)
    if stored.steps:
        steps = tensors_of(decode_stepping(stored))
        return dequantize_stepped(*steps, shape, dtype)  # type: ignore[call-arg]
    if stored.scale is None:
        kept: torch.dtype = getattr(torch, kept_name(stored))
        elements = torch.from_numpy(decode_kept(stored, kept.itemsize))
        return dequantize_stored(elements, kept, shape, dtype)
    if stored.rank:
        parts = tensors_of([*decode_scaled(stored), *decode_factors(stored)])
        return dequantize_low_rank(*parts, shape, dtype)  # type: ignore[call-arg]
    scaled = tensors_of(decode_scaled(stored))
    return dequantize_scaled(*scaled, shape, dtype)  # type: ignore[call-arg]


def tensors_of(arrays: Iterable[npt.NDArray[Any] | None]) -> Any:
    """A list: each as a tensor that shares its memory; None stays."""
    return [array if array is None else torch.from_numpy(array) for array in arrays]


def kept_name(stored: StoredTensor) -> str:
    """The dtype whose bytes a passthrough stores: raw, fp32, fp16, bf16."""
    return (stored.dtype, "float32", "float16", "bfloat16")[stored.format]


def decode_kept(stored: StoredTensor, itemsize: int) -> npt.NDArray[np.uint8]:
    """uint8 [count, itemsize] of a passthrough."""
    try:
        return decode_elements(stored.codes, math.prod(stored.shape), itemsize)
    except ArtifactError as error:
        raise ArtifactError(f"tensor {stored.name}: {error}") from None


def decode_scaled(stored: StoredTensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """(codes, scale): int8 [rows, columns] and float16 or float32 [rows or 1]."""
    assert stored.scale is not None
    try:
        per_row = stored.format & (TERNARY | 4)
        width = 4 if stored.format & 1 else 2
        scale_bytes = decode_elements(stored.scale, stored.rows if per_row else 1, width)
        scale = scale_bytes.reshape(-1).view(f"f{width}")
        check_scale(scale, 128)
        codes = decode_stream(stored.codes, stored.rows, stored.columns, scale)
    except ArtifactError as error:
        raise ArtifactError(f"tensor {stored.name}: {error}") from None
    return codes, scale


def check_scale(scale: npt.NDArray[Any], largest: int) -> None:
    """Raises ArtifactError: negative, or not finite in float32 when multiplied by `largest`."""
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.isfinite(scale.astype(np.float32) * np.float32(largest)) & (scale >= 0)
    if not fits.all():
        raise ArtifactError("a scale is negative or too large")


def decode_stepping(
    stored: StoredTensor,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any]]:
    """(codes, row, column, shrink) of a stepped format, as `dequantize_stepped` takes them."""
    try:
        return decode_stepped(
            stored.codes,
            stored.steps,
            stored.shrink,
            stored.rows,
            stored.columns,
            stored.format & 4,
        )
    except ArtifactError as error:
        raise ArtifactError(f"tensor {stored.name}: {error}") from None


def decode_factors(
    stored: StoredTensor,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8], npt.NDArray[Any]]:
    """int8 left [rank, rows] and right [rank, columns], float32 rank_scale [rank]."""
    rank = stored.rank
    try:
        scale = decode_elements(stored.factors[0], rank, 4).reshape(-1).view(np.float32)
        check_scale(scale, 4112895)  # 127 · 127 · 255, the largest sum of products of factors
        left = decode_stream(stored.factors[1], rank, stored.rows, None)
        right = decode_stream(stored.factors[2], rank, stored.columns, None)
    except ArtifactError as error:
        raise ArtifactError(f"tensor {stored.name}: {error}") from None
    return left, right, scale
