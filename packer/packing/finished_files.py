"""Files of third parties as entries of a comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from packer.checkpoint.folder import INDEX, indexed_shards, shards_in


@dataclass(frozen=True)
class FinishedFile:
    """recipe: its path. total_bytes: on disk, without the code that reads it. weights: number of
    weights in its checkpoint. The other attributes exist only for files of ours.
    """

    recipe: str
    total_bytes: int
    weights: int
    position: ClassVar[None] = None
    cap_bytes: ClassVar[None] = None
    seconds: ClassVar[None] = None
    predicted_bits_per_byte: ClassVar[None] = None
    problems: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @property
    def artifact_bytes(self) -> int:
        return self.total_bytes


def bytes_on_disk(path: str | os.PathLike[str]) -> int:
    """Size of a file, or of the model files in a folder.

    Raises CheckpointError: the folder holds no model.
    """
    location = Path(path)
    if location.is_dir():
        shards = shards_in(location)
    elif INDEX.fullmatch(location.name):
        shards = indexed_shards(location)
    else:
        return location.stat().st_size
    return sum((shards.folder / name).stat().st_size for name in shards.files)
