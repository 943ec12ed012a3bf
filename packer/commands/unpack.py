"""`packer unpack`: the weights of an artifact, ours or another author's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.artifact.artifact_file import is_artifact, reading_artifact
from packer.commands.options.groups import with_options
from packer.commands.options.types import (
    EXISTING_FILE,
    JSON,
    MAX_MEMORY,
    TEMPLATE,
    print_json,
    refuse_overwriting,
    say,
    say_notes,
)

if TYPE_CHECKING:
    import torch


@click.command(short_help="Write the weights of an artifact.")
@click.argument("artifact", type=EXISTING_FILE)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    required=True,
    help="Write a .safetensors or .pt file, or a new folder, FOLDER/, for from_pretrained.",
)
@click.option("--codes", is_flag=True, help="Write integer codes and scales in place of floats.")
@with_options(TEMPLATE, MAX_MEMORY, JSON)
def unpack(
    artifact: str,
    output: str,
    codes: bool,
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Write the weights of ARTIFACT with their names, shapes, dtypes and ties.

    ARTIFACT may also be in one of the layouts of contest submissions (.ptz), or a GGUF file; it is
    then decoded as its own reader does. With --codes, quantized tensors stay integer codes and
    scales, NAME/codes and NAME/scale (or NAME/row, NAME/column); unquantized tensors keep their
    dtype. A folder gets model.safetensors and the files that were packed with --include, such as
    the configuration and tokenizer; of a GGUF file, those that its settings describe.
    """
    from packer import api
    from packer.artifact.decoder import MAX_DECODED_BYTES
    from packer.checkpoint.lazy_tensors import meta_tensors_of
    from packer.progress import shown

    refuse_overwriting([artifact, template], output)
    if output.endswith("/") or Path(output).is_dir():
        if codes or template is not None:
            raise click.UsageError("--codes and --template need a file to write; name one")
        _unpack_folder(artifact, output, max_memory or MAX_DECODED_BYTES, as_json)
        return
    if codes:
        _unpack_codes(artifact, output, max_memory or MAX_DECODED_BYTES, as_json)
        return
    weights: Mapping[str, torch.Tensor]
    if is_artifact(artifact):
        if template is not None:
            raise click.UsageError(
                "--template is for artifacts of other authors; this one needs none"
            )
        allowed = max_memory or MAX_DECODED_BYTES
        with shown("unpacking") as progress, reading_artifact(artifact):
            weights = api.unpack_to(artifact, output, max_bytes=allowed, progress=progress)
    else:
        weights, notes = api.unpack_foreign(artifact, output, template, max_memory)
        say_notes(notes)
    elements = sum(meta.numel() for meta in meta_tensors_of(weights).values())
    if as_json:
        print_json({"output": output, "tensors": len(weights), "elements": elements})
    else:
        say(f"{output}: {len(weights)} tensors, {elements:,} weights")


def _unpack_folder(artifact: str, output: str, max_bytes: int, as_json: bool) -> None:
    from packer.artifact.decoder import parse
    from packer.foreign.gguf_header import is_gguf
    from packer.packing.gguf_folder import write_gguf_folder
    from packer.packing.huggingface_folder import WEIGHTS, write_folder
    from packer.progress import shown

    weights: Mapping[str, torch.Tensor]
    if is_gguf(artifact):
        weights, files, notes = write_gguf_folder(output, artifact)
        say_notes(notes)
    elif is_artifact(artifact):
        with shown("unpacking") as progress, reading_artifact(artifact):
            stored = parse(Path(artifact).read_bytes(), max_bytes)
            weights, files = write_folder(output, stored, progress)
    else:
        raise click.UsageError(
            f"{artifact} is neither a packer artifact nor GGUF; name a file to write, not the "
            f"folder {output}"
        )
    if as_json:
        print_json({"output": output, "tensors": len(weights), "files": [WEIGHTS, *files]})
        return
    say(f"{output}: {', '.join([WEIGHTS, *files])}; {len(weights)} tensors")
    if "config.json" not in files:
        say_notes([f"{artifact} carries no config.json, which from_pretrained needs (--include)"])


def _unpack_codes(artifact: str, output: str, max_bytes: int, as_json: bool) -> None:
    from packer import api

    if not is_artifact(artifact):
        raise click.UsageError(
            f"--codes reads packer artifacts, and {artifact} is none; repack it first "
            "(packer fix --lossless)"
        )
    with reading_artifact(artifact):
        parts = api.unpack_codes(artifact, output, max_bytes=max_bytes)
    size = Path(output).stat().st_size
    if as_json:
        print_json({"output": output, "tensors": len(parts), "bytes": size})
        return
    say(f"{output}: {len(parts)} tensors of codes and steps, {size:,} bytes")
