"""The grid of steps: 8 to the octave, each an entry of a table of mantissas times a power of two.

A step is stored as its index k: MANTISSAS[k mod 8] · 2^(⌊k / 8⌋ - 23), exact in float32, so that
every machine has the same step without ever taking a power of a float. Like dequantize.py this file
is part of the shipped loader and uses nothing but numpy and torch.
"""

import numpy as np
import torch

# 2^(23 + i/8) to the nearest integer.
MANTISSAS = (8388608, 9147842, 9975792, 10878679, 11863283, 12937002, 14107901, 15384775)
PER_OCTAVE = 8
# Two steps of the smallest index still multiply to a normal float32, and two of the largest times
# a code to a finite one.
SMALLEST_INDEX, LARGEST_INDEX = -384, 383
MAX_SHRINK = 127  # in 256ths of a step


def step_values(indices: np.ndarray) -> np.ndarray:
    """float32 [count] of integer indices [count] between the smallest and the largest."""
    mantissas = np.array(MANTISSAS, dtype=np.float32)[indices % PER_OCTAVE]
    steps: np.ndarray = np.ldexp(mantissas, (indices // PER_OCTAVE - 23).astype(np.int32))
    return steps


def steps_of(indices: np.ndarray) -> torch.Tensor:
    """`step_values` as a tensor."""
    return torch.from_numpy(step_values(indices))


def nearest_indices(steps: torch.Tensor, stride: int = 1) -> np.ndarray:
    """int64 [count]: the nearest multiples of `stride`, in logarithms, to steps [count] above 0."""
    smallest = 2.0 ** (SMALLEST_INDEX // PER_OCTAVE)
    logs = PER_OCTAVE * torch.log2(steps.double().clamp(min=smallest)) / stride
    indices = logs.round().long() * stride
    lowest = -(-SMALLEST_INDEX // stride) * stride
    return indices.clamp(lowest, LARGEST_INDEX // stride * stride).numpy()


def on_grid(steps: torch.Tensor) -> bool:
    """Whether steps [count] are float32 entries of the grid."""
    if steps.dtype != torch.float32 or not bool((torch.isfinite(steps) & (steps > 0)).all()):
        return False
    return torch.equal(steps_of(nearest_indices(steps)), steps)
