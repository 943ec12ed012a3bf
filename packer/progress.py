"""Progress on stderr for anything over two seconds; stdout stays clean for pipes."""

from __future__ import annotations

import _thread
import bisect
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from packer.printable import spelled

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) as work goes on, in weights where tensors differ in size."""

T = TypeVar("T")
QUIET_SECONDS = 1.5
LINE_SECONDS = 10.0
TWO_MINUTES = 120
SAYS_LITTLE = 0.03  # the share of the work from which on a rate is known
LARGE = 1 << 20  # weights; of smaller models, only whole tensors in their turn are reported


def ignore_progress(what: str, done: int, total: int) -> None:
    """The default: report nothing."""


def in_tokens(progress: Progress) -> Callable[[int, int], None]:
    """A function to call with (tokens done, tokens in all)."""
    return lambda done, total: progress(f"{done:,} of {total:,} tokens", done, total)


class WeightCount:
    """Progress over tensors, in weights, because weights determine the time.

    weights: how many each tensor has, by name.
    """

    def __init__(self, progress: Progress, weights: Mapping[str, int]) -> None:
        self.progress, self.weights, self.total = progress, weights, sum(weights.values())
        self.done, self.order, self.waiting = 0, deque(weights), set(weights)
        self.parts = dict.fromkeys(weights, 0) if self.total >= LARGE else {}

    def begin(self, name: str) -> None:
        """Report a tensor whose turn has come, or of a last step of another name."""
        self.progress(name, self.done, self.total)
        self.done += self.weights.get(name, 0)

    def end(self, name: str) -> None:
        """Report a tensor that is done; of a small model when all before it are done too."""
        self.waiting.discard(name)
        if self.parts:
            self.parts[name] = 0
            self.done += self.weights[name]
            self.progress(name, self.done + sum(self.parts.values()), self.total)
            return
        while self.order and self.order[0] not in self.waiting:
            first = self.order.popleft()
            self.done += self.weights[first]
            self.progress(first, self.done, self.total)

    def each(self, name: str, items: Sequence[T]) -> Iterator[T]:
        """The items; how many of them are done counts as a part of the tensor, in any thread."""
        for number, item in enumerate(items):
            if name in self.parts:
                self.parts[name] = self.weights[name] * number // len(items)
            yield item

    def wait(self) -> None:
        """Tell of what other threads have done of a large model."""
        parts = {name: count for name, count in self.parts.items() if count}
        if parts:
            self.progress(next(iter(parts)), self.done + sum(parts.values()), self.total)


@contextlib.contextmanager
def shown(label: str) -> Iterator[Progress]:
    """A function to call with (what, done, total): a bar on a terminal, elsewhere a line at times.

    Nothing is shown for work that ends at once; after two seconds it is, called or not.
    """
    console = Console(stderr=True)
    lines = (_Bar if console.is_terminal else _Lines)(label, console)
    ended: SimpleQueue[None] = SimpleQueue()
    with lines:
        with contextlib.suppress(RuntimeError):  # no room for a thread: calls alone show it
            _thread.start_new_thread(_show_between_calls, (lines, ended))
        try:
            yield lines
        finally:
            ended.put(None)


def _show_between_calls(lines: _Lines, ended: SimpleQueue[None]) -> None:
    while True:
        try:
            return ended.get(timeout=QUIET_SECONDS / 4)
        except Empty:
            lines.show_when_due()


class _Remaining:
    """The time that remains, at the rate at which the later half of what is done was done.

    Work of many kinds follows another's in one count, and several threads complete tensors in
    leaps, so that neither the whole time nor the last call says much.
    """

    def __init__(self) -> None:
        self.total, self.points = 0, [(0, time.monotonic())]

    def add(self, done: int, total: int) -> None:
        """Count on; a smaller `done` or another total begins anew where the last call ended."""
        before, ended = self.points[-1]
        if total != self.total or done < before:
            self.total, self.points = total, [(0, ended)]
        if done > self.points[-1][0]:
            self.points.append((done, time.monotonic()))

    def seconds(self) -> float | None:
        """None while too little is done to say, or all, or once the last estimate has passed."""
        points = self.points
        done, ended = points[-1]
        if not SAYS_LITTLE * self.total < done < self.total:
            return None
        at = bisect.bisect_left(points, (done / 2, 0.0))
        (first, began), (last, reached) = points[at - 1 : at + 1]
        middle = began + (reached - began) * (done / 2 - first) / (last - first)
        left = (ended - middle) * (self.total - done) / (done / 2)
        left -= time.monotonic() - ended
        return left if left > 0 else None


class _Lines:
    """One line every few seconds, for logs."""

    def __init__(self, label: str, console: Console) -> None:
        self.label, self.console, self.what = label, console, ""
        self.remaining = _Remaining()
        self.started = time.monotonic()
        self.last = self.started - LINE_SECONDS + QUIET_SECONDS

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, what: str, done: int, total: int) -> None:
        self.remaining.add(done, total)
        self.what = what
        self.show_when_due()

    def show_when_due(self) -> None:
        now = time.monotonic()
        if now - self.last > LINE_SECONDS:
            self.last = now
            text = f"{self.label}: {self.text()}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def text(self) -> str:
        """The share that is done, what is being done, and the time that remains, if known."""
        total, left = self.remaining.total, self.remaining.seconds()
        if not total:
            return "0 %"
        text = f"{100 * self.remaining.points[-1][0] / total:.0f} %, "
        if left is not None:
            text += f"{_duration(left)} left, "
        return text + spelled(self.what)


class _Bar(_Lines):
    """A bar on a terminal."""

    def __enter__(self) -> None:
        text = TextColumn("{task.fields[text]}", markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(20), text)
        self.bar = Bar(*columns, console=self.console, transient=True)
        self.task = self.bar.add_task(self.label, total=None, text="", visible=False)
        self.bar.start()

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show_when_due(self) -> None:
        self.bar.update(
            self.task,
            completed=self.remaining.points[-1][0],
            total=self.remaining.total or None,
            text=self.text(),
            visible=time.monotonic() - self.started > QUIET_SECONDS,
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < TWO_MINUTES else f"{seconds / 60:.0f} min"
