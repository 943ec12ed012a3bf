"""Commands that are killed, and commands without room or memory: `python -m benchmarks.faults`.

The long run is the same command with more kills; docs/reliability.md tells what it gave.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from packer.errors import MAX_SHOWN, OutputError, one_paragraph
from packer.files import replacing

ROOT = Path(__file__).resolve().parents[1]


def test_what_is_written_is_old_or_new_and_every_failure_is_one_line() -> None:
    if not hasattr(os, "fork") or not Path("/proc/self/statm").exists():
        pytest.skip("commands run in copies of the process, their memory limited as on Linux")
    command = [sys.executable, "-m", "benchmarks.faults", "--runs", "5", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout)
    assert found["failures"] == [] and ended.returncode == 0
    assert found["runs"] == 5 and len(found["faults"]) > 20
    messages = " ".join(fault["message"] for fault in found["faults"])
    for words in ("no file may grow so large", "out of memory", "the plan was made for"):
        assert words in messages


def torchs(error: OSError) -> Exception:
    """An error of torch's writer, which chains the system's."""
    try:
        raise error
    except OSError:
        try:
            raise RuntimeError("unexpected pos 64 vs 0")
        except RuntimeError as chained:
            return chained


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        torchs(FULL),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["Python", "torch", "safetensors"],
)
def test_a_full_disk_is_told_whoever_writes(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError, match="the disk is full"), replacing(tmp_path / "out"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_a_writer_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="7"), replacing(tmp_path / "out"):
        raise ValueError("7")


def test_a_refusal_is_one_paragraph_whatever_a_file_put_into_it() -> None:
    shown = one_paragraph("w\x1b[2J\n" + "n" * 9000 + " is damaged")
    assert shown.startswith(r"w\x1b[2J\n") and shown.endswith(" is damaged")
    assert len(shown) < MAX_SHOWN + 50 and shown.isprintable()
    assert one_paragraph("σ of w: 1.5\n") == "σ of w: 1.5"
