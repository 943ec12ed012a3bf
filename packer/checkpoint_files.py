"""Files to Python values: torch zip and legacy files, safetensors, folders of shards, and all of
these compressed.

The content decides what a file is, never its name. Nothing in a file is executed.
"""

from __future__ import annotations

import _codecs
import io
import mmap
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from packer.errors import CheckpointError, reason
from packer.foreign.codecs import UnknownBytesError, codec_of, output_limit, unwrap
from packer.foreign.containers import QGV3, read_qgv3
from packer.foreign.frames import PGRP, read_pgrp
from packer.foreign.numpy_pickle import read_numpy_pickle
from packer.safetensors_files import Loaded, load_folder, load_safetensors, safetensors_of
from packer.stored_tensors import StoredTensor, StoredTensors

if not hasattr(torch.serialization, "safe_globals"):
    # What newer versions than 2.4 allow by themselves: how pickles of protocol 2 spell bytes.
    torch.serialization.add_safe_globals([_codecs.encode])

RESAVE = "re-save the weights alone, torch.save(model.state_dict(), 'weights.pt'), and use that"
# The pickled integer that files began with before torch.save wrote zip files.
LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
ARTIFACT = b"\x93BYTECAP"
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """What a file holds. value: usually a dict. metadata: text it carried (safetensors only).

    codec: what it was compressed with, none for plain files. file_bytes: of the file, of a folder
    all its shards. payload_bytes: after decompression. places: where each tensor of the value lies,
    for files whose tensors can be read one by one.
    """

    source: str
    value: object
    metadata: dict[str, str]
    codec: str
    file_bytes: int
    payload_bytes: int
    places: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor] | None:
        """The value where it is tensors by name, each read when asked for; else None."""
        return StoredTensors(self.places) if self.places else None


def load(path: Path, max_memory: int | None = None) -> Content:
    """What a file or folder holds. max_memory: bytes that a compressed file may expand to.

    Raises CheckpointError: no file, damaged, larger than allowed, or of a kind that is not known.
    """
    if path.is_dir():
        size = sum(shard.stat().st_size for shard in path.glob("*.safetensors"))
        return _plain(path, load_folder(path), size)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file; name a checkpoint file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; save or copy the checkpoint again")
    if head.startswith(ARTIFACT):
        raise CheckpointError(
            f"{path}: is not a checkpoint but a packed artifact; unpack it first (packer unpack)"
        )
    if _is_torch(head):
        return Content(str(path), _load_torch(path, head), {}, "none", size, size)
    if _is_safetensors(head):
        return _plain(path, load_safetensors(path), size)
    return _load_wrapped(path, max_memory)


def _plain(path: Path, loaded: Loaded, size: int) -> Content:
    value, metadata = loaded.tensors, loaded.metadata
    return Content(str(path), value, metadata, "none", size, size, loaded.places)


def _load_wrapped(path: Path, max_memory: int | None) -> Content:
    """A file that is read whole: compressed, or of a container that only artifacts have."""
    return content_of(path.read_bytes(), path, max_memory)


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
    return _is_torch(head) or _is_safetensors(head) or is_pickle or head.startswith(special)


def _is_torch(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and LEGACY_MAGIC in head)


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes of header length come first, which no codec's first bytes are small enough for.
    return head[8:9] == b"{" and (codec_of(head) is None or head[4:8] == bytes(4))


def _load_bytes(data: bytes, source: str, limit: int) -> tuple[object, dict[str, str]]:
    """(value, metadata) of a container in memory."""
    head = data[:64]
    if _is_torch(head):
        return _load_torch(io.BytesIO(data), head, source), {}
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


def _load_torch(file: Path | BinaryIO, head: bytes, source: str = "") -> object:
    """What torch.save wrote, in either of its two containers; a path is mapped into memory."""
    source = source or str(file)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(file, source)
        return _torch_load(file, source, mapped=isinstance(file, Path))
    if not isinstance(file, Path):
        return _torch_load(file, source, mapped=False)
    # A pickle says how long its texts are, and an open file reserves that much before it reads.
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return _torch_load(whole, source, mapped=False)


def _check_zip(file: Path | BinaryIO, source: str) -> None:
    """Refuse zip files that torch.save did not write or that are damaged.

    Loading maps the records into memory without a look at their CRC, so they are read once here.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            _check_torch_archive(source, records)
            for record in records:
                # torch writes 0 where its checksums are switched off (set_crc32_options).
                if record.CRC != 0:
                    with archive.open(record) as stream:
                        while stream.read(BLOCK_BYTES):
                            pass
    except (CheckpointError, OSError, MemoryError):
        raise
    except Exception as error:  # zipfile raises a dozen types on damaged files
        raise CheckpointError(
            f"{source}: the file is truncated or damaged ({reason(error)}); copy or save it again"
        ) from error


def _check_torch_archive(source: str, records: Sequence[zipfile.ZipInfo]) -> None:
    names = [record.filename.partition("/")[2] for record in records]
    if "constants.pkl" in names:
        raise CheckpointError(f"{source}: is a TorchScript program, not a state dict; {RESAVE}")
    arrays = [record.filename for record in records]
    if arrays and all(name.endswith(".npy") for name in arrays):
        raise CheckpointError(
            f"{source}: is an .npz of {len(arrays)} numpy arrays, {arrays[0]} the first, and no "
            "torch file; where they are a model's weights, write them with "
            "safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors') and use "
            "that"
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{source}: is a zip file, but torch.save did not write it (it has no data.pkl); "
            f"{RESAVE}"
        )
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f"{source}: its records are compressed, which torch.save never does; load it where it "
            f"was made and {RESAVE}"
        )


def _torch_load(file: Path | BinaryIO | mmap.mmap, source: str, *, mapped: bool) -> object:
    opened: Any = file if not isinstance(file, Path) else str(file)  # a mmap reads like a file
    if not isinstance(file, Path):
        file.seek(0)
    try:
        with warnings.catch_warnings():
            # torch warns about its own internals here; a user can do nothing about them.
            warnings.simplefilter("ignore")
            loaded: object = torch.load(
                opened,
                map_location="cpu",
                weights_only=True,
                mmap=mapped,
            )
            return loaded
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles raise nearly every type there is
        if "Cannot allocate memory" in str(error):  # a map of the file itself
            raise MemoryError(str(error)) from None
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(
                f"{source}: to open it, the object {asked[1]} would have to be unpickled, which "
                f"can run any code, so it is refused. Where you trust it, load it and {RESAVE}"
            ) from error
        raise CheckpointError(
            f"{source}: torch cannot read it ({reason(error)}); it is damaged, or holds more than "
            f"tensors: copy it again, or {RESAVE}"
        ) from error
