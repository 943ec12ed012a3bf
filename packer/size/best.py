"""The size of a model that ends with the fewest bits per byte, given a cap and a training time.

A larger model is trained on fewer tokens and stored in fewer bits a weight. Its loss after training
is that of a fitted law (`packer.size.loss_fit`); rounding adds to it what falls fourfold with every
bit, as the damage of fine uniform steps does: damage = scale · 4^-bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packer.errors import PackerError
from packer.size.loss_fit import LossFit

FEWEST_BITS = 1.0  # a weight: below it the law of damage says nothing
NOT_BINDING = 0.001  # bits per byte that an unlimited file would gain, at most, where no cap binds


@dataclass(frozen=True)
class Speed:
    """Seconds that training takes: of each token, and of each token and weight."""

    fixed: float
    per_weight: float

    def seconds_per_token(self, weights: int) -> float:
        return self.fixed + self.per_weight * weights

    def tokens(self, weights: int, seconds: float) -> float:
        return seconds / self.seconds_per_token(weights)


@dataclass(frozen=True)
class Shape:
    """A size that could be trained."""

    layers: int
    width: int
    weights: int


@dataclass(frozen=True)
class Storage:
    """How a recipe stores models. damage_scale: bits per byte that rounding would cost at 0 bits.

    code_bytes: the loader's. finest: artifact bytes of each size that it takes at most.
    """

    damage_scale: float
    code_bytes: int
    finest: Mapping[Shape, int]

    def artifact_bytes(self, shape: Shape, cap_bytes: float) -> float:
        """What fills the cap, or the finest."""
        return min(cap_bytes - self.code_bytes, self.finest[shape])

    def bits(self, shape: Shape, cap_bytes: float) -> float:
        """Bits a weight, everything in the artifact counted."""
        return 8 * self.artifact_bytes(shape, cap_bytes) / shape.weights

    def damage(self, bits: float) -> float:
        """Bits per byte."""
        return float(self.damage_scale * 4.0**-bits)


@dataclass(frozen=True)
class Proposal:
    """A size with what is predicted of it. stderr: of bits_per_byte."""

    shape: Shape
    tokens: float
    bits: float
    total_bytes: int
    trained: float
    damage: float
    stderr: float

    @property
    def bits_per_byte(self) -> float:
        """Through the file."""
        return self.trained + self.damage


def damage_scale(bits: float, damage: float) -> float:
    """Of `Storage`, from one measurement: bits a weight, and what rounding cost at them."""
    return float(max(damage, 1e-5) * 4.0**bits)


def proposals(
    shapes: Sequence[Shape],
    fit: LossFit,
    speed: Speed,
    seconds: float,
    storage: Storage,
    cap_bytes: float = math.inf,
) -> list[Proposal]:
    """Every size that fits, the best first.

    seconds: of training. Raises PackerError: no size fits, with the smallest cap that would do.
    """
    fitting = [s for s in shapes if storage.bits(s, cap_bytes) >= FEWEST_BITS]
    if not fitting:
        least = min(shape.weights for shape in shapes)
        needed = math.ceil(storage.code_bytes + least * FEWEST_BITS / 8)
        raise PackerError(
            f"no size fits under {cap_bytes:,.0f} bytes: the smallest has {least:,} weights, which "
            f"take {needed:,} bytes at {FEWEST_BITS:g} bit a weight; raise the cap or give a "
            "narrower CONFIG"
        )
    found = [_proposal(s, fit, speed, seconds, storage, cap_bytes) for s in fitting]
    return sorted(found, key=lambda one: one.bits_per_byte)


def _proposal(
    shape: Shape, fit: LossFit, speed: Speed, seconds: float, storage: Storage, cap_bytes: float
) -> Proposal:
    tokens = speed.tokens(shape.weights, seconds)
    bits = storage.bits(shape, cap_bytes)
    trained, stderr = fit.at(shape.weights, tokens)
    total = round(storage.code_bytes + storage.artifact_bytes(shape, cap_bytes))
    return Proposal(shape, tokens, bits, total, trained, storage.damage(bits), stderr)


def cost_of_cap(best: Proposal, unlimited: Proposal) -> float:
    """Bits per byte that the cap costs: the best size under it against the best of all."""
    return best.bits_per_byte - unlimited.bits_per_byte
