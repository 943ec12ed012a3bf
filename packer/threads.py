"""Threads: how many torch may use, and work on many tensors side by side."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

import torch

from packer.eval.workers import Pending, taken_from, workers

MAX_SIDE_BY_SIDE = 8  # each holds factors and copies of its tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The result of every item, in their order, as many at once as there are cores.

    torch has one thread in each, so that results do not depend on how many there are. What an item
    raises is raised here, when its turn comes; items after it are not begun. How Ctrl-C, and a
    caller that takes no more, end it: see `packer.eval.workers`.
    """
    count = min(usable_cores(), MAX_SIDE_BY_SIDE)
    ahead: deque[Pending[Result]] = deque()
    with one_torch_thread(), workers(count, torch_threads=1) as submit:
        for item in items:
            ahead.append(submit(work, item))
            if len(ahead) > 2 * count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def as_completed(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    waiting: Callable[[], None] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """(item, result) of every item as soon as it is there, begun in their order; threads and errors
    as of `side_by_side`. All results may be in memory, so that they should be small. waiting:
    called here every half second while nothing is there.
    """
    count = min(usable_cores(), MAX_SIDE_BY_SIDE)
    ended: SimpleQueue[int] = SimpleQueue()

    def noted(at: int) -> Result:
        try:
            return work(items[at])
        finally:
            ended.put(at)

    with one_torch_thread(), workers(count, torch_threads=1) as submit:
        pending = [submit(noted, at) for at in range(len(items))]
        for next_one in range(len(items)):
            at = next_one if pending[next_one].here else taken_from(ended, waiting)
            yield items[at], pending[at].result()


def usable_cores() -> int:
    """Of this process, where the system says; else of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
