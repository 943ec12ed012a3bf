"""A row of benchmarks/ablation.csv, and what it says of a part."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Bits per weight of a way at the predicted damage, bits per byte, and at the measured KL."""

    checkpoint: str
    weights: int
    way: str
    predicted: float
    bits_at_predicted: float
    kl: float | None
    bits_at_kl: float | None


@dataclass(frozen=True)
class Worth:
    """Percent of the bits of what is there besides. removed: more bits without the part; alone:
    fewer bits with it.
    """

    label: str
    removed: float
    alone: float
