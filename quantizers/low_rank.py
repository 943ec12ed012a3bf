"""A correction of low rank to what rounding left over (LQER, arXiv:2402.02446).

With E = W - Q and curvature H over columns and F over rows, the change that is felt is
tr(F (E - A B) H (E - A B)ᵀ). With H = R Rᵀ it is the squared norm of F^½ (E - A B) R, whose best
A B comes from the largest singular values of F^½ E R (QERA, arXiv:2410.06040, with F besides). B
is rounded first; A is then fitted to what B became, H deciding, and rounded in turn.
"""

from __future__ import annotations

import torch

from .clip import least_squares_scale, nearest_codes
from .curvature import Curvature
from .formats import FormatError, LowRank
from .rounding import DAMPING

LARGEST_OFFERED = 8  # rank; what is felt so much that it needs more is better not rounded
LEAST_SAVED = 0.02  # bits per weight; less is not worth measuring

Factors = dict[str, torch.Tensor]  # left, right, rank_scale: side values of a LowRank format


def correction(
    residual: torch.Tensor, format: LowRank, curvature: Curvature | None = None
) -> Factors:
    """int8 left [rank, rows] and right [rank, columns], float32 rank_scale [rank].

    residual: E, float32 [rows, columns]. Without curvature every error is felt alike. The matrices
    of a bank are corrected together, under the mean of their Hessians.
    Raises FormatError: a rank that the matrix cannot have.
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


def paying_rank(residual: torch.Tensor, curvature: Curvature, bits: int) -> int:
    """The rank up to LARGEST_OFFERED that saves most bytes at equal damage; 0 if none saves enough.

    Halving the step of n weights costs n bits and divides the damage by 4. A correction that leaves
    a share s of the damage is worth n/2 · log₂(1/s) bits, and costs those of its factors.
    """
    rows, columns = residual.shape
    H, weight = _metric(curvature, rows, columns)
    R = torch.linalg.cholesky(H)
    powers, _ = _components(weight[:, None] * residual.double() @ R)
    powers = powers[: LARGEST_OFFERED + 1]
    total = (weight[:, None] * residual.double() @ R).square().sum()
    left = (1 - powers.cumsum(0)[:-1] / total.clamp(min=1e-300)).clamp(min=1e-9)
    ranks = torch.arange(1, len(left) + 1)
    saved = residual.numel() / 2 * (1 / left).log2() - bits * ranks * (rows + columns)
    best = int(saved.argmax()) if len(saved) else 0
    enough = len(saved) and float(saved[best]) > LEAST_SAVED * residual.numel()
    return best + 1 if enough else 0


def _components(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(squared singular values, largest first; right singular vectors [of them, columns]).

    From the smaller of the two Gram matrices: the whole decomposition takes many times as long, and
    small singular values, which this cannot tell apart, are of no use here.
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
    if curvature.fisher is None or not bool(curvature.fisher.any()):
        weight = torch.ones(rows, dtype=torch.float64)
    else:
        fisher = curvature.fisher.double()
        weight = (fisher + 1e-6 * fisher.mean()).sqrt()
    return H + damping * torch.eye(columns, dtype=torch.float64), weight


def _fitted(E: torch.Tensor, B: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """A [rows, rank] of least tr((E - A B) H (E - A B)ᵀ), whatever weighs the rows."""
    normal = B @ H @ B.T
    fitted: torch.Tensor = E @ H @ B.T @ torch.linalg.pinv(normal, hermitian=True)
    return fitted


def _rounded(vectors: torch.Tensor, code_max: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 codes, float32 scale [rank]) of vectors [rank, length], each under its best step."""
    largest = vectors.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    unit = vectors / largest[:, None]  # where float16, in which steps are searched, is exact enough
    scale = least_squares_scale(unit, code_max)
    codes = nearest_codes(unit, scale, -code_max, code_max)
    return codes.to(torch.int8), scale * largest
