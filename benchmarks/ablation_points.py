"""Matrices quantized with some parts of the method: their bits, and the damage they do."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from unittest import mock

import brotli
import numpy as np
import torch
from packer.quantizers import stepping, trellis
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import QuantizedTensor, Stepped
from packer.quantizers.quantize import dequantize, quantize
from packer.quantizers.rounding import factorize
from packer.quantizers.stepping import FISHER_POWER, row_curvature
from packer.quantizers.trellis_path import code_states, symbols_of

from benchmarks.ablation_ways import SIZE_ONLY, Way
from packer.artifact import context_classes
from packer.artifact.encoder import encode_tensor
from packer.planning.predicted_damage import predicted_nats

FINER = 0.6  # steps of the trellis, for about the same damage

Meter = Callable[[Mapping[str, torch.Tensor]], float]


@dataclass(frozen=True, eq=False)
class Quantized:
    """Tensors by name; the predicted damage in nats."""

    tensors: Mapping[str, QuantizedTensor]
    nats: float

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: dequantize(one) for name, one in self.tensors.items()}


@dataclass
class Bench:
    """Weights and curvature by name; remembers what the latest parts gave, by multiplier."""

    weights: Mapping[str, torch.Tensor]
    curvature: Mapping[str, Curvature]
    meter: Meter | None
    _parts: Way | None = None
    _points: dict[float, Quantized] = field(default_factory=dict)
    _kls: dict[float, float] = field(default_factory=dict)
    _bits: dict[tuple[Way, float], float] = field(default_factory=dict)
    _pays: dict[Way, frozenset[str]] = field(default_factory=dict)

    def at(self, way: Way, c: float) -> Quantized:
        """The tensors at the multiplier c: √(24 · the damage of a weight in nats)."""
        if way - SIZE_ONLY != self._parts:
            self._parts, self._points, self._kls = way - SIZE_ONLY, {}, {}
        if c not in self._points:
            with _switched_off(way):
                self._points[c] = self._quantized(way, c)
        return self._points[c]

    def kl(self, way: Way, c: float) -> float:
        """Measured, in bits per byte."""
        assert self.meter is not None
        found = self.at(way, c)
        if c not in self._kls:
            self._kls[c] = self.meter(found.weights())
        return self._kls[c]

    def bits(self, way: Way, c: float) -> float:
        """A weight, of real blocks, side values and all."""
        if (way, c) not in self._bits:
            tensors = self.at(way, c).tensors.values()
            with _switched_off(way):
                size = sum(_size(one, way) for one in tensors)
            elements = sum(weight.numel() for weight in self.weights.values())
            self._bits[way, c] = 8 * size / elements
        return self._bits[way, c]

    def _quantized(self, way: Way, c: float) -> Quantized:
        steps = {name: c * self._unit(name, way) for name in self.weights}
        if "tensors" not in way:
            steps = dict.fromkeys(steps, math.exp(np.mean(np.log(list(steps.values())))))
        ascending = self._ascending(way, steps) if "order" in way else frozenset()
        tensors, nats = {}, 0.0
        for name, step in steps.items():
            finer = FINER * step if "trellis" in way else step
            order = "+ascending" if name in ascending else ""
            tensors[name], damage = self._one(name, self._spelled(name, way, order), finer)
            nats += damage
        return Quantized(tensors, nats)

    def _ascending(self, way: Way, steps: Mapping[str, float]) -> frozenset[str]:
        """Tensors that take fewer bits at equal damage with ascending columns, on scalar codes."""
        scalar = way - {"trellis", "rate"} - SIZE_ONLY
        if scalar not in self._pays:
            self._pays[scalar] = frozenset(
                name
                for name, step in steps.items()
                if self._cost(name, self._spelled(name, scalar, "+ascending"), step)
                < self._cost(name, self._spelled(name, scalar, ""), step)
            )
        return self._pays[scalar]

    def _cost(self, name: str, spelled: str, step: float) -> float:
        """Bits at equal damage, up to a constant, as the packer ranks rounding variants."""
        quantized, nats = self._one(name, spelled, step)
        bits = 8 * encode_tensor(quantized).size_bytes
        return bits + self.weights[name].numel() * math.log2(max(nats, 1e-30)) / 2

    def _one(self, name: str, spelled: str, step: float) -> tuple[QuantizedTensor, float]:
        weight, curvature = self.weights[name], self.curvature[name]
        quantized = quantize(weight, parse_choice(f"{spelled}@{step:.6g}"), curvature)
        change = dequantize(quantized).float() - weight.float()
        return quantized, predicted_nats(curvature, change) or 0.0

    def _spelled(self, name: str, way: Way, order: str) -> str:
        text = "trellis" if "trellis" in way else "step"
        text += ".row" * ("rows" in way) + ".col" * ("columns" in way)
        return f"{text}{order}+{'gptq2' if self._two_sided(name, way) else 'gptq'}"

    def _two_sided(self, name: str, way: Way) -> bool:
        return "two-sided" in way and self.curvature[name].outputs is not None

    def _unit(self, name: str, way: Way) -> float:
        """The mean step at which the weights cost 1/24 nat each in the mean, in units of the rms
        weight: rounding costs (step / (U V))² / 24, U of the column and V of the row.
        """
        curvature = self.curvature[name]
        hessian = curvature.rounding_hessian
        columns = _pivots(hessian if hessian.dim() == 3 else hessian[None])
        rows = row_curvature(curvature).double().rsqrt()
        if self._two_sided(name, way):
            assert curvature.row_factors is not None
            rows = _pivots(curvature.row_factors)
        total = _mean_step(columns, 1.0 if "columns" in way else 0.0)
        total += _mean_step(rows, FISHER_POWER if "rows" in way else 0.0)
        return math.exp(total) / float(self.weights[name].float().square().mean().sqrt())


def _pivots(moments: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    factors = [factorize(one).upper for one in moments]
    return torch.cat([one.diagonal().double() for one in factors if one is not None])


def _mean_step(pivots: torch.Tensor, power: float) -> float:
    """The log of the mean step of an axis whose steps follow its pivots to a power, where
    (step / pivot)² is 1 in the mean.
    """
    logs = pivots.log()
    steps = power * (logs - logs.mean())
    return -float((2 * (steps - logs)).exp().mean().log()) / 2


@contextlib.contextmanager
def _switched_off(way: Way) -> Iterator[None]:
    """Without what no choice can leave out."""
    with contextlib.ExitStack() as stack:
        if "rate" not in way:
            stack.enter_context(mock.patch.object(trellis, "EAGERNESS", 0.0))
        if "points" not in way:
            stack.enter_context(mock.patch.object(stepping, "_shrink", lambda *_: 0))
        if "refined" not in way:
            stack.enter_context(mock.patch.object(context_classes, "_SMALLEST_REFINED", math.inf))
        yield


def _size(quantized: QuantizedTensor, way: Way) -> float:
    """Bytes of a block, of which the way decides how codes and steps are written."""
    encoded = encode_tensor(quantized)
    codes, side = encoded.payload_bytes, encoded.side_bytes
    if "coder" not in way:
        codes = _under_brotli(quantized)
    if "coded" not in way:
        side = 2 * sum(
            len(quantized.side[name]) for name in ("row", "column") if name in quantized.side
        )
    framing = len(encoded.block) - encoded.side_bytes - encoded.payload_bytes
    return framing + codes + side


def _under_brotli(quantized: QuantizedTensor) -> int:
    """The codes, or their symbols on the trellis, as bytes under brotli-11."""
    codes = quantized.codes.numpy()
    if isinstance(quantized.format, Stepped) and quantized.format.trellis:
        codes = symbols_of(codes, code_states(codes)[:-1])
    narrow = codes.astype(np.int8 if np.abs(codes).max() < 128 else np.int16)
    return len(brotli.compress(narrow.tobytes(), quality=11, lgwin=24))
