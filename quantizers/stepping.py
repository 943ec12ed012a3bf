"""Stepped formats: a step size per row and per column, and codes under these steps.

Under GPTQ, rounding weight (i, j) with step Δ costs F_i (Δ / U_jj)² / 24: F_i the Fisher of row i,
U the Cholesky factor of rounding.py, H⁻¹ = Uᵀ U. The cheapest code for a given damage has every
weight cost the same (reverse water-filling; with columns only it is WaterSIC, arXiv:2603.04956):

    Δ_ij = c · U_jj / √F_i

Steps are rounded to their grid before GPTQ, which compensates for that rounding too. The constants
below are from docs/methods.md, "Steps of rows and columns".
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

# F^0.75 in place of F: another sample confirms the Fisher of a row only in part. Of the bytes at
# equal measured KL, 0.5 takes 0.7 % more and 1 takes 0.2 to 0.5 % more.
FISHER_POWER = 0.75
# Variance of one token's squared gradient, in units of its mean squared.
TOKEN_VARIANCE = 8.0
WIDEST_RATIO = 2.0**8  # of a step to the geometric mean of the steps of its axis
# (weights that share a step, at most; grid points between steps): where few weights share one, a
# coarser grid saves more bits in the steps than it costs in damage.
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
    """Side values of `format` for float32 rows [rows, columns]: row, column and shrink.

    step: the geometric mean of all steps, in units of the rms weight. factors: of H, one per bank;
    outputs: of G, for two-sided GPTQ, where V_ii takes the place of 1/√F_i.
    """
    mean = step * float(rows.square().mean().sqrt())
    row, column = torch.ones(1), torch.ones(rows.shape[1])  # [1 or rows], [columns]
    if format.rows and outputs:
        pivots = [_in_place(factor).double() for factor in outputs]
        row = _bounded(torch.cat(pivots).pow(FISHER_POWER))  # V_ii^0.75, [rows]
    elif format.rows and curvature is not None and curvature.fisher is not None:
        row = _bounded(row_curvature(curvature).pow(-FISHER_POWER / 2))  # F_i^(-0.75 / 2), [rows]
    if format.rows:
        row = row.expand(len(rows))
    if format.columns and factors:
        column = _bounded(_pivots(factors))  # U_jj, [columns]
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
    """float32 [rows], positive: the Fisher F_i of each row, relative to the rounding Hessian.

    Estimates from few tokens are shrunk towards the mean of all rows, in logarithms, by the share
    of their variance that sampling explains. A tied embedding sums its uses as head and as table.
    """
    assert curvature.fisher is not None
    weights = _shrunk_fisher(curvature)
    if curvature.lookup is not None and curvature.lookup.fisher is not None:
        own, other = _mean_diagonal(curvature), _mean_diagonal(curvature.lookup)
        weights = weights * own + _shrunk_fisher(curvature.lookup) * other
    return weights.float()


def _shrunk_fisher(curvature: Curvature) -> torch.Tensor:
    """float64 [rows]: log F shrunk towards its mean, as an empirical Bayes estimate."""
    assert curvature.row_fisher is not None
    fisher = curvature.row_fisher.double()  # [rows]
    if not bool((fisher > 0).any()):
        return torch.ones_like(fisher)
    logs = fisher.clamp(min=float(fisher.mean()) * 1e-9).log()
    tokens = torch.full_like(logs, curvature.tokens)  # that met each row, [rows]
    if curvature.row_usage is not None:
        tokens = tokens * curvature.row_usage.double()
    sampling = torch.log1p(TOKEN_VARIANCE / (tokens + 1))  # variance of log F, [rows]
    spread = (logs.var() - sampling.mean()).clamp(min=0.1 * logs.var()) if len(logs) > 1 else 0.0
    mean = logs.mean()
    return (mean + (logs - mean) * (spread / (spread + sampling))).exp()


def _mean_diagonal(curvature: Curvature) -> float:
    return float(curvature.hessian.diagonal(dim1=-2, dim2=-1).mean())


def _pivots(factors: Sequence[HessianFactor]) -> torch.Tensor:
    """float32 [columns]: U_jj of every column, the geometric mean over banks.

    Dead columns get the mean of the others.
    """
    logs = []
    for factor in factors:
        column = _in_place(factor).log()
        if factor.upper is not None:
            column[factor.dead] = column[~factor.dead].mean()
        logs.append(column - column.mean())
    return torch.stack(logs).mean(dim=0).exp()


def _in_place(factor: HessianFactor) -> torch.Tensor:
    """float32 [columns]: the diagonal of U in stored column order; ones where there is no U."""
    pivots = torch.ones(len(factor.order))
    if factor.upper is not None:
        pivots[factor.order] = factor.upper.diagonal()
    return pivots


def _bounded(values: torch.Tensor) -> torch.Tensor:
    """Values [count] relative to their geometric mean, clamped to WIDEST_RATIO either way."""
    logs = values.double().log()
    ratios: torch.Tensor = (logs - logs.mean()).exp()
    return ratios.clamp(1 / WIDEST_RATIO, WIDEST_RATIO).float()


def _shrink(rows: torch.Tensor, side: Side) -> int:
    """The reconstruction offset: how much nearer to zero the mean weight that rounds to ±1 lies.

    In 256ths of a step, 0 to MAX_SHRINK.
    """
    sizes = (rows / side["row"][:, None] / side.get("column", 1)).abs_()  # [rows, columns]
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
    """int16 codes [rows, columns] of float32 rows [rows, columns], and what GPTQ reports.

    factors: of H, one per bank; without them, rounding to nearest. outputs: of G, one per bank;
    with both, two-sided GPTQ. Where columns are divided by their steps, U is too (`over_steps`).
    """
    column, shrink = side.get("column"), int(side["shrink"])
    scaled = rows if column is None else rows / column  # [rows, columns]
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
    """The factor of a matrix whose columns are divided by their steps [columns]: U_ij / step_j."""
    if factor.upper is None or column is None:
        return factor
    return replace(factor, upper=factor.upper / column[factor.order])
