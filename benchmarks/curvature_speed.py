"""Seconds and memory of `packer calibrate`: `python -m benchmarks.curvature_speed CKPT TEXT VOCAB`.

A process of its own, so that memory is what the machine needs: model, text and all moments.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.pack_speed import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "text", "tokenizer"):
        parser.add_argument(name)
    parser.add_argument("--tokens", default="32768")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "curvature.safetensors"
        text = ("--data", options.text, "--tokenizer", options.tokenizer)
        amount = ("--tokens", options.tokens, "-o", str(output))
        done = run("calibrate", output, "packer", "calibrate", options.checkpoint, *text, *amount)
    print(
        f"{options.tokens} tokens in {done.seconds:.1f} s at load {os.getloadavg()[0]:.1f}; peak "
        f"memory {done.peak_bytes / 1e6:,.0f} MB, file {done.output_bytes:,} bytes"
    )


if __name__ == "__main__":
    main()
