"""Mutants of every file that is read, in a process of its own: `python -m benchmarks.fuzz`.

The long run is the same command with more of them; docs/reliability.md tells what it gave.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OTHERS = (
    *("plan", "candidates", "checkpoint", "folder", "foreign", "curvature", "unfinished", "model"),
    *("state", "shard", "table", "tokenizer", "settings", "run", "submission"),
)


def hunt(*arguments: str) -> dict[str, dict[str, int]]:
    """What became of the mutants by reader; fails where one did what none may."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("peaks of memory are read from Linux's /proc")
    command = [sys.executable, "-m", "benchmarks.fuzz", "--json", "--jobs", "1", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout)
    assert found["failures"] == [] and ended.returncode == 0
    totals: dict[str, dict[str, int]] = found["totals"]
    return totals


def test_mutants_of_every_file() -> None:
    """One process for all readers, since its imports take longer than most of them."""
    readers = ("artifact", *OTHERS)
    found = hunt("--artifacts", "1000", "--mutants", "50", *(f"--reader={one}" for one in readers))
    assert set(found) == set(readers)
    # A mutant is the same each time: in another process, and whatever was read before it.
    assert hunt("--mutants", "50", "--reader=shard")["shard"] == found["shard"]
    artifacts = found.pop("artifact")  # refused or read alike by both readers
    assert sum(artifacts.values()) == 1000 and set(artifacts) <= {"refused", "same", "other"}
    assert artifacts["refused"] > 750 and artifacts["other"] > 5  # both paths were really taken
    for name, kinds in found.items():
        assert sum(kinds.values()) == 50
        assert name == "submission" or kinds["refused"] > 12, name


def test_artifacts_guided_by_coverage() -> None:
    """A short run of `python -m benchmarks.fuzz.coverage`; it ends badly at the first crash."""
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "benchmarks.fuzz.coverage", "artifact", "--runs", "2000"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Done 2000 runs" in ended.stderr
    edges = max(map(int, re.findall(r"cov: (\d+)", ended.stderr)))
    assert edges > 200  # what reaches new code was mutated further
