"""Sums over blocks of scored tokens, and standard errors from them.

Neighbouring tokens are far from independent; passages of `BLOCK` tokens nearly are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 2048  # scored tokens


class BlockSums:
    """Adds up values of consecutive targets, block by block, in float64."""

    def __init__(self, targets: int) -> None:
        self.sums: NDArray[np.float64] = np.zeros(-(-targets // BLOCK), dtype=np.float64)

    def add(self, first: int, values: NDArray[Any]) -> None:
        """Add values [n] of targets first ... first + n - 1."""
        block = first // BLOCK
        index = np.arange(first, first + len(values)) // BLOCK - block
        part = np.bincount(index, weights=values)
        self.sums[block : block + len(part)] += part


def ratio_stderr(values: NDArray[np.float64], weights: NDArray[Any]) -> float | None:
    """Standard error of sum(values) / sum(weights) over independent blocks.

    The usual linearization for a ratio of sums: the spread of values - ratio * weights (Cochran,
    Sampling Techniques, 1977, 2.11). Blocks without weight do not count.

    Args:
        values, weights: [blocks].

    Returns:
        None with fewer than two blocks.
    """
    used = weights > 0
    values, weights = values[used], weights[used]
    if len(values) < 2:
        return None
    total = float(weights.sum())
    residuals = values - math.fsum(values) / total * weights
    blocks = len(values)
    return math.sqrt(blocks / (blocks - 1) * float(residuals @ residuals)) / total
