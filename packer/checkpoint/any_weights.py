"""Weights by name from a checkpoint or an artifact, recognized by content."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packer.artifact import decoder
from packer.artifact.artifact_file import is_artifact, reading_artifact
from packer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from packer.errors import CheckpointError


@dataclass(frozen=True)
class NamedWeights:
    """All weights of a model, tied names included.

    kind: checkpoint, artifact, gguf, gptq, awq, or foreign for another author's artifact.
    size_bytes: of the file, but of a checkpoint of its tensors as stored.
    """

    source: str
    kind: str
    weights: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]
    size_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any] | None:
        """The model configuration carried with the weights. Raises CheckpointError: damaged."""
        if "config" not in self.metadata:
            return None
        try:
            value = json.loads(self.metadata["config"])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.source}: its config is not JSON ({error})") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.source}: its config is no object of settings")
        return value


def load_weights(
    path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    drop: Sequence[str] = (),
    template: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
) -> NamedWeights:
    """weights and drop are for checkpoints, not for artifacts of ours. template and
    max_memory are for other authors' artifacts, as in read_checkpoint.

    Raises CheckpointError, SelectorError, PackerError: a file that is damaged or holds no weights.
    """
    source = str(path)
    if is_artifact(path):
        with reading_artifact(path):
            data = Path(path).read_bytes()
            stored = decoder.parse(data)
            decoded = decoder.decode_weights(stored)
        return NamedWeights(source, "artifact", decoded, stored.metadata, len(data))
    return weights_of(
        read_checkpoint(path, weights=weights, drop=drop, template=template, max_memory=max_memory)
    )


def weights_of(checkpoint: Checkpoint) -> NamedWeights:
    """All weights of a checkpoint that has been read, in memory."""
    kind, size = "checkpoint", checkpoint.size_bytes
    if checkpoint.foreign is not None:
        kind, size = "foreign", checkpoint.foreign.file_bytes
    if checkpoint.dequantized is not None:
        kind, size = checkpoint.dequantized.kind, checkpoint.dequantized.file_bytes
    whole = checkpoint.all_weights()
    return NamedWeights(checkpoint.source, kind, whole, checkpoint.metadata, size, checkpoint.notes)
