"""`packer measure`: every tensor under every format."""

from __future__ import annotations

import click

from packer.commands.curvature_options import CURVATURE_KEPT, CurvatureOptions
from packer.commands.felt import feel, kept_curvature
from packer.commands.options import (
    EXISTING,
    JSON,
    PINS,
    WAYS,
    WRITABLE,
    print_json,
    read_config,
    refuse_overwriting,
    say,
    with_options,
)


@click.command(short_help="Every tensor under every format.")
@click.argument("checkpoint", type=EXISTING)
@click.option("-o", "--output", type=WRITABLE, default="candidates.json", show_default=True)
@with_options(PINS, *WAYS, CURVATURE_KEPT, JSON)
def measure(
    checkpoint: str,
    output: str,
    pins: tuple[tuple[str, str], ...],
    coder: str | None,
    trellis: bool,
    curvature: CurvatureOptions,
    as_json: bool,
) -> None:
    """Measure every tensor of CHECKPOINT under every format: real coded bytes and damage.

    The file written can be planned for any cap in a second: packer plan candidates.json --cap 16MB.
    With --calibration or --curvature, damage is predicted in bits per byte and GPTQ rounds.
    """
    from packer.files import write_json

    curvature.check()
    for written in curvature.writes(output):
        refuse_overwriting([checkpoint, *curvature.inputs], written)
    metadata = read_config(curvature.built.config)
    loaded = curvature.built.opening.read(checkpoint)
    felt = feel(checkpoint, loaded, curvature)
    found = felt.measure(loaded, dict(pins), metadata, coder, trellis)
    write_json(output, found.to_json())
    kept = kept_curvature(felt, curvature, output)
    if as_json:
        print_json({**found.to_json(), "output": output, "curvature_file": kept})
        return
    say(
        f"{output}: {len(found.candidates):,} candidates for {len(found.tensors)} tensors of "
        f"{checkpoint}; damage is the {found.damage_source}"
    )
    if found.damage_fit is not None:
        say(f"fitted to {found.damage_fit.spell()}")
    if kept is not None and kept != curvature.file:
        say(f"{kept}: the curvature, which packing asks for")
