"""Tensors of a file: read on each access and not cached."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from packer.errors import CheckpointError


@dataclass(frozen=True)
class FileMark:
    """Identifies a file and its state, to detect changes. modified: nanoseconds."""

    path: Path
    inode: int
    size_bytes: int
    modified: int

    @staticmethod
    def of(path: Path) -> FileMark:
        return FileMark.of_status(path, path.stat())

    @staticmethod
    def of_status(path: Path, status: os.stat_result) -> FileMark:
        return FileMark(path, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor's place in a file. meta: its shape and dtype, a tensor without values (device meta).

    offset: bytes from the start of the file to its elements, which are little-endian.
    """

    meta: torch.Tensor
    file: FileMark
    offset: int

    @property
    def type(self) -> str:
        """The dtype in a word."""
        return str(self.meta.dtype).removeprefix("torch.")

    @property
    def size_bytes(self) -> int:
        """In the file."""
        return self.meta.nbytes

    def read(self, name: str) -> torch.Tensor:
        """The values, in memory of their own.

        Raises CheckpointError: the file is gone, cannot be read, or was changed.
        """
        path, count = self.file.path, self.meta.nbytes
        values = torch.empty(count, dtype=torch.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                if FileMark.of_status(path, os.fstat(file.fileno())) != self.file:
                    raise CheckpointError(
                        f"{path}: was changed while it was read; run the command again"
                    )
                file.seek(self.offset)
                whole = values.numpy().data
                done = 0
                while done < count and (more := file.readinto(whole[done:])):
                    done += more
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        if done < count:
            raise CheckpointError(f"{path}: ends within the tensor {name!r}; copy it again")
        return values.view(self.meta.dtype).reshape(self.meta.shape)


class Readable(Protocol):
    """A tensor in a file. meta: its shape and dtype, without values (device meta)."""

    @property
    def meta(self) -> torch.Tensor: ...

    def read(self, name: str) -> torch.Tensor:
        """The values, in memory of their own. Raises CheckpointError: the file was changed."""
        ...


class Dequantized(Readable, Protocol):
    """A tensor that its file may hold as codes. type: of these, in a word. size_bytes: of these."""

    @property
    def type(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...


@dataclass(frozen=True, eq=False)
class DequantizedFile:
    """A file or folder whose tensors are dequantized on reading.

    kind: gguf, gptq or awq. file_bytes: of all its files. tensors: by Hugging Face's names, where
    they are known. ties: name -> the tensor that stands for it. metadata: its settings as texts.
    notes: what was renamed and left out, in words for people.
    """

    source: str
    kind: str
    file_bytes: int
    tensors: Mapping[str, Dequantized]
    ties: Mapping[str, str]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]


T = TypeVar("T")


class LazyMapping(Mapping[str, T]):
    """Values by name, computed or read on each access and not cached: see `__getitem__`."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = dict.fromkeys(names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class LazyTensors(LazyMapping[torch.Tensor]):
    """Tensors by name, each read on each access.

    meta_tensors: shape and dtype of all of them, without making any. Asking raises CheckpointError.
    """

    def __init__(self, meta_tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(meta_tensors)
        self.meta_tensors = dict(meta_tensors)


def meta_tensors_of(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Shape and dtype of every tensor; its values may not be there."""
    return tensors.meta_tensors if isinstance(tensors, LazyTensors) else tensors


class StoredTensors(LazyTensors):
    """Tensors by name, each read from its file whenever it is asked for."""

    def __init__(self, places: Mapping[str, Readable]) -> None:
        super().__init__({name: place.meta for name, place in places.items()})
        self._places = dict(places)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._places[name].read(name)


class Renamed(LazyTensors):
    """Tensors of another mapping. names: name here -> name there."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
        meta_tensors = meta_tensors_of(tensors)
        super().__init__({name: meta_tensors[there] for name, there in names.items()})
        self._tensors, self._there = tensors, dict(names)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._there[name]]
