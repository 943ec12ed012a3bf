"""Shrinks an artifact within its own layout and codec, so that the submission's code can read it.

For submissions whose code must not change. Only quantized tensors change: to fewer bits, larger
steps, codes halved or dropped, each still int8 codes with a scale per row. The codec compresses the
file as a whole, so the size of a tensor is estimated by our coder, scaled by the last compressed
size of the whole file; a few rounds suffice, each of which compresses the real file.
"""

from __future__ import annotations

import io
import lzma
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from packer.artifact.encoder import header_bytes
from packer.budget.plan import Candidate, Plan
from packer.checkpoint.file_kinds import content_of, is_container, load
from packer.checkpoint.foreign_artifact import ForeignArtifact, foreign_of
from packer.errors import CapError, CheckpointError
from packer.fix.repack import Repacked
from packer.fix.repairs import (
    AS_IS,
    HALVED,
    WITHOUT_ONES,
    Step,
    candidates_of,
    changed,
    steps_of,
)
from packer.foreign.codecs import TAGS, output_limit, unwrap
from packer.foreign.int8 import INT8_FORMAT, INT8_FORMATS
from packer.planning.account import Limits
from packer.planning.code_size import solve
from packer.planning.measure import Progress, ignore_progress
from packer.quantizers.formats import QuantizedTensor, Uniform
from packer.quantizers.quantize import dequantize

MAX_ROUNDS = 5
CLOSE_ENOUGH = 0.001  # of the file left free, and no further round is tried
ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Requantized:
    """data: the file, read back and compared. steps: the changes; saved_bytes by our coder.

    rounds: how often the whole file was compressed.
    """

    data: bytes
    steps: tuple[Step, ...]
    damage: float
    rounds: int


def requantize(
    path: Path,
    foreign: ForeignArtifact,
    same: Repacked,
    allowed_bytes: int,
    max_memory: int | None = None,
    progress: Progress = ignore_progress,
) -> Requantized:
    """The artifact of least predicted damage in at most `allowed_bytes`, in its author's layout.

    Raises CapError: not even the coarsest forms fit. CheckpointError: its container, layout or
    codec cannot be written.
    """
    value, codec = _written_as(path, foreign, max_memory)
    file = codec.compressed(_saved(value))
    candidates = [one for one in candidates_of(same, progress) if _can_store(foreign, one)]
    whole = len(same.data)
    rate = len(file) / whole  # bytes of the file for one of ours
    best = Requantized(file, (), 0.0, 1) if len(file) <= allowed_bytes else None
    needed = float(len(file) - allowed_bytes)
    for rounds in range(2, MAX_ROUNDS + 2):
        if best is not None and allowed_bytes - len(best.data) <= CLOSE_ENOUGH * allowed_bytes:
            break
        if best is not None and not best.steps:
            break
        progress("weighing the whole file", rounds - 1, MAX_ROUNDS)
        plan = _planned(candidates, same, whole - needed / rate, allowed_bytes, foreign)
        changes = _changes(plan, same)
        data = codec.compressed(_saved(_with(value, foreign, changes)))
        saved = sum(step.saved_bytes for step in steps_of(plan, same, _stored(foreign)))
        rate = max((len(file) - len(data)) / max(saved, 1), 0.05)
        better = best is None or plan.damage < best.damage
        if len(data) <= allowed_bytes and better:
            _check(data, path, foreign, changes)
            best = Requantized(data, steps_of(plan, same, _stored(foreign)), plan.damage, rounds)
        elif len(data) > allowed_bytes:
            needed += CLOSE_ENOUGH / 4 * allowed_bytes  # the last rate was too optimistic
    if best is None:
        raise CapError(
            f"{foreign.source}: in its own layout and codec it does not come under "
            f"{allowed_bytes:,} bytes; without --no-recode, it is re-encoded first"
        )
    return best


def refuse_unwritable(path: Path, foreign: ForeignArtifact, max_memory: int | None = None) -> None:
    """Raises CheckpointError: the artifact's container, layout or codec cannot be written."""
    _written_as(path, foreign, max_memory)


def _stored(foreign: ForeignArtifact) -> dict[str, str]:
    return {name: tensor.stored for name, tensor in foreign.tensors.items()}


def _planned(
    candidates: list[Candidate],
    same: Repacked,
    target: float,
    allowed_bytes: int,
    foreign: ForeignArtifact,
) -> Plan:
    try:
        return solve(candidates, header_bytes(same.header), Limits(max(int(target), 1)))
    except CapError:
        raise CapError(
            f"{foreign.source}: in its own layout and codec even the coarsest codes do not come "
            f"under {allowed_bytes:,} bytes; without --no-recode, it is re-encoded first"
        ) from None


def _changes(plan: Plan, same: Repacked) -> dict[str, QuantizedTensor]:
    """Every changed tensor by name; equal tensors, which are planned once, change together."""
    changes = {
        chosen.tensor: changed(same.tensors[chosen.tensor], chosen.choice)
        for chosen in plan.chosen
        if chosen.choice != AS_IS
    }
    return {
        **changes,
        **{tied: changes[kept] for tied, kept in same.ties.items() if kept in changes},
    }


def _can_store(foreign: ForeignArtifact, candidate: Candidate) -> bool:
    """Whether the layout can store a form: int8 codes with the scales that the tensor has."""
    if candidate.choice == AS_IS:
        return True
    tensor = foreign.tensors[candidate.tensor]
    codes, scale = tensor.parts.get("q"), tensor.parts.get("scale")
    if codes is None or scale is None or set(tensor.parts) != {"q", "scale"}:
        return False
    if not isinstance(tensor.quantized.format, Uniform):
        return False
    if candidate.choice in (WITHOUT_ONES, HALVED):
        return True
    if codes.dim() != 2 or scale.dtype not in (torch.float16, torch.float32):
        return False
    per_row = scale.numel() == codes.shape[0] > 1
    return per_row or (".tensor" in candidate.choice and scale.numel() == 1)


def _with(
    value: Mapping[str, Any], foreign: ForeignArtifact, changes: Mapping[str, QuantizedTensor]
) -> Mapping[str, Any]:
    """The file's dict with the codes and scales of `changes`."""
    tables = {
        key: dict(table) if isinstance(table, Mapping) else table for key, table in value.items()
    }
    for name, one in changes.items():
        parts = foreign.tensors[name].parts
        codes = one.codes.reshape(parts["q"].shape)
        scale = parts["scale"]
        if scale.shape.numel() == one.side["scale"].numel() or one.side["scale"].numel() == 1:
            scale = one.side["scale"].to(scale.dtype).expand(scale.numel()).reshape(scale.shape)
        if foreign.layout in INT8_FORMATS:
            tables["quantized"][name] = codes
            old = tables["scales"][name]
            tables["scales"][name] = float(scale) if isinstance(old, float) else scale.contiguous()
        else:
            tables["w"][f"{name}.q"], tables["w"][f"{name}.scale"] = codes, scale.contiguous()
            tables["m"][name] = _meaning(tables["m"].get(name), codes)
    return tables


def _meaning(meaning: Any, codes: torch.Tensor) -> Any:
    """A tensor's entry in m, with the bits that its codes now need."""
    largest = max(int(codes.max()).bit_length(), (-1 - int(codes.min())).bit_length())
    bits = f"int{max(largest + 1, 2)}"
    if isinstance(meaning, Mapping):
        return {**meaning, "type": re.sub(r"int[2-8](?!\d)", bits, str(meaning.get("type")))}
    return re.sub(r"int[2-8](?!\d)", bits, meaning) if isinstance(meaning, str) else meaning


def _saved(value: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _check(
    data: bytes, path: Path, foreign: ForeignArtifact, changes: Mapping[str, QuantizedTensor]
) -> None:
    """Reads the new file back. Raises CheckpointError: the weights differ."""
    read = foreign_of(content_of(data, path))
    assert read is not None
    for name, tensor in foreign.tensors.items():
        reread = read.tensors[name]
        if name in changes:
            pair = [
                dequantize(replace(one, dtype=torch.float32))
                for one in (reread.quantized, changes[name])
            ]
            same = torch.equal(*pair)
        else:
            same = all(torch.equal(reread.parts[key], part) for key, part in tensor.parts.items())
        if not same:
            raise CheckpointError(f"{path}: {name} differs when read back; nothing was written")


@dataclass(frozen=True)
class _Codec:
    """A file's codecs from the outside in, and the tag that its trainer wrote before them."""

    layers: tuple[str, ...]
    tag: bytes
    alone: bool  # lzma without the xz frame

    def compressed(self, data: bytes) -> bytes:
        for layer in reversed(self.layers):
            data = self._one(layer, data)
        return self.tag + data

    def _one(self, layer: str, data: bytes) -> bytes:
        """At the highest level that trainers use."""
        if layer == "zlib":
            return zlib.compress(data, 9)
        if layer == "zstd":
            import zstandard

            return bytes(zstandard.ZstdCompressor(level=22).compress(data))
        if layer == "xz":
            format = lzma.FORMAT_ALONE if self.alone else lzma.FORMAT_XZ
            return lzma.compress(data, format, preset=9 | lzma.PRESET_EXTREME)
        import brotli

        return bytes(brotli.compress(data, quality=11, lgwin=24))


def _written_as(
    path: Path, foreign: ForeignArtifact, max_memory: int | None
) -> tuple[Mapping[str, Any], _Codec]:
    """(the file's dict, its codecs). Raises CheckpointError: this layout cannot be written."""
    whole = path.read_bytes()
    inner = unwrap(whole, output_limit(len(whole), max_memory), str(path), is_container)
    layers = inner.layers
    known = foreign.layout in (*INT8_FORMATS, "{w, m}") and inner.data.startswith(ZIP)
    if not known or set(layers) - {"zlib", "zstd", "xz", "brotli"}:
        raise CheckpointError(
            f"{path}: is {foreign.layout} under {foreign.codec}; --no-recode can only write torch "
            f"files of {INT8_FORMAT}, of its other names and of {{w, m}} under zlib, zstd, xz or "
            "brotli"
        )
    value = load(path, max_memory).value
    assert isinstance(value, Mapping)
    tag = whole[:4] if whole[:4] in TAGS else b""
    return value, _Codec(layers, tag, whole[:1] == b"\x5d")
