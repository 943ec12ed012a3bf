"""Seeded curvature of a checkpoint: `python -m benchmarks.seeded_curvature s.pt c.safetensors`.

Every matrix gets second moments of correlated inputs and gradients of uneven power, as a calibrated
one has; what they say of the weights is nothing, so that only times and sizes mean something.
"""

from __future__ import annotations

import argparse

import torch
from packer.quantizers.curvature import Curvature

from packer.checkpoint.checkpoint import read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import write_curvature

TOKENS = 2048


def second_moment(size: int, seed: int) -> torch.Tensor:
    """float32 [size, size] of correlated vectors of uneven power."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(TOKENS, size, generator=generator)
    vectors += 2 * torch.randn(TOKENS, 1, generator=generator)
    vectors *= torch.exp(torch.randn(size, generator=generator))
    moment = vectors.T @ vectors / TOKENS
    return (moment + moment.T) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("output")
    options = parser.parse_args()
    checkpoint = read_checkpoint(options.checkpoint)
    by_tensor = {}
    for seed, (name, weight) in enumerate(sorted(checkpoint.tensors.items())):
        if weight.dim() == 2 and weight.numel() >= 8192:
            outputs = 1e-4 * second_moment(weight.shape[0], 1000 + seed)
            by_tensor[name] = Curvature(
                second_moment(weight.shape[1], seed),
                outputs.diagonal().clone(),
                TOKENS,
                outputs=outputs if len(outputs) <= 2048 else None,
            )
    contents = contents_fingerprint(checkpoint)
    made = CurvatureSet(by_tensor, contents, "seeded vectors", TOKENS, 0.0, 1024, 2.4)
    write_curvature(options.output, made)
    print(f"{options.output}: curvature of {len(by_tensor)} matrices")


if __name__ == "__main__":
    main()
