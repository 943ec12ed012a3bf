"""Folders whose linear layers are packed by GPTQ or AWQ, each dequantized when it is asked for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packer.checkpoint.file_kinds import Content
from packer.checkpoint.folder import CONFIGURATION, INDEX, MAIN_NAMES, QUANTIZATION
from packer.checkpoint.lazy_tensors import Dequantized, DequantizedFile, StoredTensor
from packer.errors import CheckpointError
from packer.foreign.packed_integers import PARTS, Packing, dequantized, packing_of, shape_of

CODES = ".qweight"


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """The weight of one linear layer. meta: float32 [outputs, inputs], without values."""

    meta: torch.Tensor
    packing: Packing
    parts: Mapping[str, StoredTensor]
    file: str

    @property
    def type(self) -> str:
        return self.packing.words

    @property
    def size_bytes(self) -> int:
        """In the file."""
        return sum(part.size_bytes for part in self.parts.values())

    def read(self, name: str) -> torch.Tensor:
        """The values. Raises CheckpointError: damaged, or the file was changed."""
        try:
            return dequantized(self.packing, {key: p.read(name) for key, p in self.parts.items()})
        except ValueError as error:
            raise CheckpointError(f"{self.file}: {name} {error}; download it again") from None


def packed_folder(content: Content) -> DequantizedFile | None:
    """The weights of a folder whose config.json has a quantization_config; None for any other.

    Raises CheckpointError: of another method than GPTQ and AWQ, damaged, or packed layers without
    a configuration.
    """
    if not isinstance(content.value, Mapping):
        return None
    names = [name for name in content.value if isinstance(name, str)]
    layers = [name.removesuffix(CODES) for name in names if name.endswith(CODES)]
    where, settings = _configuration(Path(content.source), bool(layers))
    if settings is None:
        return None
    packing = packing_of(settings, where)
    if not layers or not content.places:
        raise CheckpointError(
            f"{where}: says that the weights are quantized already ({packing.method}), but "
            f"{content.source} has no safetensors *{CODES}; where they are plain weights, remove "
            f"{QUANTIZATION} from {CONFIGURATION}"
        )
    tensors: dict[str, Dequantized] = dict(content.places)
    for layer in layers:
        parts = {p: content.places[f"{layer}.{p}"] for p in PARTS if f"{layer}.{p}" in tensors}
        for part in parts:
            del tensors[f"{layer}.{part}"]
        tensors[f"{layer}.weight"] = _layer(layer, packing, parts, content.source)
    read = f"{len(layers)} layers of {packing.words}, dequantized to float32"
    size, metadata = content.file_bytes, content.metadata
    return DequantizedFile(
        content.source, packing.method, size, tensors, {}, metadata, (read, *content.notes)
    )


def _layer(
    layer: str, packing: Packing, parts: Mapping[str, StoredTensor], source: str
) -> PackedLayer:
    try:
        shape = shape_of(packing, {name: part.meta for name, part in parts.items()})
    except ValueError as error:
        raise CheckpointError(f"{source}: {layer} {error}; download it again") from None
    return PackedLayer(torch.empty(shape, device="meta"), packing, parts, source)


def _configuration(source: Path, packed: bool) -> tuple[str, Mapping[str, Any] | None]:
    """(the configuration's file, how it says that weights are quantized or None).

    packed: whether there are packed layers, of which CheckpointError is raised without it.
    """
    named = source.stem.partition(".")[0] in MAIN_NAMES or INDEX.fullmatch(source.name)
    file = (source if source.is_dir() else source.parent) / CONFIGURATION
    settings = None
    if packed or named or source.is_dir():
        # A damaged configuration is refused by whoever builds the model.
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            settings = _quantization(json.loads(file.read_bytes()))
    if packed and settings is None:
        raise CheckpointError(
            f"{source}: has packed layers (*{CODES}), and no {file} with a {QUANTIZATION} that "
            "says how; name the folder that it came in"
        )
    return str(file), settings


def _quantization(configuration: Any) -> Mapping[str, Any] | None:
    """What a configuration of transformers, or of MLX, says of codes."""
    if not isinstance(configuration, Mapping) or "model_type" not in configuration:
        return None
    for key in (QUANTIZATION, "compression_config", "quantization"):
        found = configuration.get(key)
        if found:
            return {"quant_method": key, **(found if isinstance(found, Mapping) else {})}
    return None
