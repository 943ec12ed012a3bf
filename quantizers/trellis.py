"""Trellis-coded GPTQ: codes from a path through a trellis, chosen by damage and code length.

Scalar codes leave 0.25 bits a weight above what is possible at high rates; eight states take back
two thirds of it. The columns are rounded as in GPTQ, and all rows of a column at once: the path
runs down the rows, in their own order, as the decoder needs it. As in two-sided GPTQ later rows
make up for earlier ones where the second moment of outputs is known.
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

# Damage per bit, in units of what a bit is worth where all codes are large.
EAGERNESS = 0.8
# Mean squared error of the trellis in squared fine steps, where codes are large.
ERROR = 0.265
LARGEST_SYMBOL = 255  # that has a length of its own
COLUMNS_AT_ONCE = 64
_CLASSES = 8
_SMALLEST_CELL = 512  # codes that can tell lengths apart
_SAMPLE = 1 << 17  # weights that are searched to learn lengths, at least
_UNSEEN = 0.05

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lengths:
    """Bits of symbols by class. bits: float32 [row classes, column classes, 2, magnitudes], in
    even and in odd states. rows, columns: int64 classes.
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

    Without factors no column makes up for another. outputs: factors in the order of the rows.
    """
    column, steps = side.get("column"), side["row"].expand(len(rows))
    scaled = rows if column is None else rows / column
    alone = torch.ones(len(rows))
    if factors and curvature is not None and curvature.fisher is not None:
        alone = row_curvature(curvature).rsqrt()
    banks = [over_steps(factor, column) for factor in factors or [_unfactored(rows.shape[1])]]
    size, codes = len(rows) // len(banks), torch.empty(rows.shape, dtype=torch.int16)
    starts = np.zeros(rows.shape[1], dtype=np.int64)
    for bank, factor in enumerate(banks):
        here = slice(bank * size, (bank + 1) * size)
        V = outputs[bank].upper if outputs else None
        by_row = alone[here][None] if V is None else V
        codes[here] = round_on_trellis(factor, by_row, scaled[here], steps[here], starts)
        if bank + 1 < len(banks):
            starts = code_states(codes[here].numpy(), starts)[-1]
    return codes, together([factor.report for factor in factors]) if factors else None


def _unfactored(columns: int) -> HessianFactor:
    """Columns that are felt apart, all alike."""
    order, dead = torch.arange(columns), torch.zeros(columns, dtype=torch.bool)
    return HessianFactor(order, torch.eye(columns), dead, RoundingReport(0, 0, 0))


def round_on_trellis(
    inputs: HessianFactor,
    V: torch.Tensor,
    rows: torch.Tensor,
    scale: torch.Tensor,
    starts: Numbers,
) -> torch.Tensor:
    """int16 codes [rows, columns] of rows [rows, columns] under scale [rows].

    inputs: a factor of H; where it could not be had, columns are felt apart. V: upper factor of the
    rows, in their own order, [rows, rows]; or [1, rows], its diagonal where rows are taken as felt
    apart. starts: int64 [columns], the states at the first row.
    """
    if inputs.upper is None:
        inputs = _unfactored(rows.shape[1])
    assert inputs.upper is not None
    order = inputs.order
    X = rows.masked_fill(inputs.dead, 0.0).T[order].contiguous().numpy()
    U, steps = inputs.upper.numpy(), scale.float().numpy()
    price = _price(X, U, V, steps)
    by_row = np.ascontiguousarray(V.numpy())
    alone = by_row if len(by_row) == 1 else np.ascontiguousarray(by_row.diagonal()[None])
    ordered = starts[order.numpy()]
    lengths = _likely_lengths(X, U, alone, steps, price, ordered)
    codes = _search(X, U, by_row, steps, price, lengths, ordered)
    found = torch.empty(rows.shape, dtype=torch.int16)
    found[:, order] = torch.from_numpy(codes.T.copy())
    return found


def _price(X: Floats, U: Floats, V: torch.Tensor, steps: Floats) -> float:
    """What a bit is worth: a bit halves the error of a code, so damage falls by 2 ln 2 of itself.

    A weight below the step is worth no more than what becomes of it without any bit.
    """
    pivots = (V[0] if len(V) == 1 else V.diagonal()).numpy()
    error = np.minimum(np.square(X / steps), ERROR).mean()
    by_row, by_column = np.median(np.square(steps / pivots)), np.median(np.square(1 / U.diagonal()))
    return float(EAGERNESS * 2 * math.log(2) * error * by_row * by_column)


def _search(
    X: Floats,
    U: Floats,
    V: Floats,
    steps: Floats,
    price: float,
    lengths: Lengths,
    starts: Numbers,
) -> npt.NDArray[np.int16]:
    """Codes [columns, rows] of weights X [columns, rows], which are changed."""
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
        # By torch: numpy has threads of its own, which get in the way of tensors side by side.
        later = torch.from_numpy(X[here.stop :])
        later.addmm_(torch.from_numpy(U[here, here.stop :]).T, torch.from_numpy(Y))
    return codes


def _likely_lengths(
    X: Floats, U: Floats, V: Floats, steps: Floats, price: float, starts: Numbers
) -> Lengths:
    """Lengths after a search of some columns, which say nearly as much as all.

    V: a diagonal, because lengths hardly depend on how rows are felt together.
    """
    first = first_lengths(X, steps)
    some = slice(None, None, max(1, min(4, X.size // _SAMPLE)))
    x = X[some].copy()
    lengths = Lengths(first.bits, first.rows, first.columns[some])
    alone = U if len(x) == len(X) else np.diag(U.diagonal()[some])
    codes = _search(x, alone, V, steps, price, lengths, starts[some])
    bits = _bits(_symbols(codes, starts[some]), first.rows, first.columns[some])
    return Lengths(bits, first.rows, first.columns)


def first_lengths(X: Floats, steps: Floats) -> Lengths:
    """Lengths if each weight took the nearest code of either kind."""
    wanted = np.abs(X / steps)
    even = np.rint(wanted / 2)
    odd = np.where(wanted < 0.5, 0, np.floor(wanted / 2) + 1)
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
    found: Floats = bits.astype(np.float32)
    return found


def _ranked(energy: Numbers) -> Numbers:
    ranks = np.empty(len(energy), dtype=np.int64)
    ranks[np.argsort(energy, kind="stable")] = np.arange(len(energy))
    return ranks * _CLASSES // len(energy)
