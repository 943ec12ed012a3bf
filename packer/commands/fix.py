"""`packer fix`: the cheapest way under the cap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packer.commands.options import (
    CODE,
    CONFIG,
    EXISTING_FILE,
    JSON,
    MAX_MEMORY,
    TEMPLATE,
    WRITABLE,
    cap_option,
    print_json,
    read_config,
    refuse_overwriting,
    say_notes,
    with_options,
)
from packer.errors import CapError, CheckpointError

if TYPE_CHECKING:
    from packer.foreign_tensors import ForeignArtifact
    from packer.repack import Repacked


@click.command(short_help="An artifact that is over the cap, under it.")
@click.argument("artifact", type=EXISTING_FILE)
@click.option("-o", "--output", type=WRITABLE, required=True, help="The new artifact to write.")
@with_options(cap_option(required=False), CODE)
@click.option("--lossless", is_flag=True, help="Change no weight: re-encode the same codes only.")
@with_options(CONFIG, TEMPLATE, MAX_MEMORY, JSON)
def fix(
    artifact: str,
    output: str,
    cap: int | None,
    code: tuple[str, ...],
    lossless: bool,
    config: str | None,
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Re-encode ARTIFACT, somebody's submission (.ptz), so that it fits the cap.

    The same codes under our coder come first: the weights are bit-identical, which is checked by
    decoding before anything is written.
    """
    from packer.account import count_code
    from packer.checkpoint import read_checkpoint
    from packer.progress import shown
    from packer.repack import repack

    refuse_overwriting([artifact, config, template, *code], output)
    if not lossless:
        raise click.UsageError("only --lossless is offered yet")
    code_bytes = sum(file.size_bytes for file in count_code(code))
    loaded = read_checkpoint(artifact, template=template, max_memory=max_memory)
    if loaded.foreign is None:
        raise CheckpointError(f"{artifact}: is a checkpoint, not an artifact; use packer pack")
    say_notes(loaded.notes)
    with shown("re-encoding") as progress:
        found = repack(
            loaded.foreign,
            cap_bytes=cap or 0,
            code_bytes=code_bytes,
            metadata=read_config(config),
            progress=progress,
        )
    if cap is not None and found.account.unused_bytes < 0:
        raise CapError(
            f"{artifact}: re-encoded without loss it takes {found.account}; nothing was written"
        )
    from packer.files import write_bytes

    write_bytes(output, found.data)
    _show(loaded.foreign, found, output, as_json)


def _show(foreign: ForeignArtifact, found: Repacked, output: str, as_json: bool) -> None:
    saved = foreign.file_bytes - len(found.data)
    if as_json:
        print_json(
            {
                "source": foreign.source,
                "layout": foreign.layout,
                "codec": foreign.codec,
                "output": output,
                "file_bytes": foreign.file_bytes,
                "artifact_bytes": len(found.data),
                "saved_bytes": saved,
                "total_bytes": found.account.total_bytes,
                "cap_bytes": found.account.cap_bytes,
                "ties": dict(found.ties),
                "tensors": [
                    {
                        "name": name,
                        "stored": foreign.tensors[name].stored,
                        "format": str(foreign.tensors[name].quantized.format),
                        "coder": encoded.coder,
                        "raw_bytes": foreign.tensors[name].raw_bytes,
                        "size_bytes": encoded.size_bytes,
                    }
                    for name, encoded in found.encoded.items()
                ],
            }
        )
        return
    click.echo(f"{output}: {found.account}")
    click.echo(
        f"{saved:,} bytes fewer than {foreign.source} ({100 * saved / foreign.file_bytes:.2f} %); "
        f"all {len(foreign.tensors)} tensors decode bit-identical"
    )
