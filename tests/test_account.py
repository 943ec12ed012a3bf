"""The account of random checkpoints under random caps; the long run is `benchmarks.account`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_account_never_lies() -> None:
    command = [sys.executable, "-m", "benchmarks.account", "--cases", "40", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout)
    assert found["failures"] == [] and ended.returncode == 0
    assert found["cases"] == 40 and found["packed"] > 25 and found["refused"] > 0
    assert found["tried against every combination"] > 10
