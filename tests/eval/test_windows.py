"""Windows: every target once, with the context its place promises."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packer.eval.errors import ScoreError
from packer.eval.windows import PADDING, Windows


@st.composite
def divisions(draw: st.DrawFn) -> tuple[Windows, int]:
    window = draw(st.integers(1, 12))
    windows = Windows(draw(st.integers(window, 60)), window, draw(st.integers(1, window)))
    return windows, draw(st.integers(1, 7))


@given(divisions())
def test_every_target_is_scored_once_in_order(division: tuple[Windows, int]) -> None:
    windows, size = division
    tokens = np.arange(100, 100 + windows.targets + 1)
    scored: list[int] = []
    for first, stop in windows.batches(size):
        assert stop - first <= size
        inputs, targets = windows.read(tokens, first, stop)
        assert inputs.shape == targets.shape == (stop - first, windows.window)
        count = windows.scored_per_window(first)
        start, end = windows.scored(first, stop)
        tail = targets[:, -count:].flatten()
        assert (tail[end - start :] == PADDING).all()
        scored += tail[: end - start].tolist()
        real = targets != PADDING
        assert torch.equal(inputs[real] + 1, targets[real])
    assert scored == list(range(101, 101 + windows.targets))


def test_contexts() -> None:
    windows = Windows(targets=10, window=4, stride=2)
    assert windows.count == 4
    assert windows.batches(2) == [(0, 1), (1, 3), (3, 4)]
    inputs, targets = windows.read(np.arange(11), 1, 3)
    assert inputs.tolist() == [[2, 3, 4, 5], [4, 5, 6, 7]]
    assert targets.tolist() == [[3, 4, 5, 6], [5, 6, 7, 8]]
    assert [windows.scored(k, k + 1) for k in range(4)] == [(0, 4), (4, 6), (6, 8), (8, 10)]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((10, 0, 1), "window = 0"),
        ((10, 4, 5), "stride = 5 must lie between 1 and the window's 4"),
        ((10, 4, 0), "stride = 0"),
        ((3, 4, 4), "window of 4 tokens is longer than the 3 targets"),
    ],
)
def test_what_does_not_fit_is_refused(sizes: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ScoreError, match=words):
        Windows(*sizes)
