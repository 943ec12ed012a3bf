"""Progress is shown in time, and the time that remains is right in the middle of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from packer import progress
from packer.progress import WeightCount, shown

LAYER = [331_776, 110_592, 110_592, 331_776, 884_736, 884_736, 884_736, 576, 576]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_time_that_remains_is_right_in_the_middle(
    clock: Callable[[float], None], factor: float
) -> None:
    """Of a model whose first tensor is a fifth of its weights, and costs less or more."""
    costs = [(28_311_552, factor * 28.3), *((count, count / 1e6) for count in LAYER * 30)]
    whole, total = sum(seconds for _, seconds in costs), sum(count for count, _ in costs)
    remaining, done, spent = progress._Remaining(), 0, 0.0
    for count, seconds in costs:
        clock(seconds)
        done, spent = done + count, spent + seconds
        remaining.add(done, total)
        if 0.4 < spent / whole < 0.8 and done > total // 3:
            left = remaining.seconds()
            assert left is not None and 1 / 1.5 < left / (whole - spent) < 1.5
    assert remaining.seconds() is None


def test_another_count_begins_where_the_last_ended(clock: Callable[[float], None]) -> None:
    remaining = progress._Remaining()
    clock(100)
    remaining.add(10, 10)
    clock(1)
    remaining.add(5, 10)
    assert remaining.seconds() == pytest.approx(1)


def test_a_line_comes_before_the_first_call(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("waiting"):
        time.sleep(2)
    assert capsys.readouterr().err == "waiting: 0 %\n"


def test_nothing_is_shown_of_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("hurrying") as tell:
        tell("w", 1, 2)
    assert capsys.readouterr().err == ""


def test_parts_of_large_tensors_count() -> None:
    told: list[tuple[str, int, int]] = []
    count = WeightCount(lambda *what: told.append(what), {"a": 1 << 21, "b": 8})
    choices = count.each("a", range(4))
    assert [next(choices) for _ in range(3)] == [0, 1, 2]
    count.end("b")
    count.wait()
    count.end("a")
    count.begin("done")
    total, half = (1 << 21) + 8, (1 << 20) + 8
    assert [done for _, done, _ in told] == [half, half, total, total]
    assert {one for *_, one in told} == {total}


def test_tensors_of_a_small_model_are_told_in_order() -> None:
    told: list[tuple[str, int, int]] = []
    count = WeightCount(lambda *what: told.append(what), {"a": 1, "b": 8, "c": 2})
    for name in ("b", "a", "c"):
        count.end(name)
    assert told == [("a", 1, 11), ("b", 9, 11), ("c", 11, 11)]
