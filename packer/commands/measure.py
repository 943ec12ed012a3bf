"""`packer measure`: bytes and damage of every tensor in every format."""

from __future__ import annotations

from dataclasses import replace

import click

from packer.commands.carrying import INCLUDE, carried
from packer.commands.load_calibration import kept_curvature, load_calibration
from packer.commands.options.curvature import CURVATURE_KEPT, CurvatureOptions
from packer.commands.options.groups import MAIN, OptionGroup, SectionedCommand, option, with_options
from packer.commands.options.types import (
    CODER,
    EXISTING,
    JSON,
    PINS,
    TRELLIS,
    WRITABLE,
    measure_options,
    print_json,
    refuse_overwriting,
    say,
)
from packer.planning.options import MeasureOptions


@click.command(cls=SectionedCommand, short_help="Measure every tensor in every format.")
@click.argument("checkpoint", type=EXISTING)
@OptionGroup("options", measure_options, PINS, CODER, TRELLIS)
@CURVATURE_KEPT
@option(
    "-o",
    "--output",
    section=MAIN,
    type=WRITABLE,
    default="candidates.json",
    show_default=True,
    help="Write the measurements to FILE.",
)
@with_options(INCLUDE, JSON)
def measure(
    checkpoint: str,
    output: str,
    options: MeasureOptions,
    curvature: CurvatureOptions,
    include: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure every tensor of CHECKPOINT in every format: its coded bytes and its damage.

    The file written can then be planned for any cap in a second: packer plan candidates.json --cap
    16MB. Calibration is as of packer plan.
    """
    from packer.files import write_json
    from packer.planning.measure import measure as measure_checkpoint
    from packer.planning.pipeline import fit_measurement
    from packer.progress import shown

    curvature.check()
    for written in curvature.writes(output):
        refuse_overwriting([checkpoint, *curvature.inputs], written)
    options = replace(options, metadata=carried(curvature.built.config, include, checkpoint))
    loaded = curvature.built.opening.read(checkpoint)
    calibration = load_calibration(loaded, curvature)
    with shown("measuring") as progress:
        measurement = measure_checkpoint(loaded, options, calibration.curvature, progress=progress)
    measurement = fit_measurement(measurement, calibration, shown)
    write_json(output, measurement.to_json())
    kept = kept_curvature(calibration, curvature, output)
    if as_json:
        print_json({**measurement.to_json(), "output": output, "curvature_file": kept})
        return
    say(
        f"{output}: {len(measurement.candidates):,} candidates for {len(measurement.tensors)} "
        f"tensors of {checkpoint}; damage is the {measurement.damage_source}"
    )
    if measurement.damage_fit is not None:
        say(f"fitted to {measurement.damage_fit.describe()}")
    if kept is not None and kept != curvature.file:
        say(f"{kept}: the curvature, which packer pack needs")
