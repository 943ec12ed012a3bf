"""Integer codes and scales of an artifact as a safetensors file, without dequantizing them.

For users who compute with integers. An unquantized tensor keeps its name and its stored dtype; a
quantized one becomes NAME/codes and its side values, NAME/scale and so on. docs/format.md says how
codes are dequantized.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from packer.artifact.decoder import MAX_DECODED_BYTES, StoredArtifact, parse
from packer.artifact.encoder import quantized_tensor
from packer.checkpoint.safetensors_write import UnwritableError, write_all
from packer.errors import OutputError
from packer.files import replacing
from packer.huggingface.files import without_files
from packer.quantizers.formats import PASSTHROUGH_DTYPES, Passthrough, QuantizedTensor

KIND = "bytecap codes 1"
SMALL_CODES = 127  # largest magnitude in int8


def codes_of(quantized: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Parts of one tensor by name: "" for an unquantized tensor, else codes and side values.

    codes: [shape of the weights], int8 if they fit, else int16. Side values: as in
    QuantizedTensor; scale and row steps have one value, or one per row, where all axes but the last
    are rows.
    """
    if isinstance(quantized.format, Passthrough):
        stored = PASSTHROUGH_DTYPES.get(str(quantized.format), quantized.dtype)
        return {"": quantized.codes.reshape(-1).view(stored).reshape(quantized.shape)}
    codes = quantized.codes
    if codes.dtype == torch.int16 and not bool((codes.int().abs() > SMALL_CODES).any()):
        codes = codes.to(torch.int8)
    return {"codes": codes.reshape(quantized.shape), **quantized.side}


def unpack_codes(
    data: bytes, path: str | os.PathLike[str] | None, max_bytes: int = MAX_DECODED_BYTES
) -> dict[str, torch.Tensor]:
    """All tensors of the codes file of an artifact, by key; written as safetensors to `path` when
    given. The metadata has format and dtype of every tensor ("bytecap.formats"), tied names
    ("bytecap.ties") and the artifact's own metadata.

    Raises ArtifactError: not an artifact, damaged, or larger decoded than `max_bytes`. OutputError:
    another ending, or a dtype that safetensors lacks.
    """
    if path is not None and Path(path).suffix.lower() != ".safetensors":
        raise OutputError(f"{path}: codes are written as .safetensors; name such a file")
    stored = parse(data, max_bytes)
    parts, formats = _parts(stored)
    if path is None:
        return parts
    metadata = {
        **without_files(stored.metadata),
        "bytecap": KIND,
        "bytecap.formats": json.dumps(formats),
        "bytecap.ties": json.dumps(dict(stored.ties)),
    }
    with replacing(path) as temporary:
        try:
            write_all(temporary, parts, metadata)
        except UnwritableError as error:
            raise OutputError(f"{path}: {error}") from None
    return parts


def _parts(stored: StoredArtifact) -> tuple[dict[str, torch.Tensor], Mapping[str, list[str]]]:
    """(tensors by key, name -> [format, dtype]). Raises OutputError: two tensors of one key."""
    parts: dict[str, torch.Tensor] = {}
    formats = {}
    for tensor in stored.tensors:
        quantized = quantized_tensor(tensor)
        formats[tensor.name] = [str(quantized.format), tensor.dtype]
        for part, value in codes_of(quantized).items():
            key = f"{tensor.name}/{part}" if part else tensor.name
            if key in parts:
                raise OutputError(f"{tensor.name}: another tensor is called {key} already")
            parts[key] = value
    return parts, formats
