"""Safetensors files and folders of shards to tensors by name, and the texts they carry."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load as load_bytes

from packer.errors import CheckpointError, reason
from packer.stored_tensors import FileMark, StoredTensor

MAX_SAFETENSORS_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True, eq=False)
class Loaded:
    """A file or folder. tensors: by name, mapped into memory. metadata: the texts it carries.

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
        with safe_open(str(path), framework="pt", device="cpu") as file:
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
    found = {}
    for name, tensor in tensors.items():
        start, stop = header[name]["data_offsets"]
        if stop - start != tensor.nbytes:
            raise ValueError(f"{name} has {stop - start} bytes, not {tensor.nbytes}")
        outline = torch.empty_like(tensor, device="meta")
        found[name] = StoredTensor(outline, mark, 8 + header_bytes + start)
    return found


def load_folder(folder: Path) -> Loaded:
    """All shards as one; an index, where there is one, says which they are and what they hold."""
    weight_map = _read_index(folder)
    if weight_map is None:
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
    else:
        shards = sorted(set(weight_map.values()))
    if not shards:
        raise CheckpointError(
            f"{folder}: is a folder without *.safetensors; name a checkpoint file inside it"
        )
    whole = Loaded({}, {}, {})
    home: dict[str, str] = {}
    for shard in shards:
        loaded = load_safetensors(folder / shard)
        for name in loaded.tensors:
            if name in home:
                raise CheckpointError(
                    f"{folder}: the tensor {name!r} is in both {home[name]} and {shard}; keep the "
                    "shards of one model only, or name one file"
                )
            home[name] = shard
        whole.tensors.update(loaded.tensors)
        whole.places.update(loaded.places)
        for key, text in loaded.metadata.items():
            whole.metadata.setdefault(key, text)  # the first shard's word counts
    if weight_map is not None:
        _check_index(folder, weight_map, home)
    return whole


def _read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> shard, None without an index."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return None
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        found = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is not a safetensors index with a weight_map ({reason(error)}); download it "
            "again, or remove it to take every *.safetensors file here"
        ) from error
    for name, shard in found.items():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: puts {name!r} into {shard!r}, which is not a *.safetensors file of this "
                "folder"
            )
        if not (folder / shard).is_file():
            raise CheckpointError(
                f"{path}: names the shard {shard}, which is not there; download the missing file"
            )
    return found


def _check_index(folder: Path, weight_map: Mapping[str, str], home: Mapping[str, str]) -> None:
    for name in sorted(set(weight_map) | set(home)):
        if weight_map.get(name) != home.get(name):
            raise CheckpointError(
                f"{folder}: the index puts {name!r} into {weight_map.get(name, 'no shard')}, but "
                f"it is in {home.get(name, 'no shard')}; index and shards are not of one model"
            )
