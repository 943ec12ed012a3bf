"""`packer measure`: every tensor under every format."""

from __future__ import annotations

import click

from packer.commands.calibrating import (
    CURVATURE,
    CURVATURE_OUT,
    CurvatureOptions,
    ModelOptions,
    TextOptions,
    feel,
    kept_curvature,
)
from packer.commands.options import (
    CODER,
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
@with_options(
    PINS, CODER, CURVATURE, CURVATURE_OUT, CONFIG, WEIGHTS, DROP, TEMPLATE, MAX_MEMORY, JSON
)
def measure(
    checkpoint: str,
    output: str,
    pins: tuple[tuple[str, str], ...],
    coder: str | None,
    curvature_file: str | None,
    calibration: tuple[str, ...],
    calibration_tokens: int,
    calibration_window: int,
    tokenizer: str | None,
    bytes_table: str | None,
    model: str | None,
    model_config: str | None,
    device: str | None,
    curvature_out: str | None,
    config: str | None,
    weights: str | None,
    drop: tuple[str, ...],
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Measure every tensor of CHECKPOINT under every format: real coded bytes and damage.

    The file written can be planned for any cap in a second: packer plan candidates.json --cap 16MB.
    With --calibration or --curvature, damage is predicted in bits per byte and GPTQ rounds.
    """
    from packer import api
    from packer.checkpoint import read_checkpoint
    from packer.files import write_json
    from packer.progress import shown

    text = TextOptions(calibration, tokenizer, bytes_table, calibration_tokens, calibration_window)
    built = ModelOptions(config, model, model_config, device, weights, drop, template, max_memory)
    options = CurvatureOptions(curvature_file, text, built, curvature_out)
    options.check()
    for written in options.writes(output):
        refuse_overwriting([checkpoint, config, template, curvature_file, *calibration], written)
    metadata = read_config(config)
    loaded = read_checkpoint(checkpoint, **built.opening)
    say_notes(loaded.notes)
    felt = feel(checkpoint, loaded, options)
    with shown("measuring") as progress:
        found = api.measure(
            loaded,
            pins=dict(pins),
            metadata=metadata,
            curvature=felt.curvature,
            coder=coder,
            progress=progress,
        )
    found = felt.fitted(found)
    write_json(output, found.to_json())
    kept = kept_curvature(felt, options, output)
    if as_json:
        print_json({**found.to_json(), "output": output, "curvature_file": kept})
        return
    click.echo(
        f"{output}: {len(found.candidates):,} candidates for {len(found.tensors)} tensors of "
        f"{checkpoint}; damage is the {found.damage_source}"
    )
    if found.damage_fit is not None:
        click.echo(f"fitted to {found.damage_fit.spell()}")
    if kept is not None and kept != curvature_file:
        click.echo(f"{kept}: the curvature, which packing asks for")
