"""The header of a GGUF file (llama.cpp): its settings, and where each tensor lies.

Every count, length and offset is checked against the file's size before anything of that size is
made, so that a file can claim no more than it holds.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packer.errors import CheckpointError

GGUF = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 1 << 28  # a vocabulary of 262,144 pieces with its merges takes about 2^24
MAX_NESTING = 4  # of arrays in arrays
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
LEAST_SETTING, LEAST_TENSOR = 13, 32  # bytes
COPY = "copy or download it again"


@dataclass(frozen=True)
class GGUFEntry:
    """The header's entry of a tensor. shape: rows before columns, the reverse of the file's.

    type: number of its ggml type. offset: from the start of the data.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GGUFHeader:
    """settings: values by key: numbers, texts, lists of texts or lists, arrays of numbers.

    data_start: offset of the data.
    """

    settings: Mapping[str, Any]
    entries: tuple[GGUFEntry, ...]
    data_start: int
    alignment: int

    @property
    def architecture(self) -> str:
        return str(self.settings.get("general.architecture", "unknown"))


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as GGUF does; False where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(GGUF)) == GGUF
    except OSError:
        return False


def read_gguf_header(path: Path) -> GGUFHeader:
    """Raises CheckpointError: truncated, damaged, or of a version that is not known."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return _Cursor(whole, str(path)).header()


class _Cursor:
    """Reads little-endian values of a file one after another, and never past its end."""

    def __init__(self, data: mmap.mmap, source: str) -> None:
        self.data, self.source, self.at = data, source, 0
        self.end = min(len(data), MAX_HEADER_BYTES)

    def header(self) -> GGUFHeader:
        self.need(24, "a header")
        self.at = len(GGUF)
        version = self.number("<I", "the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = f"big-endian version {swapped}" if swapped in VERSIONS else f"version {version}"
            raise self.refusal(
                f"{kind}, where versions 2 and 3, little-endian, are read; convert it with the "
                "tools of llama.cpp"
            )
        tensors = self.number("<Q", "the number of tensors")
        settings = self.number("<Q", "the number of settings")
        self.room(settings, LEAST_SETTING, "settings")
        self.room(tensors, LEAST_TENSOR, "tensors")
        values = self.settings(settings)
        entries = self.entries(tensors)
        alignment = values.get("general.alignment", 32)
        power = isinstance(alignment, int) and alignment > 0 and not alignment & (alignment - 1)
        if not power or alignment > MAX_ALIGNMENT:
            raise self.refusal(f"an alignment of {alignment!r}, which is no power of two; {COPY}")
        return GGUFHeader(values, entries, -(-self.at // alignment) * alignment, alignment)

    def settings(self, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self.text("the key of a setting")
            if key in values:
                raise self.refusal(f"the setting {key!r} twice; {COPY}")
            values[key] = self.value(self.number("<I", key), key, 0)
        return values

    def value(self, kind: int, key: str, depth: int) -> Any:
        if kind == STRING:
            return self.text(key)
        if kind in SCALARS:
            return self.number(SCALARS[kind], key)
        if kind != ARRAY or depth == MAX_NESTING:
            raise self.refusal(f"a setting {key!r} of type {kind}, which is not known; {COPY}")
        inner, count = self.number("<I", key), self.number("<Q", key)
        if inner not in SCALARS:
            self.room(count, 8, f"entries of {key!r}")
            return [self.value(inner, key, depth + 1) for _ in range(count)]
        each = np.dtype(SCALARS[inner])
        self.room(count, each.itemsize, f"entries of {key!r}")
        return np.frombuffer(self.take(count * each.itemsize, key), each)

    def entries(self, count: int) -> tuple[GGUFEntry, ...]:
        entries: dict[str, GGUFEntry] = {}
        for _ in range(count):
            name = self.text("the name of a tensor")
            if name in entries:
                raise self.refusal(f"the tensor {name!r} twice; {COPY}")
            dimensions = self.number("<I", name)
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self.refusal(
                    f"a tensor {name!r} of {dimensions:,} dimensions, where 1 to {MAX_DIMENSIONS} "
                    f"are possible; {COPY}"
                )
            shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions, name))[::-1]
            if not 0 < math.prod(shape) < 1 << 62:
                raise self.refusal(f"a tensor {name!r} of shape {list(shape)}; {COPY}")
            kind, offset = self.number("<I", name), self.number("<Q", name)
            entries[name] = GGUFEntry(name, shape, kind, offset)
        return tuple(entries.values())

    def text(self, what: str) -> str:
        length = self.number("<Q", what)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self.refusal(f"{what} that is no text ({error.reason}); {COPY}") from None

    def number(self, format: str, what: str) -> Any:
        return struct.unpack(format, self.take(struct.calcsize(format), what))[0]

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        self.at += count
        return self.data[self.at - count : self.at]

    def need(self, count: int, what: str) -> None:
        if count > self.end - self.at:
            raise self.refusal(
                f"{what} of {count:,} bytes at offset {self.at:,}, where {self.end - self.at:,} "
                f"are left; the file is truncated or damaged: {COPY}"
            )

    def room(self, count: int, least: int, what: str) -> None:
        """Refuses more things than fit into the rest of the header, each of `least` bytes."""
        if count > (self.end - self.at) // least:
            raise self.refusal(
                f"{count:,} {what}, where the {self.end - self.at:,} bytes that are left hold at "
                f"most {(self.end - self.at) // least:,}; the file is truncated or damaged: {COPY}"
            )

    def refusal(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: as GGUF it has {what}")
