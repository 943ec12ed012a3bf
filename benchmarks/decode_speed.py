"""Time to encode and to decode, by format and coder: `python -m benchmarks.decode_speed`.

The seeded 27 M-parameter model, its matrices in `step.row.col` and on a trellis under nearest
rounding, encoded by either ANS coder and read back through the loader that would be shipped. Beside
them in the same run: brotli-11 (lgwin 24) over the same codes in one stream.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import brotli
import numpy as np
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import QuantizedTensor
from packer.quantizers.quantize import quantize

from benchmarks.seeded import state_dict
from packer.artifact.encoder import Artifact
from packer.shipping.loader import loader_source, parts_of
from packer.threads import side_by_side

# Of a trellis the finer step that does about the same damage.
STEPS = {"step.row.col": 0.45, "trellis.row.col": 0.28}
CODERS = ("ans", "numpy")


def spell(name: str, encode: float, decode: float, size: int) -> str:
    return f"{name:24}{encode:10.1f}{decode:10.1f}{size:14,}"


def timed(tensors: Mapping[str, QuantizedTensor], formats: Iterable[str], coder: str) -> str:
    """A line of encoding and of decoding by a loader of just these formats."""
    started = time.perf_counter()
    data = Artifact(tensors, coders=dict.fromkeys(tensors, coder)).to_bytes()
    encode = time.perf_counter() - started
    loader: dict[str, Any] = {}
    exec(loader_source(parts_of(f"{format}~{coder}" for format in formats)), loader)
    started = time.perf_counter()
    loader["read_weights"](data)
    return spell(coder, encode, time.perf_counter() - started, len(data))


def compressed(codes: Iterable[np.ndarray]) -> str:
    raw = np.concatenate([one.clip(-128, 127).astype(np.int8).ravel() for one in codes]).tobytes()
    started = time.perf_counter()
    packed = brotli.compress(raw, quality=11, lgwin=24)
    encode = time.perf_counter() - started
    started = time.perf_counter()
    brotli.decompress(packed)
    return spell("brotli-11, codes alone", encode, time.perf_counter() - started, len(packed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=11)
    options = parser.parse_args()
    weights = state_dict(options.layers)
    for format, step in STEPS.items():
        choices = {
            name: f"{format}+nearest@{step}" if weight.numel() >= 1 << 14 else "fp16"
            for name, weight in weights.items()
        }
        made = side_by_side(lambda n, c=choices: quantize(weights[n], parse_choice(c[n])), weights)
        tensors = dict(zip(weights, made, strict=True))
        codes = [one.codes.numpy() for one in tensors.values() if one.codes.dtype == torch.int16]
        count = sum(one.size for one in codes)
        cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
        print(f"{format}: {count:,} codes in {len(codes)} tensors, {cores} cores, load {load:.1f}")
        print(f"{'coder':24}{'encode s':>10}{'decode s':>10}{'bytes':>14}")
        for coder in CODERS:
            print(timed(tensors, (format, "fp16"), coder), flush=True)
        print(compressed(codes), flush=True)


if __name__ == "__main__":
    main()
