"""Work on many items side by side: its order, and how it ends where somebody ends it early."""

from __future__ import annotations

import _thread
import gc
import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from packer import threads
from packer.cli import OUT_OF_MEMORY, main
from packer.threads import as_completed, side_by_side

Start = Callable[..., int]


def no_thread(*_: object) -> int:
    """start_new_thread, where there is no room for a stack."""
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("start", [_thread.start_new_thread, no_thread], ids=["threads", "none"])
def test_results_come_in_order_with_one_torch_thread_each(
    monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(_thread, "start_new_thread", start)
    before = torch.get_num_threads()
    found = side_by_side(lambda n: (n * n, torch.get_num_threads()), range(30))
    assert list(found) == [(n * n, 1) for n in range(30)]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("start", [_thread.start_new_thread, no_thread], ids=["threads", "none"])
def test_results_come_as_soon_as_they_are_there(
    monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(_thread, "start_new_thread", start)
    rest_done = threading.Event()

    def work(n: int) -> int:
        if n == 0 and start is not no_thread:
            assert rest_done.wait(60)
        if n == 4:
            rest_done.set()
        return n * n

    found = list(as_completed(work, range(5)))
    assert sorted(found) == [(n, n * n) for n in range(5)]
    assert start is no_thread or found[-1] in [(0, 0), (4, 16)]


def test_as_many_items_are_under_way_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    all_three = threading.Barrier(3, timeout=60)
    assert list(side_by_side(lambda n: (all_three.wait(), n)[1], range(6))) == list(range(6))


@pytest.mark.parametrize("start", [_thread.start_new_thread, no_thread], ids=["threads", "none"])
def test_what_an_item_raises_comes_in_its_turn_and_later_ones_are_not_begun(
    monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(_thread, "start_new_thread", start)
    begun, seen = [], []

    def work(n: int) -> int:
        begun.append(n)
        if n == 3:
            raise MemoryError("no room for the fourth")
        return n

    with pytest.raises(MemoryError, match="no room for the fourth"):
        for result in side_by_side(work, range(1000)):
            seen.append(result)
    assert seen == [0, 1, 2] and max(begun) < 10


def pool_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("ThreadPoolExecutor")]


def wait_for_threads_to_end(before: list[threading.Thread]) -> None:
    end = time.monotonic() + 60
    while set(pool_threads()) - set(before):
        assert time.monotonic() < end, "threads that wait for ever"
        time.sleep(0.001)


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_ends_it_while_an_item_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    before, begun, go_on = pool_threads(), [], threading.Event()

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert go_on.wait(60)

    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(work, range(100)))
    go_on.set()  # only now does the first item end
    wait_for_threads_to_end(before)
    assert 0 in begun and len(begun) < 10


def test_a_caller_that_takes_no_more_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    before, begun = pool_threads(), []
    results = side_by_side(begun.append, range(1000))
    next(results)
    results.close()
    wait_for_threads_to_end(before)
    assert len(begun) < 10


INTERRUPTED_AT_EVERY_LINE = """
import sys, threading, time
from packer import threads
from packer.threads import as_completed, side_by_side

threads.usable_cores = lambda: 2

class Interrupt:
    # Every line and call of the main thread, but for those of this file.
    def __init__(self, at):
        self.left, self.where = at, None

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename == "<string>":
            return None
        self.left -= 1
        if self.left == 0:
            sys.settrace(None)
            self.where = (frame.f_code.co_filename, frame.f_lineno, event)
            raise KeyboardInterrupt
        return self

def interrupted(at):
    interrupt, results = Interrupt(at), []
    sys.settrace(interrupt)
    try:
        for result in side_by_side(lambda n: n, range(7)):
            results.append(result)
    except KeyboardInterrupt:
        return interrupt.where
    finally:
        sys.settrace(None)
    assert results == list(range(7))
    return None

moments = 0
while (where := interrupted(moments + 1)) is not None:
    moments += 1
    end = time.monotonic() + 20
    while any(one.name.startswith("ThreadPoolExecutor") for one in threading.enumerate()):
        assert time.monotonic() < end, where
        time.sleep(0.0005)
print(moments)
"""


def test_ctrl_c_at_every_line_leaves_no_thread_waiting() -> None:
    command = [sys.executable, "-c", INTERRUPTED_AT_EVERY_LINE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 100 and ended.stderr == ""


INTERRUPTED_IN_TORCH = """
import signal, threading, torch
from packer import threads

threads.usable_cores = lambda: 2
main = threading.main_thread().ident

def work(n):
    signal.pthread_kill(main, signal.SIGINT)
    for _ in range(40):
        torch.linalg.svd(torch.ones(100, 100))
    print(n, "ended", flush=True)

try:
    list(threads.side_by_side(work, [0]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.usefixtures("heeds_interrupts")
def test_the_interpreter_ends_after_what_is_under_way_in_torch() -> None:
    command = [sys.executable, "-c", INTERRUPTED_IN_TORCH]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.splitlines()) == ["0 ended", "interrupted"]


def test_results_are_let_go_of_by_the_threads_that_made_them() -> None:
    class Large:
        pass

    def work(_: int) -> Large:
        return Large()

    alive = [weakref.ref(large) for large in side_by_side(work, range(5))]
    gc.collect()
    assert [reference() for reference in alive] == [None] * 5


MEASURES_WITHOUT_THREADS = """
import json, resource, sys, threading
from pathlib import Path
from packer.cli import main
import packer.planning.measure, rich.progress

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
threading.stack_size(2 << 30)
try:
    threading.Thread(target=print).start()
except RuntimeError as error:
    print(error, file=sys.stderr)
main(["measure", "model.pt", "-o", "without.json"])
"""


def test_a_command_that_can_start_no_thread_does_its_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("the address space is limited as on Linux")
    torch.manual_seed(0)
    torch.save({f"w{n}": torch.randn(8, 16) for n in range(3)}, tmp_path / "model.pt")
    command = [sys.executable, "-c", MEASURES_WITHOUT_THREADS]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0 and "can't start new thread" in ended.stderr, ended.stderr
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["measure", "model.pt", "-o", "with.json"]).exit_code == 0
    without, alike = (json.loads(Path(f"{n}.json").read_text()) for n in ("without", "with"))
    assert without == alike


def test_no_room_for_a_thread_elsewhere_is_told_as_too_little_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save({"w": torch.ones(4, 4)}, tmp_path / "model.pt")
    monkeypatch.setattr("packer.planning.measure.side_by_side", no_thread)
    ended = CliRunner().invoke(main, ["measure", str(tmp_path / "model.pt")])
    assert ended.exit_code == 1 and OUT_OF_MEMORY in ended.stderr
