"""How many threads torch may use: one while many tensors are worked on, or a fixed number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch with `count` threads inside, and as it was afterwards.

    Sums of floats come out the same with the same number of threads and the same instructions.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_torch_thread() -> contextlib.AbstractContextManager[None]:
    """For work on many tensors one after another: more threads would wait for each other.

    On tensors of a million weights that gains nothing, and on two cores busy with something else
    measuring took five times as long.
    """
    return torch_threads(1)
