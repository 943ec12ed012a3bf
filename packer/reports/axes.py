"""Axes of figures made by hand: from values to pixels, ticks, and the frame around both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from packer.reports.drawing import Line, Mark, Words

SIZE = 12.0  # of the words at ticks


@dataclass(frozen=True)
class Scale:
    """Values between low and high onto pixels between start and end; logarithmic if asked for."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; beyond the ends it runs on."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = math.log(max(value, 1e-300)) if self.log else value
        share = (place - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def within(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self, about: int) -> list[float]:
        """Round values, `about` so many of them or a few more or less."""
        return _log_ticks(self, about) if self.log else _even_ticks(self, about)


def _even_ticks(scale: Scale, about: int) -> list[float]:
    span = scale.high - scale.low
    if not span > 0:
        return [scale.low]
    rough = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(scale: Scale, about: int) -> list[float]:
    """Powers of ten, with 2 and 5 between where there is room, or only every few powers."""
    first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    decades = range(first, last + 1)
    fine = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    found = [value for value in fine if scale.within(value)]
    if len(found) > 1.5 * about:
        every = max(1, math.ceil(len(decades) / max(about, 1)))
        found = [10.0**d for d in decades if d % every == 0 and scale.within(10.0**d)]
    return found


def around(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """(low, high) of positive values, with some room on a logarithmic scale."""
    low, high = min(values), max(values)
    room = max(math.log(high / low) * margin, 0.1)
    return low * math.exp(-room), high * math.exp(room)


def spell_bytes(value: float) -> str:
    """1.5 MB, 900 kB."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g} B"


def spell_small(value: float) -> str:
    """0.002, 5e-05, 30."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-3 else f"{value:g}"


def frame(x: Scale, y: Scale, x_name: str, y_name: str) -> list[Mark]:
    """Grid lines, words at ticks and the names of both axes. x in bytes is spelled so.

    The name of y stands above it, where it is read without turning the head.
    """
    marks: list[Mark] = []
    for value in y.ticks(max(2, int(abs(y.end - y.start) / 55))):
        at = y.at(value)
        marks.append(Line(((x.start, at), (x.end, at)), "line"))
        marks.append(Words(x.start - 7, at + 4, spell_small(value), SIZE, "soft", "end"))
    spelled = spell_bytes if "bytes" in x_name else spell_small
    for value in x.ticks(max(2, int((x.end - x.start) / 90))):
        at = x.at(value)
        marks.append(Line(((at, y.start), (at, y.start + 5)), "soft"))
        marks.append(Words(at, y.start + 19, spelled(value), SIZE, "soft", "middle"))
    marks.append(Line(((x.start, y.start), (x.end, y.start)), "soft"))
    marks.append(Words((x.start + x.end) / 2, y.start + 38, x_name, SIZE, "soft", "middle"))
    marks.append(Words(0, y.end - 10, y_name, SIZE, "soft"))
    return marks
