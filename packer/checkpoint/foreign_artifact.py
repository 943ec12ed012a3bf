"""A third-party artifact as a value, from the contents of a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from packer.checkpoint.file_kinds import Content
from packer.errors import CheckpointError
from packer.foreign.containers import PSIONIC_FORMAT, int8_of_safetensors
from packer.foreign.layouts import layout_of, read_layout
from packer.foreign.tensors import ForeignArtifact

__all__ = ["ForeignArtifact", "foreign_of", "without_banks"]

# Bank -> what its first and second half hold, layer after layer (PR #549).
BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}


def foreign_of(
    content: Content, template: Mapping[str, torch.Tensor] | None = None
) -> ForeignArtifact | None:
    """The artifact that a file's content is, or None: it holds plain weights.

    template: weights of the model it was made from, tied names included; gives the dtypes that
    some layouts do not store. Banks in it stand for the matrices that artifacts hold instead.
    Raises CheckpointError: it begins like an artifact and is none, or does not fit the template.
    """
    value = content.value
    if PSIONIC_FORMAT in content.metadata and isinstance(value, Mapping):
        try:
            value = int8_of_safetensors(value, content.metadata)
        except CheckpointError as error:
            raise CheckpointError(f"{content.source}: {error}") from None
    if layout_of(value) is None:
        return None
    assert isinstance(value, Mapping)
    notes: list[str] = []
    matrices = None if template is None else without_banks(template)
    layout, tensors = read_layout(value, matrices, notes, content.source)
    sizes = content.file_bytes, content.payload_bytes
    return ForeignArtifact(content.source, layout, content.codec, *sizes, tensors, tuple(notes))


def without_banks(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Banks [matrices, rows, columns] as the matrices of each block; other tensors unchanged."""
    matrices: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        parts = BANKS.get(name.rpartition(".")[2])
        if parts is None or weight.dim() != 3 or weight.shape[0] % len(parts):
            matrices[name] = weight
            continue
        layers = weight.shape[0] // len(parts)
        for number, matrix in enumerate(weight):
            half, layer = divmod(number, layers)
            matrices[f"blocks.{layer}.{parts[half]}.weight"] = matrix
    return matrices
