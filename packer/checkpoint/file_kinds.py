"""Files to Python values: torch zip and legacy files, safetensors, folders of shards, and all of
these compressed.

The content decides what a file is, never its name. Nothing in a file is executed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from packer.checkpoint.folder import (
    INDEX,
    Shards,
    indexed_shards,
    notes_on_part,
    refuse_absent,
    shards_in,
)
from packer.checkpoint.gguf_tensors import read_gguf
from packer.checkpoint.known_files import HEAD_BYTES, known_by_start, not_a_checkpoint
from packer.checkpoint.lazy_tensors import DequantizedFile, StoredTensor, StoredTensors
from packer.checkpoint.safetensors_read import Loaded, load_safetensors, safetensors_of
from packer.checkpoint.torch_files import is_torch, load_torch
from packer.errors import CheckpointError
from packer.foreign.codecs import UnknownBytesError, codec_of, output_limit, unwrap
from packer.foreign.containers import QGV3, read_qgv3
from packer.foreign.frames import PGRP, read_pgrp
from packer.foreign.gguf_header import GGUF
from packer.foreign.numpy_pickle import read_numpy_pickle

ARTIFACT = b"\x93BYTECAP"


@dataclass(frozen=True)
class Content:
    """What a file holds. value: usually a dict. metadata: text it carried (safetensors only).

    codec: what it was compressed with, none for plain files. file_bytes: of the file, of a folder
    all its shards. payload_bytes: after decompression. places: where each tensor of the value lies,
    for files whose tensors can be read one by one. notes: which files of a folder were read, and
    what is known to be missing. gguf: the file where it is one; the value is then meta_tensors.
    """

    source: str
    value: object
    metadata: dict[str, str]
    codec: str
    file_bytes: int
    payload_bytes: int
    places: Mapping[str, StoredTensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    gguf: DequantizedFile | None = None

    @property
    def tensors(self) -> Mapping[str, torch.Tensor] | None:
        """The value where it is tensors by name, each read when asked for; else None."""
        return StoredTensors(self.places) if self.places else None


def load(path: Path, max_memory: int | None = None) -> Content:
    """What a file or folder holds. max_memory: bytes that a compressed file may expand to.

    Raises CheckpointError: no file, damaged, larger than allowed, or of a kind that is not known.
    """
    if path.is_dir():
        return _joined(shards_in(path), path, max_memory)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file; name a checkpoint file")
    if INDEX.fullmatch(path.name):
        shards = indexed_shards(path)
        refuse_absent(shards, path.name)
        return _joined(shards, path, max_memory)
    return replace(_load_file(path, max_memory), notes=notes_on_part(path))


def _load_file(path: Path, max_memory: int | None) -> Content:
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file; name a checkpoint file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; save or copy the checkpoint again")
    if head.startswith(ARTIFACT):
        raise CheckpointError(
            f"{path}: is not a checkpoint but a packed artifact; unpack it first (packer unpack)"
        )
    if head.startswith(GGUF):
        return _from_gguf(read_gguf(path))
    if is_torch(head):
        return Content(str(path), load_torch(path, head), {}, "none", size, size)
    if _is_safetensors(head):
        return _plain(path, load_safetensors(path), size)
    known = known_by_start(head)
    if known is not None and codec_of(head) is None:
        raise CheckpointError(not_a_checkpoint(path, *known))
    return content_of(path.read_bytes(), path, max_memory)


def _from_gguf(file: DequantizedFile) -> Content:
    meta_tensors = {name: tensor.meta for name, tensor in file.tensors.items()}
    sizes = file.file_bytes, file.file_bytes
    return Content(file.source, meta_tensors, dict(file.metadata), "none", *sizes, gguf=file)


def _joined(shards: Shards, source: Path, max_memory: int | None) -> Content:
    """All files as one; an index, where there is one, lists what each holds.

    Raises CheckpointError: a name is in two of them, or index and files differ.
    """
    read = {name: _load_file(shards.folder / name, max_memory) for name in shards.files}
    values: dict[object, object] = {}
    home: dict[object, str] = {}
    places: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for file, content in read.items():
        if not isinstance(content.value, Mapping):
            kind = type(content.value).__name__
            raise CheckpointError(f"{shards.folder / file}: holds a {kind}, not named tensors")
        for name in content.value:
            if name in home:
                raise CheckpointError(
                    f"{source}: {name!r} is in both {home[name]} and {file}; keep the shards of "
                    "one model only, or name one file"
                )
            home[name] = file
        values.update(content.value)
        places.update(content.places)
        metadata = {**content.metadata, **metadata}  # the first shard's word counts
    if shards.weight_map is not None:
        _check_index(source, shards.weight_map, home)
    size = sum(content.file_bytes for content in read.values())
    payload = sum(content.payload_bytes for content in read.values())
    codec = next(iter(read.values())).codec
    whole = places if len(places) == len(values) else {}
    return Content(str(source), values, metadata, codec, size, payload, whole, shards.notes)


def _check_index(source: Path, weight_map: Mapping[str, str], home: Mapping[object, str]) -> None:
    for name in sorted(set(weight_map) | {one for one in home if isinstance(one, str)}):
        if weight_map.get(name) != home.get(name):
            raise CheckpointError(
                f"{source}: the index puts {name!r} into {weight_map.get(name, 'no shard')}, but "
                f"it is in {home.get(name, 'no shard')}; index and shards are not of one model"
            )


def _plain(path: Path, loaded: Loaded, size: int) -> Content:
    value, metadata = loaded.tensors, loaded.metadata
    return Content(str(path), value, metadata, "none", size, size, loaded.places)


def content_of(whole: bytes, path: Path, max_memory: int | None = None) -> Content:
    """What the bytes of a compressed file hold. path: its name, for refusals.

    Raises CheckpointError as `load` does.
    """
    size, source = len(whole), str(path)
    limit = output_limit(size, max_memory)
    try:
        inner = unwrap(whole, limit, source, is_container)
    except UnknownBytesError:
        inner = None
    if inner is None or not is_container(inner.data[:64]):
        known = known_by_start((inner.data if inner else whole)[:HEAD_BYTES], sure=False)
        if known is not None:
            raise CheckpointError(not_a_checkpoint(path, *known, inner.layers if inner else ()))
        head = (whole[:8] if inner is None else inner.data[:8]).hex(" ")
        raise CheckpointError(_unknown(path, head, inner.layers if inner else ()))
    data = inner.data
    value, metadata = _load_bytes(data, source, limit)
    return Content(source, value, metadata, inner.codec, size, len(data))


def _unknown(path: Path, head: str, layers: Sequence[str]) -> str:
    inside = f"inside its {'+'.join(layers)} data it" if layers else "it"
    return (
        f"{path}: is neither a torch file nor safetensors, nor an artifact of a known layout "
        f"({inside} starts with {head}); name a file written by torch.save or safetensors, or a "
        "folder of safetensors shards"
    )


def is_container(head: bytes) -> bool:
    """Whether bytes are the start of a container of tensors; head: the first 64 of them."""
    is_pickle = head[:1] == b"\x80" and 2 <= int.from_bytes(head[1:2], "little") <= 5
    special = (PGRP, QGV3, ARTIFACT)
    return is_torch(head) or _is_safetensors(head) or is_pickle or head.startswith(special)


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes of header length come first, which no codec's first bytes are small enough for.
    return head[8:9] == b"{" and (codec_of(head) is None or head[4:8] == bytes(4))


def _load_bytes(data: bytes, source: str, limit: int) -> tuple[object, dict[str, str]]:
    """(value, metadata) of a container in memory."""
    head = data[:64]
    if is_torch(head):
        return load_torch(io.BytesIO(data), head, source), {}
    if _is_safetensors(head):
        return safetensors_of(data, source)
    if head.startswith(QGV3):
        return read_qgv3(data, source), {}
    if head.startswith(PGRP):
        return read_pgrp(data, source, limit, _load_bytes), {}
    if head.startswith(ARTIFACT):
        raise CheckpointError(
            f"{source}: is a packed artifact, compressed once more; take that off and unpack it"
        )
    return read_numpy_pickle(data, source), {}
