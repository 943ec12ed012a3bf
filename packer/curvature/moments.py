"""Second moments of weights in use, summed batch by batch: vectors in float64, matrices in float32,
as their curvature is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from packer.curvature.triangles import gram, symmetric, triangle_size
from packer.curvature.weight_origins import Placement
from packer.quantizers.curvature import Curvature

# Prior: every row starts with this many tokens of average statistics, so that a row unseen in
# calibration counts as rare, not as free (docs/methods.md, Curvature).
PRIOR_TOKENS = 0.5
LARGEST_OUTPUTS = 2048  # rows of a map whose second moment of output gradients is kept
SQUARED_AT_ONCE = 1 << 21  # numbers: 8 MB


def energy(vectors: torch.Tensor) -> torch.Tensor:
    """float32 [count], the squared length of each of vectors [count, columns]."""
    return vectors.square().sum(dim=-1)


class InputMoments:
    """The second moment of the columns of one weight, or of several that have the same inputs."""

    SUMS = ("hessian",)

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        """shape: of one of the weights."""
        banks, self.columns = shape[0] if len(shape) == 3 else 1, shape[-1]
        self.hessian = torch.zeros(banks, triangle_size(self.columns), device=device)

    def add(self, banks: slice, moment: torch.Tensor, share: float = 1.0) -> None:
        """moment: a triangle. share: what it counts, of a use of not all rows."""
        self.hessian[banks].add_(moment, alpha=share)


class MapMoments:
    """Moments of the rows of a weight in linear maps: energies of their gradients.

    Rows are weighted by the energy of the inputs, so that the Kronecker product with the second
    moment of inputs has the trace of the true curvature for every row.
    """

    SUMS = ("row_sums", "row_weights", "outputs")  # the last may be None

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.banks = shape[0] if len(shape) == 3 else 1
        self.stacked = len(shape) == 3
        self.columns, rows = shape[-1], math.prod(shape[:-1])
        self.rows_of_one = rows // self.banks
        self.row_sums = torch.zeros(rows, dtype=torch.float64, device=device)
        self.row_weights = torch.zeros(rows, dtype=torch.float64, device=device)
        size, kept = triangle_size(self.rows_of_one), self.rows_of_one <= LARGEST_OUTPUTS
        self.outputs = torch.zeros(self.banks, size, device=device) if kept else None

    def banks_of(self, placement: Placement) -> slice:
        """The banks that have rows in the placement."""
        first = placement.rows.start // self.rows_of_one
        return slice(first, (placement.rows.stop - 1) // self.rows_of_one + 1)

    def share_of(self, placement: Placement) -> float:
        """The part of the rows of its banks that is in the placement."""
        banks = self.banks_of(placement)
        return placement.row_count / (self.rows_of_one * len(range(banks.start, banks.stop)))

    def column_moment(self, placement: Placement, vectors: torch.Tensor) -> torch.Tensor:
        """The triangle over all columns of vectors [count, columns of the placement]."""
        return gram(vectors, self.columns, placement.columns.start)

    def add_rows(self, placement: Placement, vectors: torch.Tensor, weights: torch.Tensor) -> None:
        """vectors: float32 [count, rows of the placement]; weights: float32 [count]."""
        count = max(1, SQUARED_AT_ONCE // vectors.size(1))
        for at in range(0, len(vectors), count):
            part = slice(at, at + count)
            self.row_sums[placement.rows] += (weights[part] @ vectors[part].square()).double()
        self.row_weights[placement.rows] += weights.double().sum()
        if self.outputs is not None:
            self._add_outputs(placement, vectors, weights)

    def add_all_rows(
        self, placements: Sequence[Placement], vectors: torch.Tensor, weights: torch.Tensor
    ) -> None:
        """vectors: float32 [placements, count, rows of one]; weights: float32 [placements, count].

        Maps that share a second moment are weighted by the mean energy of their inputs: a row of
        small inputs then keeps its own trace under the common moment.
        """
        together: dict[int, list[int]] = {}
        for at, placement in enumerate(placements):
            together.setdefault(placement.rows.start // self.rows_of_one, []).append(at)
        for placement, one, weight in zip(placements, vectors, weights, strict=True):
            self.add_rows(placement, one, weight)
        for members in together.values():
            mean = weights[members].double().sum() / len(members)
            for at in members if len(members) > 1 else ():
                rows = placements[at].rows
                self.row_weights[rows] += mean - weights[at].double().sum()

    def _add_outputs(
        self, placement: Placement, vectors: torch.Tensor, weights: torch.Tensor
    ) -> None:
        """Adds to the second moment of output gradients, separately for every bank."""
        assert self.outputs is not None
        start, stop = placement.rows.start, placement.rows.stop
        if placement.rows.step != 1:
            self.outputs = None  # strided rows: not all correlations are known
            return
        weighted, banks = vectors * weights.sqrt()[:, None], self.banks_of(placement)
        for bank in range(banks.start, banks.stop):
            first = bank * self.rows_of_one
            low, high = max(start, first), min(stop, first + self.rows_of_one)
            part = weighted[:, low - start : high - start]
            self.outputs[bank] += gram(part, self.rows_of_one, low - first)

    def curvature(self, hessian: torch.Tensor, tokens: int, table: Curvature | None) -> Curvature:
        """hessian: float32 [banks, columns, columns], of the inputs. table: of the same weight as a
        lookup.
        """
        fisher, outputs = self._fisher(tokens), None
        if self.outputs is not None and fisher is not None:
            mean_weight = self.row_weights.mean().clamp(min=1e-30)
            whole = symmetric(self.outputs, self.rows_of_one)
            outputs = self._unstacked((whole / mean_weight.float()).cpu())
        usage = None if table is None else table.row_usage
        return Curvature(self._unstacked(hessian), fisher, tokens, usage, table, outputs)

    def _unstacked(self, moments: torch.Tensor) -> torch.Tensor:
        return moments if self.stacked else moments[0]

    def _fisher(self, tokens: int) -> torch.Tensor | None:
        """float32 [rows], the mean squared gradient; None where no gradient came back."""
        total = self.row_weights.sum()
        if not bool(total > 0):
            return None
        prior = PRIOR_TOKENS * total / len(self.row_weights) / tokens
        mean = self.row_sums.sum() / total
        return ((self.row_sums + prior * mean) / (self.row_weights + prior)).float().cpu()


class TableMoments:
    """Moments of a lookup table: how often each row is read, and the gradients of what is read."""

    SUMS = ("reads", "gradient", "row_energy")

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        rows, columns = shape
        self.reads = torch.zeros(rows, dtype=torch.float64, device=device)
        self.columns = columns
        self.gradient = torch.zeros(triangle_size(columns), device=device)
        self.row_energy = torch.zeros(rows, dtype=torch.float64, device=device)

    def add_reads(self, rows: torch.Tensor) -> None:
        """rows: int64 [count], the rows that were read."""
        self.reads += torch.bincount(rows, minlength=len(self.reads)).double()

    def add_gradients(self, rows: torch.Tensor, gradients: torch.Tensor) -> None:
        """gradients: float32 [count, columns], at the output of the lookup of `rows` [count]."""
        self.gradient += gram(gradients, self.columns)
        self.row_energy.index_add_(0, rows, energy(gradients).double())

    def curvature(self, tokens: int) -> Curvature | None:
        """None where no gradient came back."""
        total = self.row_energy.sum()
        if not bool(total > 0):
            return None
        prior = PRIOR_TOKENS * total / self.reads.sum()
        shares = (self.row_energy + prior) / (total + prior * len(self.reads))
        return Curvature(
            mean_of(self.gradient, self.columns, tokens),
            shares.float().cpu(),
            tokens,
            row_usage=(self.reads / tokens).float().cpu(),
        )


class ParameterMoments:
    """Moments of any other weight: the second moment of its own gradient."""

    SUMS = ("gradient", "row_energy")

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.columns = shape[-1] if shape else 1
        self.gradient = torch.zeros(triangle_size(self.columns), device=device)
        rows = math.prod(shape[:-1]) if shape else 1
        self.row_energy = torch.zeros(rows, dtype=torch.float64, device=device)

    def add(self, gradient: torch.Tensor) -> None:
        """gradient: of the summed nats of some sequences, shaped like the weight."""
        rows = gradient.float().reshape(-1, self.columns)
        self.gradient += gram(rows, self.columns)
        self.row_energy += energy(rows).double()

    def curvature(self, tokens: int) -> Curvature | None:
        """Half the quadratic form with rows weighted by their share of the energy; None if zero."""
        total = self.row_energy.sum()
        if not bool(total > 0):
            return None
        shares = (self.row_energy / total).float().cpu()
        return Curvature(mean_of(self.gradient, self.columns, tokens), shares, tokens)


def mean_of(sums: torch.Tensor, width: int, tokens: int) -> torch.Tensor:
    """float32 [..., width, width] on the CPU, of triangles [..., size] summed over tokens."""
    return (symmetric(sums, width) / tokens).cpu()
