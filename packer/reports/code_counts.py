"""Code histograms of an artifact's most coarsely quantized tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from packer.quantizers.formats import Passthrough, QuantizedTensor
from packer.reports.report import Report, TensorRow
from packer.reports.report_data import CodeHistogram

SHOWN = 6
SMALLEST = 4096  # weights; smaller tensors have too few codes for a distribution


def coarsest(report: Report) -> list[TensorRow]:
    """The tensors with the fewest bits per weight, fewest first."""
    rows = [row for row in report.rows if row.elements >= SMALLEST and row.size_bytes]
    return sorted(rows, key=lambda row: (row.bits_per_weight or 0.0, row.name))


def histograms_of(
    rows: Iterable[TensorRow], codes: Iterable[QuantizedTensor]
) -> tuple[CodeHistogram, ...]:
    """Histograms of the first six quantized tensors. rows, codes: in the same order."""
    histograms: list[CodeHistogram] = []
    for row, quantized in zip(rows, codes, strict=False):
        if not isinstance(quantized.format, Passthrough) and quantized.codes.numel():
            histograms.append(histogram(row, quantized))
        if len(histograms) == SHOWN:
            break
    return tuple(histograms)


def histogram(row: TensorRow, quantized: QuantizedTensor) -> CodeHistogram:
    """How often each code between the smallest and the largest occurs."""
    codes = quantized.codes.reshape(-1).int()
    first = int(codes.min())
    counts = torch.bincount(codes - first).tolist()
    total = codes.numel()
    entropy = -sum(n / total * math.log2(n / total) for n in counts if n)
    bits = row.bits_per_weight or 0.0
    return CodeHistogram(
        row.name, str(quantized.format), first, tuple(counts), max(entropy, 0.0), bits
    )
