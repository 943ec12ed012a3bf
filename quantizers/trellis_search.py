"""The cheapest path of one column through the trellis, by damage and code length.

The Viterbi algorithm with one survivor per state (Marcellin and Fischer 1990 for quantization,
Fischer and Wang 1992 for damage + price · length). With two-sided GPTQ the target of a row depends
on the codes of the rows above, so every survivor uses its own; the contribution of rows on which
all survivors agree is summed once.

z is Z of two_sided.py for the current column: a path costs Σ z² + price · bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compiled_loops import compiled
from .trellis_path import NEXT_STATE

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Step = tuple[int, float, float]  # a symbol, its z, its cost z² + price · bits
Eight = tuple[float, float, float, float, float, float, float, float]

STATES = len(NEXT_STATE)
# [states, 2]: the state from which an even, and from which an odd symbol leads to a state.
PREVIOUS = np.argsort(NEXT_STATE, axis=0)
UNREACHED = 1e300
LARGEST = 16_000  # symbol; its code fits into 16 bits


@compiled
def _all_took(z: Floats, lead: float, cost: Doubles) -> bool:
    """Whether every survivor's z [states] in one row is `lead`. cost [states]."""
    others = 0
    for state in range(STATES):
        others += (cost[state] < UNREACHED) & (z[state] != lead)
    return others == 0


@compiled
def _pulled(common: float, z: Floats, pulls: Floats) -> Eight:
    """`common` + Σ_i z_i · pulls_i for each of the 8 survivors; z [rows, states], pulls [rows].

    Unrolled: eight sums stay in registers, those of an array do not.
    """
    a = b = c = d = e = f = g = h = common
    for i in range(len(z)):
        pull = pulls[i]
        a += z[i, 0] * pull
        b += z[i, 1] * pull
        c += z[i, 2] * pull
        d += z[i, 3] * pull
        e += z[i, 4] * pull
        f += z[i, 5] * pull
        g += z[i, 6] * pull
        h += z[i, 7] * pull
    return a, b, c, d, e, f, g, h


@compiled
def _follow(z: Floats, parents: npt.NDArray[np.int8]) -> None:
    """Every survivor takes over its parent's z [rows, states]; parents [states]."""
    for i in range(len(z)):
        row = z[i]
        a, b, c, d = row[parents[0]], row[parents[1]], row[parents[2]], row[parents[3]]
        e, f, g, h = row[parents[4]], row[parents[5]], row[parents[6]], row[parents[7]]
        row[0], row[1], row[2], row[3] = a, b, c, d
        row[4], row[5], row[6], row[7] = e, f, g, h


@compiled
def _off(symbol: int, odd: int, size: float, weight: float) -> float:
    """z of a symbol for a target of this size, in a state of even or of odd codes."""
    return weight * (2 * symbol - odd * (symbol > 0) - size)


@compiled
def _length(bits: Floats, odd: int, symbol: int) -> float:
    length: float = bits[odd, min(symbol, bits.shape[1] - 1)]
    return length


@compiled
def _best_symbols(
    code: float, odd: int, weight: float, price: float, bits: Floats
) -> tuple[Step, Step]:
    """The best even symbol and the best odd one for a target `code`, with z and cost of each.

    odd: whether the state has odd codes. bits [2, magnitudes]: lengths of symbols in even and in
    odd states, the last entry for all larger symbols too.
    """
    size, sign = abs(code), 1 if code >= 0 else -1
    low = min(int(size + odd) >> 1, LARGEST - 1)
    near, near_off = low, _off(low, odd, size, weight)
    near_cost = near_off * near_off + price * _length(bits, odd, low)
    far, far_off = low + 1, _off(low + 1, odd, size, weight)
    far_cost = far_off * far_off + price * _length(bits, odd, low + 1)
    under = max(low - 1, 0)
    under_off = _off(under, odd, size, weight)
    under_cost = under_off * under_off + price * _length(bits, odd, under)
    if low > 0 and under_cost < far_cost:
        far, far_off, far_cost = under, under_off, under_cost
    if low & 1:
        near, far = far, near
        near_off, far_off = far_off, near_off
        near_cost, far_cost = far_cost, near_cost
    zero_off = _off(0, odd, size, weight)
    zero_cost = zero_off * zero_off + price * bits[odd, 0]
    if zero_cost < near_cost:
        near, near_off, near_cost = 0, zero_off, zero_cost
    return (sign * near, sign * near_off, near_cost), (sign * far, sign * far_off, far_cost)


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
    previous: Numbers,
    start: int,
) -> npt.NDArray[np.int16]:
    """Codes [rows] of the cheapest path from the state `start`.

    target [rows]: X_ij / scale_i, to which the rows above add pull_i · A_ij, A_ij = Σ_i'<i z_i'
    V_i'i; pull [rows]: U_jj / scale_i. weight [rows]: scale_i / (U_jj V_ii), so that a code that
    differs from its target by d has z = weight · d. V [rows, rows] or [1, rows].
    """
    rows, independent = len(target), len(V) == 1
    # common [rows]: A_ij of the rows before `first`, the first row in which survivors differ.
    common, z = np.zeros(rows, np.float32), np.zeros((rows, STATES), np.float32)
    cost, first = np.full(STATES, UNREACHED), 0
    cost[start] = 0.0
    symbols = np.zeros((rows, STATES), dtype=np.int32)
    parents = np.zeros((rows, STATES), dtype=np.int8)
    symbol, off = np.zeros((2, STATES), np.int32), np.zeros((2, STATES), np.float32)
    costs, wanted = np.zeros((2, STATES)), np.zeros(STATES, np.float32)
    for i in range(rows):
        leading = cost.argmin()
        while first < i and (independent or _all_took(z[first], z[first, leading], cost)):
            if not independent:
                below, pulls = common[i:], V[first, i:]
                for row in range(rows - i):
                    below[row] += z[first, leading] * pulls[row]
            first += 1
        pulled = _pulled(common[i], z[first:i], V[first:i, i])
        (wanted[0], wanted[1], wanted[2], wanted[3]) = pulled[:4]
        (wanted[4], wanted[5], wanted[6], wanted[7]) = pulled[4:]
        lengths = bits[row_class[i]]
        for state in range(STATES):
            code = target[i] + pull[i] * wanted[state]
            even, odd = _best_symbols(code, state & 1, weight[i], price, lengths)
            symbol[0, state], off[0, state], costs[0, state] = even
            symbol[1, state], off[1, state], costs[1, state] = odd
            costs[0, state] += cost[state]
            costs[1, state] += cost[state]
        for state in range(STATES):
            parity = int(costs[1, previous[state, 1]] < costs[0, previous[state, 0]])
            parent = previous[state, parity]
            cost[state] = costs[parity, parent]
            parents[i, state], symbols[i, state] = parent, symbol[parity, parent]
            z[i, state] = off[parity, parent]
        _follow(z[first:i], parents[i])
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
    previous: Numbers,
    starts: Numbers,
) -> tuple[npt.NDArray[np.int16], Floats]:
    """(codes, Y), both [columns, rows], of a block of columns under their factor U.

    U [columns, columns]: the block of the upper factor, H⁻¹ = Uᵀ U.

    X [columns, rows]: weights over column steps, with the corrections of all blocks before; it is
    changed. V [rows, rows]: upper factor of the rows, or its diagonal [1, rows] if they are
    independent. scale [rows]. price: damage per bit. lengths [row classes, column classes, 2,
    magnitudes]: bits of symbols in even and in odd states. starts [columns]: the first state of
    each. Y: errors over pivots, for which later columns compensate.
    """
    columns, rows = X.shape
    codes = np.zeros((columns, rows), dtype=np.int16)
    Y = np.zeros((columns, rows), dtype=np.float32)
    independent = V.shape[0] == 1
    pivots = np.zeros(rows, dtype=np.float32)  # V_ii, [rows]
    for i in range(rows):
        pivots[i] = V[0, i] if independent else V[i, i]
    for j in range(columns):
        for before in range(j):
            for i in range(rows):
                X[j, i] += Y[before, i] * U[before, j]  # the sum over j' < j of two_sided.py
        weight = scale / (U[j, j] * pivots)  # [rows]
        bits = lengths[:, column_class[j]]  # [row classes, 2, magnitudes]
        target = X[j] / scale
        pull = U[j, j] / scale
        path = _best_path(target, pull, weight, V, price, bits, row_class, previous, starts[j])
        for i in range(rows):
            codes[j, i] = path[i]
            Y[j, i] = (path[i] * scale[i] - X[j, i]) / U[j, j]
    return codes, Y
