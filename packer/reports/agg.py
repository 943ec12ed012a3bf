"""matplotlib's object interface with its own settings, drawn by Agg whatever the environment says.

Importing matplotlib fails where MPLBACKEND names a backend that is not installed, as it does in
programs that a notebook starts. Such a name is of no use to anybody in this process, and is left
out; any other stays what it is, for the caller's own figures.
"""

# ruff: noqa: E402

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Literal

from packer.errors import OutputError

Layout = Literal["constrained", "compressed", "tight"] | None


def _import_matplotlib() -> None:
    """As `import matplotlib`, which sets the backend last and ends where there is no such one.

    Raises OutputError: a matplotlibrc cannot be read.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except ValueError as error:
        raise OutputError(
            f"matplotlib cannot read its settings ({error}): mend or move the matplotlibrc that it "
            "finds in this folder or in its own"
        ) from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


if "matplotlib" not in sys.modules:
    _import_matplotlib()

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's own settings, whatever a matplotlibrc or the caller has set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "bytecap"  # the same picture gives the same bytes
        yield


def new_figure(width: float, height: float, layout: Layout = None) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


__all__ = [
    "Circle",
    "EngFormatter",
    "LogLocator",
    "NullFormatter",
    "Rectangle",
    "new_figure",
    "own_style",
]
