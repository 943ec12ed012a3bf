"""What a tensor with curvature is offered: the ways of rounding that pay, over a grid of steps."""

from __future__ import annotations

import math

import torch

from packer.artifact import encode_tensor
from packer.predicted_damage import predicted_nats
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import STEPPED
from packer.quantizers.quantize import dequantize, quantize

# Mean steps in units of the rms weight, four an octave: from nearly lossless to nearly nothing.
MEAN_STEPS = tuple(0.05 * 2 ** (i / 4) for i in range(27))
# Ways are compared at a fine and at a coarse step, each for the half of the grid around it.
PROBES = (0.3, 1.0)
HALVES = 0.55
# A trellis takes long to search: three an octave, where models are useful. Its steps are finer than
# those of equal damage without one.
TRELLIS_STEPS = tuple(0.13 * 2 ** (i / 3) for i in range(13))
FINER = 0.62


def curved_choices(
    weight: torch.Tensor, curvature: Curvature, trellis: bool = False
) -> tuple[Choice, ...]:
    """Every step of the grid, in the format whose degrees of freedom pay for themselves.

    trellis: the same on a trellis too, by steps further apart.
    """
    fine, coarse = (_best_stepped(weight, curvature, probe) for probe in PROBES)
    ways = [(fine if step < HALVES else coarse, step) for step in MEAN_STEPS]
    if trellis:
        ways += [
            ((fine if step < HALVES else coarse).replace("step", "trellis", 1), FINER * step)
            for step in TRELLIS_STEPS
        ]
    return tuple(parse_choice(f"{way}@{step:.3g}") for way, step in ways)


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
