"""Trellis-coded GPTQ: codes from a path through a trellis, chosen by damage and code length.

Trellis-coded quantization (Marcellin and Fischer 1990; entropy-coded, Fischer and Wang 1992). At
high rates scalar codes lie 0.25 bits a weight above the rate-distortion bound; eight states recover
two thirds of that. Columns are rounded one after another as in GPTQ, all rows of a column at once:
the path runs down the rows in stored order, as the decoder needs it. Where the second moment of
outputs is known, later rows compensate for earlier ones as in two-sided GPTQ. Compare QTIP (Tseng
et al. 2024, arXiv:2406.11235), whose trellis has a fixed rate. docs/methods.md, "Codes on a
trellis", has the settings and what they gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .curvature import Curvature
from .rounding import HessianFactor, RoundingReport, together
from .stepping import Side, over_steps, row_curvature
from .trellis_path import code_states, symbols_of

# Price of a bit, in units of its value where all codes are large (docs/methods.md, "Codes on a
# trellis": the price).
EAGERNESS = 0.8
# Mean squared error of the trellis in squared fine steps, where codes are large.
ERROR = 0.265
LARGEST_SYMBOL = 255  # with a length of its own; larger ones have the length of this one
COLUMNS_AT_ONCE = 64
_CLASSES = 8  # of rows, and of columns
_SMALLEST_CELL = 512  # codes from which lengths are estimated
_SAMPLE = 1 << 17  # weights that are searched to estimate lengths, at least
_UNSEEN = 0.05  # added to every count, so that no length is infinite

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lengths:
    """Bits of symbols by class.

    bits: float32 [row classes, column classes, 2, magnitudes], in even and in odd states. rows
    [rows], columns [columns]: the class of each, int64.
    """

    bits: Floats
    rows: Numbers
    columns: Numbers


def trellis_codes(
    rows: torch.Tensor,
    side: Side,
    factors: Sequence[HessianFactor] = (),
    outputs: Sequence[HessianFactor] = (),
    curvature: Curvature | None = None,
) -> tuple[torch.Tensor, RoundingReport | None]:
    """int16 codes [rows, columns] of float32 rows on the trellis; arguments as of `stepped_codes`.

    Without factors columns are independent. outputs: factors in stored row order, one per bank.
    """
    column, steps = side.get("column"), side["row"].expand(len(rows))
    scaled = rows if column is None else rows / column  # [rows, columns]
    independent = torch.ones(len(rows))  # V_ii of rows without outputs: 1/√F_i
    if factors and curvature is not None and curvature.fisher is not None:
        independent = row_curvature(curvature).rsqrt()
    banks = [over_steps(factor, column) for factor in factors or [_unfactored(rows.shape[1])]]
    size, codes = len(rows) // len(banks), torch.empty(rows.shape, dtype=torch.int16)
    starts = np.zeros(rows.shape[1], dtype=np.int64)  # trellis state before the bank, [columns]
    for bank, factor in enumerate(banks):
        here = slice(bank * size, (bank + 1) * size)
        V = outputs[bank].upper if outputs else None
        by_row = independent[here][None] if V is None else V
        codes[here] = round_on_trellis(factor, by_row, scaled[here], steps[here], starts)
        if bank + 1 < len(banks):
            starts = code_states(codes[here].numpy(), starts)[-1]
    return codes, together([factor.report for factor in factors]) if factors else None


def _unfactored(columns: int) -> HessianFactor:
    """The factor of the identity: independent columns of equal weight."""
    order, dead = torch.arange(columns), torch.zeros(columns, dtype=torch.bool)
    return HessianFactor(order, torch.eye(columns), dead, RoundingReport(0, 0, 0))


def round_on_trellis(
    inputs: HessianFactor, V: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, starts: Numbers
) -> torch.Tensor:
    """int16 codes [rows, columns] of rows [rows, columns] under scale [rows].

    inputs: a factor of H; without an upper factor, columns are independent. V: upper factor of the
    rows in stored order [rows, rows], G⁻¹ = Vᵀ V; or its diagonal [1, rows] where rows are
    independent. starts: int64 [columns], the states at the first row.
    """
    if inputs.upper is None:
        inputs = _unfactored(rows.shape[1])
    assert inputs.upper is not None
    order = inputs.order
    X = rows.masked_fill(inputs.dead, 0.0).T[order].contiguous().numpy()  # [columns, rows]
    U, steps = inputs.upper.numpy(), scale.float().numpy()  # [columns, columns], [rows]
    price = _price(X, U, V, steps)
    by_row = np.ascontiguousarray(V.numpy())
    diagonal = by_row if len(by_row) == 1 else np.ascontiguousarray(by_row.diagonal()[None])
    ordered = starts[order.numpy()]
    lengths = _likely_lengths(X, U, diagonal, steps, price, ordered)
    codes = _search(X, U, by_row, steps, price, lengths, ordered)
    stored = torch.empty(rows.shape, dtype=torch.int16)  # [rows, columns], in stored order
    stored[:, order] = torch.from_numpy(codes.T.copy())
    return stored


def _price(X: Floats, U: Floats, V: torch.Tensor, steps: Floats) -> float:
    """The Lagrange multiplier of the search, damage per bit.

    Damage falls as 2^(-2 bits), at a rate of 2 ln 2 of itself per bit. A weight below the step
    counts no more than its damage without any bit, its own square.
    """
    pivots = (V[0] if len(V) == 1 else V.diagonal()).numpy()
    error = np.minimum(np.square(X / steps), ERROR).mean()
    by_row, by_column = np.median(np.square(steps / pivots)), np.median(np.square(1 / U.diagonal()))
    return float(EAGERNESS * 2 * math.log(2) * error * by_row * by_column)


def _search(
    X: Floats, U: Floats, V: Floats, steps: Floats, price: float, lengths: Lengths, starts: Numbers
) -> npt.NDArray[np.int16]:
    """Codes [columns, rows] of weights X [columns, rows]; X is overwritten.

    U [columns, columns], V [rows, rows] or [1, rows], steps [rows], starts [columns].
    """
    from .trellis_search import PREVIOUS, search_columns

    codes = np.zeros(X.shape, dtype=np.int16)
    for start in range(0, len(X), COLUMNS_AT_ONCE):
        here = slice(start, min(start + COLUMNS_AT_ONCE, len(X)))
        codes[here], Y = search_columns(
            X[here],
            np.ascontiguousarray(U[here, here]),
            V,
            steps,
            price,
            lengths.bits,
            lengths.rows,
            lengths.columns[here],
            PREVIOUS,
            starts[here],
        )
        # By torch: the BLAS threads of numpy compete with tensors quantized in parallel.
        later = torch.from_numpy(X[here.stop :])
        later.addmm_(torch.from_numpy(U[here, here.stop :]).T, torch.from_numpy(Y))
    return codes


def _likely_lengths(
    X: Floats, U: Floats, V: Floats, steps: Floats, price: float, starts: Numbers
) -> Lengths:
    """Lengths from the codes of a first search, in up to every fourth column.

    V: a diagonal [1, rows], because lengths hardly depend on the correlations of rows.
    """
    first = first_lengths(X, steps)
    some = slice(None, None, max(1, min(4, X.size // _SAMPLE)))
    x = X[some].copy()  # [sampled columns, rows]
    lengths = Lengths(first.bits, first.rows, first.columns[some])
    sampled_U = U if len(x) == len(X) else np.diag(U.diagonal()[some])
    codes = _search(x, sampled_U, V, steps, price, lengths, starts[some])
    bits = _bits(_symbols(codes, starts[some]), first.rows, first.columns[some])
    return Lengths(bits, first.rows, first.columns)


def first_lengths(X: Floats, steps: Floats) -> Lengths:
    """Lengths if each weight of X [columns, rows] took the nearest code of either kind."""
    targets = np.abs(X / steps)  # [columns, rows]
    even = np.rint(targets / 2)
    odd = np.where(targets < 0.5, 0, np.floor(targets / 2) + 1)
    magnitudes = np.stack([even, odd]).clip(max=LARGEST_SYMBOL).astype(np.int64)
    rows, columns = _classes(magnitudes.sum(axis=0))
    return Lengths(_bits(magnitudes, rows, columns), rows, columns)


def _classes(magnitudes: Numbers) -> tuple[Numbers, Numbers]:
    """Classes of rows and of columns of magnitudes [columns, rows], fewer where these are few."""
    columns, rows = _ranked(magnitudes.sum(axis=1)), _ranked(magnitudes.sum(axis=0))
    while max(rows.max(), columns.max()) > 0 and magnitudes.size < _SMALLEST_CELL * (
        (1 + rows.max()) * (1 + columns.max())
    ):
        rows, columns = (
            (rows, columns // 2) if columns.max() >= rows.max() else (rows // 2, columns)
        )
    return rows, columns


def _symbols(codes: npt.NDArray[np.int16], starts: Numbers) -> Numbers:
    """Magnitudes [2, columns, rows] of codes on the trellis, in even and in odd states; else -1."""
    states = code_states(codes.T, starts)[:-1].T
    symbols = np.abs(symbols_of(codes, states)).clip(max=LARGEST_SYMBOL)
    odd = states & 1
    return np.stack([np.where(odd == 0, symbols, -1), np.where(odd, symbols, -1)])


def _bits(magnitudes: Numbers, rows: Numbers, columns: Numbers) -> Floats:
    """Bits [row classes, column classes, 2, magnitudes] of symbols by how often they occur.

    magnitudes: [2, columns, rows], in even and in odd states, -1 where there is none.
    """
    shape = int(rows.max()) + 1, int(columns.max()) + 1, 2, LARGEST_SYMBOL + 1
    cell = (rows[None, :] * shape[1] + columns[:, None])[None] * 2 + np.arange(2)[:, None, None]
    index = cell * shape[3] + magnitudes
    counts = np.bincount(index[magnitudes >= 0], minlength=math.prod(shape)).reshape(shape)
    shares = (counts + _UNSEEN) / (counts + _UNSEEN).sum(axis=-1, keepdims=True)
    bits = -np.log2(shares)
    bits[..., 1:] += 1  # the sign
    lengths: Floats = bits.astype(np.float32)
    return lengths


def _ranked(energy: Numbers) -> Numbers:
    """Classes [count] of equal size by rank of energy [count]."""
    ranks = np.empty(len(energy), dtype=np.int64)
    ranks[np.argsort(energy, kind="stable")] = np.arange(len(energy))
    return ranks * _CLASSES // len(energy)
