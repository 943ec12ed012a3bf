"""A row of benchmarks/scale.csv."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One step of one checkpoint. start_seconds, start_peak_bytes: of the step on a tiny one."""

    parameters: int
    layers: int
    width: int
    curvature: bool
    step: str
    seconds: float
    cpu_seconds: float
    start_seconds: float
    peak_bytes: int
    start_peak_bytes: int
    checkpoint_bytes: int
    largest_tensor_bytes: int
    output_bytes: int

    @property
    def of(self) -> tuple[int, bool, str]:
        """What was measured."""
        return self.parameters, self.curvature, self.step
