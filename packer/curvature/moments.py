"""Second moments of weights in use, summed batch by batch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from packer.curvature.weight_origins import Placement
from packer.quantizers.curvature import Curvature

# Prior: every row starts with this many tokens of average statistics, so that a row unseen in
# calibration counts as rare, not as free (docs/methods.md, Curvature).
PRIOR_TOKENS = 0.5
LARGEST_OUTPUTS = 2048  # rows of a map whose second moment of output gradients is kept


def gram(vectors: torch.Tensor) -> torch.Tensor:
    """float32 [columns, columns], the sum of v vᵀ over vectors [count, columns]."""
    return vectors.mT @ vectors


def energy(vectors: torch.Tensor) -> torch.Tensor:
    """float32 [count], the squared length of each of vectors [count, columns]."""
    return vectors.square().sum(dim=-1)


class MapMoments:
    """Moments of a weight in linear maps: second moments over its columns, energies of its rows.

    Rows are weighted by the energy of the inputs, so that the Kronecker product of both has the
    trace of the true curvature for every row.
    """

    SUMS = ("hessian", "row_sums", "row_weights", "outputs")  # the last may be None

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.banks = shape[0] if len(shape) == 3 else 1
        self.stacked = len(shape) == 3
        rows, columns = math.prod(shape[:-1]), shape[-1]
        self.rows_of_one = rows // self.banks
        self.hessian = torch.zeros(self.banks, columns, columns, dtype=torch.float64, device=device)
        self.row_sums = torch.zeros(rows, dtype=torch.float64, device=device)
        self.row_weights = torch.zeros(rows, dtype=torch.float64, device=device)
        one, kept = self.rows_of_one, self.rows_of_one <= LARGEST_OUTPUTS
        self.outputs = (
            torch.zeros(self.banks, one, one, dtype=torch.float64, device=device) if kept else None
        )

    def add_columns(self, placement: Placement, moment: torch.Tensor) -> None:
        """moment: float32 [columns of the placement, same]. Uses of some rows count by share."""
        first = placement.rows.start // self.rows_of_one
        last = (placement.rows.stop - 1) // self.rows_of_one
        share = placement.row_count / (self.rows_of_one * (last - first + 1))
        at = placement.columns
        moment = moment.double()
        self.hessian[first : last + 1, at, at] += moment if share == 1 else share * moment

    def add_rows(self, placement: Placement, vectors: torch.Tensor, weights: torch.Tensor) -> None:
        """vectors: float32 [count, rows of the placement]; weights: float32 [count]."""
        self.row_sums[placement.rows] += (weights @ vectors.square()).double()
        self.row_weights[placement.rows] += weights.double().sum()
        if self.outputs is not None:
            self._add_outputs(placement, vectors, weights)

    def add_all_columns(self, placements: Sequence[Placement], moments: torch.Tensor) -> None:
        """moments: float32 [placements, columns, same], of maps in one product."""
        for placement, moment in zip(placements, moments, strict=True):
            self.add_columns(placement, moment)

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
        for bank in range(start // self.rows_of_one, -(-stop // self.rows_of_one)):
            first = bank * self.rows_of_one
            low, high = max(start, first), min(stop, first + self.rows_of_one)
            part = vectors[:, low - start : high - start]
            moment = (part * weights[:, None]).mT @ part
            here = slice(low - first, high - first)
            self.outputs[bank, here, here] += moment.double()

    def curvature(
        self, tokens: int, table: Curvature | None, shared: Callable[[torch.Tensor], torch.Tensor]
    ) -> Curvature:
        """table: of the same weight as a lookup. shared: an equal tensor that exists already, or
        the one given.
        """
        mean = _symmetric(self.hessian / tokens)
        hessian = shared(mean if self.stacked else mean[0])
        fisher = self._fisher(tokens)
        outputs = None
        if self.outputs is not None and fisher is not None:
            mean_weight = self.row_weights.mean().clamp(min=1e-30)
            outputs = _symmetric(self.outputs / mean_weight)
            outputs = outputs if self.stacked else outputs[0]
        usage = None if table is None else table.row_usage
        return Curvature(hessian, fisher, tokens, usage, table, outputs)

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
        self.gradient = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self.row_energy = torch.zeros(rows, dtype=torch.float64, device=device)

    def add_reads(self, rows: torch.Tensor) -> None:
        """rows: int64 [count], the rows that were read."""
        self.reads += torch.bincount(rows, minlength=len(self.reads)).double()

    def add_gradients(self, rows: torch.Tensor, gradients: torch.Tensor) -> None:
        """gradients: float32 [count, columns], at the output of the lookup of `rows` [count]."""
        self.gradient += gram(gradients).double()
        self.row_energy.index_add_(0, rows, energy(gradients).double())

    def curvature(self, tokens: int) -> Curvature | None:
        """None where no gradient came back."""
        total = self.row_energy.sum()
        if not bool(total > 0):
            return None
        prior = PRIOR_TOKENS * total / self.reads.sum()
        shares = (self.row_energy + prior) / (total + prior * len(self.reads))
        return Curvature(
            _symmetric(self.gradient / tokens),
            shares.float().cpu(),
            tokens,
            row_usage=(self.reads / tokens).float().cpu(),
        )


class ParameterMoments:
    """Moments of any other weight: the second moment of its own gradient."""

    SUMS = ("gradient", "row_energy")

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.columns = shape[-1] if shape else 1
        self.gradient = torch.zeros(self.columns, self.columns, dtype=torch.float64, device=device)
        rows = math.prod(shape[:-1]) if shape else 1
        self.row_energy = torch.zeros(rows, dtype=torch.float64, device=device)

    def add(self, gradient: torch.Tensor) -> None:
        """gradient: of the summed nats of some sequences, shaped like the weight."""
        rows = gradient.float().reshape(-1, self.columns)
        self.gradient += gram(rows).double()
        self.row_energy += energy(rows).double()

    def curvature(self, tokens: int) -> Curvature | None:
        """Half the quadratic form with rows weighted by their share of the energy; None if zero."""
        total = self.row_energy.sum()
        if not bool(total > 0):
            return None
        shares = (self.row_energy / total).float().cpu()
        return Curvature(_symmetric(self.gradient / tokens), shares, tokens)


def _symmetric(moment: torch.Tensor) -> torch.Tensor:
    """float32 on the CPU; products of floats need not come out exactly symmetric."""
    return ((moment + moment.mT) / 2).float().cpu()
