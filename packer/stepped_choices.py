"""Which stepped format a tensor is offered, and its grid of steps."""

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

# Mean steps in units of the rms weight, five an octave: from nearly lossless to nearly nothing.
MEAN_STEPS = tuple(0.04 * 2 ** (i / 5) for i in range(38))
PROBE = 0.5  # the step at which formats are compared, in the middle of what is chosen


def stepped_choices(weight: torch.Tensor, curvature: Curvature) -> tuple[Choice, ...]:
    """Every step of the grid, in the format whose degrees of freedom pay for themselves."""
    format = _best_format(weight, curvature)
    return tuple(parse_choice(f"{format}+gptq@{step:.3g}") for step in MEAN_STEPS)


def _best_format(weight: torch.Tensor, curvature: Curvature) -> str:
    """The smallest at equal damage. A step twice as small costs a bit a weight and leaves a quarter
    of the damage, so half the logarithm of the damage is worth as many bits.
    """
    found = []
    with one_torch_thread():
        for format in STEPPED:
            if "row" in format and curvature.fisher is None:
                continue
            quantized = quantize(weight, parse_choice(f"{format}+gptq@{PROBE}"), curvature)
            change = dequantize(quantized).float() - weight.float()
            nats = predicted_nats(curvature, change)
            if nats is None:
                nats = float(change.square().sum())
            bits = 8 * encode_tensor(quantized).size_bytes
            found.append((bits + weight.numel() * math.log2(max(nats, 1e-30)) / 2, format))
    return min(found)[1]
