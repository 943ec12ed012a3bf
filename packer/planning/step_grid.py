"""What a tensor with curvature is offered: the ways of rounding that pay, over a grid of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from packer.artifact.encoder import encode_tensor
from packer.planning.predicted_damage import predicted_nats
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import STEPPED
from packer.quantizers.quantize import dequantize, quantize

# Mean steps in units of the rms weight: from nearly lossless to nearly nothing.
FINEST, OCTAVES = 0.05, 6.5
# Where models are useful: a trellis takes long to search. Its steps are finer than those of equal
# damage without one.
FINEST_ON_TRELLIS, OCTAVES_ON_TRELLIS = 0.03, 5.25
FINER = 0.62
# Ways are compared at a fine and at a coarse step, each for the half of the grid around it.
PROBES = (0.3, 1.0)
HALVES = 0.55


@dataclass(frozen=True)
class StepGrid:
    """About how many steps an octave are measured, without a trellis and on one."""

    scalar: float
    trellis: float


DENSE = StepGrid(4, 3)  # for plans under any cap
SPARSE = StepGrid(1.5, 1)  # for a plan that is refined


def step_choices(
    weight: torch.Tensor, curvature: Curvature, trellis: bool = False, grid: StepGrid = DENSE
) -> tuple[Choice, ...]:
    """Every step of the grid, in the format whose degrees of freedom pay for themselves.

    trellis: the same on a trellis too, which nearly always wins: without it few steps then.
    """
    fine, coarse = (_best_stepped(weight, curvature, probe) for probe in PROBES)
    an_octave = grid.trellis / 2 if trellis else grid.scalar
    ways = [
        (fine if step < HALVES else coarse, step) for step in _steps(FINEST, OCTAVES, an_octave)
    ]
    if trellis:
        ways += [
            ((fine if step < HALVES * FINER else coarse).replace("step", "trellis", 1), step)
            for step in _steps(FINEST_ON_TRELLIS, OCTAVES_ON_TRELLIS, grid.trellis)
        ]
    return tuple(parse_choice(f"{way}@{step:.3g}") for way, step in ways)


def _steps(finest: float, octaves: float, an_octave: float) -> tuple[float, ...]:
    parts = round(octaves * an_octave)
    return tuple(finest * 2 ** (octaves * i / parts) for i in range(parts + 1))


def _best_stepped(weight: torch.Tensor, curvature: Curvature, step: float) -> str:
    """The stepped format and rounding of least cost; formats are compared first, the order of
    columns last, in the best way only.
    """
    formats = [name for name in STEPPED if curvature.fisher is not None or "row" not in name]
    ways = [f"{name}+gptq" for name in formats]
    found = {way: _cost(weight, curvature, f"{way}@{step}") for way in ways}
    if curvature.outputs is not None:
        best = min(found, key=lambda way: found[way])
        for name in {best.removesuffix("+gptq"), "step.row.col"}:
            found[f"{name}+gptq2"] = _cost(weight, curvature, f"{name}+gptq2@{step}")
    way = min(found, key=lambda way: (found[way], way))
    ascending = way.replace("+", "+ascending+")
    pays = _cost(weight, curvature, f"{ascending}@{step}") < found[way]
    return ascending if pays else way


def _cost(weight: torch.Tensor, curvature: Curvature, choice: str) -> float:
    """Bits at equal damage, up to a constant: a step twice as small costs a bit a weight and leaves
    a quarter of the damage, so half the logarithm of the damage is worth as many bits.
    """
    quantized = quantize(weight, parse_choice(choice), curvature)
    change = dequantize(quantized).float() - weight.float()
    nats = predicted_nats(curvature, change)
    if nats is None:
        nats = float(change.square().sum())
    bits = 8 * encode_tensor(quantized).size_bytes
    return bits + weight.numel() * math.log2(max(nats, 1e-30)) / 2
