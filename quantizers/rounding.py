"""GPTQ: rounding in which later columns compensate for the errors of earlier ones.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh 2022, arXiv:2210.17323) rounds a matrix column by
column. Rounding a weight by e = w - q costs e² / (2 [F⁻¹]_jj) when all weights not yet rounded move
by the best correction, δ = -e / [F⁻¹]_jj · F⁻¹_:,j, where F is the Hessian of those weights
(Optimal Brain Surgeon, Hassibi and Stork 1993). With H⁻¹ = Uᵀ U, U upper triangular, row j of U is
F⁻¹_j,: over √[F⁻¹]_jj for every j at once: the Cholesky factor of the inverse Hessian in GPTQ.
No inverse has to be updated on the way. docs/methods.md, "GPTQ", lists the settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .clip import nearest_codes
from .dequantize import code_values, nearer_to_zero
from .formats import FormatError

DAMPING = 0.01  # of the mean diagonal, as in the paper and in PR #1855
BLOCK = 64  # columns between two updates of all later ones; the paper has 128, with equal results
DAMPING_STEP = 10.0  # damping grows by this factor when the factorization fails ...
TRIANGLE = 128  # columns of a triangle that is inverted at once
LARGEST_DAMPING = 1.0  # ... up to here; beyond it little of H is left
ORDERS = ("descending", "ascending", "given")  # of columns: by the diagonal of H, or as stored


@dataclass(frozen=True)
class RoundingReport:
    """The outcome of GPTQ on a matrix, or on a bank of matrices.

    damping: the fraction of the mean diagonal that was added to the diagonal.
    wanted_damping: the fraction requested; where they differ, a larger one was needed.
    dead_columns: the number of inputs that are always zero, whose weights become zero.
    fell_back: the reason for rounding to nearest instead; None when GPTQ worked.
    """

    damping: float
    wanted_damping: float
    dead_columns: int
    fell_back: str | None = None

    @property
    def problem(self) -> str | None:
        """The warning that a summary shows for this tensor; None if all went well."""
        if self.fell_back is not None:
            return f"rounded to nearest: {self.fell_back}"
        if self.damping > self.wanted_damping:
            return (
                f"damping {self.damping:g} of the mean diagonal, not {self.wanted_damping:g}: "
                "its Hessian has no Cholesky factor otherwise"
            )
        return None


@dataclass(frozen=True, eq=False)
class Rounded:
    """codes: float32 integers [rows, columns], in stored column order."""

    codes: torch.Tensor
    report: RoundingReport


@dataclass(frozen=True, eq=False)
class HessianFactor:
    """The factorization of a Hessian, shared by all matrices and choices under it.

    order: int64 [columns], the column rounded first, second, ... upper: float32 [columns, columns],
    the U of H⁻¹ = Uᵀ U in that order; None if H has no Cholesky factor. dead: bool [columns], in
    stored order.
    """

    order: torch.Tensor
    upper: torch.Tensor | None
    dead: torch.Tensor
    report: RoundingReport


def gptq(
    rows: torch.Tensor,
    hessian: torch.Tensor,
    scale: torch.Tensor,
    code_min: int,
    code_max: int,
    *,
    damping: float = DAMPING,
    block: int = BLOCK,
    order: str = "descending",
    zero: torch.Tensor | None = None,
) -> Rounded:
    """Codes of float32 rows [rows, columns] under scale [rows] and H [columns, columns].

    zero: bool [rows, columns], weights whose code must be 0 (pruned); later columns compensate.
    The report names a larger damping, or the reason why there is no factor at all.
    """
    factor = factorize(hessian, damping=damping, order=order)
    return round_with(factor, rows, scale, code_min, code_max, block=block, zero=zero)


def factorize(
    hessian: torch.Tensor, *, damping: float = DAMPING, order: str = "descending"
) -> HessianFactor:
    """U of H [columns, columns] with dead columns set aside and a damped diagonal.

    Raises FormatError: an order that is not one of ORDERS, damping below zero.
    """
    if order not in ORDERS or not damping >= 0:
        raise FormatError(f"order {order!r} or damping {damping}: orders are {', '.join(ORDERS)}")
    diagonal = hessian.diagonal().double()  # [columns]
    dead = diagonal <= 0
    by_diagonal = torch.sort(diagonal, descending=order == "descending", stable=True).indices
    given = torch.arange(len(diagonal), device=hessian.device)
    chosen = given if order == "given" else by_diagonal
    if bool(dead.all()):
        report = RoundingReport(damping, damping, int(dead.sum()), "all of its inputs are zero")
        return HessianFactor(chosen, None, dead, report)
    last_first = chosen.flip(0)
    H = hessian[last_first[:, None], last_first].double()  # [columns, columns]
    if bool(dead.any()):
        alone = dead[last_first]
        H[alone] = H[:, alone] = 0.0
        H.diagonal().add_(alone)
    mean = float(diagonal[~dead].sum()) / len(diagonal)
    upper, used = _damped_factor(H, mean, damping)
    failed = (
        None if upper is not None else f"its Hessian has no Cholesky factor at damping {used:g}"
    )
    report = RoundingReport(used, damping, int(dead.sum()), failed)
    return HessianFactor(chosen, None if upper is None else upper.float(), dead, report)


def _damped_factor(
    H: torch.Tensor, mean: float, damping: float
) -> tuple[torch.Tensor | None, float]:
    """(U [columns, columns], the damping used), or (None, the largest damping tried).

    H: the last to be rounded first; its diagonal is overwritten.
    """
    diagonal = H.diagonal().clone()
    while True:
        H.diagonal().copy_(diagonal + damping * mean)
        upper = _inverse_factor(H)
        if upper is not None or damping >= LARGEST_DAMPING:
            return upper, damping
        damping = min(max(damping, DAMPING / DAMPING_STEP) * DAMPING_STEP, LARGEST_DAMPING)


def _inverse_factor(H: torch.Tensor) -> torch.Tensor | None:
    """U [columns, columns], upper triangular, with H⁻¹ = Uᵀ U, of H with rows and columns reversed;
    None if H is not positive definite.

    H reversed is L Lᵀ; R, L reversed, is upper triangular with H = R Rᵀ, and U = R⁻¹. One
    factorization; inverting H and factorizing the inverse takes two and loses digits.
    """
    lower, failed = torch.linalg.cholesky_ex(H)
    if int(failed):
        return None
    upper = _inverse_of_triangle(lower.flip(0, 1))
    usable = bool(torch.isfinite(upper).all()) and bool((upper.diagonal() > 0).all())
    return upper if usable else None


def _inverse_of_triangle(R: torch.Tensor) -> torch.Tensor:
    """R⁻¹ of an upper triangular R [columns, columns]: by halves, in matrix products, half the time
    of solving for the identity.
    """
    size, half = len(R), len(R) // 2
    if size <= TRIANGLE:
        eye = torch.eye(size, dtype=R.dtype, device=R.device)
        solved: torch.Tensor = torch.linalg.solve_triangular(R, eye, upper=True)
        return solved
    first, last = _inverse_of_triangle(R[:half, :half]), _inverse_of_triangle(R[half:, half:])
    inverse = torch.zeros_like(R)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = (first @ (R[:half, half:] @ last)).neg_()
    return inverse


def round_with(
    factor: HessianFactor,
    rows: torch.Tensor,
    scale: torch.Tensor,
    code_min: int,
    code_max: int,
    *,
    block: int = BLOCK,
    zero: torch.Tensor | None = None,
    shrink: int = 0,
) -> Rounded:
    """`gptq` under a given factor; other arguments as there, shrink as of `code_values`."""
    W = rows.masked_fill(factor.dead, 0.0) if bool(factor.dead.any()) else rows
    if factor.upper is None:
        # The weights of inputs that are all zero are kept: this matrix was not calibrated at all.
        codes = nearest_codes(rows, scale, code_min, code_max)
        return Rounded(codes if zero is None else codes.masked_fill_(zero, 0), factor.report)
    ordered = W[:, factor.order]  # [rows, columns], in the order of rounding
    forced = None if zero is None else zero[:, factor.order]
    rounded = torch.empty_like(ordered)
    for start in range(0, W.shape[1], block):
        here, later = slice(start, start + block), slice(start + block, None)
        U = factor.upper[here, here].contiguous()  # [block, block]
        mask = None if forced is None else forced[:, here].contiguous()
        weights = ordered[:, here].clone()  # [rows, block]
        arguments = (weights, U, scale.float(), (code_min, code_max), mask, shrink)
        on_cpu = W.device.type == "cpu"
        rounded[:, here], E = _compiled_block(*arguments) if on_cpu else _by_columns(*arguments)
        ordered[:, later].addmm_(E, factor.upper[here, later], alpha=-1)  # W -= E U, later columns
    codes = torch.empty_like(rounded)
    codes[:, factor.order] = rounded
    return Rounded(codes, factor.report)


def _compiled_block(
    W: torch.Tensor,
    U: torch.Tensor,
    scale: torch.Tensor,
    limits: tuple[int, int],
    zero: torch.Tensor | None,
    shrink: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, E), both [rows, columns], of a block of columns W [rows, columns]; W is overwritten.

    E: errors over pivots, (w - q) / U_jj. U [columns, columns], scale [rows], zero [rows, columns].
    """
    from .compiled_loops import round_rows  # a compiler is slow to import

    forced = torch.empty(0, 0, dtype=torch.bool) if zero is None else zero
    arrays = (W.numpy(), U.numpy(), scale.contiguous().numpy(), nearer_to_zero(shrink).numpy())
    codes, E = round_rows(*arrays, *limits, forced.numpy())
    return torch.from_numpy(codes), torch.from_numpy(E)


def _by_columns(
    W: torch.Tensor,
    U: torch.Tensor,
    scale: torch.Tensor,
    limits: tuple[int, int],
    zero: torch.Tensor | None,
    shrink: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_compiled_block`, a column of all rows at once: on a GPU, or without a compiler."""
    divisor = scale.masked_fill(scale == 0, torch.inf)
    codes, E = torch.empty_like(W), torch.empty_like(W)
    for j in range(W.shape[1]):
        q = (W[:, j] / divisor).round_().clamp_(*limits)  # [rows]
        if zero is not None:
            q.masked_fill_(zero[:, j], 0)
        codes[:, j] = q
        E[:, j] = (W[:, j] - code_values(q, shrink) * scale) / U[j, j]
        W[:, j:].addr_(E[:, j], U[j, j:], alpha=-1)  # δ of Optimal Brain Surgeon
    return codes, E


def together(reports: Sequence[RoundingReport]) -> RoundingReport:
    """One report for the matrices of a bank."""
    if len(reports) == 1:
        return reports[0]
    failures = [
        f"in bank {bank} {report.fell_back}"
        for bank, report in enumerate(reports)
        if report.fell_back is not None
    ]
    return RoundingReport(
        max(report.damping for report in reports),
        reports[0].wanted_damping,
        sum(report.dead_columns for report in reports),
        "; ".join(failures) or None,
    )
