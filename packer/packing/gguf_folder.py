"""Writes a GGUF file as a folder for `from_pretrained`.

Weights are dequantized here; configuration and tokenizer are what transformers reads from the
file's settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from packer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from packer.errors import CheckpointError, listed, reason
from packer.files import replacing_folder
from packer.foreign.gguf_header import GGUFHeader, read_gguf_header
from packer.foreign.gguf_names import LIKE_LLAMA, ROTARY
from packer.huggingface.files import PathLike
from packer.huggingface.library import quietly, transformers_for
from packer.huggingface.shape_check import check_shapes
from packer.packing.huggingface_folder import WEIGHTS
from packer.packing.verify import write_weights


def write_gguf_folder(
    path: PathLike, file: PathLike
) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...], tuple[str, ...]]:
    """A new folder with model.safetensors in float32, config.json and tokenizer files; nothing
    is written on failure.

    Returns meta tensors of the weights, the names of the other files, and notes. A tied head is
    not written: the configuration ties it.
    Raises CheckpointError: damaged, of an architecture without Hugging Face names, not read by
    transformers, or of other shapes than its settings say. OutputError: the folder holds files.
    """
    checkpoint, header = read_checkpoint(file), read_gguf_header(Path(file))
    library = transformers_for(checkpoint.source)
    with quietly(library), replacing_folder(path) as folder:
        _write_settings(library, checkpoint, header, folder)
        files = tuple(sorted(one.name for one in folder.iterdir()))
        write_weights(folder / WEIGHTS, checkpoint.tensors, {}, {})
    lost = _lost(header, library.__version__)
    return checkpoint.meta_tensors, files, (*checkpoint.notes, *lost)


def _lost(header: GGUFHeader, version: str) -> list[str]:
    """What the folder may have otherwise than the original, in words for people."""
    notes = []
    splitting = header.settings.get("tokenizer.ggml.pre")
    if splitting is not None:
        notes.append(
            f"GGUF names the rule that splits its text, {splitting!r}, and does not hold it: the "
            f"tokenizer is as transformers {version} rebuilds it"
        )
    scaling = header.settings.get(f"{header.architecture}.rope.scaling.type", "none")
    tables = [entry.name for entry in header.entries if ROTARY.fullmatch(entry.name)]
    if scaling != "none" or tables:
        notes.append(
            f"its rotary embedding is scaled ({listed([scaling, *tables])}), which "
            "config.json does not say; copy rope_scaling or rope_parameters from the original's"
        )
    return notes


def _write_settings(
    library: ModuleType, checkpoint: Checkpoint, header: GGUFHeader, folder: Path
) -> None:
    """The configuration and the tokenizer. Raises CheckpointError."""
    source, architecture = checkpoint.source, header.architecture
    if architecture not in LIKE_LLAMA:
        raise CheckpointError(
            f"{source}: is of architecture {architecture!r}, whose tensors are renamed for Hugging "
            f"Face only where it is one of {listed(sorted(LIKE_LLAMA))}; name a .safetensors file "
            "to write its weights alone"
        )
    place = Path(source).resolve()
    options: dict[str, Any] = {"gguf_file": place.name, "local_files_only": True}
    try:
        configuration = library.AutoConfig.from_pretrained(place.parent, **options)
        causal = library.MODEL_FOR_CAUSAL_LM_MAPPING[type(configuration)]
        tokenizer = library.AutoTokenizer.from_pretrained(place.parent, **options)
    except Exception as error:  # whatever a file's settings make the library raise
        raise CheckpointError(
            f"{source}: transformers {library.__version__} reads no configuration and tokenizer "
            f"from this GGUF of architecture {architecture!r} ({reason(error)})"
        ) from None
    configuration.architectures = [causal.__name__]
    configuration.dtype = torch.float32
    meta = {name: checkpoint.meta_tensors[kept] for name, kept in checkpoint.holders.items()}
    problem = check_shapes(configuration.to_dict(), f"{source}'s settings", meta, source)
    if problem is not None:
        raise CheckpointError(f"{source}: {problem}")
    configuration.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
