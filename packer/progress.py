"""Progress on stderr for anything over two seconds; stdout stays clean for pipes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from packer.printable import spelled

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) as work goes on, in weights where tensors differ in size."""

QUIET_SECONDS = 1.0
LINE_SECONDS = 10.0


def ignore_progress(what: str, done: int, total: int) -> None:
    """The default: tell nobody."""


@contextlib.contextmanager
def shown(label: str) -> Iterator[Progress]:
    """A function to be told (what, done, total): a bar on a terminal, lines now and then elsewhere.

    Nothing is shown for work that ends within a second.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(label, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    )
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task(label, total=None, what="", visible=False)
    started = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        late = time.monotonic() - started > QUIET_SECONDS
        bar.update(task, completed=done, total=total, what=spelled(what), visible=late)

    with bar:
        yield tell


class _Lines:
    """One line every few seconds, for logs."""

    def __init__(self, label: str, console: Console) -> None:
        self.label, self.console = label, console
        self.started = time.monotonic()
        self.last = self.started - LINE_SECONDS + 2 * QUIET_SECONDS

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last <= LINE_SECONDS:
            return
        self.last = now
        text = f"{self.label}: {done:,} of {total:,}, {what}"
        if 0 < done < total:
            text += f", {(now - self.started) * (total - done) / done:.0f} s left"
        self.console.print(spelled(text), highlight=False, markup=False, soft_wrap=True)
