"""The picture of benchmarks.ablation: what every part is worth, removed and alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.ablation_rows import Worth

COLOURS = ("#4477aa", "#ee9944")  # of checkpoints
THICKNESS = 0.78  # of all bars of a part


def draw(path: Path, worths: Mapping[str, Sequence[Worth]]) -> None:
    """Two panels as a PNG, with a bar for every part and checkpoint."""
    labels = [one.label for one in next(iter(worths.values()))]
    figure = Figure(figsize=(10.5, 1.6 + 0.42 * len(labels)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    thick = THICKNESS / len(worths)
    for number, (checkpoint, some) in enumerate(worths.items()):
        places = [
            labels.index(one.label) + thick * (number - (len(worths) - 1) / 2) for one in some
        ]
        look = {"color": COLOURS[number % 2], "label": checkpoint, "height": 0.9 * thick}
        for axes, values in (
            (left, [one.removed for one in some]),
            (right, [one.alone for one in some]),
        ):
            _label(axes, axes.barh(places, values, **look))
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set_title("Removed from everything: % more bits", loc="left", fontsize=11)
    right.set_title("Added alone to the plain base: % fewer bits", loc="left", fontsize=11)
    for axes in (left, right):
        _frame(axes)
    if len(worths) > 1:
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _label(axes: Axes, bars: BarContainer) -> None:
    shown = [f"{round(bar.get_width(), 1) + 0.0:.1f}" for bar in bars]  # no -0.0
    axes.bar_label(bars, shown, padding=3, fontsize=8.5)


def _frame(axes: Axes) -> None:
    axes.margins(x=0.12)
    axes.axvline(0, color="black", lw=0.8)
    axes.grid(True, axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
