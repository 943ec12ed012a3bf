"""One stream of an artifact to integers: general compressors, and ANS with classes and tables.

Like decoder.py this module is closed and part of the shipped loader. docs/format.md specifies it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact.rans_decoder import LaneDecoder, lane_model
from packer.artifact.reader import ArtifactError

RAW = 0
ANS = 1
ZSTD = 2
BROTLI = 3
LZMA = 4
ZLIB = 5
NUMPY = 6
LEVELS = 128

Buffer = bytes | memoryview
Model = Callable[[npt.NDArray[Any]], Any]
"""From integer counts to the model under which a coder decodes symbols."""


def decode_elements(stream: tuple[int, Buffer], count: int, itemsize: int) -> npt.NDArray[np.uint8]:
    """uint8 [count, itemsize] from byte planes: all first bytes, then all second bytes, ..."""
    planes = decode_stream(stream, itemsize, count, None)
    return np.ascontiguousarray(planes.view(np.uint8).T)


def decode_stream(
    stream: tuple[int, Buffer], rows: int, columns: int, scale: npt.NDArray[Any] | None
) -> npt.NDArray[np.int8]:
    """int8 [rows, columns] of one stream."""
    coder, data = stream
    if coder in (ANS, NUMPY):
        return decode_ans(data, rows, columns, scale, None, False, coder)
    raw = decompress(coder, data, rows * columns)
    return np.frombuffer(bytearray(raw), dtype=np.int8).reshape(rows, columns)


def decompress(coder: int, data: Buffer, length: int) -> Buffer:
    """Exactly `length` bytes, or ArtifactError; never allocates much more than that."""
    try:
        raw = expanded(coder, data, length)
    except ArtifactError:
        raise
    except Exception as error:  # each codec has its own error type
        raise ArtifactError(f"a compressed stream is damaged: {error}") from None
    if len(raw) != length:
        raise ArtifactError(f"a stream holds {len(raw)} bytes where {length} belong")
    return raw


def expanded(coder: int, data: Buffer, length: int) -> Buffer:
    """About `length` bytes; every codec by itself, so that a loader holds only those in use."""
    if coder == ZSTD:
        return from_zstd(data, length)
    if coder == BROTLI:
        return from_brotli(data, length)
    if coder == LZMA:
        return from_lzma(data, length)
    if coder == ZLIB:
        return from_zlib(data, length)
    if coder != RAW:
        raise ArtifactError(f"coder {coder} is unknown")
    return data


def from_zstd(data: Buffer, length: int) -> bytes:
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        return bytes(reader.read(length + 1))


def from_brotli(data: Buffer, length: int) -> bytes:
    import brotli

    decoder = brotli.Decompressor()
    raw = bytes(decoder.process(data, output_buffer_limit=length + 1))
    while len(raw) <= length and not decoder.is_finished():
        more = decoder.process(b"", output_buffer_limit=length + 1 - len(raw))
        if not more:
            raise ArtifactError("a brotli stream ends early")
        raw += more
    return raw


def from_lzma(data: Buffer, length: int) -> bytes:
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 24}]
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    raw = unpacker.decompress(data, length + 1)
    check_finished(unpacker)
    return raw


def from_zlib(data: Buffer, length: int) -> bytes:
    import zlib

    inflater = zlib.decompressobj()
    raw = inflater.decompress(data, length + 1)
    check_finished(inflater)
    return raw


def check_finished(unpacker: Any) -> None:
    """Raises ArtifactError: the stream has not ended, or something follows it."""
    if not unpacker.eof or unpacker.unused_data:
        raise ArtifactError("a compressed stream does not end where it should")


def decode_ans(
    data: Buffer,
    rows: int,
    columns: int,
    scale: npt.NDArray[Any] | None,
    column_scale: npt.NDArray[Any] | None = None,
    wide: bool = False,
    coder: int = ANS,
) -> npt.NDArray[Any]:
    """Static ANS: rows and columns fall into classes, and each pair of classes has its own table.

    First byte: bits 0-1 how rows are classed (0 one class, 1 by rank of their scale, 2 stored,
    3 each row its own), bits 2-3 log2 of row classes, bits 4-5 log2 of column classes; of int16
    codes (`wide`) bit 6: codes beyond the reach escape, bit 7: columns are classed by rank of their
    scale, else stored. Second byte: the reach, the largest code that the tables hold (clip level).
    Then the data of one ANS coder.
    """
    check_start(data, rows, columns, scale, column_scale, wide)
    first, reach = data[:2]
    codes = np.zeros((rows, columns), dtype=np.int16 if wide else np.int8)
    if reach == 0 or codes.size == 0:
        return codes
    symbols, model, row_class, column_class = open_classes(
        data, rows, columns, scale, column_scale, coder
    )
    for cell, height, width in class_cells(row_class, column_class):
        decoded = symbols.decode(decode_table(symbols, model, reach), height * width)
        if not wide and decoded.max() > 127 + reach:
            raise ArtifactError("an ANS stream decodes to a value above 127")
        codes[cell] = (decoded - reach).reshape(height, width)
    if first & 64:
        add_excess(symbols, model, codes, reach)
    check_used(symbols)
    return codes


def check_used(symbols: Any) -> None:
    if not symbols.is_empty():
        raise ArtifactError("an ANS stream has data left after its last symbol")


def open_classes(
    data: Buffer,
    rows: int,
    columns: int,
    scale: npt.NDArray[Any] | None,
    column_scale: npt.NDArray[Any] | None,
    coder: int,
) -> tuple[Any, Model, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(decoder of symbols, maker of models, class of each row [rows], of each column [columns])."""
    first = data[0]
    symbols, model = opened(coder, data[2:])
    row_class = class_rows(first & 3, 1 << (first >> 2 & 3), rows, scale, symbols, model)
    classes = 1 << (first >> 4 & 3)
    if first & 128:
        column_class = rank_classes(column_scale, classes)
    else:
        column_class = decode_classes(symbols, model, classes, columns)
    return symbols, model, row_class, column_class


def check_start(
    data: Buffer,
    rows: int,
    columns: int,
    scale: npt.NDArray[Any] | None,
    column_scale: npt.NDArray[Any] | None,
    wide: bool,
) -> None:
    """Raises ArtifactError: the first two bytes are not as specified, or need scales that this
    tensor does not have.
    """
    if len(data) < 2 or data[0] > (255 if wide else 63) or data[1] > 128:
        raise ArtifactError(
            f"an ANS stream of {len(data)} bytes starts with {bytes(data[:2]).hex()}"
        )
    if data[1] == 0 or rows * columns == 0:
        if len(data) > 2:
            raise ArtifactError(f"an ANS stream of no codes but 0 has {len(data)} bytes, not 2")
        return
    kind = data[0] & 3
    if kind == 1 and (scale is None or len(scale) != rows):
        raise ArtifactError("rows are classed by their scales, and this tensor has one scale")
    if kind == 3 and rows > 8:
        raise ArtifactError(f"each of {rows} rows has its own class; at most 8 may")
    if data[0] & 128 and (column_scale is None or len(column_scale) != columns):
        raise ArtifactError("columns are classed by their steps, and this tensor has none")


def opened(coder: int, data: Buffer) -> tuple[Any, Model]:
    """(decoder of symbols, maker of its models) of the data of an ANS coder."""
    if coder == NUMPY:
        return LaneDecoder(data), lane_model
    return open_constriction(data), categorical


def open_constriction(data: Buffer) -> Any:
    import constriction

    if len(data) % 4:
        raise ArtifactError(f"the data of an ANS coder are 32-bit words, found {len(data)} bytes")
    try:
        return constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4"))
    except ValueError as error:
        raise ArtifactError(f"an ANS stream is damaged: {error}") from None


def add_excess(
    symbols: Any, model: Model, codes: npt.NDArray[Any], reach: int, unit: int = 1
) -> None:
    """Add the excess of the `unit` largest magnitudes, in units: two bytes, low bytes first."""
    at = np.abs(codes) > reach - unit
    byte = model(np.ones(256, np.int64))
    excess = symbols.decode(byte, at.sum()).astype(np.int64)
    excess += 256 * symbols.decode(byte, at.sum())
    magnitudes = np.abs(codes[at]) + unit * excess
    if len(magnitudes) and magnitudes.max() * unit > 32767:
        raise ArtifactError(f"an ANS stream decodes to a code of {magnitudes.max() * unit}")
    codes[at] = np.sign(codes[at]) * magnitudes


def class_rows(
    kind: int, classes: int, rows: int, scale: npt.NDArray[Any] | None, symbols: Any, model: Model
) -> npt.NDArray[np.int64]:
    """The class of each row, [rows]."""
    if kind == 1:
        return rank_classes(scale, classes)
    if kind == 2:
        return decode_classes(symbols, model, classes, rows)
    return np.arange(rows) if kind == 3 else np.zeros(rows, dtype=np.int64)


def rank_classes(values: Any, classes: int) -> npt.NDArray[np.int64]:
    """Classes of equal size by rank, ties by position."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks * classes // max(len(values), 1)


def decode_classes(symbols: Any, model: Model, classes: int, count: int) -> npt.NDArray[np.int64]:
    """Stored classes: uniformly distributed symbols."""
    if classes == 1:
        return np.zeros(count, dtype=np.int64)
    return symbols.decode(model(np.ones(classes, np.int64)), count).astype(np.int64)  # type: ignore[no-any-return]


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


def decode_table(symbols: Any, model: Model, reach: int) -> Any:
    """The model of one class: counts of the symbols -reach .. reach, decoded as levels.

    Levels come in the order 0, 1, -1, 2, -2, ...; each is predicted by its neighbours.
    """
    levels = [0] * (2 * reach + 1)
    for distance, at in table_order(reach):
        guess = predict_level(levels, reach, distance, at)
        levels[at] = int(symbols.decode(level_model(model, guess), 1)[0])
    if not any(levels):
        raise ArtifactError("an ANS table has no symbols")
    return model(np.array([level_count(level) for level in levels]))


@functools.cache
def level_model(model: Model, guess: int) -> Any:
    """The model of a level that is predicted to be `guess`."""
    return model(level_weights(guess))


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
