"""Containers that only artifacts have, to the dict that their trainers' own readers work on.

layouts.py reads that dict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from packer.errors import CheckpointError
from packer.foreign.int8 import INT8_FORMAT
from packer.foreign.keys import OWN_READER, refuse_unknown, table
from packer.foreign.tensors import plain, torch_dtype

QGV3 = b"QGv3"
PSIONIC_FORMAT = "psionic.parameter_golf.quant_format"
PSIONIC_SUFFIXES = (".__q", ".__scale")
QGV3_ENTRY = ("name", "offset", "nbytes", "dtype", "shape")
MAX_TABLE_BYTES = 1 << 26


def int8_of_safetensors(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> dict[str, object]:
    """The dict of int8_clean_per_row_v1 from its safetensors variant (PR #119).

    Raises CheckpointError: a part of a tensor that is neither its codes nor its scale.
    """
    codes, scales, passthrough = {}, {}, {}
    for key, tensor in tensors.items():
        name, dot, suffix = key.rpartition(".")
        if dot + suffix == PSIONIC_SUFFIXES[0]:
            codes[name] = tensor
        elif dot + suffix == PSIONIC_SUFFIXES[1]:
            scales[name] = tensor
        elif suffix.startswith("__"):
            raise CheckpointError(f"{name}: its part {suffix} has no known meaning; {OWN_READER}")
        else:
            passthrough[key] = tensor
    return {
        "__quant_format__": metadata[PSIONIC_FORMAT].removesuffix("_zlib"),
        "quantized": codes,
        "scales": scales,
        "passthrough": passthrough,
        # Its reader makes every tensor float32.
        "passthrough_orig_dtypes": {
            name: "float32" for name, tensor in passthrough.items() if tensor.is_floating_point()
        },
        "dtypes": dict.fromkeys(codes, "float32"),
    }


def read_qgv3(data: bytes, source: str) -> dict[str, object]:
    """The dict of int8_clean_per_row_v1 from QGv3 (PR #160).

    Magic, then four u32 lengths, then a JSON table and the bytes of codes, scales and passthrough.
    Raises CheckpointError: lengths that do not add up, a damaged table.
    """
    lengths = [int.from_bytes(data[at : at + 4], "little") for at in range(4, 20, 4)]
    if len(data) < 20 or 20 + sum(lengths) != len(data) or lengths[0] > MAX_TABLE_BYTES:
        raise CheckpointError(
            f"{source}: its QGv3 sections would take {20 + sum(lengths):,} bytes and "
            f"{len(data):,} are there; the file is truncated or damaged: copy it again"
        )
    sections, at = [], 20
    for length in lengths:
        sections.append(data[at : at + length])
        at += length
    try:
        meta = json.loads(sections[0])
        tables = {
            key: {
                name: _stored(entry, section, f"{key} of {name}")
                for name, entry in _entries(meta.get(key, {})).items()
            }
            for key, section in zip(
                ("quantized", "scales", "passthrough"), sections[1:], strict=True
            )
        }
        dtypes = {
            key: {name: str(dtype) for name, dtype in table(meta.get(key, {}), key).items()}
            for key in ("dtypes", "passthrough_orig_dtypes")
        }
        format = str(meta.get("format", meta.get("__quant_format__", INT8_FORMAT)))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: its QGv3 table is damaged ({type(error).__name__}: {error}); copy it again"
        ) from None
    known = (INT8_FORMAT, "QGv3", "qgv3")
    rest = {key: value for key, value in meta.items() if key != "format"}  # checked by the layout
    named = INT8_FORMAT if format in known else format
    return {**rest, "__quant_format__": named, **tables, **dtypes}


def _entries(value: Any) -> dict[str, Mapping[str, Any]]:
    """A table by name, whether it was written as an object or as a list of named objects."""
    if isinstance(value, list):
        return {str(entry["name"]): entry for entry in value}
    return dict(value)


def _stored(entry: Mapping[str, Any], section: bytes, what: str) -> torch.Tensor:
    """The tensor of one table entry: offset and nbytes into its section, dtype, shape."""
    refuse_unknown(entry, QGV3_ENTRY, f"the {what}: its entry")
    offset, length, shape = entry["offset"], entry["nbytes"], entry["shape"]
    dtype = torch_dtype(entry["dtype"], what)
    sizes = (offset, length, *shape)
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
        raise CheckpointError(f"the {what}: its offset, length or shape is {sizes}")
    needed = dtype.itemsize
    for size in shape:
        needed *= size
    if offset + length > len(section) or needed != length:
        raise CheckpointError(
            f"the {what} takes {needed:,} bytes; {length:,} at {offset:,} of {len(section):,} are "
            "declared"
        )
    if not length:
        return torch.zeros(shape, dtype=dtype)
    raw = torch.frombuffer(bytearray(section[offset : offset + length]), dtype=torch.uint8)
    return plain(raw.view(dtype).reshape(shape), what)
