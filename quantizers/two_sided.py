"""Two-sided GPTQ: under a Kronecker-factored Hessian G ⊗ H, later rows compensate too.

A change E [rows, columns] of a linear map's weights costs ½ tr(G E H Eᵀ), H [columns, columns] the
second moment of its inputs, G [rows, rows] that of the gradients at its outputs. With H⁻¹ = Uᵀ U
and G⁻¹ = Vᵀ V, U and V upper triangular, E = Vᵀ Z U makes that ½ Σ Z². Weight (i, j) is rounded
once all of Z above it and left of it is known, so that its own entry comes out smallest: Babai's
nearest plane, of which GPTQ is the case of a diagonal G (arXiv:2507.18553). Compare YAQA
(arXiv:2505.22988), which uses a Kronecker-factored Hessian inside LDLQ. docs/methods.md, "Two-sided
GPTQ", has what it gains.

With Y = Vᵀ Z, E = Y U. In the order of rounding,

    X_ij = W_ij + Σ_j'<j Y_ij' U_j'j       the weight, corrected for columns rounded so far
    A_ij = Σ_i'<i Z_i'j V_i'i              the Y_ij at which Z_ij is 0
    q_ij = the code nearest to X_ij + U_jj A_ij, its value Q_ij
    Y_ij = (Q_ij - X_ij) / U_jj,  Z_ij = (Y_ij - A_ij) / V_ii
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .dequantize import code_values, nearer_to_zero
from .rounding import HessianFactor

Floats = npt.NDArray[np.float32]

TILE = 64  # rows and columns rounded between two matrix products


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

    inputs, outputs: factors of H and of G; both must have an upper factor.
    """
    assert inputs.upper is not None and outputs.upper is not None
    # [rows, columns], both axes in the order of rounding.
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
    """One matrix in the order of rounding, its rounding in progress.

    X [rows, columns] and A [columns, rows] (transposed), as in the module's docstring. U [columns,
    columns], V [rows, rows], scale [rows], codes [rows, columns].
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
        self.nearer = nearer_to_zero(shrink).numpy()

    def tile(self, at: slice, by: slice) -> None:
        """Round rows `at`, columns `by`; all tiles above and to the left are done."""
        X, A = self.X[at, by].clone(), self.A[by, at].clone()
        U, V = self.U[by, by].contiguous(), self.V[at, at].contiguous()
        arguments = (X, A, U, V, self.scale[at], self.limits)
        if X.device.type == "cpu":
            codes, Y, Z = _compiled_tile(*arguments, self.nearer)
        else:
            codes, Y, Z = _by_antidiagonals(*arguments, self.shrink)
        self.codes[at, by] = codes
        # U and V are upper triangular: only X to the right of the tile and A below it change.
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
    nearer: Floats,
) -> Tile:
    from .compiled_loops import round_tile  # a compiler is slow to import

    tile = (X.numpy(), A.T.contiguous().numpy(), U.numpy(), V.numpy())
    arrays = round_tile(*tile, scale.numpy(), nearer, *limits)
    codes, Y, Z = (torch.from_numpy(array) for array in arrays)
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
    """As `_compiled_tile`, an antidiagonal at once: on a GPU, or without a compiler.

    X [rows, columns], A [columns, rows], U [columns, columns], V [rows, rows], scale [rows].
    """
    height, width = X.shape
    codes, Y, Z = torch.zeros_like(X), torch.zeros_like(X), torch.zeros_like(A)
    pivots, row_pivots = U.diagonal(), V.diagonal()  # [columns], [rows]
    index = torch.arange(max(height, width), device=X.device)
    for step in range(height + width - 1):
        low, high = max(0, step - width + 1), min(height, step + 1)
        i = index[low:high]
        j = step - i
        x, a, pivot = X[i, j], A[j, i], pivots[j]  # [weights of the antidiagonal]
        q = ((x + pivot * a) / scale[low:high]).round_().clamp_(*limits)
        value = code_values(q, shrink) * scale[low:high]
        y = (value - x) / pivot
        z = (y - a) / row_pivots[low:high]
        codes[i, j], Y[i, j], Z[j, i] = q, y, z
        X[low:high].addcmul_(y[:, None], U[j])
        A[step - high + 1 : step - low + 1].addcmul_(z.flip(0)[:, None], V[low:high].flip(0))
    return codes, Y, Z
