"""What `packer plan` plans from: a checkpoint measured now, or a file of measurements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from packer.commands.load_calibration import load_calibration
from packer.commands.options.curvature import CurvatureOptions
from packer.files import is_json
from packer.planning.options import MeasureOptions

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.planning.account import Limits
    from packer.planning.candidates import Measurement
    from packer.planning.damage_trials import Calibration
    from packer.planning.plan import PackPlan


@dataclass(frozen=True)
class Measured:
    """Measurements, and what they were made with; None where they were read from a file."""

    measurement: Measurement
    pins: dict[str, str]
    checkpoint: Checkpoint | None = None
    calibration: Calibration | None = None

    def plan(self, limits: Limits) -> PackPlan:
        """The best plan, refined if the checkpoint was read. Raises CapError, PlanError."""
        from packer.planning.plan import make_plan

        plan = make_plan(self.measurement, limits, self.pins)
        if self.checkpoint is None or self.calibration is None:
            return plan
        from packer.planning.pipeline import refine_plan
        from packer.progress import shown

        return refine_plan(plan, self.checkpoint, self.calibration, shown)


def measured_from(
    source: str,
    limits: Limits,
    curvature: CurvatureOptions,
    options: MeasureOptions,
    measure_on: tuple[str, ...],
) -> Measured:
    """Measure a checkpoint whose plan will keep the limits, or read the file of its measurements.

    measure_on: texts to measure plans on, which need the checkpoint that was measured.
    Raises PackerError; UsageError: options for a checkpoint with a file of measurements.
    """
    opening = curvature.built.opening
    if is_json(source):  # needs no torch: a new cap takes under a second
        for_checkpoint = options.metadata or options.coder or options.trellis
        if for_checkpoint or curvature.text.data or opening.given:
            raise click.UsageError(
                "--weights, --drop, --template, --max-memory, --config, --include, --calibration, "
                "--coder and --trellis need the checkpoint as SOURCE"
            )
        from packer.planning.plan import read_measurement

        measurement, pins = read_measurement(source)
        measured = Measured(measurement, {**pins, **options.pins})
        return _with_checkpoint(measured, curvature) if measure_on else measured
    from packer.planning.pipeline import measure_to_plan
    from packer.planning.reachable import check_reachable
    from packer.progress import shown

    checkpoint = opening.read(source)
    check_reachable(checkpoint, limits, options, curved=not curvature.no_calibration)
    calibration = load_calibration(checkpoint, curvature)
    measurement = measure_to_plan(checkpoint, options, calibration, shown)
    return Measured(measurement, dict(options.pins), checkpoint, calibration)


def _with_checkpoint(measured: Measured, options: CurvatureOptions) -> Measured:
    """Measurements with the checkpoint they name. Raises PlanError: it has changed since."""
    from packer.checkpoint.checkpoint import read_checkpoint
    from packer.checkpoint.fingerprint import contents_fingerprint
    from packer.errors import PlanError
    from packer.planning.damage_trials import Calibration

    measurement = measured.measurement
    loaded = read_checkpoint(measurement.source)
    if contents_fingerprint(loaded) != measurement.contents:
        raise PlanError(f"{measurement.source} has changed since it was measured; measure it again")
    curvature = options.read(loaded)
    digest = None if curvature is None else curvature.sha256
    if measurement.curvature is not None and digest != measurement.curvature:
        raise PlanError(
            "the measurements were made with curvature "
            f"{measurement.curvature[:12]}; give that file with --curvature"
        )
    return replace(measured, checkpoint=loaded, calibration=Calibration(curvature))
