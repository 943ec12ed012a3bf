"""Token shards on disk: a header of 256 little-endian int32 (magic, version, count), then tokens:
uint16 in version 1, and in version 2, of vocabularies of more than 65,536, uint32.

The same layout carries a bytes sidecar: the bytes of original text behind each token.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

MAGIC = 20240520
DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<u2"), 2: np.dtype("<u4")}  # of tokens, by version
HEADER_BYTES = 256 * 4
SCAN = 1 << 24  # values read at a time when looking for tokens out of range: 32 MB


class TokenStream(Protocol):
    """Tokens in a row: a numpy array of integers, or anything that slices into one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> NDArray[np.integer[Any]]: ...


@dataclass(frozen=True, eq=False)
class Shards:
    """Several memory-mapped shards, read as one stream of uint16, or uint32 where one has it."""

    paths: tuple[Path, ...]
    parts: tuple[NDArray[np.integer[Any]], ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Where each part ends in the stream."""
        return tuple(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: slice, /) -> NDArray[np.integer[Any]]:
        start, stop, step = index.indices(len(self))
        first = bisect_right(self.ends, start)  # a slice touches few of many parts
        pieces = []
        for end, part in zip(self.ends[first:], self.parts[first:], strict=True):
            offset = end - len(part)
            if offset >= stop:
                break
            pieces.append(part[max(start - offset, 0) : max(stop - offset, 0)])
        return np.concatenate(pieces)[::step] if pieces else np.zeros(0, dtype=np.uint16)


@dataclass(frozen=True, eq=False)
class SidecarBytes:
    """Bytes of text behind every token of a stream, counted when the stream was made."""

    counts: TokenStream

    def target_bytes(self, tokens: NDArray[np.integer[Any]], position: int) -> NDArray[np.int64]:
        """Bytes [n] of tokens[1:] given tokens [n + 1]; tokens[1] is at `position`."""
        return self.counts[position : position + len(tokens) - 1].astype(np.int64)

    def unknown_count(self, tokens: NDArray[np.integer[Any]]) -> int:
        del tokens  # a sidecar counts what was written, whatever the tokenizer made of it
        return 0

    def after(self, start: int) -> SidecarBytes:
        """Of the stream without its first `start` tokens."""
        return SidecarBytes(self.counts[start:])


def read_shards(patterns: Iterable[str | Path], vocab_size: int | None = None) -> Shards:
    """Open shards by path or glob, in the order given and by name within a glob.

    Args:
        patterns: files or globs; a glob that matches nothing is an error.
        vocab_size: when given, every token must lie below it.

    Raises DataError: missing, cut short, of another kind or version, of the wrong length, or with a
    token outside the vocabulary; each in its own words.
    """
    paths = tuple(path for pattern in patterns for path in _matches(pattern))
    parts = tuple(_open(path) for path in paths)
    if vocab_size is not None:
        for path, part in zip(paths, parts, strict=True):
            _check_range(path, part, vocab_size)
    return Shards(paths, parts)


def read_sidecar(patterns: Iterable[str | Path], tokens: int) -> SidecarBytes:
    """Open a bytes sidecar for a stream of `tokens` tokens.

    Raises DataError: as `read_shards`, or a sidecar of another length than the stream.
    """
    counts = read_shards(patterns)
    if len(counts) != tokens:
        names = ", ".join(str(path) for path in counts.paths)
        raise DataError(
            f"the bytes sidecar {names} counts {len(counts):,} tokens but the data has {tokens:,}: "
            "it belongs to other shards"
        )
    return SidecarBytes(counts)


def _matches(pattern: str | Path) -> Sequence[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    root = Path(path.anchor)
    files = sorted(root.glob(str(path.relative_to(root)))) if path.name else []
    if not files:
        raise DataError(f"{pattern}: no such shard, and as a glob it matches no file")
    return files


def shard_header(vocab_size: int, count: int) -> tuple[bytes, np.dtype[Any]]:
    """(header, dtype of tokens) of a shard of `count` tokens below vocab_size."""
    version = 1 if vocab_size <= 1 << 16 else 2
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, version, count
    return header.tobytes(), DTYPES[version]


def _open(path: Path) -> NDArray[np.integer[Any]]:
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise DataError(
            f"{path} has {size:,} bytes, fewer than a shard's {HEADER_BYTES:,} of header"
        )
    with path.open("rb") as file:
        magic, version, count = np.frombuffer(file.read(12), dtype="<i4").tolist()
    if magic != MAGIC:
        raise DataError(f"{path} is not a token shard: its magic is {magic}, not {MAGIC}")
    if version not in DTYPES:
        raise DataError(f"{path} is a shard of version {version}; only 1 and 2 can be read")
    dtype = DTYPES[version]
    promised = HEADER_BYTES + dtype.itemsize * count
    if count < 0 or size != promised:
        raise DataError(
            f"{path} promises {count:,} tokens, {promised:,} bytes in all, "
            f"but has {size:,} bytes: it is cut short or something was appended"
        )
    if count == 0:
        return np.zeros(0, dtype)  # an empty range cannot be mapped
    return np.memmap(path, dtype, mode="r", offset=HEADER_BYTES, shape=(count,))


def _check_range(path: Path, part: NDArray[np.integer[Any]], vocab_size: int) -> None:
    for start in range(0, len(part), SCAN):
        piece = part[start : start + SCAN]
        if piece.max() >= vocab_size:
            at = int((piece >= vocab_size).argmax())
            raise DataError(
                f"{path}: token {int(piece[at])} at position {start + at:,} is outside the "
                f"vocabulary of {vocab_size:,}: the shard was made with another tokenizer"
            )
