"""Seconds of GPTQ over the seeded 27 M-parameter model: `python -m benchmarks.gptq_speed`.

Curvature is there already: a seeded second moment for every matrix. What is timed is what packing
does after that, factorization and rounding, as `int6.row+kstd@12.85+gptq`.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.quantize import quantize

from benchmarks.seeded import state_dict
from benchmarks.seeded_curvature import TOKENS, second_moment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choice", default="int6.row+kstd@12.85+gptq")
    parser.add_argument("--threads", type=int, help="default: torch's own, one a core")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    choice = parse_choice(options.choice)
    matrices = {name: w for name, w in state_dict().items() if w.dim() == 2 and w.numel() >= 8192}
    curvature = {
        name: Curvature(second_moment(weight.shape[1], seed), None, TOKENS)
        for seed, (name, weight) in enumerate(matrices.items())
    }
    started = time.perf_counter()
    for name, weight in matrices.items():
        quantize(weight, choice, curvature[name])
    seconds = time.perf_counter() - started
    weights = sum(weight.numel() for weight in matrices.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"{choice}: {len(matrices)} matrices, {weights:,} weights in {seconds:.1f} s on "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; "
        f"peak memory {peak:,.0f} MB with model and curvature"
    )


if __name__ == "__main__":
    main()
