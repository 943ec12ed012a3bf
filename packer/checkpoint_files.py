"""Checkpoint files to Python values: torch zip and legacy files, safetensors, folders of shards.

The content decides what a file is, never its name. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from packer.errors import CheckpointError

RESAVE = "re-save the weights alone, torch.save(model.state_dict(), 'weights.pt'), and use that"
# The pickled integer that files began with before torch.save wrote zip files.
LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
DECOMPRESS = "decompress it first (a packed artifact: with its own loader)"
OTHER_CONTENT = (
    (b"\x93BYTECAP", "a packed artifact; unpack it first (packer unpack)"),
    (b"\x78", f"zlib data; {DECOMPRESS}"),
    (b"\x28\xb5\x2f\xfd", f"zstd data; {DECOMPRESS}"),
    (b"\xfd7zXZ", f"xz data; {DECOMPRESS}"),
    (b"\x1f\x8b", f"gzip data; {DECOMPRESS}"),
    (b"\x80", f"a Python pickle that torch.save did not write; {RESAVE}"),
)
BLOCK_BYTES = 1 << 20
MAX_SAFETENSORS_HEADER = 100_000_000  # the limit of the safetensors library


def load(path: Path) -> tuple[object, dict[str, str]]:
    """(what the file holds, its text metadata)."""
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file; name a checkpoint file")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; save or copy the checkpoint again")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return _torch_load(path, mmap=True), {}
    if head[:1] == b"\x80" and LEGACY_MAGIC in head:
        return _torch_load(path, mmap=False), {}
    if head[8:9] == b"{":
        return _load_safetensors(path)
    for magic, meaning in OTHER_CONTENT:
        if head.startswith(magic):
            raise CheckpointError(f"{path}: is not a checkpoint but {meaning}")
    raise CheckpointError(
        f"{path}: is neither a torch file nor safetensors (it starts with {head[:8].hex(' ')}); "
        "name a file written by torch.save or safetensors, or a folder of safetensors shards"
    )


def _check_zip(path: Path) -> None:
    """Refuse zip files that torch.save did not write or that are damaged.

    Loading maps the records into memory without a look at their CRC, so they are read once here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _check_torch_archive(path, records)
            for record in records:
                # torch writes 0 where its checksums are switched off (set_crc32_options).
                if record.CRC != 0:
                    with archive.open(record) as stream:
                        while stream.read(BLOCK_BYTES):
                            pass
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # zipfile raises a dozen types on damaged files
        raise CheckpointError(
            f"{path}: the file is truncated or damaged ({reason(error)}); copy or save it again"
        ) from error


def _check_torch_archive(path: Path, records: Sequence[zipfile.ZipInfo]) -> None:
    names = [record.filename.partition("/")[2] for record in records]
    if "constants.pkl" in names:
        raise CheckpointError(f"{path}: is a TorchScript program, not a state dict; {RESAVE}")
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path}: is a zip file, but torch.save did not write it (it has no data.pkl); {RESAVE}"
        )
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f"{path}: its records are compressed, which torch.save never does; load it where it "
            f"was made and {RESAVE}"
        )


def _torch_load(path: Path, *, mmap: bool) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns about its own internals here; a user can do nothing about them.
            warnings.simplefilter("ignore")
            loaded: object = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
            return loaded
    except Exception as error:  # damaged pickles raise nearly every type there is
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(
                f"{path}: to open it, the object {asked[1]} would have to be unpickled, which can "
                f"run any code, so it is refused. Where you trust it, load it and {RESAVE}"
            ) from error
        raise CheckpointError(
            f"{path}: torch cannot read it ({reason(error)}); it is damaged, or holds more than "
            f"tensors: copy it again, or {RESAVE}"
        ) from error


def _load_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    allowed = min(path.stat().st_size - 8, MAX_SAFETENSORS_HEADER)
    if header_bytes > allowed:
        raise CheckpointError(
            f"{path}: as safetensors its header would take {header_bytes:,} bytes where at most "
            f"{max(allowed, 0):,} are possible; the file is truncated or damaged: copy or save it "
            "again"
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return tensors, dict(file.metadata() or {})
    except Exception as error:
        raise CheckpointError(
            f"{path}: the safetensors file is truncated or damaged ({reason(error)}); copy or "
            "save it again"
        ) from error


def _load_folder(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All shards as one; an index, where there is one, says which they are and what they hold."""
    weight_map = _read_index(folder)
    if weight_map is None:
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
    else:
        shards = sorted(set(weight_map.values()))
    if not shards:
        raise CheckpointError(
            f"{folder}: is a folder without *.safetensors; name a checkpoint file inside it"
        )
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    home: dict[str, str] = {}
    for shard in shards:
        loaded, texts = _load_safetensors(folder / shard)
        for name in loaded:
            if name in home:
                raise CheckpointError(
                    f"{folder}: the tensor {name!r} is in both {home[name]} and {shard}; keep the "
                    "shards of one model only, or name one file"
                )
            home[name] = shard
        tensors.update(loaded)
        metadata = {**texts, **metadata}
    if weight_map is not None:
        _check_index(folder, weight_map, home)
    return tensors, metadata


def _read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> shard, None without an index."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return None
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        found = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is not a safetensors index with a weight_map ({reason(error)}); download it "
            "again, or remove it to take every *.safetensors file here"
        ) from error
    for name, shard in found.items():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: puts {name!r} into {shard!r}, which is not a *.safetensors file of this "
                "folder"
            )
        if not (folder / shard).is_file():
            raise CheckpointError(
                f"{path}: names the shard {shard}, which is not there; download the missing file"
            )
    return found


def _check_index(folder: Path, weight_map: Mapping[str, str], home: Mapping[str, str]) -> None:
    for name in sorted(set(weight_map) | set(home)):
        if weight_map.get(name) != home.get(name):
            raise CheckpointError(
                f"{folder}: the index puts {name!r} into {weight_map.get(name, 'no shard')}, but "
                f"it is in {home.get(name, 'no shard')}; index and shards are not of one model"
            )


def reason(error: Exception) -> str:
    """The error's first line, short enough for a sentence."""
    # torch puts a page of general advice before what happened.
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = text.strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
