"""How many threads torch may use while we work on many tensors one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch with one thread inside, and as it was afterwards.

    More would wait for each other after every operation. On tensors of a million weights that gains
    nothing, and on two cores busy with something else measuring took five times as long. Sums
    of floats then also come out the same on every machine with the same instructions.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
