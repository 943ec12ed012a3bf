"""A picture of a run: loss, bits per byte and predicted size against the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import EngFormatter

from packer.plots import axes_of, save


def plot_curves(path: Path, lines: Sequence[dict[str, Any]], cap_bytes: int) -> None:
    """One panel a number that was logged. cap_bytes: a line in the size panel; 0 draws none.

    Raises OutputError: the picture cannot be written.
    """
    panels = [
        (key, label)
        for key, label in (
            ("loss", "training loss, nats per token"),
            ("bits_per_byte", "validation bits per byte"),
            ("size_bytes", "predicted size"),
        )
        if any(key in line for line in lines)
    ]
    if not panels:
        return
    axes = axes_of(str(path), panels=len(panels))
    since = next((line["step"] for line in lines if line.get("qat_strength", 0) > 0), None)
    for axis, (key, label) in zip(axes, panels, strict=True):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), color="C0", marker="." if len(points) < 40 else "")
        axis.set_xlabel("step")
        axis.set_title(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if since is not None:
            axis.axvline(since, color="0.5", linewidth=0.8, linestyle=":", label="QAT on")
            axis.legend(fontsize="small", frameon=False)
        if key == "size_bytes":
            axis.yaxis.set_major_formatter(EngFormatter(unit="B"))
            if cap_bytes:
                axis.axhline(cap_bytes, color="C3", linewidth=0.8, linestyle="--", label="cap")
                axis.legend(fontsize="small", frameon=False)
    save(axes[0].figure, str(path))
