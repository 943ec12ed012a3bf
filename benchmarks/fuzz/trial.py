"""One mutant under limits of time and memory, and many of them in processes that may die."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.fuzz.readers import READERS, REFUSALS, Reader
from packer.errors import one_paragraph

SECONDS = 10.0  # of computing that one mutant may take, most take milliseconds
WAITING = 600.0  # seconds for one that computes nothing; a busy machine is no hang
ADDRESS_SPACE = 1 << 30  # beyond what a worker has mapped when it begins
OUT_OF_MEMORY = re.compile(r"MemoryError|Unable to allocate|can't allocate|bad_alloc|DefaultCPU")
GOOD = ("refused", "same", "other")


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant.

    kind: refused, same (the original's weights), other (a file that nothing says is damaged), or
    what must not be: wrong, crash, hang, memory, message, died.
    """

    reader: str
    index: int
    kind: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.kind not in GOOD


@dataclass(frozen=True)
class Originals:
    """Whole files of one reader by name, and what reading each gives."""

    files: dict[str, bytes]
    digests: dict[str, str]


def originals_of(reader: Reader, folder: Path) -> Originals:
    """Raises AssertionError: reading a whole file twice gives two things."""
    files = dict(reader.originals())
    digests = {name: _read(reader, data, folder) for name, data in files.items()}
    for name, data in files.items():
        assert _read(reader, data, folder) == digests[name], name
    return Originals(files, digests)


def mutant_of(reader: Reader, files: dict[str, bytes], seed: int, index: int) -> tuple[Any, ...]:
    """(name of the original, mutant, whether every change must be noticed); always the same."""
    rng = Random(f"{reader.name} {seed} {index}")
    name = rng.choice(sorted(files))
    return (name, *reader.mutate(rng, name, files[name]))


def try_mutant(
    reader: Reader, originals: Originals, seed: int, index: int, folder: Path
) -> Outcome:
    """What reading mutant `index` comes to; a hang or a crash of the process ends this one."""
    name, mutant, noticed = mutant_of(reader, originals.files, seed, index)
    before = _reset_peak()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # their signals end the process
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        kind, detail = _outcome(reader, mutant, folder)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _memory("VmHWM") - before
    if grown > reader.memory_bytes:
        return Outcome(reader.name, index, "memory", f"{grown:,} bytes more: {kind} {detail}")
    if kind == "read":
        same = detail == originals.digests[name]
        kind = (
            "same" if same else "wrong" if noticed and mutant != originals.files[name] else "other"
        )
    return Outcome(reader.name, index, kind, detail)


def _outcome(reader: Reader, mutant: bytes, folder: Path) -> tuple[str, str]:
    try:
        return "read", _read(reader, mutant, folder)
    except REFUSALS as error:
        text = str(error)
        if OUT_OF_MEMORY.search(text):
            return "memory", text
        return ("refused" if len(text) > 10 else "message"), one_paragraph(text)
    except MemoryError as error:
        return "memory", repr(error)
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"[:500]


def _read(reader: Reader, data: bytes, folder: Path) -> str:
    inside = folder / "one"
    inside.mkdir()
    try:
        return reader.read(data, inside)
    finally:
        shutil.rmtree(inside)


def _memory(field: str) -> int:
    """Bytes, of this process's status."""
    status = Path("/proc/self/status").read_text()
    size = re.search(rf"{field}:\s+(\d+) kB", status)
    assert size is not None
    return int(size[1]) * 1024


def _reset_peak() -> int:
    """Sets the peak of memory in use to what is in use now; gives that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmHWM")


def hunt(reader: str, count: int, seed: int, jobs: int) -> Iterator[Outcome]:
    """Outcomes of mutants 0 to count - 1, in no order.

    A worker that dies takes one mutant with it, which is reported as such, and another goes on.
    """
    context = multiprocessing.get_context("fork")
    waiting = {}
    for job in range(jobs):
        worker = _Worker(context, reader, range(job, count, jobs), seed)
        waiting[worker.connection] = worker
    while waiting:
        for connection in multiprocessing.connection.wait(list(waiting)):
            worker = waiting[connection]
            try:
                yield from worker.connection.recv()
            except EOFError:
                del waiting[connection]
                rest = worker.after_death()
                if rest is not None:
                    yield rest[0]
                    again = _Worker(context, reader, rest[1], seed)
                    waiting[again.connection] = again


class _Worker:
    """A process that tries some mutants; where it stands is in memory shared with it."""

    def __init__(self, context: Any, reader: str, indices: range, seed: int) -> None:
        self.reader, self.indices = reader, indices
        self.at = context.Value("q", -1)
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(theirs, self.at, reader, indices, seed))
        self.process.start()
        theirs.close()

    def after_death(self) -> tuple[Outcome, range] | None:
        """(what killed it, the mutants after that one); None: it had finished."""
        self.process.join()
        code = self.process.exitcode
        if code == 0:
            return None
        if self.at.value < 0:
            raise SystemExit(f"a worker for {self.reader} ended with {code} before it began")
        kind = "hang" if code in (-signal.SIGALRM, -signal.SIGPROF) else "died"
        lost = Outcome(self.reader, self.at.value, kind, f"the process ended with {code}")
        return lost, self.indices[self.indices.index(self.at.value) + 1 :]


def _work(connection: Connection, at: Any, reader: str, indices: range, seed: int) -> None:
    torch.set_num_threads(1)
    for timed in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(timed, signal.SIG_DFL)
    one = READERS[reader]
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder, _silenced():
        originals = originals_of(one, Path(folder))
        for index in range(10**9, 10**9 + 20):  # so that what is imported late is there
            try_mutant(one, originals, seed, index, Path(folder))
        limit = _memory("VmSize") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        outcomes = []
        for index in indices:
            at.value = index
            outcomes.append(try_mutant(one, originals, seed, index, Path(folder)))
            if len(outcomes) == 100:
                connection.send(outcomes)
                outcomes = []
        connection.send(outcomes)


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without what native libraries print about damaged files."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def counted(outcomes: list[Outcome]) -> dict[str, int]:
    return dict(Counter(outcome.kind for outcome in outcomes))


def digest_of_outcomes(outcomes: list[Outcome]) -> str:
    """Equal for equal runs."""
    lines = sorted((o.index, o.kind) for o in outcomes)
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:12]
