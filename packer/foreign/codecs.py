"""Compressed files to the bytes inside: codecs recognized by their first bytes, output bounded.

File names and log lines do not identify the codec: trainers fall back from zstd to zlib silently.
Only brotli has no signature; it is tried last.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from packer.errors import CheckpointError

MAX_LAYERS = 4
MAX_MEMORY = 1 << 33
# Real artifacts expand at most twenty-fold. Deflate reaches 1,032:1 and the others far more.
MAX_EXPANSION = 256
SMALL_EXPANDED = 1 << 26  # always allowed: a quantized model may be all zeros
STEP_BYTES = 1 << 20
DECODER_MEMORY = 1 << 28  # windows of xz and zstd; their highest usual settings need a quarter
BSHF = b"BSHF"
# Codecs that some trainers wrote as four letters before the stream (PR #850, #705).
TAGS = {b"ZLIB": "zlib", b"ZSTD": "zstd", b"ZLB0": "zlib", b"ZST0": "zstd"}


@dataclass(frozen=True)
class Unwrapped:
    """data: the innermost bytes. layers: codecs from the outside in, empty for a plain file."""

    data: bytes
    layers: tuple[str, ...]

    @property
    def codec(self) -> str:
        """For people: brotli+shuffle2, zlib, none."""
        return "+".join(self.layers) or "none"


def output_limit(file_bytes: int, max_memory: int | None) -> int:
    """Bytes that a file of this size may expand to; a limit given by the user stands as it is."""
    if max_memory is not None:
        return max_memory
    return min(MAX_MEMORY, max(SMALL_EXPANDED, MAX_EXPANSION * file_bytes))


def codec_of(head: bytes) -> str | None:
    """The codec whose signature the bytes start with; brotli has none.

    head: at least the first eight bytes.
    """
    if head[:4] in TAGS or head[:4] == BSHF:
        return TAGS.get(head[:4], "shuffle")
    if head[:4] == b"\x28\xb5\x2f\xfd":
        return "zstd"
    if head[:6] == b"\xfd7zXZ\0" or (head[:1] == b"\x5d" and head[1:3] == b"\0\0"):
        return "xz"
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    # A zlib header: deflate, window at most 2^15, and a check that makes it a multiple of 31.
    is_zlib = len(head) > 1 and head[0] & 15 == 8 and head[0] >> 4 <= 7
    return "zlib" if is_zlib and int.from_bytes(head[:2], "big") % 31 == 0 else None


def unwrap(data: bytes, limit: int, source: str, known: Callable[[bytes], bool]) -> Unwrapped:
    """Takes codecs off until what is left has none; never makes more than `limit` bytes.

    known: whether bytes are the start of a container; anything else is tried as brotli.
    Raises CheckpointError: damaged, too large, too many layers.
    """
    layers: list[str] = []
    while not known(data[:64]):
        codec = codec_of(data[:64]) or "brotli"
        if len(layers) == MAX_LAYERS:
            raise CheckpointError(
                f"{source}: is compressed more than {MAX_LAYERS} times over, which no trainer does"
            )
        if codec == "shuffle":
            layers.append(f"shuffle{data[4] if len(data) > 4 else 0}")
            data = unshuffle(data, source)
            continue
        body = data[4:] if data[:4] in TAGS else data
        try:
            data = expand(codec, body, limit, source)
        except UnknownBytesError:
            if codec == "brotli":
                break
            raise
        layers.append(codec)
    return Unwrapped(data, tuple(layers))


class UnknownBytesError(CheckpointError):
    """Bytes without a signature that are no brotli stream either."""


def expand(codec: str, data: bytes, limit: int, source: str) -> bytes:
    """The whole of one stream, at most `limit` bytes of it. Raises CheckpointError."""
    pieces = bytearray()
    try:
        for piece in _pieces(codec, data):
            pieces += piece
            if len(pieces) > limit:
                raise CheckpointError(
                    f"{source}: as {codec} its {len(data):,} bytes expand to more than the "
                    f"{limit:,} allowed; if you trust the file, allow more with --max-memory"
                )
    except CheckpointError:
        raise
    except Exception as error:  # each codec has its own error type
        kind = UnknownBytesError if codec == "brotli" and not pieces else CheckpointError
        raise kind(
            f"{source}: its {codec} data is truncated or damaged after {len(pieces):,} bytes "
            f"({error}); copy the file again"
        ) from None
    return bytes(pieces)


def _pieces(codec: str, data: bytes) -> Iterator[bytes]:
    if codec == "brotli":
        return _brotli_pieces(data)
    if codec == "zstd":
        return _zstd_pieces(data)
    if codec == "xz":
        return _end_checked(lzma.LZMADecompressor(memlimit=DECODER_MEMORY), data)
    return _zlib_pieces(data, zlib.MAX_WBITS | (16 if codec == "gzip" else 0))


def _zlib_pieces(data: bytes, window_bits: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(window_bits)
    rest = data
    while not inflater.eof:
        piece = inflater.decompress(rest, STEP_BYTES)
        if not piece and not inflater.eof:
            raise ValueError("it ends early")
        rest = inflater.unconsumed_tail
        yield piece
    _refuse_more(inflater.unused_data)


def _end_checked(unpacker: Any, data: bytes) -> Iterator[bytes]:
    rest = data
    while not unpacker.eof:
        piece = unpacker.decompress(rest, STEP_BYTES)
        rest = b""
        if not piece and not unpacker.eof:
            raise ValueError("it ends early")
        yield piece
    _refuse_more(unpacker.unused_data)


def _zstd_pieces(data: bytes) -> Iterator[bytes]:
    import zstandard

    written = 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=DECODER_MEMORY)
    with decompressor.stream_reader(data, read_across_frames=True) as reader:
        while piece := reader.read(STEP_BYTES):
            written += len(piece)
            yield piece
    declared = zstandard.frame_content_size(data)
    if declared >= 0 and written < declared:  # a stream that stops inside a block is no error there
        raise ValueError(f"it ends early: {declared:,} bytes are declared")


def _brotli_pieces(data: bytes) -> Iterator[bytes]:
    import brotli

    decoder = brotli.Decompressor()
    rest = data
    while not decoder.is_finished():
        piece = decoder.process(rest, output_buffer_limit=STEP_BYTES)
        rest = b""
        if not piece and not decoder.is_finished():
            raise ValueError("it ends early")
        yield piece


def _refuse_more(rest: bytes) -> None:
    if rest:
        raise ValueError(f"{len(rest):,} bytes follow its end")


def unshuffle(data: bytes, source: str) -> bytes:
    """Interleaves the planes of `BSHF`, one byte of stride s, then bytes 0, s, 2s, ..., 1, s + 1.

    Raises CheckpointError: the stride is impossible.
    """
    import numpy as np

    stride = data[4] if len(data) > 4 else 0
    if stride == 0:
        raise CheckpointError(f"{source}: its byte shuffle has no stride; the file is damaged")
    planes = np.frombuffer(data, np.uint8, offset=5)
    mixed = np.empty_like(planes)
    start = 0
    for first in range(stride):
        plane = mixed[first::stride]
        plane[:] = planes[start : start + len(plane)]
        start += len(plane)
    return mixed.tobytes()
