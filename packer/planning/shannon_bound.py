"""A lower bound on size: the rate-distortion function of weights under their curvature.

A change E of a matrix costs ½ tr(G E H Eᵀ). In the eigenvectors of G and H that is a sum of
squares, each with the weight ½ μ_i λ_j. Weights are modelled as independent Gaussians with their
tensor's variance v, which they remain in any such basis. The least damage of codes of R bits then
follows by reverse water-filling (Cover and Thomas, section 10.3.3): a component whose own damage
½ μ_i λ_j v lies above the water level takes ½ log2 of their ratio in bits and is left with the
damage of the level; any other takes no bits and keeps its own damage. All tensors share one level.

It bounds codes that know only the variance: real weights, whose variance differs between rows and
between columns, could be coded in slightly less.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from packer.checkpoint.checkpoint import Checkpoint
from packer.curvature.curvature_set import CurvatureSet
from packer.planning.plan import PackPlan
from packer.planning.predicted_damage import bits_per_byte
from packer.quantizers.curvature import Curvature

Floats = npt.NDArray[np.float64]

SMALLEST_MATRIX = 4096  # weights; smaller tensors keep their planned bytes
EPSILON = 1e-30  # of the largest row value; rows below it add nothing that float64 can hold
ITERATIONS = 50  # of the bisection for the water level


@dataclass(frozen=True, eq=False)
class GaussianMatrix:
    """One matrix of a tensor as a Gaussian source.

    rows, columns: float64, descending, not negative; rows[i] · columns[j] is the damage of
    component (i, j) in bits per byte if it gets no bits.
    """

    tensor: str
    rows: Floats
    columns: Floats

    @property
    def damage(self) -> float:
        """The damage of storing nothing."""
        return float(self.rows.sum() * self.columns.sum())

    @property
    def largest(self) -> float:
        """The largest damage of one component."""
        return float(self.rows.max(initial=0.0) * self.columns.max(initial=0.0))

    def at_level(self, level: float) -> tuple[float, float]:
        """(bits, damage) if no component has more than `level` of damage."""
        rows = self.rows[self.rows > EPSILON * self.rows.max(initial=0.0)]
        sums, log_sums = self._sums
        above = np.searchsorted(-self.columns, -level / rows, side="left")
        bits = 0.5 * (above * np.log2(rows / level) + log_sums[above]).sum()
        damage = (level * above + rows * (sums[-1] - sums[above])).sum()
        return float(bits), float(damage)

    @functools.cached_property
    def _sums(self) -> tuple[Floats, Floats]:
        """Sums of the first 0, 1, 2 … columns, and of their logarithms (zeros left out)."""
        logs = np.zeros(len(self.columns))
        np.log2(self.columns, where=self.columns > 0, out=logs)
        sums = np.concatenate([[0.0], np.cumsum(self.columns)])
        return sums, np.concatenate([[0.0], np.cumsum(logs)])


@dataclass(frozen=True)
class ShannonBound:
    """The smallest size of a file with this damage.

    damage: of the whole model, as a plan counts it. level: the water level, in bits per byte per
    component. fixed_bytes: code, header, and tensors that keep their planned bytes. tensor_bytes:
    the bound for each other tensor, by name.
    """

    damage: float
    level: float
    fixed_bytes: int
    tensor_bytes: Mapping[str, float]

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + math.ceil(math.fsum(self.tensor_bytes.values()))


@dataclass(frozen=True, eq=False)
class BoundedPlan:
    """The sources that bounds of a plan are computed from. fixed_damage: of all other tensors."""

    matrices: tuple[GaussianMatrix, ...]
    fixed_bytes: int
    fixed_damage: float

    def at_damage(self, damage: float) -> ShannonBound | None:
        """The bound at a damage of the whole model; None if the fixed tensors alone reach it."""
        rest = damage - self.fixed_damage
        if rest <= 0:
            return None
        level = water_level(self.matrices, rest)
        sizes: dict[str, float] = {}
        for matrix in self.matrices:
            bits, _ = matrix.at_level(level)
            sizes[matrix.tensor] = sizes.get(matrix.tensor, 0.0) + bits / 8
        return ShannonBound(damage, level, self.fixed_bytes, sizes)


def water_level(matrices: Sequence[GaussianMatrix], damage: float) -> float:
    """The level at which the damage of all components adds up to `damage`, by bisection.

    >>> two = GaussianMatrix("w", np.array([1.0]), np.array([4.0, 1.0]))
    >>> level = water_level([two], damage=1.0)  # half of it for each of the two
    >>> bits, damage = two.at_level(level)
    >>> round(level, 6), round(bits, 6), round(damage, 6)
    (0.5, 2.0, 1.0)

    The largest component's damage if storing nothing does no more than `damage`.
    """
    high = max(matrix.largest for matrix in matrices)
    if sum(matrix.damage for matrix in matrices) <= damage or high <= 0:
        return max(high, np.finfo(np.float64).tiny)
    count = sum(len(matrix.rows) * len(matrix.columns) for matrix in matrices)
    low = damage / count  # each component below the water adds no more than the level
    for _ in range(ITERATIONS):
        middle = math.sqrt(low * high)
        total = sum(matrix.at_level(middle)[1] for matrix in matrices)
        low, high = (middle, high) if total < damage else (low, middle)
    return high


def bounded_plan(plan: PackPlan, checkpoint: Checkpoint, curvature: CurvatureSet) -> BoundedPlan:
    """A plan's tensors as Gaussian sources, as far as their curvature is known.

    Damage is multiplied by the plan's fitted factors. Tensors of fewer than 4,096 weights, and
    those without Fisher, keep their planned bytes.
    """
    measurement = plan.measurement
    matrices: list[GaussianMatrix] = []
    for info in measurement.tensors:
        known = curvature.by_tensor.get(info.name)
        if known is None or known.fisher is None or info.elements < SMALLEST_MATRIX:
            continue
        fit = measurement.damage_fit
        unit = bits_per_byte(1.0, curvature) * (1.0 if fit is None else fit.factor(info.role))
        matrices += gaussian_matrices(info.name, checkpoint.tensors[info.name], known, unit)
    bounded = {matrix.tensor for matrix in matrices}
    fixed = [c for c in plan.plan.chosen if c.tensor not in bounded]
    fixed_bytes = sum(c.size_bytes for c in fixed)
    return BoundedPlan(
        tuple(matrices),
        plan.plan.code_bytes + plan.plan.header_bytes + fixed_bytes,
        math.fsum(c.damage for c in fixed),
    )


def gaussian_matrices(
    name: str, weight: torch.Tensor, curvature: Curvature, bits_per_nat: float
) -> list[GaussianMatrix]:
    """One source for each bank. bits_per_nat: the damage of one nat per token, in bits per byte.

    For a tied embedding, only the second moment that rounding uses counts.
    """
    columns = curvature.columns
    hessians = curvature.rounding_hessian.reshape(-1, columns, columns)
    rows = weight.reshape(len(hessians), -1, columns).double()
    variances = rows.var(dim=(1, 2), correction=0)
    sources = []
    for bank, variance in enumerate(variances.tolist()):
        scale = 0.5 * variance * bits_per_nat
        rows_of_bank = scale * _row_values(curvature, bank, len(hessians))
        sources.append(GaussianMatrix(name, rows_of_bank, _eigenvalues(hessians[bank])))
    return sources


def _row_values(curvature: Curvature, bank: int, banks: int) -> Floats:
    """The curvature of a bank's rows, descending: eigenvalues of G, or the Fisher of each row."""
    factors = curvature.row_factors
    if factors is not None:
        return _eigenvalues(factors[bank])
    assert curvature.row_fisher is not None
    fisher = curvature.row_fisher.double().reshape(banks, -1)[bank].numpy()
    return np.sort(fisher)[::-1].copy()


def _eigenvalues(matrix: torch.Tensor) -> Floats:
    """Eigenvalues of a positive semidefinite matrix, descending; negative ones become zero."""
    values: Floats = torch.linalg.eigvalsh(matrix.double()).clamp(min=0).numpy()
    return values[::-1].copy()
