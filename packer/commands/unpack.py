"""`packer unpack`: weights out of an artifact."""

from __future__ import annotations

import click

from packer.artifact_files import reading_artifact
from packer.commands.options import (
    EXISTING_FILE,
    JSON,
    WRITABLE,
    Size,
    print_json,
    refuse_overwriting,
)


@click.command(short_help="The weights back out of an artifact.")
@click.argument("artifact", type=EXISTING_FILE)
@click.option(
    "-o", "--output", type=WRITABLE, required=True, help="A .safetensors or .pt file to write."
)
@click.option(
    "--max-memory", type=Size(), default="16GiB", show_default=True, help="Refuse to decode more."
)
@JSON
def unpack(artifact: str, output: str, max_memory: int, as_json: bool) -> None:
    """Write the weights of ARTIFACT with their names, shapes, dtypes and ties."""
    from packer import api

    refuse_overwriting([artifact], output)
    with reading_artifact(artifact):
        weights = api.unpack(artifact, output, max_bytes=max_memory)
    elements = sum(weight.numel() for weight in weights.values())
    if as_json:
        print_json({"output": output, "tensors": len(weights), "elements": elements})
        return
    click.echo(f"{output}: {len(weights)} tensors, {elements:,} weights")
