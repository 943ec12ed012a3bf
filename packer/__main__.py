"""`python -m packer` and the console scripts: a process that Ctrl-C ends without a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from packer.errors import STOPPED

IMPORTING = "<frozen importlib._bootstrap>"
SECONDS_FOR_IMPORTS, SECONDS_UNTIL_AGAIN = 3.0, 0.02
AGAIN = (signal.SIGALRM,) if hasattr(signal, "SIGALRM") else ()  # Windows has none


class Stopped(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, for which click has words of its own."""


def run() -> None:
    """The command line. Ends the process, unless it ended well.

    Modules are imported here and not above, where Ctrl-C would show the traceback of an import.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # Else a shell started this in the background, and Ctrl-C is for other jobs.
            interrupt = _Interrupt()
            for number in (signal.SIGINT, *AGAIN):
                signal.signal(number, interrupt)
        from packer.cli import main

        main()
    except (KeyboardInterrupt, Stopped):
        _end_at_once()
    except SystemExit as ended:
        if not isinstance(ended.code, int) or ended.code == 0:
            _heed_no_more()  # as good as ended
            raise
        _end(ended.code)


def _heed_no_more() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if AGAIN:  # an alarm that is still to come would end a process that has no handler any more
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Interrupt:
    """Raises Stopped where it comes, but not in an import: a module may swallow it or make another
    error of it, and torch imports half of itself again when it is asked for what is missing. An
    import has some seconds to end first; then the process ends on the spot.
    """

    def __init__(self) -> None:
        self._until: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del number
        now = time.monotonic()
        self._until = self._until or now + SECONDS_FOR_IMPORTS
        if not _importing(frame):
            raise Stopped
        if not AGAIN or now > self._until:
            _end_at_once()
        signal.setitimer(signal.ITIMER_REAL, SECONDS_UNTIL_AGAIN)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False


def _end_at_once() -> NoReturn:
    try:
        os.write(2, f"Error: {STOPPED}\n".encode())
    finally:
        os._exit(1)


def _end(code: int) -> NoReturn:
    """Without waiting for threads, whose work nobody wants any more, or which ended too little
    memory: the interpreter would wait for what they have under way.
    """
    try:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed by who read it
                stream.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    run()
