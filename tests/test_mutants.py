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


def test_mutants_of_artifacts_are_refused_or_read_alike_by_both_readers() -> None:
    totals = hunt("--reader", "artifact", "--artifacts", "2000")["artifact"]
    assert sum(totals.values()) == 2000 and set(totals) <= {"refused", "same", "other"}
    assert totals["refused"] > 1500 and totals["other"] > 10  # both paths were really taken


def test_mutants_of_every_other_file() -> None:
    totals = hunt("--mutants", "80", *(f"--reader={name}" for name in OTHERS))
    assert set(totals) == set(OTHERS)
    for name, kinds in totals.items():
        assert sum(kinds.values()) == 80
        assert name == "submission" or kinds["refused"] > 20, name


def test_a_mutant_is_the_same_each_time() -> None:
    arguments = ("--reader", "shard", "--mutants", "40", "--seed", "5")
    assert hunt(*arguments) == hunt(*arguments)


def test_artifacts_guided_by_coverage() -> None:
    """A short run of `python -m benchmarks.fuzz.coverage`; it ends badly at the first crash."""
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "benchmarks.fuzz.coverage", "artifact", "--runs", "3000"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Done 3000 runs" in ended.stderr
    edges = max(map(int, re.findall(r"cov: (\d+)", ended.stderr)))
    assert edges > 200  # what reaches new code was mutated further
