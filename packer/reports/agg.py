"""matplotlib's object interface with the project's own settings, independent of the environment.

Importing matplotlib fails if MPLBACKEND names a backend that is not installed, as in programs
started by a notebook. Such a name is ignored; any other is kept for the caller's own figures.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from packer.errors import OutputError
from packer.reports.colours import INK, LINE, SOFT


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppresses messages on the font cache and on missing glyphs."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            yield
    finally:
        logger.setLevel(level)


def _import_matplotlib() -> None:
    """Imports matplotlib even if MPLBACKEND names a backend that is not installed.

    Raises OutputError: a matplotlibrc cannot be read.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except ValueError as error:
        raise OutputError(
            f"matplotlib cannot read its settings ({error}): correct or move the matplotlibrc in "
            "this folder or in matplotlib's own"
        ) from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


with _silent():
    if "matplotlib" not in sys.modules:
        _import_matplotlib()
    import matplotlib
    from matplotlib import colormaps as colormaps
    from matplotlib.artist import Artist as Artist
    from matplotlib.axes import Axes as Axes
    from matplotlib.axis import Axis as Axis
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable as ScalarMappable
    from matplotlib.colors import LogNorm as LogNorm
    from matplotlib.colors import to_rgb as to_rgb
    from matplotlib.figure import Figure as Figure
    from matplotlib.patches import Patch as Patch
    from matplotlib.patches import Rectangle as Rectangle
    from matplotlib.ticker import EngFormatter as EngFormatter
    from matplotlib.ticker import LogLocator as LogLocator
    from matplotlib.ticker import NullLocator as NullLocator
    from matplotlib.ticker import StrMethodFormatter as StrMethodFormatter

SETTINGS: Any = {
    "figure.dpi": 72,  # a point is a pixel of the page
    "savefig.dpi": 144,
    "font.size": 12,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # equally wide, so that words fit in a browser
    "text.parse_math": False,  # names of tensors may have dollars
    "text.color": INK,
    "axes.titlesize": 12,
    "axes.titlecolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "lines.dashed_pattern": (5, 4),
    "lines.scale_dashes": False,
    "legend.frameon": False,
    "legend.labelcolor": SOFT,
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def own_style(salt: str = "bytecap") -> Iterator[None]:
    """The project's settings instead of those of a matplotlibrc or of the caller.

    salt: ids in an SVG are hashed with it, so that the same picture gives the same bytes.
    """
    with matplotlib.rc_context(), _silent():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        matplotlib.rcParams["svg.hashsalt"] = salt
        yield


def new_figure(width: float, height: float, constrained: bool = False) -> Figure:
    """An empty figure; width and height in pixels."""
    size = (width / 72, height / 72)
    figure = Figure(figsize=size, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure
