"""The curvature that a command measures with, and what its predictions are fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packer.commands.calibrating import bench_of, curvature_of
from packer.commands.curvature_options import CurvatureOptions, beside
from packer.commands.limit_options import LimitOptions
from packer.commands.models import load_model, refusals, running_foreign
from packer.commands.options import say_notes
from packer.commands.own_text import written_for_trials

if TYPE_CHECKING:
    from packer.candidates import Measurement
    from packer.checkpoint import Checkpoint
    from packer.curvature.curvature_set import CurvatureSet
    from packer.planning import PackPlan
    from packer.trials import DamageBench


@dataclass(frozen=True)
class Felt:
    """Curvature of a checkpoint, and with a text the bench that predictions are fitted on."""

    curvature: CurvatureSet | None
    bench: DamageBench | None

    def measure(
        self,
        loaded: Checkpoint,
        pins: Mapping[str, str],
        metadata: Mapping[str, str],
        coder: str | None,
        trellis: bool,
        to_refine: bool = False,
    ) -> Measurement:
        """The checkpoint measured, and fitted where there is a bench; with progress bars.

        to_refine: for one plan, which is refined; few steps are measured.
        """
        from packer.curved_choices import DENSE, SPARSE
        from packer.measuring import measure
        from packer.progress import shown

        with shown("measuring") as progress:
            measured = measure(
                loaded,
                pins=pins,
                metadata=metadata,
                curvature=self.curvature,
                coder=coder,
                trellis=trellis,
                grid=SPARSE if to_refine else DENSE,
                progress=progress,
            )
        return self._fitted(measured)

    def measure_to_plan(
        self, loaded: Checkpoint, limits: LimitOptions, metadata: Mapping[str, str]
    ) -> Measurement:
        """As `measure`, for one plan within these limits, which is refined afterwards."""
        return self.measure(
            loaded,
            limits.pinned,
            metadata,
            limits.coder,
            limits.trellis,
            to_refine=True,
        )

    def refine(self, loaded: Checkpoint, made: PackPlan) -> PackPlan:
        """The plan with steps measured for it, between those that were there."""
        from packer.progress import shown
        from packer.refining import refined

        with shown("refining") as progress:
            return refined(loaded, made, self.curvature, progress)

    def _fitted(self, measured: Measurement) -> Measurement:
        from packer.progress import shown
        from packer.trials import fit_to_model

        if self.bench is None or measured.curvature is None:
            return measured
        with shown("fitting") as progress:
            return fit_to_model(measured, self.bench, progress)


def feel(source: str, loaded: Checkpoint, options: CurvatureOptions) -> Felt:
    """Reads or makes the curvature that a command was told to use.

    Raises PackerError: see `read_curvature`, `calibrate` and `open_data`.
    """
    curvature = options.read(loaded)
    text = options.text
    if not text.given:
        return Felt(curvature, None)
    from packer.trials import held_out_part

    with refusals(), running_foreign(options.built.model):
        spent, data = 0.0, None if text.self_generate else text.open()
        model = load_model(source, options.built)
        if data is None:
            data, text, spent = written_for_trials(model, text)
        if curvature is None:
            first, _ = held_out_part(len(data.stream), text.tokens, text.window)
            seen = replace(text, tokens=max(min(text.tokens, first), text.window))
            curvature = curvature_of(model, source, loaded, data, seen)
            curvature = replace(curvature, seconds=curvature.seconds + spent)
            say_notes([f"calibrated on {curvature.spell()}", *curvature.warnings])
        return Felt(curvature, bench_of(model, loaded, curvature, data, text, held_out=True))


def kept_curvature(felt: Felt, options: CurvatureOptions, output: str | None) -> str | None:
    """The file with the curvature that was used, written where it was made here.

    None where there is none, or nothing is written at all. Raises OutputError.
    """
    from packer.curvature.file import write_curvature

    if options.file is not None or felt.curvature is None:
        return options.file
    path = options.out or (None if output is None else beside(output))
    if path is not None:
        write_curvature(path, felt.curvature)
    return path
