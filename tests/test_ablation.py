"""What is pure in `benchmarks.ablation`: ways, points around a wanted damage, and between them."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]


def benchmark(name: str) -> ModuleType:
    """A module of benchmarks/, which are never installed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bracketing, named = benchmark("bracketing"), benchmark("ablation_ways")


@given(
    start=st.floats(1e-5, 1e-2),
    scale=st.floats(1e-2, 1e2),
    power=st.floats(1.2, 2.8),
    ripple=st.floats(0, 0.05),
)
def test_points_come_to_lie_around_the_wanted_damage(
    start: float, scale: float, power: float, ripple: float
) -> None:
    """Though damages grow only about as squares, and not quite evenly."""

    def damage(c: float) -> float:
        return scale * (c / 1e-3) ** power * math.exp(ripple * math.sin(40 * math.log(c)))

    tried, wanted = {start: damage(start)}, 1.0
    while (c := bracketing.next_multiplier(list(tried), list(tried.values()), wanted)) is not None:
        tried[c] = damage(c)
        assert len(tried) < 40
    damages = list(tried.values())
    low, high = bracketing.around(damages, wanted)
    assert damages[low] <= wanted <= damages[high]
    assert not any(damages[low] < one < damages[high] and one != wanted for one in damages)


def test_bits_are_on_the_line_between_the_points() -> None:
    damages, bits = [0.016, 0.001, 0.004], [1.0, 3.0, 2.5]
    low, high = bracketing.around(damages, 0.002)
    assert (low, high) == (1, 2)
    found = bracketing.between((damages[low], damages[high]), (bits[low], bits[high]), 0.002)
    assert found == pytest.approx(2.75)
    low, high = bracketing.around(damages, 0.004)
    assert bracketing.between((damages[low], damages[high]), (bits[low], bits[high]), 0.004) == 2.5


def test_nothing_is_said_beyond_the_points() -> None:
    with pytest.raises(bracketing.UnbracketedError, match="no points around"):
        bracketing.around([1.0, 2.0], 0.5)
    assert bracketing.next_multiplier([1.0], [1.0], 1.0) is None
    assert bracketing.next_multiplier([1.0], [1.1], 1.0) < 1 < 1.1
    assert bracketing.next_multiplier([1.0, 0.9], [1.1, 0.9], 1.0) is None


def test_every_part_is_removed_from_more_and_added_to_less() -> None:
    compared = set(named.ways())
    assert named.ways()[0] == named.EVERYTHING and named.PLAIN in compared
    for part in named.PARTS:
        without, full = part.removed()
        base, added = part.alone()
        assert full - without == added - base == {part.name} | part.needing
        assert added <= full and not part.instead_of & added
        assert {without, full, base, added} <= compared
    assert len({named.spell(way) for way in compared}) == len(compared) > 20
