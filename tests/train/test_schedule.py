"""The learning rate over a run, counted in steps and by the clock."""

from __future__ import annotations

import pytest
from packer.train.schedule import (
    fall,
    is_finished,
    lr_scale,
    muon_momentum,
    remaining_steps,
)
from packer.train.settings import OptimizerSettings, ScheduleSettings

STEPS = ScheduleSettings(iterations=100, lr_warmup=4, warmdown=20, warmdown_floor=0.1)


@pytest.mark.parametrize(
    ("step", "scale"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (50, 1.0), (80, 1.0), (90, 0.55), (100, 0.1)],
)
def test_by_steps(step: int, scale: float) -> None:
    assert lr_scale(STEPS, step, 1e6) == pytest.approx(scale)


def test_the_clock_shortens_a_run_and_warms_down_in_time() -> None:
    """At half a second a step, 40 s with 10 reserved hold 60 steps; the last 20 fall."""
    clock = ScheduleSettings(
        iterations=1000, max_wallclock=40.0, calibration_reserve=10.0, warmdown=20
    )
    assert lr_scale(clock, 30, 15.0) == 1.0
    assert remaining_steps(clock, 30, 15.0) == pytest.approx(30)
    assert lr_scale(clock, 50, 25.0) == pytest.approx(0.5)
    assert not is_finished(clock, 58, 28.9)
    assert is_finished(clock, 58, 29.1), "another step might take a whole second"
    assert lr_scale(clock, 60, 30.5) == 0.0


def test_the_number_of_steps_ends_a_run_that_has_time_left() -> None:
    clock = ScheduleSettings(iterations=10, max_wallclock=1000.0)
    assert not is_finished(clock, 9, 1.0) and is_finished(clock, 10, 1.0)


def test_a_floor_is_where_the_fall_ends_not_where_it_is_cut() -> None:
    floor = ScheduleSettings(iterations=100, warmdown=20, warmdown_floor=0.1)
    assert [fall(floor, step, 0.0) for step in (80, 90, 100)] == pytest.approx([1.0, 0.55, 0.1])


def test_warming_up_is_not_warming_down() -> None:
    assert fall(STEPS, 0, 0.0) == 1.0 and lr_scale(STEPS, 0, 0.0) == 0.25


def test_momentum_rises_to_its_end() -> None:
    settings = OptimizerSettings(momentum=0.95, momentum_start=0.85, momentum_warmup=10)
    found = [muon_momentum(settings, step) for step in (0, 5, 10, 1000)]
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95])
    still = OptimizerSettings(momentum=0.95, momentum_start=0.85, momentum_warmup=0)
    assert muon_momentum(still, 0) == 0.95
