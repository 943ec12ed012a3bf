"""What may be tuned in a stored tensor while its codes stay: values, scales, reconstruction points.

The forward value is always what the file would hold, to the bit; its gradient is that of the smooth
function behind the rounding (straight through).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from packer.quantizers.clip import nearest_codes
from packer.quantizers.dequantize import dequantize_low_rank, dequantize_scaled
from packer.quantizers.formats import (
    PASSTHROUGH_DTYPES,
    LowRank,
    Passthrough,
    QuantizedTensor,
    Stepped,
    Uniform,
    element_count,
    row_shape,
)
from packer.quantizers.quantize import dequantize, quantizable
from packer.quantizers.step_grid import MAX_SHRINK

# A tensor of fewer weights in a fine integer format is a set of norms, gates or scales: its codes
# are as good as values, and are rounded anew. One of more floats is a matrix or a table kept exact.
FEWEST_CODES, FINE_BITS = 4096, 6
TUNED_SIDES = ("scale", "shrink")  # side values that move; steps and corrections do not
MOST_FLOATS = 1 << 16
SHRINK_UNITS = 256  # to a step


class Tuned(ABC):
    """A stored tensor and its free numbers.

    free: float32, the start at 0, about 1 where everything has changed; what an optimizer moves.
    """

    def __init__(self, quantized: QuantizedTensor, count: int | tuple[int, ...]) -> None:
        self.quantized = quantized
        self.free = torch.zeros(count, requires_grad=True)

    @abstractmethod
    def stored(self) -> QuantizedTensor:
        """The tensor with its numbers as they are, on the grid that the file has for them."""

    @abstractmethod
    def smooth(self) -> Tensor:
        """The weights without rounding, for their gradient."""

    def weights(self) -> Tensor:
        """As decoded from `stored`, and with the gradient of `smooth`."""
        with torch.no_grad():
            exact = dequantize(self.stored())
        smooth = self.smooth()
        return exact + (smooth - smooth.detach()).to(exact.dtype)


class TunedValues(Tuned):
    """Every value of a tensor of floats, or of few integers; moves count in its rms."""

    def __init__(self, quantized: QuantizedTensor) -> None:
        super().__init__(quantized, quantized.shape)
        self.start = dequantize(quantized).double()
        self.size = float(self.start.square().mean().sqrt()) or 1.0

    def smooth(self) -> Tensor:
        return self.start + self.size * self.free

    def stored(self) -> QuantizedTensor:
        old = self.quantized
        values = self.smooth().detach()
        if isinstance(old.format, Passthrough):
            dtype = PASSTHROUGH_DTYPES.get(str(old.format), old.dtype)
            limit = torch.finfo(dtype).max
            flat = values.to(old.dtype).clamp(-limit, limit).to(dtype).reshape(-1)
            return replace(old, codes=flat.view(torch.uint8).reshape(-1, dtype.itemsize))
        assert not isinstance(old.format, Stepped)
        rows = values.reshape(row_shape(old.shape))
        scale = old.side["scale"].float().expand(len(rows))
        codes = nearest_codes(rows, scale, old.format.code_min, old.format.code_max)
        return replace(old, codes=codes.to(torch.int8))


class TunedScales(Tuned):
    """The scales of an integer or ternary format, in octaves."""

    def __init__(self, quantized: QuantizedTensor) -> None:
        super().__init__(quantized, tuple(quantized.side["scale"].shape))

    def _scale(self) -> Tensor:
        return self.quantized.side["scale"].float() * torch.exp2(self.free)

    def smooth(self) -> Tensor:
        old = self.quantized
        if isinstance(old.format, LowRank):
            factors = {name: values for name, values in old.side.items() if name != "scale"}
            return dequantize_low_rank(
                old.codes, self._scale(), **factors, shape=old.shape, dtype=torch.float32
            )
        return dequantize_scaled(old.codes, self._scale(), old.shape, torch.float32)

    def stored(self) -> QuantizedTensor:
        before = self.quantized.side["scale"]
        scale = self._scale().detach().to(before.dtype)
        scale = torch.where(scale.isfinite(), scale, before)
        return replace(self.quantized, side={**self.quantized.side, "scale": scale})


class TunedPoints(Tuned):
    """How far the codes of a stepped format lie towards zero, in steps."""

    def __init__(self, quantized: QuantizedTensor) -> None:
        super().__init__(quantized, 1)
        side = quantized.side
        codes = quantized.codes.float()
        share = torch.tensor([0.0, 1.0, 0.5, 0.25])[codes.abs().clamp(max=3).long()]
        self.slope = -codes.sign() * share * side["row"][:, None] * side.get("column", 1.0)
        self.start = int(side["shrink"]) / SHRINK_UNITS

    def smooth(self) -> Tensor:
        return (self.slope * self.free).reshape(self.quantized.shape)

    def stored(self) -> QuantizedTensor:
        wanted = SHRINK_UNITS * (self.start + float(self.free.detach()))
        shrink = torch.tensor([min(max(round(wanted), 0), MAX_SHRINK)], dtype=torch.uint8)
        return replace(self.quantized, side={**self.quantized.side, "shrink": shrink})


def tuned(quantized: QuantizedTensor) -> Tuned | None:
    """What is free in a stored tensor; None where nothing is, such as in integers."""
    if not _of_floats(quantized):
        return None
    if holds_values(quantized):
        return TunedValues(quantized)
    if isinstance(quantized.format, Stepped):
        return TunedPoints(quantized)
    return None if isinstance(quantized.format, Passthrough) else TunedScales(quantized)


def holds_values(quantized: QuantizedTensor) -> bool:
    """Whether its very codes are tuned: floats, and few codes of a fine integer format."""
    if not _of_floats(quantized):
        return False
    count = element_count(quantized.shape)
    if isinstance(quantized.format, Passthrough):
        return count < MOST_FLOATS
    fine = isinstance(quantized.format, Uniform) and quantized.format.bits >= FINE_BITS
    return fine and count < FEWEST_CODES


def _of_floats(quantized: QuantizedTensor) -> bool:
    return quantizable(torch.empty(quantized.shape, dtype=quantized.dtype, device="meta"))
