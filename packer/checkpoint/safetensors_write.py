"""Safetensors written tensor by tensor: shapes and dtypes first, values as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from packer.artifact.tensor_bytes import bytes_of, dtype_name
from packer.checkpoint.lazy_tensors import meta_tensors_of

RESERVED = "__metadata__"  # the header's own entry, besides those of tensors
MAX_HEADER = 100_000_000  # bytes that the safetensors library reads


class UnwritableError(ValueError):
    """What safetensors has no room for: a dtype, a name, or a header as long as the names ask."""


def write_safetensors(
    path: Path,
    metas: Mapping[str, torch.Tensor],
    values: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """A file with these tensors, of which one at a time need be in memory.

    metas: shape and dtype of every tensor; values: each tensor once, in any order.
    Raises UnwritableError before anything is written; ValueError: a value is missing or is not as
    its meta says.
    """
    header, places = _header(metas, metadata)
    missing = set(metas)
    with path.open("wb") as file:
        file.write(header)
        for name, value in values:
            meta = metas[name]
            if (value.shape, value.dtype) != (meta.shape, meta.dtype):
                raise ValueError(f"{name} is {value.dtype} {list(value.shape)}")
            file.seek(len(header) + places[name])
            file.write(bytes_of(value).numpy().data)
            missing.remove(name)
    if missing:
        raise ValueError(f"there is no value of {sorted(missing)[0]}")


def write_all(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """A file with tensors that are in memory, or that a mapping reads one by one."""
    metas = meta_tensors_of(tensors)
    write_safetensors(path, metas, ((name, tensors[name]) for name in metas), metadata)


def _header(
    metas: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """(length and header, name -> bytes from there to its values). Raises UnwritableError."""
    if RESERVED in metas:
        raise UnwritableError(f"safetensors keeps the name {RESERVED} of a tensor for itself")
    spelled = {dtype: _spelled(dtype, metas) for dtype in {o.dtype for o in metas.values()}}
    fields: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    places, at = {}, 0
    # Wide elements first, so that every tensor lies at a multiple of its element's size.
    for name in sorted(metas, key=lambda name: (-metas[name].element_size(), name)):
        meta = metas[name]
        places[name], stop = at, at + meta.nbytes
        fields[name] = {
            "dtype": spelled[meta.dtype],
            "shape": list(meta.shape),
            "data_offsets": [at, stop],
        }
        at = stop
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UnwritableError(
            f"names and texts take {len(text):,} bytes where safetensors allows {MAX_HEADER:,}"
        )
    return len(text).to_bytes(8, "little") + text, places


def _spelled(dtype: torch.dtype, metas: Mapping[str, torch.Tensor]) -> str:
    """What the library calls a dtype; its own words are in the header of an empty tensor's file."""
    try:
        whole = save({"empty": torch.empty(0, dtype=dtype)})
    except KeyError:  # the library's table of dtypes
        names = [name for name, meta in metas.items() if meta.dtype == dtype]
        what = f"{dtype_name(dtype)}, the dtype of {names[0]}"
        raise UnwritableError(f"safetensors has no {what}") from None
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    return str(header["empty"]["dtype"])
