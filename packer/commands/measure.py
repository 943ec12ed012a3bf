"""`packer measure`: every tensor under every format."""

from __future__ import annotations

import click

from packer.commands.options import (
    CONFIG,
    DROP,
    EXISTING,
    JSON,
    MAX_MEMORY,
    PINS,
    TEMPLATE,
    WEIGHTS,
    WRITABLE,
    print_json,
    read_config,
    refuse_overwriting,
    say_notes,
    with_options,
)


@click.command(short_help="Every tensor under every format.")
@click.argument("checkpoint", type=EXISTING)
@click.option("-o", "--output", type=WRITABLE, default="candidates.json", show_default=True)
@with_options(PINS, CONFIG, WEIGHTS, DROP, TEMPLATE, MAX_MEMORY, JSON)
def measure(
    checkpoint: str,
    output: str,
    pins: tuple[tuple[str, str], ...],
    config: str | None,
    weights: str | None,
    drop: tuple[str, ...],
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Measure every tensor of CHECKPOINT under every format: real coded bytes and damage.

    The file written can be planned for any cap in a second: packer plan candidates.json --cap 16MB.
    """
    from packer import api
    from packer.checkpoint import read_checkpoint
    from packer.progress import shown

    refuse_overwriting([checkpoint, config, template], output)
    metadata = read_config(config)
    loaded = read_checkpoint(
        checkpoint, weights=weights, drop=drop, template=template, max_memory=max_memory
    )
    say_notes(loaded.notes)
    with shown("measuring") as progress:
        found = api.measure(
            loaded, pins=dict(pins), metadata=metadata, out=output, progress=progress
        )
    if as_json:
        print_json({**found.to_json(), "output": output})
        return
    click.echo(
        f"{output}: {len(found.candidates):,} candidates for {len(found.tensors)} tensors of "
        f"{checkpoint}; damage is the {found.damage_source}"
    )
