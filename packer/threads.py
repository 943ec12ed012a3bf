"""Threads: how many torch may use, and work on many tensors side by side."""

from __future__ import annotations

import _thread
import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

MAX_SIDE_BY_SIDE = 8  # each holds factors and copies of its tensor
PATIENCE_SECONDS = 10.0  # until an item that no thread has begun is worked on here

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


class _Task(Generic[Item, Result]):
    """One item. It is run once, by whoever comes first, and ends whatever happens to it."""

    def __init__(self, work: Callable[[Item], Result], item: Item) -> None:
        self._work, self._item = work, item
        self._begun, self._running = _thread.allocate_lock(), _thread.allocate_lock()
        self._running.acquire()  # until it has ended
        self._result: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            self._result.append(self._work(self._item))
        except BaseException as error:
            self._error = error
        finally:
            self._running.release()

    def result(self, patience: float) -> Result:
        """Raises what the work raised. patience: seconds, then it is begun here if nowhere yet."""
        if not self._has_ended(patience):
            self.run()
            self._has_ended()
        try:
            if self._error is not None:
                raise self._error
            return self._result.pop()
        finally:
            self._error = None  # it holds this frame

    def cancel(self) -> None:
        """Nobody begins it any more; where it has begun, until it has ended."""
        if not self._begun.acquire(blocking=False):
            self._has_ended()

    def _has_ended(self, within: float = -1) -> bool:
        """Waits until it has, for ever or for so many seconds."""
        ended = self._running.acquire(timeout=within)
        if ended:
            self._running.release()
        return ended


Queue = SimpleQueue[_Task[Item, Result] | None]


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The result of every item, in their order, as many at once as there are cores.

    torch has one thread in each, so that results do not depend on how many there are. What an item
    raises is raised here, when its turn comes; items after it are not begun. Where memory allows
    fewer threads they do the work, and where it allows none, the caller's does.
    """
    workers, started = min(usable_cores(), MAX_SIDE_BY_SIDE), 0
    queue: Queue[Item, Result] = SimpleQueue()
    waiting: deque[_Task[Item, Result]] = deque()
    with one_torch_thread():
        try:
            for item in items:
                waiting.append(_Task(work, item))
                queue.put(waiting[-1])
                started += started < workers and _start(queue)
                if len(waiting) > 2 * workers:
                    yield _first(waiting, started)
            while waiting:
                yield _first(waiting, started)
        finally:
            for task in waiting:
                task.cancel()
            for _ in range(started):
                queue.put(None)


def _first(waiting: deque[_Task[Item, Result]], threads: int) -> Result:
    """The result of the first, which is among those waiting until it is there: when somebody stops
    the program meanwhile, its thread has to end before the interpreter does.
    """
    found = waiting[0].result(PATIENCE_SECONDS if threads else 0)
    waiting.popleft()
    return found


def _start(queue: Queue[Item, Result]) -> bool:
    """Whether there is a thread more.

    Not a threading.Thread, whose start waits for ever for one that dies of too little memory before
    it says that it lives; an executor does the same, and waits for what its dead threads had begun.
    """
    try:
        _thread.start_new_thread(_run_all, (queue,))
    except (RuntimeError, MemoryError):
        return False
    return True


def _run_all(queue: Queue[Item, Result]) -> None:
    with contextlib.suppress(MemoryError):  # it leaves the work to others
        torch.set_num_threads(1)
        while (task := queue.get()) is not None:
            task.run()
            del task  # and its result with it, which another thread may have let go


def usable_cores() -> int:
    """Of this process, where the system says; else of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
