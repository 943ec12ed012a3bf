"""Work on several threads of one process, which Ctrl-C ends whenever it comes.

A forward on a CPU is many small operations, and dividing each over the cores costs a barrier of
all threads per operation. Whole batches in parallel, one core each, need none: 1.1 times as fast
on two idle cores, several times on busy ones.

Python raises KeyboardInterrupt in the main thread, between any two of its instructions: also
between taking a lock and entering the block that gives it back, as in `threading.Condition`, on
which `Future.result`, `Executor.submit` and `Thread.start` wait. A lock that is lost so lets other
threads, and the end of the interpreter, wait for ever. So the caller touches no lock. It speaks
through `queue.SimpleQueue`, whose operations are one call of C each, to a thread that runs an
executor, and in which nothing is interrupted.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
WAIT_SECONDS = 0.5


class Pending(Generic[T]):
    """The future outcome of a call, to be read once. here: the reader's thread runs the call."""

    def __init__(self, work: Callable[..., T], arguments: tuple[Any, ...], here: bool) -> None:
        self._work, self._arguments, self.here = work, arguments, here
        self._outcome: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        try:
            self._outcome.put(([self._work(*self._arguments)], None))
        except BaseException as error:
            self._outcome.put(([], error))

    def fail(self, error: BaseException) -> None:
        self._outcome.put(([], error))

    def outcome(self) -> tuple[list[T], BaseException | None]:
        """Waits for ([result], None), or ([], what the call raised)."""
        if self.here:
            self.run()
        return taken_from(self._outcome)

    def result(self) -> T:
        """Waits for it. Raises what the call raised."""
        results, error = self.outcome()
        try:
            if error is not None:
                raise error
            return results.pop()
        finally:
            del error  # its traceback holds this frame


Submit = Callable[..., Pending[Any]]
Orders = SimpleQueue[Pending[Any] | None]


@contextmanager
def workers(count: int, torch_threads: int) -> Iterator[Submit]:
    """Give a function that starts `work(*arguments)` on one of `count` threads: `Pending`.

    torch_threads: what torch may use in each of them. With one worker, or where memory has no room
    for a thread, a call runs in the calling thread, when its outcome is read.

    At the end of the block no further call starts, and running calls are waited for; but not
    after Ctrl-C, or where a generator around the block is dropped: it may take minutes. The
    interpreter does wait for it before it ends, as for every executor: torch aborts a process that
    ends around its work.
    """
    orders: Orders = SimpleQueue()
    ended: SimpleQueue[None] = SimpleQueue()
    if count == 1 or not _started(_serve, orders, ended, count, torch_threads):
        yield partial(_submit, None)
        return
    threads = torch.get_num_threads()
    try:
        yield partial(_submit, orders)
        _wait(orders, ended)
    except Exception:
        _wait(orders, ended)
        raise
    finally:
        orders.put(None)
        torch.set_num_threads(threads)


def _wait(orders: Orders, ended: SimpleQueue[None]) -> None:
    orders.put(None)
    taken_from(ended)


def taken_from(queue: SimpleQueue[T], waiting: Callable[[], None] | None = None) -> T:
    """The next of a queue. A signal that comes just before the wait begins is seen when it ends,
    so that no wait is long. waiting: called every half second of it.
    """
    while True:
        with suppress(Empty):
            return queue.get(timeout=WAIT_SECONDS)
        if waiting is not None:
            waiting()


def _started(run: Callable[..., None], *arguments: object) -> bool:
    try:
        _thread.start_new_thread(run, arguments)
    except RuntimeError:
        return False
    return True


def _serve(orders: Orders, ended: SimpleQueue[None], count: int, torch_threads: int) -> None:
    """Everything that waits for locks."""
    executor = ThreadPoolExecutor(count, "", torch.set_num_threads, (torch_threads,))
    while (pending := orders.get()) is not None:
        try:
            executor.submit(pending.run)
        except (RuntimeError, MemoryError) as error:  # no room for one thread more
            pending.fail(error)
        del pending
    executor.shutdown(cancel_futures=True)
    ended.put(None)


def _submit(orders: Orders | None, work: Callable[..., T], *arguments: Any) -> Pending[T]:
    pending = Pending(work, arguments, here=orders is None)
    if orders is not None:
        orders.put(pending)
    return pending
