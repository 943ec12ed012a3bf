"""Imports a submission's code on CPU, in a process of its own with a time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Runs the script under another name than __main__, then prints the values of its settings classes.
PROBE = r"""
import json, runpy, sys
path = sys.argv[1]
sys.path.insert(0, path.rpartition("/")[0])
sys.argv = [path]
names = runpy.run_path(path, run_name="probed")
found = {}
for value in list(names.values()):
    if isinstance(value, type) and value.__module__ in ("probed", "builtins"):
        for key in ("num_layers", "model_dim", "vocab_size", "n_layer", "n_embd"):
            number = getattr(value, key, None)
            if isinstance(number, int) and not isinstance(number, bool):
                found.setdefault(key, number)
print("\nPROBED " + json.dumps(found))
"""


@dataclass(frozen=True)
class Probe:
    """settings: num_layers, model_dim, vocab_size, as far as the code's classes define them.

    problem: why the import failed, in one line.
    """

    settings: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None


def probe_code(path: Path, *, seconds: float = 60.0) -> Probe:
    """Imports a script without running its main part, without a GPU and in an empty folder.

    This runs third-party code with the rights of the user: only on request.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROBE, str(path.resolve())],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return Probe(problem=f"importing it took more than {seconds:.0f} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBED ")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Probe(problem=reason[:300])
    try:
        settings = {str(key): int(value) for key, value in json.loads(lines[-1][7:]).items()}
    except (ValueError, TypeError, AttributeError):  # the code itself printed such a line
        return Probe(problem="its output cannot be distinguished from the settings")
    renamed = {"n_layer": "num_layers", "n_embd": "model_dim"}
    return Probe({renamed.get(key, key): value for key, value in settings.items()})
