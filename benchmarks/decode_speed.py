"""Time to encode and to decode, by coder: `python -m benchmarks.decode_speed`.

The seeded 27 M-parameter model, its matrices in `step.row.col` under nearest rounding, encoded by
either ANS coder and read back through the loader that would be shipped. Beside them in the same
run: brotli-11 (lgwin 24) over the same codes in one stream.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import brotli
import numpy as np
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import quantize

from benchmarks.seeded import state_dict
from packer.artifact import Artifact
from packer.ship import loader_source, parts_of

STEP = 0.45


def spell(name: str, encode: float, decode: float, size: int) -> str:
    return f"{name:24}{encode:10.1f}{decode:10.1f}{size:14,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=11)
    options = parser.parse_args()
    weights = state_dict(options.layers)
    choices = {
        name: f"step.row.col+nearest@{STEP}" if weight.numel() >= 1 << 14 else "fp16"
        for name, weight in weights.items()
    }
    tensors = {name: quantize(weights[name], parse_choice(choices[name])) for name in weights}
    codes = [one.codes.numpy() for one in tensors.values() if one.codes.dtype == torch.int16]
    count = sum(one.size for one in codes)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{count:,} codes in {len(codes)} tensors, {cores} cores, load {load:.1f}")
    print(f"{'coder':24}{'encode s':>10}{'decode s':>10}{'bytes':>14}")
    for coder in ("ans", "numpy"):
        started = time.perf_counter()
        data = Artifact(tensors, coders=dict.fromkeys(tensors, coder)).to_bytes()
        encoded = time.perf_counter()
        loader: dict[str, Any] = {}
        exec(
            loader_source(parts_of(c.replace("+", f"~{coder}+") for c in choices.values())), loader
        )
        begun = time.perf_counter()
        loader["read_weights"](data)
        seconds = time.perf_counter() - begun
        print(spell(coder, encoded - started, seconds, len(data)), flush=True)
    raw = np.concatenate([one.clip(-128, 127).astype(np.int8).ravel() for one in codes]).tobytes()
    started = time.perf_counter()
    packed = brotli.compress(raw, quality=11, lgwin=24)
    encoded = time.perf_counter()
    brotli.decompress(packed)
    decoded = time.perf_counter() - encoded
    print(spell("brotli-11, codes alone", encoded - started, decoded, len(packed)))


if __name__ == "__main__":
    main()
