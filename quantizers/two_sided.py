"""GPTQ that lets later rows, too, make up for the errors of earlier ones.

The change E of a map's weights is felt as tr(G E H Eᵀ), H the second moment of its inputs and G
that of the gradients at its outputs. With H⁻¹ = Uᵀ U and G⁻¹ = Vᵀ V, both upper triangular,
E = Vᵀ Z U turns it into the sum of squares of Z. Weight (i, j) is rounded when all of Z above it
and left of it is known, so that its own entry comes out smallest: Babai's nearest plane, of which
GPTQ is the case of a diagonal G (arXiv:2507.18553; for a G that is not, compare YAQA,
arXiv:2505.22988).
"""

from __future__ import annotations

import torch

from .dequantize import code_values, nearer_to_zero
from .rounding import HessianFactor

TILE = 64


def round_both_ways(
    inputs: HessianFactor,
    outputs: HessianFactor,
    rows: torch.Tensor,
    scale: torch.Tensor,
    code_min: int,
    code_max: int,
    shrink: int = 0,
) -> torch.Tensor:
    """float32 codes [rows, columns] of rows [rows, columns] under scale [rows].

    inputs, outputs: factors of H and of G that could be had.
    """
    assert inputs.upper is not None and outputs.upper is not None
    W = rows.masked_fill(inputs.dead, 0.0)[outputs.order][:, inputs.order]
    work = _Work(
        W, inputs.upper, outputs.upper, scale.float()[outputs.order], (code_min, code_max), shrink
    )
    height, width = W.shape
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            work.tile(slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width)))
    codes = torch.empty_like(W)
    codes[outputs.order[:, None], inputs.order[None, :]] = work.codes
    return codes


class _Work:
    """One matrix in the order of rounding.

    X [rows, columns]: weights as the columns rounded so far would have them, W + what their Y says.
    A [columns, rows]: Σ over the rows rounded so far of Z_i'j V_i'i.
    """

    def __init__(
        self,
        W: torch.Tensor,
        U: torch.Tensor,
        V: torch.Tensor,
        scale: torch.Tensor,
        limits: tuple[int, int],
        shrink: int,
    ) -> None:
        self.X, self.U, self.V, self.scale = W.clone(), U, V, scale
        self.A = W.new_zeros(W.shape[1], W.shape[0])
        self.codes = torch.zeros_like(W)
        self.limits, self.shrink = limits, shrink

    def tile(self, at: slice, by: slice) -> None:
        """Round rows `at`, columns `by`; all tiles above and to the left are done."""
        X, A = self.X[at, by].clone(), self.A[by, at].clone()
        U, V = self.U[by, by].contiguous(), self.V[at, at].contiguous()
        told = (X, A, U, V, self.scale[at], self.limits, self.shrink)
        done = _compiled_tile(*told) if X.device.type == "cpu" else _by_antidiagonals(*told)
        codes, Y, Z = done
        self.codes[at, by] = codes
        # U and V are upper triangular: what is right of the tile, and below it, still moves.
        self.X[at, by.stop :].addmm_(Y, self.U[by, by.stop :])
        self.A[by, at.stop :].addmm_(Z, self.V[at, at.stop :])


Tile = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""codes and Y [rows, columns] and Z [columns, rows] of a tile."""


def _compiled_tile(
    X: torch.Tensor,
    A: torch.Tensor,
    U: torch.Tensor,
    V: torch.Tensor,
    scale: torch.Tensor,
    limits: tuple[int, int],
    shrink: int,
) -> Tile:
    from .compiled_loops import round_tile  # a compiler is slow to import

    tile = (X.numpy(), A.T.contiguous().numpy(), U.numpy(), V.numpy())
    done = round_tile(*tile, scale.numpy(), nearer_to_zero(shrink).numpy(), *limits)
    codes, Y, Z = (torch.from_numpy(one) for one in done)
    return codes, Y, Z.T


def _by_antidiagonals(
    X: torch.Tensor,
    A: torch.Tensor,
    U: torch.Tensor,
    V: torch.Tensor,
    scale: torch.Tensor,
    limits: tuple[int, int],
    shrink: int,
) -> Tile:
    """All weights of one antidiagonal at once, where a compiled loop cannot go."""
    height, width = X.shape
    codes, Y, Z = torch.zeros_like(X), torch.zeros_like(X), torch.zeros_like(A)
    pivots, row_pivots = U.diagonal(), V.diagonal()
    index = torch.arange(max(height, width), device=X.device)
    for step in range(height + width - 1):
        low, high = max(0, step - width + 1), min(height, step + 1)
        i = index[low:high]
        j = step - i
        x, a, pivot = X[i, j], A[j, i], pivots[j]
        q = ((x + pivot * a) / scale[low:high]).round_().clamp_(*limits)
        value = code_values(q, shrink) * scale[low:high]
        y = (value - x) / pivot
        z = (y - a) / row_pivots[low:high]
        codes[i, j], Y[i, j], Z[j, i] = q, y, z
        X[low:high].addcmul_(y[:, None], U[j])
        A[step - high + 1 : step - low + 1].addcmul_(z.flip(0)[:, None], V[low:high].flip(0))
    return codes, Y, Z
