"""Codes to bytes: the encoding half of what stream_decoder.py reads.

Rows and columns fall into context classes (context_classes.py), each pair of classes has a table of
integer counts, and one static ANS coder (Duda, "Asymmetric numeral systems", 2013,
arXiv:1311.2540) writes tables and codes: constriction's, or the interleaved rANS of
rans_encoder.py. How many classes pay for their tables is decided per stream. ANS is a stack, so
whatever is decoded first is encoder last.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact import stream_decoder
from packer.artifact.context_classes import Classes, choose_classes
from packer.artifact.symbol_writers import ConstrictionEncoder, RansEncoder, SymbolEncoder

CODER_IDS = {
    "raw": stream_decoder.RAW,
    "ans": stream_decoder.ANS,
    "zstd": stream_decoder.ZSTD,
    "brotli": stream_decoder.BROTLI,
    "lzma": stream_decoder.LZMA,
    "zlib": stream_decoder.ZLIB,
    "numpy": stream_decoder.NUMPY,
}
CODER_NAMES = {number: name for name, number in CODER_IDS.items()}
SMALL_STREAM_BYTES = 4096  # below this every coder is tried: the slow ones take about a millisecond
THOROUGH_BYTES = 1 << 18  # below this the highest settings take less than a second
_LARGEST_REACH = 127  # largest code that the tables of int16 codes hold
_EXCESS_BITS = 16  # of an escaped code beyond it
_BITS_PER_MAGNITUDE = 3.0  # of a code and its negative in one table, about

Codes = npt.NDArray[Any]  # int8, or int16 of stepped formats
Numbers = npt.NDArray[np.int64]


def varint(value: int) -> bytes:
    """Little-endian base 128."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_stream(
    codes: Codes, coder: str | None, scale: npt.NDArray[Any] | None = None
) -> tuple[int, bytes]:
    """(coder number, bytes) of int8 codes [rows, columns].

    `coder` None takes ANS, or the smallest of all for short streams; raw if nothing is smaller.
    "numpy" takes that ANS coder likewise, and what Python itself can read.
    """
    raw = codes.tobytes()
    if coder is not None and coder != "numpy":
        return CODER_IDS[coder], _encode(codes, raw, coder, scale)
    names = ["raw", coder or "ans"]
    if 0 < len(raw) <= SMALL_STREAM_BYTES:
        names += ["zlib", "lzma"] if coder else ["brotli", "zlib", "lzma"]  # zstd is never smallest
    streams = [(CODER_IDS[name], _encode(codes, raw, name, scale)) for name in names]
    return min(streams, key=lambda stream: len(stream[1]))


def encode_elements(elements: npt.NDArray[np.uint8], coder: str | None) -> tuple[int, bytes]:
    """Like `encode_stream`, for uint8 [count, itemsize]: written as byte planes."""
    planes = np.ascontiguousarray(elements.T).view(np.int8)
    return encode_stream(planes, coder)


def encode_kept(elements: npt.NDArray[np.uint8], coder: str | None) -> tuple[int, bytes]:
    """Like `encode_elements`, for tensors that are not quantized.

    Masks and tables repeat themselves, which ANS does not see. Long streams are therefore tried
    under general compressors too, where a quick one already beats ANS.
    """
    coded = encode_elements(elements, coder)
    if elements.size <= SMALL_STREAM_BYTES or coder not in (None, "numpy"):
        return coded
    raw = np.ascontiguousarray(elements.T).tobytes()
    quick = to_zlib(raw, 1) if coder else to_brotli(raw, 2)
    if len(quick) >= len(coded[1]):
        return coded
    thorough = len(raw) <= THOROUGH_BYTES
    # Matches alone matter here: the lowest preset of lzma finds them, often in fewer bytes.
    streams = [coded, (CODER_IDS["lzma"], to_lzma(raw, 0))]
    if thorough:
        streams.append((CODER_IDS["lzma"], to_lzma(raw)))
    if coder:
        streams.append((CODER_IDS["zlib"], to_zlib(raw)))
    else:
        streams.append((CODER_IDS["brotli"], to_brotli(raw, 11 if thorough else 9)))
    return min(streams, key=lambda stream: len(stream[1]))


def _encode(codes: Codes, raw: bytes, coder: str, scale: npt.NDArray[Any] | None) -> bytes:
    if coder in ("ans", "numpy"):
        return encode_ans(codes, scale, coder=coder)
    return compress(raw, coder)


def compress(raw: bytes, coder: str) -> bytes:
    """`raw` at the highest setting of a general compressor."""
    if coder == "zlib":
        return to_zlib(raw)
    if coder == "brotli":
        return to_brotli(raw)
    if coder == "zstd":
        return to_zstd(raw)
    if coder == "lzma":
        return to_lzma(raw)
    return raw


def to_zlib(raw: bytes, level: int = 9) -> bytes:
    import zlib

    return zlib.compress(raw, level)


def to_brotli(raw: bytes, quality: int = 11) -> bytes:
    import brotli

    return bytes(brotli.compress(raw, quality=quality, lgwin=24))


def to_zstd(raw: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=22, write_checksum=False).compress(raw)


def to_lzma(raw: bytes, preset: int | None = None) -> bytes:
    """preset: 0 to 9; None is the slowest and mostly smallest."""
    import lzma

    # A window no larger than the data: the encoder's memory and start-up grow with it.
    window = min(1 << 24, max(4096, 1 << (len(raw) - 1).bit_length())) if raw else 4096
    level = 9 | lzma.PRESET_EXTREME if preset is None else preset
    filters = [{"id": lzma.FILTER_LZMA2, "preset": level, "dict_size": window}]
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=filters)


def encode_ans(
    codes: Codes,
    scale: npt.NDArray[Any] | None = None,
    column_scale: npt.NDArray[Any] | None = None,
    coder: str = "ans",
) -> bytes:
    """The ANS stream of int8 or int16 codes [rows, columns].

    scale [rows] may class the rows for free, and column_scale [columns] the columns of int16 codes.
    coder: ans, or numpy for one that is read without constriction.
    """
    largest = max(int(codes.max()), -int(codes.min())) if codes.size else 0
    if largest == 0:
        return bytes(2)
    wide = codes.dtype != np.int8
    reach = open_reach(codes, largest) if wide else largest
    clipped = codes.clip(-reach, reach).astype(np.int8) if wide else codes  # [rows, columns]
    encoder = RansEncoder(clipped, reach) if coder == "numpy" else ConstrictionEncoder()
    if reach < largest:
        _push_excess(encoder, codes, reach)
    classes, row_class, column_class = choose_classes(clipped, reach, scale, column_scale)
    every_column = stream_decoder.class_members(column_class)
    for rows, _ in reversed(stream_decoder.class_members(row_class)):
        of_class = clipped[rows]
        for columns, _ in reversed(every_column):
            symbols = of_class[:, columns].astype(np.int32).ravel()
            symbols += reach
            levels = count_levels(np.bincount(symbols, minlength=2 * reach + 1))
            encoder.encode_reverse(symbols, encoder.model(level_counts()[levels]))
            push_table(encoder, levels, reach)
    if not classes.columns_by_scale:
        push_classes(encoder, column_class, classes.columns)
    if classes.kind == 2:
        push_classes(encoder, row_class, classes.rows)
    return bytes([first_byte(classes) | (reach < largest) << 6, reach]) + encoder.data()


def first_byte(classes: Classes) -> int:
    """The first byte of a stream with these classes whose codes are all within its reach."""
    log2 = {1: 0, 2: 1, 4: 2, 8: 3}
    first = classes.kind | log2[classes.rows] << 2 | log2[classes.columns] << 4
    return first | classes.columns_by_scale << 7


def open_reach(codes: Codes, largest: int) -> int:
    """The reach: the largest code (clip level) that tables should hold.

    Codes [rows, columns] beyond it escape to two bytes each, which is cheaper than wider tables.
    """
    counts = np.bincount(np.minimum(np.abs(codes), _LARGEST_REACH).ravel(), minlength=2)
    beyond = counts[::-1].cumsum()[::-1]  # codes of at least that magnitude
    reaches = np.arange(1, min(largest, _LARGEST_REACH) + 1)
    bits = _BITS_PER_MAGNITUDE * min(codes.size / 4096, 16) * reaches + _EXCESS_BITS * beyond[1:]
    if largest <= _LARGEST_REACH:
        bits[-1] -= _EXCESS_BITS * beyond[-1]
    return int(reaches[bits.argmin()])


def _push_excess(encoder: SymbolEncoder, codes: Codes, reach: int) -> None:
    magnitudes = np.abs(codes.astype(np.int32))
    excess = magnitudes[magnitudes >= reach] - reach
    for part in (excess >> 8, excess & 255):
        encoder.encode_reverse(part.astype(np.int32), encoder.model(np.ones(256, np.int64)))


@functools.cache
def level_counts() -> Numbers:
    """The count that each level stands for, [LEVELS]."""
    return np.array([stream_decoder.level_count(level) for level in range(stream_decoder.LEVELS)])


@functools.cache
def _between_levels() -> npt.NDArray[np.float64]:
    """The counts between which the nearest level changes, [LEVELS - 1]."""
    return (level_counts()[1:] + level_counts()[:-1]) / 2


def count_levels(counts: Numbers) -> Numbers:
    """The nearest level of each count; a symbol that occurs never gets level 0."""
    levels = np.searchsorted(_between_levels(), counts, side="left")
    nearest: Numbers = np.where(counts > 0, np.maximum(levels, 1), 0)
    return nearest


def push_table(encoder: SymbolEncoder, levels: Numbers, reach: int) -> None:
    """Push the levels [2 · reach + 1] as `stream_decoder.decode_table` reads them: 0, 1, -1, 2 ...,
    each with `stream_decoder.predict_level` as its guess.
    """
    positive, negative = levels[reach:], levels[reach::-1]  # [reach + 1], from zero outwards
    pairs = np.stack([positive[1:], negative[1:]], axis=1)
    guesses = np.stack([(positive + negative)[:-1] >> 1, positive[1:]], axis=1)
    encoder.levels(
        np.concatenate([levels[reach : reach + 1], pairs.ravel()]),
        np.concatenate([[-1], guesses.ravel()]),
    )


def push_classes(encoder: SymbolEncoder, classes: Numbers, count: int) -> None:
    if count > 1:
        encoder.encode_reverse(classes.astype(np.int32), encoder.model(np.ones(count, np.int64)))
