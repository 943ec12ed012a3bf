"""A seeded checkpoint of real shapes: `python -m benchmarks.seeded seeded.pt`.

The 11-layer, 512-wide family of the 16 MB contest (27 M parameters), with weights drawn so that
their statistics resemble trained ones: rows and columns of uneven energy, slightly heavy tails.
"""

from __future__ import annotations

import argparse
import math

import torch

from packer.packing.verify import write_weights


def state_dict(layers: int = 11, width: int = 512, seed: int = 0) -> dict[str, torch.Tensor]:
    """float32 weights under the family's usual names; equal arguments give equal weights."""
    generator = torch.Generator().manual_seed(seed)
    keys = width // 2
    weights = {"tok_emb.weight": matrix(generator, 1024, width, 0.2)}
    weights["bigram.embed.weight"] = matrix(generator, 2048, 128, 0.2)
    weights["bigram.proj.weight"] = matrix(generator, width, 128, 0.2)
    weights["bigram.scale"] = torch.tensor(0.05)
    weights["smear.gate"] = vector(generator, width, 0.0, 0.5)
    weights["skip_weights"] = 1 + 0.1 * torch.randn(layers // 2, width, generator=generator)
    for layer in range(layers):
        at = f"blocks.{layer}."
        weights[at + "attn.c_q.weight"] = matrix(generator, width, width, 0.06)
        weights[at + "attn.c_k.weight"] = matrix(generator, keys, width, 0.06)
        weights[at + "attn.c_v.weight"] = matrix(generator, keys, width, 0.06)
        weights[at + "attn.proj.weight"] = matrix(generator, width, width, 0.05)
        weights[at + "attn.q_gain"] = vector(generator, 8, 1.5, 0.5)
        weights[at + "mlp.fc.weight"] = matrix(generator, 3 * width, width, 0.06)
        weights[at + "mlp.proj.weight"] = matrix(generator, width, 3 * width, 0.04)
        weights[at + "attn_scale"] = vector(generator, width, 1.0, 0.15)
        weights[at + "mlp_scale"] = vector(generator, width, 1.0, 0.15)
        weights[at + "resid_mix"] = torch.stack(
            [vector(generator, width, 1.0, 0.3), vector(generator, width, 0.0, 0.3)]
        )
    return weights


def matrix(generator: torch.Generator, rows: int, columns: int, rms: float) -> torch.Tensor:
    """Gaussian times log-normal row and column factors: float32 [rows, columns]."""
    row_factor = torch.exp(0.2 * torch.randn(rows, 1, generator=generator))
    column_factor = torch.exp(0.2 * torch.randn(1, columns, generator=generator))
    gaussian = torch.randn(rows, columns, generator=generator)
    return rms / math.exp(0.04 * 2) * gaussian * row_factor * column_factor


def vector(generator: torch.Generator, size: int, mean: float, std: float) -> torch.Tensor:
    return mean + std * torch.randn(size, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the .pt or .safetensors file to write")
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    weights = state_dict(options.layers, options.width, options.seed)
    write_weights(options.output, weights, {}, {})
    count = sum(weight.numel() for weight in weights.values())
    print(f"{options.output}: {len(weights)} tensors, {count:,} parameters")


if __name__ == "__main__":
    main()
