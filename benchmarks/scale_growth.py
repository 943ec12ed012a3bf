"""How the seconds and bytes of benchmarks.scale grow, and what a far larger model would need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.scale_rows import Row

# A model of 7 B parameters: 32 layers of width 4,096, MLPs of 11,008 with a gate, 32,000 tokens.
LAYERS, WIDTH, HIDDEN, VOCABULARY = 32, 4096, 11_008, 32_000
SEVEN_BILLION = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN) + 2 * VOCABULARY * WIDTH
# Second moments of inputs: of q, k, v, o, gate and up, of down, and of embedding and head. Those of
# outputs are not kept at this width.
MOMENTS = LAYERS * (6 * WIDTH**2 + HIDDEN**2) + 2 * WIDTH**2


def growth(rows: Sequence[Row]) -> Iterator[str]:
    """A line for every step that several sizes went through: how seconds grow, and memory.

    The seconds of the same step on a tiny checkpoint are taken off; the power is the slope of the
    rest against parameters, both in logarithms.
    """
    for calibrated, step, chosen in _by_step(rows):
        if len({row.parameters for row in chosen}) < 2:
            continue
        spent = [max(row.cpu_seconds - row.start_seconds, 0.01) for row in chosen]
        power = slope(
            [math.log(row.parameters) for row in chosen], [math.log(one) for one in spent]
        )
        yield (
            f"{step}{' with curvature' * calibrated}: processor seconds a million parameters "
            f"{', '.join(f'{_rate(row) * 1e6:.2f}' for row in chosen)}; grows as parameters^"
            f"{power:.2f}; peak MB {', '.join(f'{row.peak_bytes / 1e6:.0f}' for row in chosen)}"
        )


def seven_billion(rows: Sequence[Row]) -> Iterator[str]:
    """What 7 B parameters would take at the rates of the largest checkpoint without curvature."""
    for calibrated, step, chosen in _by_step(rows):
        if calibrated:
            continue
        largest = max(chosen, key=lambda row: row.parameters)
        beyond = (largest.peak_bytes - largest.start_peak_bytes) / largest.largest_tensor_bytes
        yield (
            f"7 B, {step}: {SEVEN_BILLION * _rate(largest) / 3600:.2f} processor hours; peak "
            f"beyond the start {beyond:.1f} times the largest tensor as float32"
        )
    yield (
        f"7 B: {SEVEN_BILLION:,} parameters, {2 * SEVEN_BILLION / 1e9:.1f} GB as bfloat16; its "
        f"largest tensor {4 * max(VOCABULARY * WIDTH, WIDTH * HIDDEN) / 1e6:,.0f} MB as float32; "
        f"curvature {4 * MOMENTS / 1e9:.1f} GB on disk, {8 * MOMENTS / 1e9:.1f} GB in memory while "
        "it is summed"
    )


def _by_step(rows: Sequence[Row]) -> Iterator[tuple[bool, str, list[Row]]]:
    for calibrated in (False, True):
        for step in dict.fromkeys(row.step for row in rows):
            chosen = [row for row in rows if (row.curvature, row.step) == (calibrated, step)]
            if chosen:
                yield calibrated, step, sorted(chosen, key=lambda row: row.parameters)


def _rate(row: Row) -> float:
    """Processor seconds a parameter, without those of the start."""
    return max(row.cpu_seconds - row.start_seconds, 0.01) / row.parameters


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the line of least squares."""
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - x_mean) ** 2 for x in xs)
