"""Which stepped format and rounding a tensor is offered, and its grid of steps."""

from __future__ import annotations

import math

import torch

from packer.artifact import encode_tensor
from packer.predicted_damage import predicted_nats
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import STEPPED
from packer.quantizers.quantize import dequantize, quantize
from packer.threads import one_torch_thread

# Mean steps in units of the rms weight, four an octave: from nearly lossless to nearly nothing.
MEAN_STEPS = tuple(0.05 * 2 ** (i / 4) for i in range(27))
# Ways are compared at a fine and at a coarse step, each for the half of the grid around it.
PROBES = (0.3, 1.0)
HALVES = 0.55


def stepped_choices(weight: torch.Tensor, curvature: Curvature) -> tuple[Choice, ...]:
    """Every step of the grid, in the format whose degrees of freedom pay for themselves."""
    with one_torch_thread():
        fine, coarse = (_best_way(weight, curvature, probe) for probe in PROBES)
    ways = [(fine if step < HALVES else coarse, step) for step in MEAN_STEPS]
    return tuple(parse_choice(f"{way}@{step:.3g}") for way, step in ways)


def _best_way(weight: torch.Tensor, curvature: Curvature, step: float) -> str:
    """The format and rounding of least size at equal damage.

    Formats are compared first. A step twice as small costs a bit a weight and leaves a quarter of
    the damage, so half the logarithm of the damage is worth as many bits.
    """

    def worth(way: str) -> float:
        quantized = quantize(weight, parse_choice(f"{way}@{step}"), curvature)
        change = dequantize(quantized).float() - weight.float()
        nats = predicted_nats(curvature, change)
        if nats is None:
            nats = float(change.square().sum())
        bits = 8 * encode_tensor(quantized).size_bytes
        return bits + weight.numel() * math.log2(max(nats, 1e-30)) / 2

    formats = [name for name in STEPPED if curvature.fisher is not None or "row" not in name]
    found = {f"{name}+gptq": worth(f"{name}+gptq") for name in formats}
    if curvature.outputs is not None:
        best = min(found, key=lambda way: found[way])
        for name in {best.removesuffix("+gptq"), "step.row.col"}:
            found[f"{name}+gptq2"] = worth(f"{name}+gptq2")
    return min(found, key=lambda way: (found[way], way))
