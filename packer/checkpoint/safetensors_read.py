"""Safetensors files to tensors by name, and the texts they carry."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load as load_bytes

from packer.checkpoint.lazy_tensors import FileMark, StoredTensor
from packer.errors import CheckpointError, reason
from packer.files import spelled_as_text

MAX_SAFETENSORS_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True, eq=False)
class Loaded:
    """A file. tensors: by name, mapped into memory. metadata: the texts it carries.

    places: where each tensor lies, to be read alone; none where bytes would have to be swapped.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    places: dict[str, StoredTensor]


def safetensors_of(data: bytes, source: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A safetensors file in memory; the library checks every offset but keeps the metadata."""
    try:
        tensors = load_bytes(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        return {name: tensors[name] for name in sorted(tensors)}, dict(metadata)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{source}: the safetensors data in it is truncated or damaged ({reason(error)}); copy "
            "it again"
        ) from error


def load_safetensors(path: Path) -> Loaded:
    mark = FileMark.of(path)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    allowed = min(path.stat().st_size - 8, MAX_SAFETENSORS_HEADER)
    if header_bytes > allowed:
        raise CheckpointError(
            f"{path}: as safetensors its header would take {header_bytes:,} bytes where at most "
            f"{max(allowed, 0):,} are possible; the file is truncated or damaged: copy or save it "
            "again"
        )
    try:
        with spelled_as_text(path) as text, safe_open(text, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            metadata = dict(file.metadata() or {})
        return Loaded(tensors, metadata, _places(mark, header_bytes, tensors))
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path}: the safetensors file is truncated or damaged ({reason(error)}); copy or "
            "save it again"
        ) from error


def _places(
    mark: FileMark, header_bytes: int, tensors: Mapping[str, torch.Tensor]
) -> dict[str, StoredTensor]:
    """Where the tensors lie in a file whose header the library has checked.

    Raises ValueError: a place of another size than its tensor has.
    """
    if sys.byteorder == "big":
        return {}
    with mark.path.open("rb") as file:
        header = json.loads(file.read(8 + header_bytes)[8:])
    places = {}
    for name, tensor in tensors.items():
        start, stop = header[name]["data_offsets"]
        if stop - start != tensor.nbytes:
            raise ValueError(f"{name} has {stop - start} bytes, not {tensor.nbytes}")
        meta = torch.empty_like(tensor, device="meta")
        places[name] = StoredTensor(meta, mark, 8 + header_bytes + start)
    return places
