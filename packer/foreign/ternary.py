"""The layout of ternary and binary artifacts: an entry with a type of its own per tensor (PR #640).

    ternary            trits + 1 in base 3, five a byte, the first least; float16 scale per group
    ternary_bitmask    a bit per trit, set where it is not zero, then a bit per one that is not
                       zero, set where it is positive; the most significant bit first
    binary             a bit per weight, set for +1; the least significant bit first
    fp8, fp16          data as it is
    fp4                two codes a byte

Scales of a ternary group are divided by the group's mean magnitude of codes, as PR #640's reader
does: what training multiplied by was the mean over all weights of the group, zeros included. PR
#1609's reader does not divide, and nothing in the file tells the two apart; a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from packer.errors import CheckpointError
from packer.foreign.keys import OWN_READER, refuse_unknown
from packer.foreign.tensors import ForeignTensor, computed, kept, plain, scaled

GROUPED = ("type", "packed", "scale", "shape", "orig_shape", "padded_cols", "group_size")
TYPES = {
    "ternary": (*GROUPED, "n_trits"),
    "ternary_bitmask": (*GROUPED, "n_trits"),
    "binary": (*GROUPED, "n_bits"),
    "fp8": ("type", "data"),
    "fp16": ("type", "data"),
    "fp4": ("type", "packed", "scale", "shape"),
}
SEARCHED = "meta_export_calib"  # thresholds that the writer searched; no weights
TURBO = (
    "groups are rotated, and writers of turbo do so differently (with random signs or without, "
    "scales divided by the group's mean or not), which no key tells apart"
)
DIVIDED = (
    "scales of ternary groups are divided by the group's mean magnitude, as PR #640's reader does; "
    "PR #1609's does not, and nothing in the file tells the two apart: compare one tensor, or the "
    "score, with its author's own reader"
)
POWERS = (1, 3, 9, 27, 81)


def read_ternary(
    value: Mapping[str, object], template: Mapping[str, torch.Tensor] | None, notes: list[str]
) -> dict[str, ForeignTensor]:
    """Raises CheckpointError: an entry's parts do not fit together, or one is not known."""
    _check_types(value)
    if any(entry["type"] in ("ternary", "ternary_bitmask") for entry in value.values()):  # type: ignore[index]
        notes.append(DIVIDED)
    if template is None:
        notes.append(
            "the file does not say the dtypes of its tensors: float32 is assumed for all of them; "
            "with --template CKPT they are those of the checkpoint"
        )
    tensors = {}
    for name, entry in value.items():
        assert isinstance(entry, Mapping)
        if entry["type"] == SEARCHED:
            continue
        dtype = template[name].dtype if template and name in template else torch.float32
        tensors[name] = _tensor(str(name), entry, dtype)
    return tensors


def has_entries(value: Mapping[str, object]) -> bool:
    """Whether a file's value is one typed entry per tensor, of known types or of others."""
    typed = [
        one
        for one in value.values()
        if isinstance(one, Mapping) and isinstance(one.get("type"), str)
    ]
    if typed and len(typed) == len(value) and all(one["type"] in TYPES for one in typed):
        return True
    filled = [one for one in typed if any(map(_is_data, one.values()))]
    return len(filled) > 1 and 2 * len(typed) > len(value)


def _is_data(value: object) -> bool:
    return isinstance(value, torch.Tensor | bytes)


def _check_types(value: Mapping[str, object]) -> None:
    """Raises CheckpointError: something that is no entry, or entries of unknown types."""
    unknown: dict[str, list[str]] = {}
    for name, entry in value.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
            raise CheckpointError(
                f"{name} is a {type(entry).__name__}, beside {len(value) - 1} entries with a type; "
                f"its place is not known here; {OWN_READER}"
            )
        if entry["type"] == SEARCHED:
            refuse_unknown(entry, ("type", "data"), f"{name}: its entry")
        elif entry["type"] not in TYPES:
            unknown.setdefault(entry["type"], []).append(str(name))
        elif entry.get("turbo"):
            raise CheckpointError(f"{name}: its entry has turbo: {TURBO}; {OWN_READER}")
    if unknown:
        kinds = ", ".join(f"{kind} ({len(names):,})" for kind, names in unknown.items())
        first = next(iter(unknown.values()))[0]
        raise CheckpointError(
            f"of its {len(value):,} entries some are of types that are not known here: {kinds}, "
            f"the first {first}; {', '.join(TYPES)} are known; {OWN_READER}"
        )


def _tensor(name: str, entry: Mapping[str, Any], dtype: torch.dtype) -> ForeignTensor:
    kind = str(entry["type"])
    refuse_unknown(entry, TYPES[kind], f"{name}: its entry")
    if kind in ("fp8", "fp16"):
        data = plain(entry["data"], name)
        if kind == "fp8":
            data = _as_fp8(data, name)
            # No passthrough of ours is a float of 8 bits; half holds every one of them exactly.
            return ForeignTensor("fp8", {"data": data}, kept(data.to(torch.float16), dtype))
        return ForeignTensor(str(data.dtype).removeprefix("torch."), {"": data}, kept(data, dtype))
    if kind == "fp4":
        return _fp4(name, entry, dtype)
    return _grouped(name, kind, entry, dtype)


def _as_fp8(data: torch.Tensor, name: str) -> torch.Tensor:
    if data.dtype == torch.uint8:
        data = data.view(torch.float8_e4m3fn)
    if data.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
        raise CheckpointError(f"{name}: is called fp8 and holds {data.dtype}")
    return data


def _grouped(name: str, kind: str, entry: Mapping[str, Any], dtype: torch.dtype) -> ForeignTensor:
    packed, scale = _bytes(entry["packed"], name), plain(entry["scale"], name)
    flat, shape = (
        _shape(entry["shape"], name),
        _shape(entry.get("orig_shape", entry["shape"]), name),
    )
    group = _whole(entry.get("group_size", 128), name)
    count = _whole(entry["n_bits" if kind == "binary" else "n_trits"], name)
    if len(flat) != 2 or math.prod(flat) != math.prod(shape):
        raise CheckpointError(f"{name}: codes {list(flat)} for a tensor of shape {list(shape)}")
    rows, columns = flat  # a bank of matrices has one long row for each
    padded = _whole(entry.get("padded_cols", -(-columns // max(group, 1)) * group), name)
    if not group or padded % group or padded < columns or count != rows * padded:
        raise CheckpointError(
            f"{name}: {count:,} codes in groups of {group} do not fill {rows:,} rows of {columns:,}"
            f" columns padded to {padded:,}"
        )
    if scale.numel() * group != count:
        raise CheckpointError(f"{name}: {scale.numel():,} scales for {count // group:,} groups")
    codes = torch.from_numpy(_unpack(kind, packed, count, name)).reshape(-1, group)
    weight = _dequantized(codes, scale, kind).reshape(rows, padded)[:, :columns]
    parts = {"q": codes.reshape(rows, padded)[:, :columns].contiguous(), "scale": scale}
    return ForeignTensor(f"{kind}.group{group}", parts, computed(weight.reshape(shape).to(dtype)))


def _dequantized(codes: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    """codes [groups, group] times scale [groups], less what zeros took from it."""
    steps = scale.float().reshape(-1, 1)
    if kind != "binary":
        steps = steps / codes.float().abs().mean(dim=1, keepdim=True).clamp(min=1e-8)
    return codes.float() * steps


def _unpack(kind: str, packed: np.ndarray[Any, Any], count: int, name: str) -> Any:
    """int8 [count]. Raises CheckpointError: another number of bytes than the codes need."""
    if kind == "ternary":
        _refuse_size(name, len(packed), -(-count // 5))
        if len(packed) and int(packed.max()) > 242:
            raise CheckpointError(f"{name}: a byte of five trits is {int(packed.max())}, above 242")
        trits = (packed[:, None] // np.array(POWERS, np.uint8)) % 3
        return trits.reshape(-1)[:count].astype(np.int8) - 1
    bits = -(-count // 8)
    if kind == "binary":
        _refuse_size(name, len(packed), bits)
        signs = np.unpackbits(packed, bitorder="little")[:count]
        return signs.astype(np.int8) * 2 - 1
    if len(packed) < bits:
        _refuse_size(name, len(packed), bits)
    used = np.unpackbits(packed[:bits])[:count].astype(bool)
    _refuse_size(name, len(packed), bits + -(-int(used.sum()) // 8))
    signs = np.unpackbits(packed[bits:])[: int(used.sum())]
    codes = np.zeros(count, dtype=np.int8)
    codes[used] = signs.astype(np.int8) * 2 - 1
    return codes


def _fp4(name: str, entry: Mapping[str, Any], dtype: torch.dtype) -> ForeignTensor:
    """int4 codes per row, two a byte, the first in the low half, 8 more than their value."""
    packed, scale = _bytes(entry["packed"], name), plain(entry["scale"], name)
    shape = _shape(entry["shape"], name)
    count = math.prod(shape)
    _refuse_size(name, len(packed), -(-count // 2))
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]
    codes = torch.from_numpy(halves.astype(np.int8) - 8).reshape(shape)
    return ForeignTensor(
        "fp4", {"q": codes, "scale": scale}, scaled(codes, scale, dtype, name, bits=4)
    )


def _bytes(value: object, name: str) -> np.ndarray[Any, Any]:
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    tensor = plain(value, name)
    if tensor.dtype != torch.uint8:
        raise CheckpointError(f"{name}: packed codes are {tensor.dtype}, not uint8")
    return np.asarray(tensor.reshape(-1).numpy())


def _shape(value: Any, name: str) -> tuple[int, ...]:
    return tuple(_whole(size, name) for size in value)


def _whole(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise CheckpointError(f"{name}: a size is {value!r}")
    return value


def _refuse_size(name: str, size: int, wanted: int) -> None:
    if size != wanted:
        raise CheckpointError(f"{name}: {size:,} bytes of packed codes where {wanted:,} belong")
