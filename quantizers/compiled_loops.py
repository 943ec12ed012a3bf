"""The inner loops of GPTQ, compiled: weights of a block, one after another.

Every weight depends on those to its left, in two-sided GPTQ on those above it too, and rounding one
takes less time than a call into torch. Compiled by numba on first use; the machine code is cached
in a folder next to this file or in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """The loop under numba, without fast math: the order of sums is the same on every machine.

    Without numba, as a shipped bundle may be, the loop itself, about a hundred times slower.
    """
    function: Any = loop
    try:
        import numba

        function = numba.njit(nogil=True, error_model="numpy")(loop)
        function = numba.njit(cache=True, nogil=True, error_model="numpy")(loop)
    except (ImportError, RuntimeError):  # the latter: no folder for the cache is writable
        pass
    return function  # type: ignore[no-any-return]


@compiled
def nearest(
    x: np.float32, scale: np.float32, nearer: Floats, low: np.float32, high: np.float32
) -> tuple[np.float32, np.float32]:
    """(code, value) of the code nearest to x within the range; nearer as of `round_rows`."""
    q = np.rint(x / scale) if scale != 0 else np.float32(0)
    q = min(max(q, low), high)
    size = np.abs(q)
    less = nearer[3] if size >= 3 else nearer[np.int64(size)]
    return q, (q - np.sign(q) * less) * scale


@compiled
def round_rows(
    X: Floats,
    U: Floats,
    scale: Floats,
    nearer: Floats,
    code_min: int,
    code_max: int,
    forced: npt.NDArray[np.bool_],
) -> tuple[Floats, Floats]:
    """(codes, E), both float32 [rows, columns], names as in rounding.py.

    X [rows, columns], overwritten; U [columns, columns]; scale [rows]. nearer [4]: how much
    nearer to zero a code of that size lies, in steps. forced [rows, columns], or [0, 0]: weights
    whose code is 0.
    """
    height, width = X.shape
    codes, E = np.zeros_like(X), np.zeros_like(X)
    low, high = np.float32(code_min), np.float32(code_max)
    any_forced = forced.size > 0
    for i in range(height):
        for j in range(width):
            q, value = nearest(X[i, j], scale[i], nearer, low, high)
            if any_forced and forced[i, j]:
                q, value = np.float32(0), np.float32(0)
            e = (X[i, j] - value) / U[j, j]  # error over pivot
            codes[i, j], E[i, j] = q, e
            for right in range(j + 1, width):
                X[i, right] -= e * U[j, right]
    return codes, E


@compiled
def round_tile(
    X: Floats,
    A: Floats,
    U: Floats,
    V: Floats,
    scale: Floats,
    nearer: Floats,
    code_min: int,
    code_max: int,
) -> tuple[Floats, Floats, Floats]:
    """(codes, Y, Z), all float32 [rows, columns], names as in two_sided.py.

    X, A [rows, columns], overwritten; U [columns, columns] and V [rows, rows] of this tile;
    scale [rows]; nearer as of `round_rows`.
    """
    height, width = X.shape
    codes, Y, Z = np.zeros_like(X), np.zeros_like(X), np.zeros_like(X)
    low, high = np.float32(code_min), np.float32(code_max)
    for i in range(height):
        for above in range(i):
            v = V[above, i]
            for j in range(width):
                A[i, j] += Z[above, j] * v  # Zᵀ V
        for j in range(width):
            pivot = U[j, j]
            q, value = nearest(X[i, j] + pivot * A[i, j], scale[i], nearer, low, high)
            y = (value - X[i, j]) / pivot
            codes[i, j], Y[i, j] = q, y
            Z[i, j] = (y - A[i, j]) / V[i, i]
            for right in range(j + 1, width):
                X[i, right] += y * U[j, right]  # Y U
    return codes, Y, Z
