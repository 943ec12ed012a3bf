"""Damage without calibration data: squared weight errors with a weight per role."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from packer.budget.plan import Candidate
from packer.checkpoint.roles import Role, made_by_formula
from packer.planning.candidates import TensorInfo
from packer.quantizers.formats import row_shape

NO_DATA = (
    "squared weight error times a weight per role and block, of very small rows and tensors "
    "relative to their size; no data was given"
)

# Cost of a unit of squared weight error in a tensor of each role, relative to an MLP input matrix;
# measured as docs/planner.md (Damage without data) says.
ROLE_WEIGHT: Mapping[Role, float] = {
    Role.TOKEN_EMBEDDING: 20.0,
    Role.HEAD: 20.0,
    Role.ATTENTION: 1.2,
    Role.ATTENTION_Q: 1.0,
    Role.ATTENTION_K: 3.0,
    Role.ATTENTION_V: 6.0,
    Role.ATTENTION_O: 1.6,
    Role.MLP_IN: 1.0,
    Role.MLP_GATE: 1.0,
    Role.MLP_OUT: 1.8,
    Role.HASHED_BIGRAM: 1.0,
    Role.VALUE_EMBEDDING: 0.15,
    Role.GATE: 15.0,
    Role.CONTROL: 15.0,
    Role.NORM: 15.0,
    Role.OTHER: 1.0,
}

# Relative to the blocks between; the second block has the fourth root of the first one's.
FIRST_BLOCK = {Role.MLP_IN: 8.0, Role.MLP_GATE: 2.0, Role.MLP_OUT: 12.0, Role.ATTENTION_O: 4.0}
LAST_BLOCK = {Role.MLP_IN: 2.0, Role.MLP_GATE: 2.0, Role.MLP_OUT: 2.0}
FEWEST_BLOCKS = 4  # of a model whose first and last differ from those between

# Errors count absolutely while mean squares are within this factor of the typical one;
# docs/planner.md (Damage without data).
SPAN = 100.0
# A squared error says nothing about what a norm or gain acts on, and integers save next to nothing
# in it: so vectors go below 16 bits last, where the cap cannot be met otherwise.
CAUTION = 1e6
FLOATS = ("raw", "fp", "bf")  # how their choices begin
SMALLEST_SQUARE = 1e-290  # so that errors of tiny float64 weights are not zero
NEAR_ZERO = 2.0**-10  # of a table's largest value: sines pass through zero
MONOTONE_ELEMENTS = 8  # one order in 20,000 of so many trained weights is monotone


@dataclass(frozen=True, eq=False)
class ErrorMeasure:
    """How squared errors of one tensor are weighted.

    weight: [...], divided by unit, as errors are before they are squared. counts: float32,
    [rows, 1 or columns], the weight of such a square; None: all 1. scale: multiplies their sum.
    level: the mean square of the weights, so weighted; infinite if errors are already relative.
    """

    weight: torch.Tensor
    unit: float
    counts: torch.Tensor | None
    scale: float
    level: float

    def of(self, decoded: torch.Tensor) -> float | None:
        """The weighted error; None if it is not finite."""
        rows = row_shape(tuple(self.weight.shape))
        change = (_in_units(decoded, self.unit) - self.weight).float().reshape(rows)
        squares = change.square_() if self.counts is None else change.square_().mul_(self.counts)
        total = sum_of_rows(squares)
        total = total and total * self.scale
        return total if math.isfinite(total) else None


def error_measure(info: TensorInfo, weight: torch.Tensor) -> ErrorMeasure:
    """The error measure of a tensor of finite real floats, of at least one element.

    A table made by a formula acts through exponents or angles: its errors are relative to every
    element, those of sinusoidal positions, which are added, to the largest. Of trained weights,
    errors in rows and columns (in vectors: elements) are absolute within SPAN of the typical mean
    square, and relative to their size beyond it: otherwise one row far out decides for all others,
    and small ones cost nothing to lose.
    """
    unit = float(weight.abs().max()) or 1.0
    unit_square = max(unit * unit, SMALLEST_SQUARE)
    scaled = _in_units(weight, unit)
    squares = scaled.float().reshape(row_shape(tuple(weight.shape))).square()
    if is_formula(info, weight):
        least = 0.0 if is_vector(weight) else 1.0 if are_sinusoids(weight) else NEAR_ZERO**2
        floor = max(least, torch.finfo(torch.float32).tiny)
        return ErrorMeasure(scaled, unit, 1 / squares.clamp_(min=floor), 1.0, math.inf)
    if is_vector(weight):
        counts = _counts(squares)
    else:
        counts = _counts(squares.mean(1, keepdim=True)) * _counts(squares.mean(0, keepdim=True))
    level = float((squares * counts).mean(dtype=torch.float64)) * unit_square
    weighted = None if bool((counts == 1).all()) else counts
    return ErrorMeasure(scaled, unit, weighted, unit_square, level)


def _counts(levels: torch.Tensor) -> torch.Tensor:
    """1 near the typical level, beyond SPAN of it in inverse proportion to the level."""
    ratio = levels / _typical(levels)
    ratio = torch.where(levels > 0, ratio, 1.0)
    return ratio.clamp(1 / SPAN, SPAN) / ratio


def _typical(levels: torch.Tensor) -> torch.Tensor:
    positive = levels[levels > 0]
    return positive.median() if positive.numel() else torch.ones(())


def far_out(weight: torch.Tensor) -> tuple[float, ...]:
    """The rms of a matrix's typical row and column in units of its own, where a row or column lies
    far beyond: integers then need steps without a clip. Otherwise nothing.
    """
    rows = weight.float().reshape(row_shape(tuple(weight.shape)))
    squares = (rows / (float(rows.abs().max()) or 1.0)).square_()
    if not bool(squares.isfinite().all()):
        return ()
    ratios = []
    for levels in (squares.mean(1), squares.mean(0)):
        typical = float(_typical(levels))
        if float(levels.max()) > SPAN * typical:
            ratios.append(math.sqrt(typical / float(squares.mean())))
    return (min(ratios),) if ratios else ()


def is_vector(weight: torch.Tensor) -> bool:
    """Whether all axes but one have one element at most."""
    return weight.numel() == max(weight.shape, default=1)


def is_formula(info: TensorInfo, weight: torch.Tensor) -> bool:
    """Whether a table is made by a formula and not trained: by its name, a monotone vector, or
    sines beside their cosines.
    """
    if made_by_formula(info.name):
        return True
    if not is_vector(weight):
        return are_sinusoids(weight)
    if weight.numel() < MONOTONE_ELEMENTS:
        return False
    steps = weight.double().reshape(-1).diff()
    return bool((steps > 0).all()) or bool((steps < 0).all())


def are_sinusoids(table: torch.Tensor) -> bool:
    """Whether elements in pairs, neighbours or halves of each row, are a sine and a cosine of one
    angle: sinusoidal positions (arXiv 1706.03762), as buffers keep them.
    """
    width = table.shape[-1] if table.dim() > 1 else 0
    if not table.is_floating_point() or width < MONOTONE_ELEMENTS or width % 2:
        return False
    half = width // 2
    ways = table.reshape(-1, half, 2), table.reshape(-1, 2, half).mT  # [rows, half, 2]
    return any(_on_a_circle(pairs[:1]) and _on_a_circle(pairs) for pairs in ways)


def _on_a_circle(pairs: torch.Tensor) -> bool:
    """pairs: [..., 2]; whether each has the length of one, as bfloat16 holds it."""
    return bool(((pairs.float().square().sum(-1) - 1).abs() < 0.02).all())


def balanced(
    candidates: Sequence[Candidate], infos: Sequence[TensorInfo], levels: Mapping[str, float]
) -> list[Candidate]:
    """Errors weighted by block; those of tensors far smaller than is typical, counted relative to
    their size likewise; those of matrices made by formulas, relative already, as of an embedding of
    typical size; and those of vectors in integers, CAUTION times.

    Typical is the median weight among matrices; vectors act on activations, about as gains of one.
    """
    matrices = [
        (levels[info.name], info.elements)
        for info in infos
        if 0 < levels.get(info.name, 0.0) < math.inf and len(info.shape) > 1
    ]
    typical = {True: _median_weight(matrices), False: 1.0}
    factors = {
        info.name: max(1.0, typical[len(info.shape) > 1] / (SPAN * levels[info.name]))
        for info in infos
        if levels.get(info.name, 0.0) > 0
    }
    vectors = {info.name for info in infos if math.prod(info.shape) == max(info.shape, default=1)}
    factors |= {
        info.name: ROLE_WEIGHT[Role.TOKEN_EMBEDDING] * typical[True]
        for info in infos
        if levels.get(info.name) == math.inf and info.name not in vectors and matrices
    }
    blocks = block_weights(infos)
    return [
        replace(
            one,
            weight_error=one.weight_error
            * factors.get(one.tensor, 1.0)
            * blocks.get(one.tensor, 1.0)
            * (CAUTION if one.tensor in vectors and not one.choice.startswith(FLOATS) else 1.0),
        )
        for one in candidates
    ]


def block_weights(infos: Sequence[TensorInfo]) -> dict[str, float]:
    """What errors in tensors of the first two blocks and the last cost, relative to others."""
    last = max((info.layer for info in infos if info.layer is not None), default=0)
    if last + 1 < FEWEST_BLOCKS:
        return {}
    first = {0: 1.0, 1: 0.25}
    return {
        info.name: FIRST_BLOCK.get(Role(info.role), 1.0) ** first.get(info.layer, 0.0)
        * (LAST_BLOCK.get(Role(info.role), 1.0) if info.layer == last else 1.0)
        for info in infos
        if info.layer is not None
    }


def _median_weight(levels: Sequence[tuple[float, int]]) -> float:
    """Of (level, weights) the level of the median weight, the larger of two."""
    rest = sum(count for _, count in levels) / 2
    for level, count in sorted(levels, reverse=True):
        rest -= count
        if rest <= 0:
            return level
    return 1.0


def _in_units(weight: torch.Tensor, unit: float) -> torch.Tensor:
    return (weight if weight.dtype == torch.float64 else weight.float()) / unit


def weight_error(weight: torch.Tensor, decoded: torch.Tensor) -> float | None:
    """Sum of squared differences in float64, or None when a decoded weight is not finite."""
    if not (weight.is_floating_point() and weight.dtype.itemsize > 1):
        return 0.0  # only `raw`, which is exact, holds the other dtypes
    if weight.dtype == torch.float64:
        difference = weight - decoded
    else:
        difference = decoded.float() - weight.float()
    shape = row_shape(tuple(weight.shape))
    total = sum_of_rows(difference.square().reshape(shape))
    if math.isnan(total):  # infinities that came back
        difference.masked_fill_(decoded == weight, 0.0)
        total = sum_of_rows(difference.square().reshape(shape))
    return total if math.isfinite(total) else None


def sum_of_rows(values: torch.Tensor) -> float:
    """The sum of values [rows, columns]: of each row in the values' dtype, of the rows in float64.
    Casting every value takes 20 times as long.
    """
    return float(values.sum(dim=-1).double().sum())
