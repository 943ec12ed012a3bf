"""Somebody else's artifact as a value, from whatever a file turned out to hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from packer.checkpoint_files import Content
from packer.foreign_containers import PSIONIC_FORMAT, int8_of_safetensors
from packer.foreign_layouts import layout_of, read_layout
from packer.foreign_tensors import ForeignArtifact

__all__ = ["ForeignArtifact", "foreign_of"]


def foreign_of(
    content: Content, template: Mapping[str, torch.Tensor] | None = None
) -> ForeignArtifact | None:
    """The artifact that a file's content is, or None: it holds plain weights.

    template: weights of the model it was made from, tied names included; gives the dtypes that
    some layouts do not store.
    Raises CheckpointError: it begins like an artifact and is none, or does not fit the template.
    """
    value = content.value
    if PSIONIC_FORMAT in content.metadata and isinstance(value, Mapping):
        value = int8_of_safetensors(value, content.metadata)
    if layout_of(value) is None:
        return None
    assert isinstance(value, Mapping)
    notes: list[str] = []
    layout, tensors = read_layout(value, template, notes, content.source)
    return ForeignArtifact(
        content.source,
        layout,
        content.codec,
        content.file_bytes,
        content.payload_bytes,
        tensors,
        tuple(notes),
    )
