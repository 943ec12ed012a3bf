"""The layout int8_clean_per_row_v1: int8 codes with a scale per row, everything small kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from packer.errors import CheckpointError
from packer.foreign.bit_packed import BIT_PACKED, unpacked
from packer.foreign.keys import (
    OWN_READER,
    is_kept,
    is_on,
    refuse_other_shape,
    refuse_unknown,
    shown,
    table,
)
from packer.foreign.row_ranges import RANGES, with_ranges
from packer.foreign.tensors import (
    ForeignTensor,
    computed,
    kept,
    plain,
    scaled,
    torch_dtype,
)
from packer.quantizers.quantize import dequantize

INT8_FORMAT = "int8_clean_per_row_v1"
# What other writers call the same arithmetic: codes × the scale of the row, in the dtype that the
# file says. A name that looks alike may mean another: int6_gptq_lite_v1 rounds to bfloat16.
INT8_FORMATS = frozenset(
    (
        *(f"int{bits}_clean_per_row_v1" for bits in range(4, 9)),
        *(f"int{bits}_range_in_int8_per_row_v1" for bits in range(4, 9)),
        *("int6_per_row_v1", "int5_int6_clean_per_row_v1", "int6_8_clean_per_row_v1"),
        *("mixed_int6_int8_v1", "mixed_int6_int8_per_row_v1", "mixed_intN_per_row_v1"),
        *("mixed_int_v1", "mixed_int6_clipsearch_v1", "gptq_lite_int6_v1", "gptq_lite_mixed_v2"),
        *("sd_clip_v1", "sdclip_int6_int8_v1", "sft_gptq_intN_v1", "int6_gptq_ar_v1"),
        *("int8_per_row_v1", "int6_fake_per_row_v1", "int6_fp16embed_v1", "mixed_lowbit_v1"),
    )
)
REQUIRED = ("quantized", "scales", "passthrough")
OPTIONAL = ("dtypes", "qmeta", "passthrough_orig_dtypes")
COUNTS = ("bits", "bitwidths", "stats")  # numbers about the codes, which no reader computes with
ENTRY_KEYS = ("scheme", "axis", "type", "shape", "orig_dtype", "transposed", "row_passthrough")
SCHEMES = (None, "per_row", "per_tensor", "int6_per_row", "int8_per_row", "int8_fallback")
TYPES = (None, *(f"int{bits}" for bits in range(4, 9)), "int6_clipsearch")
Tables = Mapping[str, Mapping[str, object]]
Template = Mapping[str, torch.Tensor] | None


def read_int8(
    value: Mapping[str, object], template: Template, notes: list[str]
) -> dict[str, ForeignTensor]:
    """Raises CheckpointError: another format, unknown keys, parts that do not fit together."""
    format = value.get("__quant_format__", INT8_FORMAT)
    if isinstance(format, str) and BIT_PACKED.fullmatch(format):
        value = unpacked(value)
    elif not isinstance(format, str) or format not in INT8_FORMATS:
        raise CheckpointError(
            f"its format is {shown(format)}, whose arithmetic is not known here; {INT8_FORMAT} and "
            f"{len(INT8_FORMATS) - 1} other names of it are; {OWN_READER}"
        )
    _check_keys(value)
    tables = {key: table(value.get(key, {}), key) for key in (*REQUIRED, *OPTIONAL, RANGES)}
    codes, scales, passthrough = (tables[key] for key in REQUIRED)
    if set(codes) != set(scales) or set(codes) & set(passthrough):
        raise CheckpointError("its quantized, scales and passthrough name different tensors")
    _check_entries_of_others(tables)
    known = {*tables["dtypes"], *(template or {})}
    assumed = [name for name in codes if name not in known]
    if assumed and format != INT8_FORMAT:
        raise CheckpointError(
            f"{assumed[0]} and {len(assumed) - 1} more have no entry in dtypes, and {format} does "
            "not say what then holds; name a checkpoint of the model with --template CKPT"
        )
    if assumed:
        notes.append(f"float32 is assumed for {len(assumed)} tensors without a dtype")
    tensors = {name: _quantized(name, tables, template) for name in codes}
    tensors.update({name: _passthrough(name, tables) for name in passthrough})
    return tensors


def _check_keys(value: Mapping[str, object]) -> None:
    known = {"__quant_format__", *REQUIRED, *OPTIONAL, *COUNTS, "scale_scheme", RANGES}
    odd = sorted(str(key) for key in set(value) - known)
    if odd:
        raise CheckpointError(
            f"{INT8_FORMAT} has no {', '.join(odd)}; another layout is mixed in, which is not known"
            f" here; {OWN_READER}"
        )
    for key in COUNTS:
        entry = value.get(key, 0)
        counts = entry.values() if isinstance(entry, Mapping) else [entry]
        if not all(isinstance(count, int | float | str) for count in counts):
            raise CheckpointError(f"its {key} holds more than numbers; {OWN_READER}")
    if value.get("scale_scheme", "per_row") != "per_row":
        raise CheckpointError(
            f"its scale_scheme is {shown(value['scale_scheme'])}; per_row is known"
        )


def _check_entries_of_others(tables: Tables) -> None:
    """Entries of tensors without codes may only declare a passthrough."""
    for name, entry in tables["qmeta"].items():
        if name in tables["quantized"]:
            continue
        kind = entry.get("type") if isinstance(entry, Mapping) and len(entry) == 1 else None
        if name not in tables["passthrough"] or not is_kept(str(kind), name):
            raise CheckpointError(f"its qmeta says {shown(entry)} of {name}, which has no codes")
    for name in tables[RANGES]:
        if name not in tables["quantized"]:
            raise CheckpointError(f"its {RANGES} has rows of {name}, which has no codes")


def _quantized(name: str, tables: Tables, template: Template) -> ForeignTensor:
    codes = plain(tables["quantized"][name], f"the codes of {name}")
    scale = _as_tensor(tables["scales"][name], name)
    if name in tables["dtypes"]:
        dtype = torch_dtype(tables["dtypes"][name], name)
    else:
        dtype = template[name].dtype if template and name in template else torch.float32
    entry = _entry(name, tables["qmeta"].get(name), dtype)
    _check_bits(name, codes, entry)
    ranges = tables[RANGES].get(name)
    if entry.get("row_passthrough") and ranges is None:
        raise CheckpointError(f"{name}: its qmeta has row_passthrough, and no {RANGES} holds them")
    base = scaled(codes, scale, dtype, name)
    if is_on(entry, "transposed", name):
        return _transposed(name, codes, scale, dequantize(base), entry, ranges)
    refuse_other_shape(entry, tuple(codes.shape), name)
    tensor = ForeignTensor(str(base.format), {"q": codes, "scale": scale}, base)
    if ranges is None:
        return tensor
    declared = tables["passthrough_orig_dtypes"].get(name)
    stored = None if declared is None else torch_dtype(declared, name)
    return with_ranges(name, tensor, ranges, entry.get("row_passthrough"), stored)


def _transposed(
    name: str,
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    entry: Mapping[str, object],
    ranges: object,
) -> ForeignTensor:
    """A matrix of which the file has the transpose, with the scales of the transpose's rows."""
    if codes.dim() != 2 or ranges is not None:
        raise CheckpointError(
            f"{name}: its codes of shape {list(codes.shape)} are said to be transposed; that is "
            "known of matrices without rows kept as floats"
        )
    weight = weight.T.contiguous()
    refuse_other_shape(entry, tuple(weight.shape), name)
    parts = {"q_transposed": codes, "scale": scale}
    return ForeignTensor("int8.column", parts, computed(weight))


def _as_tensor(scale: object, name: str) -> torch.Tensor:
    """A scale of the whole tensor may be a Python number."""
    if isinstance(scale, float):
        return torch.tensor(scale, dtype=torch.float32)
    return plain(scale, f"the scale of {name}")


def _entry(name: str, entry: object, dtype: torch.dtype) -> Mapping[str, object]:
    """The entry of qmeta of a tensor with codes. Raises CheckpointError: anything not known."""
    if entry is None:
        return {}
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{name}: its qmeta is {shown(entry)}, not a dict")
    refuse_unknown(entry, ENTRY_KEYS, f"{name}: its qmeta")
    if entry.get("scheme") not in SCHEMES or entry.get("axis") not in (None, 0):
        raise CheckpointError(
            f"{name}: its scheme is {shown(dict(entry))}; scales per row, axis 0, are known"
        )
    if entry.get("type") not in TYPES:
        raise CheckpointError(
            f"{name}: its qmeta has the type {shown(entry['type'])}; {OWN_READER}"
        )
    if "orig_dtype" in entry and torch_dtype(entry["orig_dtype"], name) != dtype:
        raise CheckpointError(
            f"{name}: was {shown(entry['orig_dtype'])} by its qmeta, and is {dtype}"
        )
    return entry


def _check_bits(name: str, codes: torch.Tensor, entry: Mapping[str, object]) -> None:
    """Raises CheckpointError: codes need more bits than they are said to have; they are packed."""
    bits = entry.get("num_bits", entry.get("bits"))
    if type(bits) is not int or not codes.numel() or codes.dtype != torch.int8:
        return
    low, high = int(codes.min()), int(codes.max())
    if not -(2 ** (bits - 1)) <= low <= high < 2 ** (bits - 1):
        raise CheckpointError(
            f"{name}: its qmeta says {bits} bits, and its codes are {low} to {high}: packed or of "
            f"another arithmetic; {OWN_READER}"
        )


def _passthrough(name: str, tables: Tables) -> ForeignTensor:
    tensor = plain(tables["passthrough"][name], name)
    dtype = torch_dtype(tables["passthrough_orig_dtypes"].get(name, tensor.dtype), name)
    if dtype.is_floating_point != tensor.is_floating_point():
        raise CheckpointError(f"{name}: is stored as {tensor.dtype} and was {dtype}")
    quantized = kept(tensor, dtype)
    return ForeignTensor(str(quantized.format), {"weight": tensor}, quantized)
