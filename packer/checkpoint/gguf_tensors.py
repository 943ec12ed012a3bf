"""Tensors of a GGUF file, each read and dequantized when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packer.checkpoint.lazy_tensors import DequantizedFile, FileMark, StoredTensor
from packer.errors import CheckpointError
from packer.foreign.gguf_header import COPY, GGUFEntry, GGUFHeader, read_gguf_header
from packer.foreign.gguf_names import HuggingFaceNames

MAX_TEXT = 200  # letters of a setting that is carried along
BLOCK_ELEMENTS = 1 << 20  # dequantized at once; the library needs several times their memory
DTYPES = {
    "F64": torch.float64, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class GGUFTensor:
    """One tensor. meta: float32 (float64 and integers keep their dtype), without values.

    type: of ggml, such as Q4_1. stored: its bytes in the file, uint8 [rows, bytes of a row].
    heads: of queries or keys whose rows llama.cpp interleaved for its rotary embedding, 0 for none.
    shift: what llama.cpp added to every value.
    """

    meta: torch.Tensor
    type: str
    stored: StoredTensor
    heads: int = 0
    shift: float = 0.0

    @property
    def size_bytes(self) -> int:
        """In the file."""
        return self.stored.meta.nbytes

    def read(self, name: str) -> torch.Tensor:
        """The values, in memory of their own. Raises CheckpointError: the file was changed."""
        raw = self.stored.read(name)
        if self.type in DTYPES:
            values = raw.reshape(-1).view(self.meta.dtype)
        else:
            values = _dequantized(raw.numpy(), self.type, self.meta.numel())
        values = values.reshape(self.meta.shape)
        if self.shift:
            values -= self.shift
        if self.heads:
            pairs = values.reshape(self.heads, -1, 2, *values.shape[1:])
            values = pairs.transpose(1, 2).reshape(values.shape)
        return values


def read_gguf(path: Path) -> DequantizedFile:
    """Raises CheckpointError: truncated, damaged, a type that cannot be dequantized, one part of
    several, or the library is missing.
    """
    source = str(path)
    mark = FileMark.of(path)
    header = read_gguf_header(path)
    parts = header.settings.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(
            f"{source}: is one of {parts:,} parts of a GGUF file; merge them with llama-gguf-split "
            "--merge, and use that"
        )
    if not header.entries:
        raise CheckpointError(
            f"{source}: as GGUF it has no tensors, as a file of a vocabulary alone has none; name "
            "the model's own file"
        )
    stored = _stored_tensors(header, mark, source)
    names = HuggingFaceNames(header.settings)
    tensors: dict[str, GGUFTensor] = {}
    for entry in header.entries:
        try:
            place = names.place(entry.name)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        if place is None:
            continue
        if place.name in tensors:
            raise CheckpointError(f"{source}: {place.name!r} is there under two names; {COPY}")
        if place.heads and entry.shape[0] % (2 * place.heads):
            raise CheckpointError(
                f"{source}: {entry.name} has {entry.shape[0]:,} rows, which {place.heads:,} heads "
                f"do not divide into pairs; {COPY}"
            )
        one = stored[entry.name]
        tensors[place.name] = replace(one, heads=place.heads, shift=place.shift)
    notes = [_types(tensors), *names.notes(entry.name for entry in header.entries)]
    ties = names.ties(tensors)
    metadata = _metadata(header.settings)
    return DequantizedFile(source, "gguf", mark.size_bytes, tensors, ties, metadata, tuple(notes))


def _metadata(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings of the model as texts; those of its tokenizer are long, and left out."""
    return {
        f"gguf.{key}": str(value)
        for key, value in sorted(settings.items())
        if isinstance(value, str | int | float)
        and not key.startswith("tokenizer.")
        and len(str(value)) <= MAX_TEXT
    }


def _types(tensors: Mapping[str, GGUFTensor]) -> str:
    elements: dict[str, int] = {}
    for tensor in tensors.values():
        elements[tensor.type] = elements.get(tensor.type, 0) + tensor.meta.numel()
    spelled = (f"{count:,} of {kind}" for kind, count in sorted(elements.items()))
    return f"GGUF, dequantized to float32; weights: {', '.join(spelled)}"


def _stored_tensors(header: GGUFHeader, mark: FileMark, source: str) -> dict[str, GGUFTensor]:
    """Every tensor by its name in the file, its place checked against the file's size."""
    found = {}
    end = 0
    for entry in sorted(header.entries, key=lambda one: one.offset):
        kind, row_bytes = _stored_as(entry, source)
        rows = math.prod(entry.shape[:-1])
        start, size = header.data_start + entry.offset, rows * row_bytes
        if start + size > mark.size_bytes:
            raise CheckpointError(
                f"{source}: {entry.name} takes {size:,} bytes at offset {start:,} of a file of "
                f"{mark.size_bytes:,}; it is truncated or damaged: {COPY}"
            )
        if entry.offset % header.alignment or start < end:
            raise CheckpointError(
                f"{source}: {entry.name} begins at offset {start:,}, where the tensor before it "
                f"ends at {end:,} and {header.alignment} bytes are the alignment; {COPY}"
            )
        raw = torch.empty((rows, row_bytes), dtype=torch.uint8, device="meta")
        meta = torch.empty(entry.shape, dtype=DTYPES.get(kind, torch.float32), device="meta")
        found[entry.name] = GGUFTensor(meta, kind, StoredTensor(raw, mark, start))
        end = start + size
    return found


def _stored_as(entry: GGUFEntry, source: str) -> tuple[str, int]:
    """(ggml type, bytes of a row)."""
    kind, block, block_bytes = _type_of(entry, source)
    columns = entry.shape[-1]
    if columns % block:
        raise CheckpointError(
            f"{source}: {entry.name} has rows of {columns:,} weights, which blocks of {block} "
            f"({kind}) do not divide; {COPY}"
        )
    return kind, columns // block * block_bytes


def _type_of(entry: GGUFEntry, source: str) -> tuple[str, int, int]:
    """(name, weights of a block, bytes of a block) of an entry's type."""
    gguf = _library(source)
    try:
        kind = gguf.GGMLQuantizationType(entry.type)
    except ValueError:
        kind = None
    plain = kind is not None and (kind.name in DTYPES or kind.name in ("F32", "F16"))
    if kind is None or not (plain or kind in gguf.quants._type_traits):
        name = "" if kind is None else f" ({kind.name})"
        raise CheckpointError(
            f"{source}: {entry.name} is of ggml type {entry.type}{name}, which the installed "
            "library gguf does not dequantize; a newer one may (pip install -U gguf), or quantize "
            "the model as Q8_0"
        )
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return kind.name, block, size


def _dequantized(raw: np.ndarray[Any, Any], type: str, count: int) -> torch.Tensor:
    """float32 [count] of uint8 [rows, bytes of a row], as many rows at once as a block holds."""
    gguf = _library("GGUF")
    kind = gguf.GGMLQuantizationType[type]
    values = np.empty(count, np.float32)
    rows = max(BLOCK_ELEMENTS * len(raw) // count, 1)
    done = 0
    for start in range(0, len(raw), rows):
        block = gguf.quants.dequantize(raw[start : start + rows], kind).reshape(-1)
        values[done : done + len(block)] = block
        done += len(block)
    return torch.from_numpy(values)


def _library(source: str) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            f"{source}: reading GGUF takes the library gguf ({error}): pip install 'bytecap[gguf]'"
        ) from None
    return gguf
