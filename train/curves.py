"""A picture of a run: loss, bits per byte and predicted size against the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packer.reports.agg import Axes, EngFormatter, own_style
from packer.reports.colours import ACCENT, BOUND, CURVE
from packer.reports.pictures import save
from packer.reports.plots import new_panels

PANELS = {
    "loss": "training loss, nats per token",
    "bits_per_byte": "validation bits per byte",
    "size_bytes": "predicted size",
}


@own_style()
def plot_curves(path: Path, lines: Sequence[Mapping[str, Any]], cap_bytes: int) -> None:
    """One panel a number that was logged. cap_bytes: a line in the size panel; 0 draws none.

    Raises OutputError: the picture cannot be written.
    """
    logged = [key for key in PANELS if any(key in line for line in lines)]
    if not logged:
        return
    figure, axes = new_panels(len(logged))
    for axis, key in zip(axes, logged, strict=True):
        draw_logged(axis, key, lines, cap_bytes)
    save(figure, str(path))


def draw_logged(axis: Axes, key: str, lines: Sequence[Mapping[str, Any]], cap_bytes: int) -> None:
    """One of `PANELS` against the step, with the step at which quantization set in."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    if points:
        axis.plot(*zip(*points, strict=True), color=CURVE, marker="." if len(points) < 40 else "")
    since = next((line["step"] for line in lines if line.get("qat_strength", 0) > 0), None)
    if since is not None:
        axis.axvline(since, color=BOUND, linewidth=0.8, linestyle=":", label="QAT on")
    if key == "size_bytes":
        axis.yaxis.set_major_formatter(EngFormatter(unit="B"))
        if cap_bytes:
            axis.axhline(cap_bytes, color=ACCENT, linewidth=0.8, linestyle="--", label="cap")
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize="small")
    axis.set_xlabel("step")
    axis.set_title(PANELS[key])
    axis.grid()
