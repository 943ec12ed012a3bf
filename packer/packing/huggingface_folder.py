"""Unpacks an artifact to a folder for `from_pretrained`: weights and the files it carries."""

from __future__ import annotations

import json

import torch

from packer.artifact.decoder import StoredArtifact
from packer.checkpoint.folder import CONFIGURATION
from packer.files import replacing_folder, write_bytes
from packer.huggingface.configuration import is_transformers
from packer.huggingface.files import PathLike, carried_files
from packer.packing.verify import write_decoded
from packer.planning.measure import Progress, ignore_progress

WEIGHTS = "model.safetensors"


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
    with replacing_folder(path) as folder:
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
