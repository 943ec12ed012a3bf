"""What `packer plan` plans from: a checkpoint measured now, or a file of measurements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from packer.commands.curvature_options import CurvatureOptions
from packer.commands.felt import Felt, feel
from packer.commands.limit_options import LimitOptions
from packer.files import is_json

if TYPE_CHECKING:
    from packer.account import Limits
    from packer.candidates import Measurement
    from packer.checkpoint import Checkpoint
    from packer.planning import PackPlan


@dataclass(frozen=True)
class Measured:
    """What is planned from, and what it was measured with; loaded is None where nobody asked."""

    measurement: Measurement
    pins: dict[str, str]
    loaded: Checkpoint | None
    felt: Felt | None

    def plan(self, limits: Limits) -> PackPlan:
        """The best plan; where the checkpoint is there, refined. Raises CapError, PlanError."""
        from packer.planning import make_plan

        made = make_plan(self.measurement, limits, self.pins)
        if self.loaded is None or self.felt is None:
            return made
        return self.felt.refine(self.loaded, made)


def measured_from(
    source: str,
    curvature: CurvatureOptions,
    limits: LimitOptions,
    metadata: dict[str, str],
    measure_on: tuple[str, ...],
) -> Measured:
    """Measures a checkpoint, or reads the file of its measurements.

    measure_on: texts to measure plans on; for them the checkpoint is read again.
    Raises PackerError; UsageError: options of a checkpoint beside a file of measurements.
    """
    opening = curvature.built.opening
    if is_json(source):  # nothing of this path needs torch: a new cap takes under a second
        if metadata or curvature.text.data or opening.given or limits.ways:
            raise click.UsageError(
                "--weights, --drop, --template, --max-memory, --config, --calibration, --coder "
                "and --trellis need the checkpoint as SOURCE"
            )
        from packer.planning import read_measurement

        measurement, earlier = read_measurement(source)
        found = Measured(measurement, {**earlier, **limits.pinned}, None, None)
        return _with_checkpoint(found, curvature) if measure_on else found
    loaded = opening.read(source)
    felt = feel(source, loaded, curvature)
    measured = felt.measure_to_plan(loaded, limits, metadata)
    return Measured(measured, limits.pinned, loaded, felt)


def _with_checkpoint(found: Measured, options: CurvatureOptions) -> Measured:
    """Measurements and the checkpoint they name. Raises PlanError: that has changed since."""
    from packer.checkpoint import read_checkpoint
    from packer.errors import PlanError
    from packer.fingerprint import contents_fingerprint

    measurement = found.measurement
    loaded = read_checkpoint(measurement.source)
    if contents_fingerprint(loaded) != measurement.contents:
        raise PlanError(
            f"{measurement.source} has other contents than when it was measured; measure it again"
        )
    curvature = options.read(loaded)
    given = None if curvature is None else curvature.sha256
    if measurement.curvature is not None and given != measurement.curvature:
        raise PlanError(
            "the measurements were made with curvature "
            f"{measurement.curvature[:12]}: give that file, --curvature FILE"
        )
    return replace(found, loaded=loaded, felt=Felt(curvature, None))
