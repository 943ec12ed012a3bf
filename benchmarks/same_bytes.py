"""Same bytes everywhere: `python -m benchmarks.same_bytes OTHER/bin/python ...`.

Builds one artifact with 1 and 2 threads here, and in every other environment named (the package
must be installed there, with other versions of numpy, torch, scipy and the codecs), and decodes
the golden files and this artifact in all of them. Weights come from whole numbers, so that no
random generator is involved. Exit code 1 where bytes or decoded weights differ.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
PACKAGES = ("torch", "numpy", "scipy", "constriction", "zstandard", "brotli", "safetensors")
CAP = 60_000
# Choices that round with nothing but arithmetic on each weight, under every coder.
CHOICES = (
    *("int8.row", "int6.row+percentile", "int5.row+kstd@12.85", "int4.tensor", "ternary.row"),
    *("fp16", "step.row.col+nearest@0.4", "int6.row~brotli", "int6.row~zstd", "int8.row~lzma"),
)


def weights() -> dict[str, torch.Tensor]:
    """Matrices whose rows and columns differ in energy, and a vector; the same on any machine."""
    made = {}
    for index, (rows, columns) in enumerate(((96, 64), (64, 192), (192, 64), (64, 64), (256, 32))):
        at = np.arange(rows * columns, dtype=np.uint64) + np.uint64(index << 32)
        mixed = at * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        parts = [(mixed >> np.uint64(16 * k)) & np.uint64(0xFFFF) for k in range(4)]
        bell = sum(part.astype(np.int64) for part in parts) - 2 * 65535
        grid = bell.reshape(rows, columns) * (1 + np.arange(rows)[:, None] % 7)
        name = f"blocks.{index}.mlp.fc.weight"
        made[name] = torch.from_numpy((grid / 2.0**22).astype(np.float32))
    made["norm"] = torch.arange(64, dtype=torch.float32) / 64 + 1
    return made


def digest(values: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, weight in sorted(values.items()):
        found.update(
            name.encode() + weight.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()[:16]


def planned(threads: int) -> bytes:
    """The artifact of a plan, everything computed with this number of threads."""
    from packer import api

    torch.set_num_threads(threads)
    return api.pack(weights(), api.plan(weights(), CAP)).data


def chosen() -> bytes:
    """One tensor under every choice, no planner involved."""
    from packer.quantizers.choice import parse_choice
    from packer.quantizers.quantize import quantize

    from packer.artifact.encoder import Artifact

    weight = weights()["blocks.0.mlp.fc.weight"]
    choices = {f"w{at}": parse_choice(text) for at, text in enumerate(CHOICES)}
    tensors = {name: quantize(weight, choice) for name, choice in choices.items()}
    coders = {name: choice.coder for name, choice in choices.items()}
    return Artifact(tensors, coders=coders).to_bytes()


def here(decode: Path) -> dict[str, Any]:
    """What this environment makes and reads. decode: artifacts made in the first one."""
    from packer.artifact.decoder import read_weights

    made = {"planned, 1 thread": planned(1), "planned, 2 threads": planned(2), "chosen": chosen()}
    if not decode.exists():
        decode.mkdir()
        for name, data in made.items():
            (decode / f"{name}.pack").write_bytes(data)
    files = [*sorted(GOLDEN.glob("*.pack")), *sorted(decode.glob("*.pack"))]
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "made": {name: hashlib.sha256(data).hexdigest()[:16] for name, data in made.items()},
        "decoded": {path.stem: digest(read_weights(path.read_bytes())) for path in files},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", nargs="*", help="interpreters of other environments")
    parser.add_argument("--decode", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.decode is not None:
        print(json.dumps(here(options.decode)))
        return
    with tempfile.TemporaryDirectory() as place:
        decode = Path(place) / "made"
        reports = [_ask(python, decode) for python in (sys.executable, *options.python)]
    for one in reports:
        print("  ".join(f"{name} {version}" for name, version in one["versions"].items()))
        for what in ("made", "decoded"):
            for name, found in one[what].items():
                mark = "" if found == reports[0][what][name] else "   DIFFERS"
                print(f"  {what} {name}: {found}{mark}")
    same = all(one[what] == reports[0][what] for one in reports for what in ("made", "decoded"))
    first = reports[0]["made"]
    sys.exit(0 if same and first["planned, 1 thread"] == first["planned, 2 threads"] else 1)


def _ask(python: str, decode: Path) -> dict[str, Any]:
    command = [python, __file__, "--decode", str(decode)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


if __name__ == "__main__":
    main()
