"""How few bytes could do: the rate-distortion function of weights as curvature sees them.

A change E of a matrix costs ½ tr(G E H Eᵀ). In the eigenvectors of G and H that is a sum of
squares, each with the weight ½ μ_i λ_j. Weights are taken for independent Gaussian draws of their
tensor's variance v, which they stay in any such basis; the least that codes of R bits must cost is
then reverse water-filling (Cover and Thomas, section 10.3.3): a component whose own damage
½ μ_i λ_j v lies above the water takes ½ log2 of their ratio in bits and is left with the damage of
the water level, any other takes none and costs what it is worth. One level serves all tensors.

It bounds codes that know the variance and no more: real weights, whose variance changes from row to
row and column to column, could be coded in a little less.
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

SMALLEST_MATRIX = 4096  # weights; what is smaller stays as it was planned
FELT = 1e-30  # of the row that is felt most: a row below it adds nothing that could be told
HALVINGS = 50  # of the octaves that the water level may lie in


@dataclass(frozen=True, eq=False)
class GaussianMatrix:
    """One matrix of a tensor as a Gaussian source.

    rows, columns: float64, descending, not negative; the product rows[i] · columns[j] is the damage
    of component (i, j) in bits per byte while nothing is stored of it.
    """

    tensor: str
    rows: Floats
    columns: Floats

    @property
    def damage(self) -> float:
        """Of storing nothing at all."""
        return float(self.rows.sum() * self.columns.sum())

    @property
    def largest(self) -> float:
        """The damage of the component that is felt most."""
        return float(self.rows.max(initial=0.0) * self.columns.max(initial=0.0))

    def at_level(self, level: float) -> tuple[float, float]:
        """(bits, damage) when every component is left with at most `level` of damage."""
        felt, (sums, log_sums) = (
            self.rows[self.rows > FELT * self.rows.max(initial=0.0)],
            self._sums,
        )
        above = np.searchsorted(-self.columns, -level / felt, side="left")
        bits = 0.5 * (above * np.log2(felt / level) + log_sums[above]).sum()
        damage = (level * above + felt * (sums[-1] - sums[above])).sum()
        return float(bits), float(damage)

    @functools.cached_property
    def _sums(self) -> tuple[Floats, Floats]:
        """Of the first 0, 1, 2 … columns, and of their logarithms, those of zeros left out."""
        logs = np.zeros(len(self.columns))
        np.log2(self.columns, where=self.columns > 0, out=logs)
        sums = np.concatenate([[0.0], np.cumsum(self.columns)])
        return sums, np.concatenate([[0.0], np.cumsum(logs)])


@dataclass(frozen=True)
class ShannonBound:
    """The least that a file of this damage could weigh.

    damage: of the whole model, as a plan counts it. level: the water's, in bits per byte a
    component. fixed_bytes: code, header, and tensors that are taken as they were planned.
    tensor_bytes: of all others, by name.
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
    """What bounds of one plan are computed from. fixed_damage: of the tensors taken as planned."""

    matrices: tuple[GaussianMatrix, ...]
    fixed_bytes: int
    fixed_damage: float

    def at_damage(self, damage: float) -> ShannonBound | None:
        """The bound at a damage of the whole model; None where tensors left alone do as much."""
        left = damage - self.fixed_damage
        if left <= 0:
            return None
        level = water_level(self.matrices, left)
        sizes: dict[str, float] = {}
        for matrix in self.matrices:
            bits, _ = matrix.at_level(level)
            sizes[matrix.tensor] = sizes.get(matrix.tensor, 0.0) + bits / 8
        return ShannonBound(damage, level, self.fixed_bytes, sizes)


def water_level(matrices: Sequence[GaussianMatrix], damage: float) -> float:
    """The level at which all components together are left with a damage, by bisection.

    >>> two = GaussianMatrix("w", np.array([1.0]), np.array([4.0, 1.0]))
    >>> level = water_level([two], damage=1.0)  # half of it for each of the two
    >>> bits, damage = two.at_level(level)
    >>> round(level, 6), round(bits, 6), round(damage, 6)
    (0.5, 2.0, 1.0)

    Above all of them where even storing nothing does less damage.
    """
    high = max(matrix.largest for matrix in matrices)
    if sum(matrix.damage for matrix in matrices) <= damage or high <= 0:
        return max(high, np.finfo(np.float64).tiny)
    count = sum(len(matrix.rows) * len(matrix.columns) for matrix in matrices)
    low = damage / count  # each component below the water adds no more than the level
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        found = sum(matrix.at_level(middle)[1] for matrix in matrices)
        low, high = (middle, high) if found < damage else (low, middle)
    return high


def bounded_plan(plan: PackPlan, checkpoint: Checkpoint, curvature: CurvatureSet) -> BoundedPlan:
    """A plan's tensors as Gaussian sources, as far as curvature knows how they are felt.

    Damages are multiplied by the plan's fitted factors. Tensors of fewer than 4,096 weights, and
    those without a Fisher, are taken as they were planned.
    """
    measurement = plan.measurement
    matrices: list[GaussianMatrix] = []
    for info in measurement.tensors:
        felt = curvature.by_tensor.get(info.name)
        if felt is None or felt.fisher is None or info.elements < SMALLEST_MATRIX:
            continue
        fit = measurement.damage_fit
        unit = bits_per_byte(1.0, curvature) * (1.0 if fit is None else fit.factor(info.role))
        matrices += gaussian_matrices(info.name, checkpoint.tensors[info.name], felt, unit)
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
    """One source a bank of a weight. bits_per_nat: damage of one nat a token, in bits per byte.

    A tied embedding is seen through the one second moment that rounding heeds.
    """
    columns = curvature.columns
    hessians = curvature.rounding_hessian.reshape(-1, columns, columns)
    rows = weight.reshape(len(hessians), -1, columns).double()
    variances = rows.var(dim=(1, 2), correction=0)
    found = []
    for bank, variance in enumerate(variances.tolist()):
        scale = 0.5 * variance * bits_per_nat
        felt = scale * _row_values(curvature, bank, len(hessians))
        found.append(GaussianMatrix(name, felt, _eigenvalues(hessians[bank])))
    return found


def _row_values(curvature: Curvature, bank: int, banks: int) -> Floats:
    """How much the rows of one bank are felt: eigenvalues of G, or the Fisher of each row."""
    factors = curvature.row_factors
    if factors is not None:
        return _eigenvalues(factors[bank])
    assert curvature.row_fisher is not None
    felt = curvature.row_fisher.double().reshape(banks, -1)[bank].numpy()
    return np.sort(felt)[::-1].copy()


def _eigenvalues(matrix: torch.Tensor) -> Floats:
    """Of a positive semidefinite matrix, descending; rounding below zero is cut off."""
    values: Floats = torch.linalg.eigvalsh(matrix.double()).clamp(min=0).numpy()
    return values[::-1].copy()
