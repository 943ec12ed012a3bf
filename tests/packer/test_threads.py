"""Work on many items side by side, where threads cannot be had or die."""

from __future__ import annotations

import _thread
import gc
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from packer import threads
from packer.cli import OUT_OF_MEMORY, main
from packer.threads import side_by_side

Start = Callable[..., int]


def at_most(allowed: int) -> Start:
    """start_new_thread, as it is where there is no room for more stacks than these."""
    begin, made = _thread.start_new_thread, []

    def start(*call: object) -> int:
        if len(made) == allowed:
            raise RuntimeError("can't start new thread")
        made.append(None)
        return begin(*call)  # type: ignore[arg-type]

    return start


def stillborn(*_: object) -> int:
    """A thread that dies before it runs any of its code."""
    return 7


@pytest.mark.parametrize("start", [at_most(0), at_most(1), stillborn], ids=["none", "one", "dead"])
def test_items_are_worked_on_with_as_many_threads_as_there_can_be(
    monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(threads, "PATIENCE_SECONDS", 0.001)
    monkeypatch.setattr(_thread, "start_new_thread", start)
    before = torch.get_num_threads()
    found = side_by_side(lambda n: (n * n, torch.get_num_threads()), range(30))
    assert list(found) == [(n * n, 1) for n in range(30)]
    assert torch.get_num_threads() == before


def test_as_many_items_are_under_way_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    all_three = threading.Barrier(3, timeout=60)
    assert list(side_by_side(lambda n: (all_three.wait(), n)[1], range(6))) == list(range(6))


@pytest.mark.parametrize("start", [_thread.start_new_thread, at_most(0)], ids=["threads", "none"])
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


def test_what_was_under_way_has_ended_when_the_caller_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread inside torch when the interpreter ends would abort the process."""
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    begun, ended, go_on = [], [], threading.Event()

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            go_on.wait(0.2)  # until the caller waits for this
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            go_on.wait(0.4)  # and all others have ended
        ended.append(n)

    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(work, range(100)))
    assert sorted(ended) == sorted(begun) and 0 in begun and len(begun) < 10


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
import packer.measuring, rich.progress

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
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    torch.save({"w": torch.ones(4, 4)}, tmp_path / "model.pt")
    monkeypatch.setattr("packer.measuring.side_by_side", no_thread)
    ended = CliRunner().invoke(main, ["measure", str(tmp_path / "model.pt")])
    assert ended.exit_code == 1 and OUT_OF_MEMORY in ended.stderr
