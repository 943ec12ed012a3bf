"""Files that others have made of a model, as they stand beside ours in a comparison."""

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
    """recipe: its path. total_bytes: on disk; whatever reads it is not counted. weights: of the
    checkpoint it stands for. The rest is what only files of ours have.
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
    """Of a file, or of the files of a folder that hold its model.

    Raises CheckpointError: the folder holds none.
    """
    one = Path(path)
    if one.is_dir():
        shards = shards_in(one)
    elif INDEX.fullmatch(one.name):
        shards = indexed_shards(one)
    else:
        return one.stat().st_size
    return sum((shards.folder / name).stat().st_size for name in shards.files)
