"""Which tokens a step reads: every window once a pass, whatever the order and the processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packer.train.batches import Batches
from packer.train.settings import BatchSettings

from packer.errors import PackerError


def batches(tokens: int, sequence: int, per_step: int, order: str, **more: int) -> Batches:
    settings = BatchSettings(sequence=sequence, tokens=sequence * per_step, order=order)
    return Batches(np.arange(tokens) % 50_000, settings, 50_000, **{"seed": 3, **more})


@given(st.integers(1, 300), st.sampled_from(["sequential", "coprime"]), st.integers(0, 5))
def test_each_window_once_a_pass(windows: int, order: str, seed: int) -> None:
    made = batches(windows * 4 + 1, 4, 1, order, seed=seed)
    for epoch in range(2):
        visited = [made.window(epoch * windows + place) for place in range(windows)]
        assert sorted(visited) == list(range(windows))


def test_targets_are_the_next_tokens() -> None:
    inputs, targets = batches(101, 10, 3, "sequential").read(1)
    assert inputs[:, 0].tolist() == [30, 40, 50]
    assert (targets == inputs + 1).all()


@pytest.mark.parametrize("order", ["sequential", "coprime"])
def test_processes_share_the_batch_of_one(order: str) -> None:
    for step in (0, 7):
        whole = batches(1000, 8, 6, order).read(step)[0]
        parts = [
            batches(1000, 8, 6, order, rank=rank, world_size=3).read(step)[0] for rank in range(3)
        ]
        assert np.concatenate(parts).tolist() == whole.tolist()


def test_passes_differ_in_order_and_seeds_too() -> None:
    made, other = batches(401, 4, 1, "coprime"), batches(401, 4, 1, "coprime", seed=4)
    first = [made.window(place) for place in range(100)]
    assert first != [made.window(100 + place) for place in range(100)]
    assert first != [other.window(place) for place in range(100)]
    assert first != sorted(first)


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(PackerError, match="8 tokens, fewer than one window of 16"):
        batches(8, 16, 1, "sequential")
    with pytest.raises(PackerError, match="are 5 windows of 4, which 2 processes cannot share"):
        batches(100, 4, 5, "sequential", world_size=2)
    stream = np.array([1, 2, 99, 3, 4])
    made = Batches(stream, BatchSettings(sequence=4, tokens=4), 64, 0)
    with pytest.raises(PackerError, match="step 0 reads token 99, outside the model's vocab"):
        made.read(0)
