"""The cheapest path of one column through the trellis, by damage and code length.

The Viterbi algorithm with eight survivors (Marcellin and Fischer 1990 for quantization; Fischer and
Wang 1992 for the weighing of lengths). What rows above want of a row depends on the path, so every
survivor heeds its own last codes; what all survivors have in common is added up once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compiled_loops import compiled
from .trellis_path import NEXT_STATE

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

STATES = len(NEXT_STATE)
UNREACHED = 1e300


@compiled
def _agree(z: Floats, cost: npt.NDArray[np.float64], row: int) -> bool:
    """Whether all survivors took the same code in a row, having agreed before it."""
    lead, others = z[cost.argmin(), row], 0
    for state in range(STATES):
        if cost[state] < UNREACHED and z[state, row] != lead:
            others += 1
    return others == 0


@compiled
def _codes_along(
    symbols: npt.NDArray[np.int32], parents: npt.NDArray[np.int8], state: int
) -> npt.NDArray[np.int16]:
    """Codes [rows] of the path that ends in a state; symbols, parents [rows, states]."""
    codes = np.zeros(len(symbols), dtype=np.int16)
    for i in range(len(symbols) - 1, -1, -1):
        symbol, state = symbols[i, state], parents[i, state]
        odd = state & 1
        codes[i] = 2 * symbol - odd * np.sign(symbol)
    return codes


@compiled
def _best_path(
    target: Floats,
    pull: Floats,
    weight: Floats,
    V: Floats,
    price: float,
    bits: Floats,
    row_class: Numbers,
    next_state: Numbers,
    start: int,
) -> npt.NDArray[np.int16]:
    """Codes [rows], from the state `start`.

    target [rows]: the wanted codes, but for what the rows above add, `pull` times Σ z V over them.
    weight, z: what a code off by one costs, squared, and what is left of it.
    """
    rows, most = len(target), bits.shape[2] - 1
    settled = np.zeros(rows, dtype=np.float32)
    cost, costs = np.full(STATES, UNREACHED), np.full(STATES, UNREACHED)
    cost[start] = 0.0
    z, nexts = np.zeros((STATES, rows), np.float32), np.zeros((STATES, rows), np.float32)
    symbols = np.zeros((rows, STATES), dtype=np.int32)
    parents = np.zeros((rows, STATES), dtype=np.int8)
    alone, first = len(V) == 1, 0  # `first`: the first row in which survivors differ
    for i in range(rows):
        leading = cost.argmin()
        while first < i and (alone or _agree(z, cost, first)):
            for below in range(i, 0 if alone else rows):
                settled[below] += z[leading, first] * V[first, below]
            first += 1
        near = V[first:i, i].copy()
        costs[:] = UNREACHED
        for state in range(STATES):
            if cost[state] >= UNREACHED:
                continue
            wanted = settled[i]
            for above in range(first, i):
                wanted += z[state, above] * near[above - first]
            wanted = target[i] + pull[i] * wanted
            odd, size = state & 1, abs(wanted)
            sign = 1 if wanted >= 0 else -1
            low = min(int((size + odd) // 2), most - 1)
            for symbol in (low + 1, low, low - 1, 0):
                if symbol < 0:
                    continue
                off = weight[i] * (2 * symbol - odd * (symbol > 0) - size)
                length = bits[row_class[i], odd, symbol]
                total = cost[state] + off * off + price * length
                after = next_state[state, symbol & 1]
                if total < costs[after]:
                    costs[after] = total
                    parents[i, after], symbols[i, after] = state, sign * symbol
                    nexts[after, i] = sign * off
        for state in range(STATES):
            for above in range(first, i):
                nexts[state, above] = z[parents[i, state], above]
        cost, costs, z, nexts = costs, cost, nexts, z
    return _codes_along(symbols, parents, int(cost.argmin()))


@compiled
def search_columns(
    X: Floats,
    U: Floats,
    V: Floats,
    scale: Floats,
    price: float,
    lengths: Floats,
    row_class: Numbers,
    column_class: Numbers,
    next_state: Numbers,
    starts: Numbers,
) -> tuple[npt.NDArray[np.int16], Floats]:
    """(codes, Y), both [columns, rows], of a block of columns under their upper factor U.

    X [columns, rows]: weights over column steps, with the corrections of all blocks before; it is
    changed. V [rows, rows]: upper factor of the rows, or [1, rows] its diagonal if they are felt
    apart. scale [rows]. price: damage a bit is worth. lengths [row classes, column classes, 2,
    magnitudes]: bits of symbols in even and in odd states. starts [columns]: the first state of
    each. Y: what later columns have to make up for.
    """
    columns, rows = X.shape
    codes = np.zeros((columns, rows), dtype=np.int16)
    Y = np.zeros((columns, rows), dtype=np.float32)
    alone = V.shape[0] == 1
    pivots = np.zeros(rows, dtype=np.float32)
    for i in range(rows):
        pivots[i] = V[0, i] if alone else V[i, i]
    for j in range(columns):
        for before in range(j):
            for i in range(rows):
                X[j, i] += Y[before, i] * U[before, j]
        weight = scale / (U[j, j] * pivots)
        bits = lengths[:, column_class[j]]
        target = X[j] / scale
        pull = U[j, j] / scale
        path = _best_path(target, pull, weight, V, price, bits, row_class, next_state, starts[j])
        for i in range(rows):
            codes[j, i] = path[i]
            Y[j, i] = (path[i] * scale[i] - X[j, i]) / U[j, j]
    return codes, Y
