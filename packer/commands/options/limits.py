"""Options of commands that plan: what to fit, and how to measure."""

from __future__ import annotations

from dataclasses import dataclass

from packer.planning.options import MeasureOptions, PlanLimits


@dataclass(frozen=True)
class LimitOptions:
    """The cap and what counts against it, as of PlanLimits. cap: None where it is not given."""

    cap: int | None
    code: tuple[str, ...] = ()
    margin: int = 0
    loader: bool = False
    bundle: bool = False
    inline: str | None = None
    calibrate: bool = False

    @property
    def limits(self) -> PlanLimits:
        """As the planner takes them; there must be a cap."""
        assert self.cap is not None
        return PlanLimits(
            self.cap,
            self.code,
            self.loader,
            self.margin,
            self.bundle,
            self.inline,
            self.calibrate,
        )


def measure_options(
    pins: tuple[tuple[str, str], ...] = (), coder: str | None = None, trellis: bool = False
) -> MeasureOptions:
    """pins: (selector, choice); the last on a selector wins."""
    return MeasureOptions(dict(pins), {}, coder, trellis)
