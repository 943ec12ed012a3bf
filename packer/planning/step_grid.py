"""The step grid: candidates of a tensor with curvature, in the best rounding variants."""

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

# Mean steps in units of the rms weight, from nearly lossless to nearly nothing; docs/planner.md
# (Candidates) has the ranges and numbers of steps.
FINEST, OCTAVES = 0.05, 6.5
# Trellis search is slow, so only where models are useful. docs/methods.md (Codes on a trellis): 0.6
# of a scalar step does about the same damage.
FINEST_ON_TRELLIS, OCTAVES_ON_TRELLIS = 0.03, 5.25
FINER = 0.62
# Rounding variants are compared at a fine and a coarse step, each for its half of the grid.
PROBES = (0.3, 1.0)
HALVES = 0.55


@dataclass(frozen=True)
class StepGrid:
    """Approximate number of steps per octave, for scalar codes and on a trellis. wide: whether
    formats of more bits than the finest step takes are measured too.
    """

    scalar: float
    trellis: float
    wide: bool = True


# docs/planner.md (Candidates): 5 steps, refined, predict about as little damage as 13.
DENSE = StepGrid(4, 3)  # for plans under any cap
SPARSE = StepGrid(0.6, 1, wide=False)  # for a plan that is refined


@dataclass(frozen=True)
class Variants:
    """Formats and roundings, such as step.row.col+gptq2, for fine and for coarse steps."""

    fine: str
    coarse: str

    def suit(self, curvature: Curvature) -> bool:
        """Whether the curvature has what they need."""
        texts = self.fine + self.coarse
        return (curvature.outputs is not None or "gptq2" not in texts) and (
            curvature.fisher is not None or "row" not in texts
        )


def best_variants(weight: torch.Tensor, curvature: Curvature) -> Variants:
    """Those that cost least at two probed steps."""
    return Variants(*(_best_stepped(weight, curvature, probe) for probe in PROBES))


def step_choices(
    weight: torch.Tensor,
    curvature: Curvature,
    trellis: bool = False,
    grid: StepGrid = DENSE,
    variants: Variants | None = None,
) -> tuple[Choice, ...]:
    """A choice for every step of the grid, in the format and rounding that cost least.

    trellis: also on a trellis, which nearly always wins, so that there are fewer scalar steps.
    variants: of a tensor much like this one; probed here where there are none that suit.
    """
    if variants is None or not variants.suit(curvature):
        variants = best_variants(weight, curvature)
    fine, coarse = variants.fine, variants.coarse
    per_octave = grid.trellis / 2 if trellis else grid.scalar
    choices = [
        (fine if step < HALVES else coarse, step) for step in _steps(FINEST, OCTAVES, per_octave)
    ]
    if trellis:
        choices += [
            ((fine if step < HALVES * FINER else coarse).replace("step", "trellis", 1), step)
            for step in _steps(FINEST_ON_TRELLIS, OCTAVES_ON_TRELLIS, grid.trellis)
        ]
    return tuple(parse_choice(f"{variant}@{step:.3g}") for variant, step in choices)


def _steps(finest: float, octaves: float, per_octave: float) -> tuple[float, ...]:
    parts = round(octaves * per_octave)
    return tuple(finest * 2 ** (octaves * i / parts) for i in range(parts + 1))


def _best_stepped(weight: torch.Tensor, curvature: Curvature, step: float) -> str:
    """The stepped format and rounding of least cost; formats are compared first, the order of
    columns last and for the best variant only.
    """
    formats = [name for name in STEPPED if curvature.fisher is not None or "row" not in name]
    variants = [f"{name}+gptq" for name in formats]
    costs = {variant: _cost(weight, curvature, f"{variant}@{step}") for variant in variants}
    if curvature.outputs is not None:
        best = min(costs, key=lambda variant: costs[variant])
        for name in {best.removesuffix("+gptq"), "step.row.col"}:
            costs[f"{name}+gptq2"] = _cost(weight, curvature, f"{name}+gptq2@{step}")
    best = min(costs, key=lambda variant: (costs[variant], variant))
    ascending = best.replace("+", "+ascending+")
    pays = _cost(weight, curvature, f"{ascending}@{step}") < costs[best]
    return ascending if pays else best


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
