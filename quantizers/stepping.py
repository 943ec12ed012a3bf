"""Stepped formats: how large the step of every row and column is, and codes under these steps.

Rounding a weight of column j by GPTQ costs its row's curvature F times (step / U_jj)² / 24, U the
Cholesky factor of rounding.py. The cheapest code for a given cost has every weight cost the same
(reverse water-filling; with columns only it is WaterSIC, arXiv:2603.04956):

    step(row, column) = c · U_column / √F_row

Steps are put on their grid before GPTQ, so that later columns make up for that rounding too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .clip import nearest_codes
from .curvature import Curvature
from .formats import Stepped
from .rounding import HessianFactor, RoundingReport, round_with, together
from .step_grid import MAX_SHRINK, nearest_indices, steps_of
from .two_sided import round_both_ways

# Rows follow their Fisher to this power instead of 1: what a sample says of a row, another sample
# and a finite step only bear out in part. 0.5 to 1 are within 1 % of each other in bytes.
FISHER_POWER = 0.75
# The squared gradient of one token strays from its mean by about this multiple of it, squared.
TOKEN_VARIANCE = 8.0
WIDEST_RATIO = 2.0**8  # of a step to the mean step: beyond it rows or columns weigh nothing
# Steps are so many grid points apart, by how many weights share one: where few do, a bit saved in a
# step is worth more than the nearest step.
STRIDES = ((64, 4), (256, 2))

Side = dict[str, torch.Tensor]


def step_sizes(
    rows: torch.Tensor,
    format: Stepped,
    step: float,
    curvature: Curvature | None = None,
    factors: Sequence[HessianFactor] = (),
    outputs: Sequence[HessianFactor] = (),
) -> Side:
    """Side values of `format` for float32 rows [rows, columns], their geometric mean step being
    `step` times the rms weight. factors: of H, one per bank; outputs: of G, for two-sided GPTQ.
    """
    mean = step * float(rows.square().mean().sqrt())
    row, column = torch.ones(1), torch.ones(rows.shape[1])
    if format.rows and outputs:
        pivots = [_in_place(factor).double() for factor in outputs]
        row = _bounded(torch.cat(pivots).pow(FISHER_POWER))
    elif format.rows and curvature is not None and curvature.fisher is not None:
        row = _bounded(row_curvature(curvature).pow(-FISHER_POWER / 2))
    if format.rows:
        row = row.expand(len(rows))
    if format.columns and factors:
        column = _bounded(_pivots(factors))
    height, width = rows.shape
    stride = _stride(width) if format.rows else 1
    side = {"row": steps_of(nearest_indices(mean * row, stride))}
    if format.columns:
        side["column"] = steps_of(nearest_indices(column, _stride(height)))
    shrink = 0 if format.trellis else _shrink(rows, side)
    return side | {"shrink": torch.tensor([shrink], dtype=torch.uint8)}


def _stride(sharing: int) -> int:
    """Grid points between the steps of an axis, each for `sharing` weights."""
    return next((stride for most, stride in STRIDES if sharing <= most), 1)


def row_curvature(curvature: Curvature) -> torch.Tensor:
    """float32 [rows], positive: how much a change of each row is felt under the rounding Hessian.

    Estimates that few tokens back are drawn to the mean of all rows, in logarithms, by as much of
    their variance as sampling explains.
    """
    assert curvature.fisher is not None
    weights = _shrunk_fisher(curvature)
    if curvature.lookup is not None and curvature.lookup.fisher is not None:
        own, other = _mean_diagonal(curvature), _mean_diagonal(curvature.lookup)
        weights = weights * own + _shrunk_fisher(curvature.lookup) * other
    return weights.float()


def _shrunk_fisher(curvature: Curvature) -> torch.Tensor:
    assert curvature.felt is not None
    fisher = curvature.felt.double()
    if not bool((fisher > 0).any()):
        return torch.ones_like(fisher)
    logs = fisher.clamp(min=float(fisher.mean()) * 1e-9).log()
    tokens = torch.full_like(logs, curvature.tokens)
    if curvature.row_usage is not None:
        tokens = tokens * curvature.row_usage.double()
    sampling = torch.log1p(TOKEN_VARIANCE / (tokens + 1))
    spread = (logs.var() - sampling.mean()).clamp(min=0.1 * logs.var()) if len(logs) > 1 else 0.0
    mean = logs.mean()
    return (mean + (logs - mean) * (spread / (spread + sampling))).exp()


def _mean_diagonal(curvature: Curvature) -> float:
    return float(curvature.hessian.diagonal(dim1=-2, dim2=-1).mean())


def _pivots(factors: Sequence[HessianFactor]) -> torch.Tensor:
    """float32 [columns]: U_jj of every column, the geometric mean over banks; dead columns have the
    mean of the others.
    """
    logs = []
    for factor in factors:
        column = _in_place(factor).log()
        if factor.upper is not None:
            column[factor.dead] = column[~factor.dead].mean()
        logs.append(column - column.mean())
    return torch.stack(logs).mean(dim=0).exp()


def _in_place(factor: HessianFactor) -> torch.Tensor:
    """float32 [columns]: the diagonal of U, columns as they came; ones where there is no U."""
    pivots = torch.ones(len(factor.order))
    if factor.upper is not None:
        pivots[factor.order] = factor.upper.diagonal()
    return pivots


def _bounded(values: torch.Tensor) -> torch.Tensor:
    """Over their geometric mean, and not far from it."""
    logs = values.double().log()
    ratios: torch.Tensor = (logs - logs.mean()).exp()
    return ratios.clamp(1 / WIDEST_RATIO, WIDEST_RATIO).float()


def _shrink(rows: torch.Tensor, side: Side) -> int:
    """How far weights that round to ±1 lie nearer to zero in the mean, in 256ths of a step."""
    sizes = (rows / side["row"][:, None] / side.get("column", 1)).abs_()
    ones = sizes[(sizes > 0.5) & (sizes < 1.5)]
    if len(ones) == 0:
        return 0
    return min(max(round(256 * (1 - float(ones.mean()))), 0), MAX_SHRINK)


def stepped_codes(
    rows: torch.Tensor,
    format: Stepped,
    side: Side,
    factors: Sequence[HessianFactor] = (),
    outputs: Sequence[HessianFactor] = (),
) -> tuple[torch.Tensor, RoundingReport | None]:
    """int16 codes [rows, columns] of float32 rows; by GPTQ where there are factors, of both kinds
    in both directions.

    The factor of a matrix whose columns are divided by their steps is the old one, so divided.
    """
    column, shrink = side.get("column"), int(side["shrink"])
    scaled = rows if column is None else rows / column
    per_row = side["row"].expand(len(rows))
    limits = format.code_min, format.code_max
    if not factors:
        return nearest_codes(scaled, per_row, *limits).to(torch.int16), None
    size, codes, reports = len(rows) // len(factors), torch.empty(rows.shape), []
    for bank, factor in enumerate(factors):
        here = slice(bank * size, (bank + 1) * size)
        divided = over_steps(factor, column)
        reports.append(factor.report)
        if outputs and divided.upper is not None and outputs[bank].upper is not None:
            codes[here] = round_both_ways(
                divided, outputs[bank], scaled[here], per_row[here], *limits, shrink
            )
        else:
            rounded = round_with(divided, scaled[here], per_row[here], *limits, shrink=shrink)
            codes[here] = rounded.codes
    return codes.to(torch.int16), together(reports)


def over_steps(factor: HessianFactor, column: torch.Tensor | None) -> HessianFactor:
    """The factor of a matrix whose columns are divided by their steps."""
    if factor.upper is None or column is None:
        return factor
    return replace(factor, upper=factor.upper / column[factor.order])
