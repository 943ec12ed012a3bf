"""Coded sizes under version control: `python -m benchmarks.sizes` rewrites benchmarks/sizes.csv.

One row per format and coder over the matrices of a seeded two-layer model: the bytes of all blocks,
bits per weight, and percent over the order-0 entropy of the codes of each tensor. Sizes repeat
exactly on one set of library versions; a change of a row is a change to look at.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import QuantizedTensor
from packer.quantizers.quantize import quantize

from benchmarks.seeded import state_dict
from packer.artifact.encoder import encode_tensor

FORMATS = (
    *("int8.row", "int6.row", "int6.row+kstd@12.85", "int5.row", "int4.row", "ternary.row"),
    *("int8.tensor+kstd@25", "int8.tensor+kstd@50", "int8.tensor+kstd@100", "fp16", "bf16"),
)
CODERS = ("ans", "brotli", "zstd", "lzma", "zlib")
OUTPUT = Path(__file__).with_name("sizes.csv")


def order0_bytes(quantized: QuantizedTensor) -> float:
    """Empirical entropy of the codes, or of each byte plane of a passthrough."""
    codes = quantized.codes.numpy()
    planes = codes.T if codes.dtype == np.uint8 else [codes]
    total = 0.0
    for plane in planes:
        counts = np.unique(plane, return_counts=True)[1]
        total += float((counts * np.log2(plane.size / counts)).sum() / 8)
    return total


def rows(weights: dict[str, torch.Tensor]) -> list[tuple[str, str, int, str, str]]:
    """(format, coder, bytes, bits per weight, percent over order-0 entropy)."""
    elements = sum(weight.numel() for weight in weights.values())
    found = []
    for text in FORMATS:
        quantized = [quantize(weight, parse_choice(text)) for weight in weights.values()]
        entropy = sum(order0_bytes(one) for one in quantized)
        for coder in CODERS:
            encoded = [encode_tensor(one, coder) for one in quantized]
            total = sum(one.size_bytes for one in encoded)
            payload = sum(one.payload_bytes for one in encoded)
            over = f"{100 * (payload / entropy - 1):+.2f}"
            found.append((text, coder, total, f"{8 * total / elements:.4f}", over))
    return found


def main() -> None:
    torch.set_num_threads(1)
    weights = state_dict(layers=2, width=256)
    matrices = {name: weight for name, weight in weights.items() if weight.numel() >= 1 << 16}
    with OUTPUT.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("format", "coder", "bytes", "bits_per_weight", "percent_over_order0"))
        writer.writerows(rows(matrices))
    print(OUTPUT.read_text())


if __name__ == "__main__":
    main()
