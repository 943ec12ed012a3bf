"""One artifact with one and with two threads, and golden files of every version, forever."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from packer.artifact.decoder import VERSION, read_weights

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.pack"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_file_decodes_to_the_weights_it_always_did(path: Path) -> None:
    digest = hashlib.sha256()
    for name, weight in sorted(read_weights(path.read_bytes()).items()):
        raw = weight.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest.update(name.encode() + raw)
    assert digest.hexdigest() == path.with_suffix(".sha256").read_text().strip()


def test_every_version_has_a_golden_file() -> None:
    """A new version of the format keeps those of the old ones, and brings its own."""
    versions = {int(match[1]) for path in GOLDEN if (match := re.search(r"_v(\d+)$", path.stem))}
    assert versions == set(range(1, VERSION + 1))
    assert {path.read_bytes()[8] for path in GOLDEN} == versions


def test_threads_do_not_change_bytes() -> None:
    command = [sys.executable, "benchmarks/same_bytes.py"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "made planned, 2 threads" in ended.stdout
