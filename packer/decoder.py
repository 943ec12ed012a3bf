"""Artifact bytes to weights. The layout is specified in docs/format.md.

This module is closed: the standard library, numpy, torch, the codecs a file uses, and the
dequantize functions. Its source text is what the shipped loader is made of, so codecs are imported
where they are used: a loader needs only the packages that its own file needs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from packer.quantizers.dequantize import dequantize_scaled, dequantize_stored

MAGIC = b"\x93BYTECAP"
VERSION = 1
CHECKSUM_BYTES = 8
RAW, ANS, ZSTD, BROTLI, LZMA, ZLIB = range(6)
MAX_HEADER_BYTES = 1 << 26
MAX_DECODED_BYTES = 1 << 34
LEVELS = 128
# Format bytes: 0 raw, 1 fp32, 2 fp16, 3 bf16; 0x40 ternary.row; integers are 0x80 + (bits - 1) * 8,
# plus 4 for scales per row, 2 for the wide range, 1 for float32 scales.
TERNARY = 0x40
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)


Buffer = bytes | memoryview


class ArtifactError(Exception):
    """Bytes that are not an artifact, or a damaged one; says what was found where."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in the file; streams are (coder, bytes)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    format: int
    scale: tuple[int, memoryview] | None
    codes: tuple[int, memoryview]
    size_bytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class StoredArtifact:
    """The parsed file. Tensors are in file order, which is sorted by name.

    cap_bytes, code_bytes: what the file was made for. ties: tied name -> stored name.
    header_bytes: everything but the tensors, checksum included.
    """

    cap_bytes: int
    code_bytes: int
    ties: dict[str, str]
    metadata: dict[str, str]
    tensors: tuple[StoredTensor, ...]
    header_bytes: int


class Reader:
    """A cursor that never reads past the end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data, self.at = memoryview(data), 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise ArtifactError(
                f"the file ends early: {count} bytes wanted at offset {self.at}, "
                f"{len(self.data) - self.at} left"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """Little-endian base 128, at most nine bytes."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ArtifactError(f"a length at offset {self.at} has more than nine bytes")

    def stream(self) -> tuple[int, memoryview]:
        coder = self.take(1)[0]
        return coder, self.take(self.varint())


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
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"not an artifact: it starts with {data[:8].hex(' ') or 'nothing'}")
    whole = memoryview(data)  # slices of it copy nothing
    body, checksum = whole[:-CHECKSUM_BYTES], whole[-CHECKSUM_BYTES:]
    reader = Reader(body)
    reader.take(len(MAGIC))
    version = reader.take(1)[0]
    if version != VERSION:
        raise ArtifactError(f"format version {version}; this reader knows version {VERSION}")
    if hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest() != checksum:
        raise ArtifactError("the checksum is wrong: the file is truncated or damaged")
    cap_bytes, code_bytes = struct.unpack("<QQ", reader.take(16))
    header = read_header(reader)
    fixed_bytes = reader.at + CHECKSUM_BYTES
    check_sizes(header["tensors"], max_bytes)
    tensors = tuple(read_tensor(reader, *fields) for fields in header["tensors"])
    if reader.at != len(body):
        raise ArtifactError(f"{len(body) - reader.at} bytes follow the last tensor")
    return StoredArtifact(
        cap_bytes, code_bytes, header["ties"], header["metadata"], tensors, fixed_bytes
    )


def read_header(reader: Reader) -> dict[str, Any]:
    """The JSON header: tensors [name, dtype, shape], ties and metadata."""
    length = reader.varint()
    if length > MAX_HEADER_BYTES:
        raise ArtifactError(f"a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    coder, packed = reader.stream()
    raw = decompress(coder, packed, length)
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
    return header  # type: ignore[no-any-return]


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
            f"decoded, this file takes {total} bytes and {max_bytes} are allowed; "
            "allow more if you trust it"
        )


def read_tensor(reader: Reader, name: str, dtype: str, shape: list[int]) -> StoredTensor:
    start = reader.at
    format = reader.take(1)[0]
    if not (format <= 3 or format == TERNARY or 0x88 <= format < 0xC0):
        raise ArtifactError(f"tensor {name}: format byte {format:#04x} is unknown")
    scale = reader.stream() if format >= TERNARY else None
    codes = reader.stream()
    return StoredTensor(name, dtype, tuple(shape), format, scale, codes, reader.at - start)


def stored_dtype(format: int, dtype: str) -> torch.dtype:
    """The dtype whose bytes a passthrough stores: raw, fp32, fp16, bf16."""
    own: torch.dtype = getattr(torch, dtype)
    return (own, torch.float32, torch.float16, torch.bfloat16)[format]


def decode_weight(stored: StoredTensor) -> torch.Tensor:
    """The weights of one tensor. Raises ArtifactError."""
    dtype = getattr(torch, stored.dtype)
    codes, scale = decode_codes(stored)
    if scale is None:
        kept = stored_dtype(stored.format, stored.dtype)
        return dequantize_stored(codes, kept, stored.shape, dtype)
    return dequantize_scaled(codes, scale, stored.shape, dtype)


def decode_codes(stored: StoredTensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(codes, scale): int8 [rows, columns] and [rows or 1]; or uint8 [count, itemsize] and None."""
    try:
        if stored.scale is None:
            itemsize = stored_dtype(stored.format, stored.dtype).itemsize
            return decode_elements(stored.codes, math.prod(stored.shape), itemsize), None
        per_row = stored.format & (TERNARY | 4) != 0
        kept = torch.float32 if stored.format & 1 else torch.float16
        scale_bytes = decode_elements(stored.scale, stored.rows if per_row else 1, kept.itemsize)
        scale = scale_bytes.reshape(-1).view(kept)
        if not bool((torch.isfinite(scale.float() * 128) & (scale >= 0)).all()):
            raise ArtifactError("a scale is negative or too large")
        codes = decode_stream(stored.codes, stored.rows, stored.columns, scale.numpy())
    except ArtifactError as error:
        raise ArtifactError(f"tensor {stored.name}: {error}") from None
    return torch.from_numpy(codes), scale


def decode_elements(stream: tuple[int, Buffer], count: int, itemsize: int) -> torch.Tensor:
    """uint8 [count, itemsize] from byte planes: all first bytes, then all second bytes, ..."""
    planes = decode_stream(stream, itemsize, count, None)
    return torch.from_numpy(np.ascontiguousarray(planes.view(np.uint8).T))


def decode_stream(
    stream: tuple[int, Buffer], rows: int, columns: int, scale: npt.NDArray[Any] | None
) -> npt.NDArray[np.int8]:
    """int8 [rows, columns] of one stream."""
    coder, data = stream
    if coder == ANS:
        return decode_ans(data, rows, columns, scale)
    raw = decompress(coder, data, rows * columns)
    return np.frombuffer(bytearray(raw), dtype=np.int8).reshape(rows, columns)


def decompress(coder: int, data: Buffer, length: int) -> Buffer:
    """Exactly `length` bytes, or ArtifactError; never makes much more than that."""
    try:
        raw = _decompress(coder, data, length)
    except ArtifactError:
        raise
    except Exception as error:  # each codec has its own error type
        raise ArtifactError(f"a compressed stream is damaged: {error}") from None
    if len(raw) != length:
        raise ArtifactError(f"a stream holds {len(raw)} bytes where {length} belong")
    return raw


def _decompress(coder: int, data: Buffer, length: int) -> Buffer:
    if coder == RAW:
        return data
    if coder == ZSTD:
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            return bytes(reader.read(length + 1))
    if coder == BROTLI:
        import brotli

        decoder = brotli.Decompressor()
        raw = bytearray(decoder.process(data, output_buffer_limit=length + 1))
        while len(raw) <= length and not decoder.is_finished():
            more = decoder.process(b"", output_buffer_limit=length + 1 - len(raw))
            if not more:
                raise ArtifactError("a brotli stream ends early")
            raw += more
        return bytes(raw)
    if coder == LZMA:
        import lzma

        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 24}]
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        return finished(unpacker, unpacker.decompress(data, length + 1))
    if coder == ZLIB:
        import zlib

        inflater = zlib.decompressobj()
        return finished(inflater, inflater.decompress(data, length + 1))
    raise ArtifactError(f"coder {coder} is unknown")


def finished(unpacker: Any, raw: bytes) -> bytes:
    """`raw`, provided that the stream ended there and nothing follows it."""
    if not unpacker.eof or unpacker.unused_data:
        raise ArtifactError("a compressed stream does not end where it should")
    return raw


def decode_ans(
    data: Buffer, rows: int, columns: int, scale: npt.NDArray[Any] | None
) -> npt.NDArray[np.int8]:
    """Static ANS: rows and columns fall into classes, and each pair of classes has its own table.

    First byte: bits 0-1 how rows are classed (0 one class, 1 by rank of their scale, 2 stored,
    3 each row its own), bits 2-3 log2 of row classes, bits 4-5 log2 of column classes (stored).
    Second byte: largest magnitude. Then the words of one ANS coder, little-endian uint32.
    """
    import constriction

    if len(data) < 2 or len(data) % 4 != 2 or data[0] > 63 or data[1] > 128:
        raise ArtifactError(f"an ANS stream of {len(data)} bytes starts with {data[:2].hex()}")
    kind, row_classes, column_classes = data[0] & 3, 1 << (data[0] >> 2 & 3), 1 << (data[0] >> 4)
    reach = data[1]
    codes = np.zeros((rows, columns), dtype=np.int8)
    if reach == 0 or codes.size == 0:
        return codes
    try:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4", offset=2))
    except ValueError as error:
        raise ArtifactError(f"an ANS stream is damaged: {error}") from None
    if kind == 1 and (scale is None or len(scale) != rows):
        raise ArtifactError("rows are classed by their scales, and this tensor has one scale")
    if kind == 3 and rows > 8:
        raise ArtifactError(f"each of {rows} rows has its own class; at most 8 may")
    row_class = class_rows(kind, row_classes, rows, scale, coder)
    column_class = decode_classes(coder, column_classes, columns)
    for cell, height, width in class_cells(row_class, column_class):
        table = decode_table(coder, reach)
        symbols = coder.decode(table, height * width)
        if symbols.max() > 127 + reach:
            raise ArtifactError("an ANS stream decodes to a value above 127")
        codes[cell] = (symbols - reach).reshape(height, width)
    if not coder.is_empty():
        raise ArtifactError("an ANS stream has data left after its last symbol")
    return codes


def class_rows(
    kind: int, classes: int, rows: int, scale: npt.NDArray[Any] | None, coder: Any
) -> npt.NDArray[np.int64]:
    """The class of each row, [rows]."""
    if kind == 1:
        return rank_classes(scale, classes)
    if kind == 2:
        return decode_classes(coder, classes, rows)
    return np.arange(rows) if kind == 3 else np.zeros(rows, dtype=np.int64)


def rank_classes(values: Any, classes: int) -> npt.NDArray[np.int64]:
    """Classes of equal size by rank, ties by position."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks * classes // max(len(values), 1)


def decode_classes(coder: Any, classes: int, count: int) -> npt.NDArray[np.int64]:
    """Stored classes: uniformly distributed symbols."""
    if classes == 1:
        return np.zeros(count, dtype=np.int64)
    return coder.decode(categorical(np.ones(classes)), count).astype(np.int64)  # type: ignore[no-any-return]


def class_cells(
    row_class: npt.NDArray[np.int64], column_class: npt.NDArray[np.int64]
) -> list[tuple[Any, int, int]]:
    """(index into the codes, rows, columns) of every pair of classes that is not empty."""
    every_row, every_column = class_members(row_class), class_members(column_class)
    return [
        (cell_index(rows, columns), height, width)
        for rows, height in every_row
        for columns, width in every_column
    ]


def cell_index(rows: Any, columns: Any) -> Any:
    """An index of the rows and columns given as positions or as slices."""
    sliced = isinstance(rows, slice) or isinstance(columns, slice)
    return (rows, columns) if sliced else np.ix_(rows, columns)


def class_members(classes: npt.NDArray[np.int64]) -> list[tuple[Any, int]]:
    """(positions, how many) of every class that is not empty; a slice where there is one class."""
    sizes = np.bincount(classes)
    if len(sizes) == 1:
        return [(slice(None), len(classes))]
    return [(np.flatnonzero(classes == value), size) for value, size in enumerate(sizes) if size]


def categorical(counts: npt.NDArray[Any]) -> Any:
    """constriction's fixed-point model of integer counts; `perfect=False` is part of the format."""
    import constriction

    return constriction.stream.model.Categorical(counts.astype(np.float64), perfect=False)


def decode_table(coder: Any, reach: int) -> Any:
    """The model of one class: counts of the symbols -reach .. reach, decoded as levels.

    Levels come in the order 0, 1, -1, 2, -2, ...; each is predicted by its neighbours.
    """
    levels = [0] * (2 * reach + 1)
    for distance, at in table_order(reach):
        guess = predict_level(levels, reach, distance, at)
        levels[at] = int(coder.decode(level_model(guess)))
    if not any(levels):
        raise ArtifactError("an ANS table has no symbols")
    return categorical(np.array([level_count(level) for level in levels]))


@functools.cache
def level_model(guess: int) -> Any:
    """The model of a level that is predicted to be `guess`."""
    return categorical(level_weights(guess))


def table_order(reach: int) -> list[tuple[int, int]]:
    """(distance from zero, index) of each symbol in coding order."""
    return [(0, reach)] + [
        (distance, reach + sign * distance) for distance in range(1, reach + 1) for sign in (1, -1)
    ]


def predict_level(levels: list[int], reach: int, distance: int, at: int) -> int:
    """The level expected at index `at`: of the mirror symbol, or of the last pair; -1 at first."""
    if distance == 0:
        return -1
    if at < reach:
        return levels[reach + distance]
    return (levels[at - 1] + levels[reach - distance + 1]) >> 1


def level_count(level: int) -> int:
    """Levels are counts with two bits of mantissa: 0 1 2 3 4 5 6 7 8 10 12 14 16 20 24 ..."""
    return level if level < 4 else (4 + (level & 3)) << ((level >> 2) - 1)


def level_weights(guess: int) -> npt.NDArray[np.int64]:
    """Integer weights of the levels around a guess: two-sided geometric, wider for small counts."""
    if guess < 0:
        return np.ones(LEVELS, dtype=np.int64)
    eighths = 2 if guess == 0 else 6 if guess < 12 else 4 if guess < 24 else 3
    falling = [1 << 20]
    while len(falling) < LEVELS:
        falling.append(max(falling[-1] * eighths >> 3, 1))
    return np.array(falling)[abs(np.arange(LEVELS) - guess)]
