"""Unpacks an artifact to a folder for `from_pretrained`: weights and the files it carries."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from packer.artifact.decoder import StoredArtifact
from packer.checkpoint.packed_layers import CONFIGURATION
from packer.errors import OutputError
from packer.files import write_bytes
from packer.huggingface.configuration import is_transformers
from packer.huggingface.files import PathLike, carried_files
from packer.packing.verify import write_decoded
from packer.planning.measure import Progress, ignore_progress

WEIGHTS = "model.safetensors"
PERMISSIONS = 0o777  # before the process's umask


def write_folder(
    path: PathLike, stored: StoredArtifact, progress: Progress = ignore_progress
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """A new folder with model.safetensors, every tensor in its own dtype, and the files that the
    artifact carries; nothing is written on failure.

    Returns meta tensors of the weights, and the names of the other files. A transformers
    configuration packed with --config is written as config.json if the artifact carries none.
    Raises OutputError: the folder holds files, or cannot be written. PackerError: a carried file
    has no plain name.
    """
    files = carried_files(stored.metadata)
    configuration = stored.metadata.get("config")
    if CONFIGURATION not in files and configuration is not None and _of_transformers(configuration):
        files[CONFIGURATION] = configuration.encode()
    with new_folder(path) as folder:
        meta_tensors = write_decoded(folder / WEIGHTS, stored, progress)
        for name, data in files.items():
            write_bytes(folder / name, data)
    return meta_tensors, tuple(sorted(files))


def _of_transformers(text: str) -> bool:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and is_transformers(settings)


@contextlib.contextmanager
def new_folder(path: PathLike) -> Iterator[Path]:
    """Yields a temporary sibling to fill; on success it replaces `path`, which must not exist or be
    empty. On failure it is removed. Raises OutputError.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:32]}.{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{path}: exists and is not empty; name a new folder")
        temporary.mkdir(PERMISSIONS)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}; nothing was written"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
