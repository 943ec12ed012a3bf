"""Ctrl-C at any moment ends the command soon, and leaves files as they were or whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packer.errors import STOPPED

Start = Callable[..., subprocess.Popen[str]]

MOMENTS = 30
BEFORE = b"what stood there"
PACK = ("pack", "model.pt", "--cap", "12KB", "-o", "out.pack")

# Imports take longer than the work: done once, for a process that is forked every time.
FORKED = """
import contextlib, io, json, os, random, signal, sys, time
from pathlib import Path
import torch
import packer.cli, packer.__main__

before, count, *arguments = Path("out.pack").read_bytes(), *sys.argv[1:]
sys.argv = ["packer", *arguments]

def begin():
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            out = os.open("../stderr", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(out, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.close(reading)
            os.close(writing)  # begun
            packer.__main__.run()
        except SystemExit:
            os._exit(0)  # how an interpreter ends is tested below
        finally:
            os._exit(77)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return child

def ended(child, within):
    end = time.monotonic() + within
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None

def look(code):
    print(json.dumps({
        "code": code,
        "stderr": Path("../stderr").read_text(),
        "files": sorted(os.listdir()),
        "output": Path("out.pack").read_bytes().hex(),
    }), flush=True)
    Path("out.pack").write_bytes(before)

torch.set_num_threads(1)
with contextlib.redirect_stdout(io.StringIO()):  # what it imports late
    packer.cli.main(arguments, standalone_mode=False)
Path("out.pack").write_bytes(before)
parent = os.getpid()
busy = []
for _ in range(2):
    busy.append(os.fork())
    if busy[-1] == 0:
        while os.getppid() == parent:
            pass
        os._exit(0)
moments, started = random.Random(3), time.monotonic()
code = ended(begin(), 300)
took = time.monotonic() - started
look(code)
for _ in range(int(count)):
    child = begin()
    time.sleep(moments.random() * took)
    os.kill(child, signal.SIGINT)
    look(ended(child, 10))
for one in busy:
    os.kill(one, signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    weights = {f"w{n}": torch.randn(96, 96, generator=generator) for n in range(3)}
    folder = tmp_path / "work"
    folder.mkdir()
    torch.save(weights, folder / "model.pt")
    (folder / "out.pack").write_bytes(BEFORE)
    return folder


def test_at_any_moment_of_the_work_on_a_busy_machine(folder: Path, start_process: Start) -> None:
    stops = start_process([sys.executable, "-c", FORKED, MOMENTS, *PACK], cwd=folder)
    said, wrong = stops.communicate(timeout=500)
    assert stops.returncode == 0, wrong
    whole, *stopped = map(json.loads, said.splitlines())
    assert whole["code"] == 0 and len(stopped) == MOMENTS
    for one in (whole, *stopped):
        lines = one["stderr"].splitlines()
        one["stderr"] = [line for line in lines if not line.startswith(("measuring:", "packing:"))]
    for one in stopped:
        assert one["files"] == ["model.pt", "out.pack"]
        if one["code"] == 0:
            assert (one["output"], one["stderr"]) == (whole["output"], whole["stderr"])
            continue
        *said, last = one["stderr"]  # stopped while it said what it had written: some lines stand
        assert (one["code"], last) == (1, f"Error: {STOPPED}")
        assert one["output"] in (BEFORE.hex(), whole["output"])
        assert said == whole["stderr"][: len(said)]
    assert sum(one["output"] == BEFORE.hex() for one in stopped) > MOMENTS // 2


BEGUN = "print(flush=True); from packer.__main__ import run; run()"


def test_from_the_first_import_to_the_end_of_the_interpreter(
    folder: Path, start_process: Start
) -> None:
    whole = 0.0
    for share in (None, 0.01, 0.25, 0.5, 0.75, 0.95):
        process = start_process([sys.executable, "-c", BEGUN, "inspect", "model.pt"], cwd=folder)
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.monotonic()
        if share is not None:
            time.sleep(share * whole)
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        if share is None:
            whole = time.monotonic() - begun
            assert (process.returncode, said) == (0, "")
        assert (process.returncode, said) in ((1, f"Error: {STOPPED}\n"), (0, ""))
