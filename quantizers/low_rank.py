"""A low-rank correction of the rounding error (LQER, arXiv:2402.02446).

With E = W - Q and curvature H over columns and F over rows, the remaining damage is proportional to
tr(F (E - A B) H (E - A B)ᵀ). With H = R Rᵀ it is the squared norm of F^½ (E - A B) R, whose best
A B comes from the largest singular values of F^½ E R (QERA, arXiv:2410.06040, with F besides). B
is rounded first; A is then fitted to the rounded B under H, and rounded in turn.
"""

from __future__ import annotations

import torch

from .clip import least_squares_scale, nearest_codes
from .curvature import Curvature
from .formats import FormatError, LowRank
from .rounding import DAMPING

Factors = dict[str, torch.Tensor]  # left, right, rank_scale: side values of a LowRank format


def correction(
    residual: torch.Tensor, format: LowRank, curvature: Curvature | None = None
) -> Factors:
    """int8 left [rank, rows] and right [rank, columns], float32 rank_scale [rank].

    residual: E, float32 [rows, columns]. Without curvature all errors count equally. The matrices
    of a bank are corrected together, under the mean of their Hessians.
    Raises FormatError: a rank above the number of rows or of columns.
    """
    rows, columns = residual.shape
    if format.rank > min(rows, columns):
        raise FormatError(
            f"{format} needs {format.rank} rows and columns, found [{rows}, {columns}]"
        )
    E = residual.double()
    H, weight = _metric(curvature, rows, columns)
    R = torch.linalg.cholesky(H)
    powers, directions = _components(weight[:, None] * E @ R)
    kept = powers[: format.rank, None].sqrt().sqrt() * directions[: format.rank]
    B = torch.linalg.solve_triangular(R, kept, upper=False, left=False)
    right, right_scale = _rounded(B.float(), format.factor_max)
    B = right.double() * right_scale.double()[:, None]
    A = _fitted(E, B, H)
    left, left_scale = _rounded(A.T.float().contiguous(), format.factor_max)
    return {"left": left, "right": right, "rank_scale": left_scale * right_scale}


def _components(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(squared singular values, largest first; right singular vectors [of them, columns]).

    From the smaller of the two Gram matrices: a full SVD takes many times as long. Small singular
    values, which are inaccurate this way, are of no use here.
    """
    wide = matrix.shape[1] > matrix.shape[0]
    powers, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    powers, vectors = powers.flip(0).clamp(min=0), vectors.flip(1)
    if not wide:
        return powers, vectors.T
    return powers, vectors.T @ matrix / powers.sqrt().clamp(min=1e-150)[:, None]


def _metric(
    curvature: Curvature | None, rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(H damped, float64 [columns, columns]; square root of F, float64 [rows])."""
    if curvature is None:
        eye = torch.eye(columns, dtype=torch.float64)
        return eye, torch.ones(rows, dtype=torch.float64)
    H = curvature.rounding_hessian.double()
    H = H.mean(dim=0) if H.dim() == 3 else H
    damping = DAMPING * float(H.diagonal().mean())
    while int(torch.linalg.cholesky_ex(H + damping * torch.eye(columns)).info):
        damping = 10 * damping or 1.0
    if curvature.row_fisher is None or not bool(curvature.row_fisher.any()):
        weight = torch.ones(rows, dtype=torch.float64)
    else:
        fisher = curvature.row_fisher.double()
        weight = (fisher + 1e-6 * fisher.mean()).sqrt()
    return H + damping * torch.eye(columns, dtype=torch.float64), weight


def _fitted(E: torch.Tensor, B: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """A [rows, rank] of least tr((E - A B) H (E - A B)ᵀ), for any weights of the rows."""
    normal = B @ H @ B.T
    fitted: torch.Tensor = E @ H @ B.T @ torch.linalg.pinv(normal, hermitian=True)
    return fitted


def _rounded(vectors: torch.Tensor, code_max: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 codes, float32 scale [rank]) of vectors [rank, length], each under its best step."""
    largest = vectors.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    unit = vectors / largest[:, None]  # steps are searched in float16, which is precise near 1
    scale = least_squares_scale(unit, code_max)
    codes = nearest_codes(unit, scale, -code_max, code_max)
    return codes.to(torch.int8), scale * largest
