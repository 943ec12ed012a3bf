"""A correction of low rank as the contest's last leaders stored it (LQER, PR #1797).

The rounding error E is replaced by A B of its largest singular values, without curvature: A [rows,
rank] in two bits under one scale, B [rank, columns] in four bits under a scale per group of its
elements. The two ranges are not symmetric: -2 to 1 and -8 to 7.
"""

from __future__ import annotations

import torch

Factors = dict[str, torch.Tensor]
SMALLEST = 1e-10  # the largest magnitude that a scale is computed from


def fits(rows: int, columns: int, rank: int, group: int) -> bool:
    """Whether an error of this shape has such a correction."""
    return rank <= min(rows, columns) and rank * columns % group == 0


def grouped_correction(residual: torch.Tensor, rank: int, group: int) -> Factors:
    """int8 A [rows, rank], float16 A_scale [], int8 B [rank, columns] and float16 B_scale [groups]
    of float32 E [rows, columns]; see `fits`.
    """
    U, S, V = torch.linalg.svd(residual, full_matrices=False)
    A, B = U[:, :rank] * S[:rank], V[:rank]
    groups = B.reshape(-1, group)
    A_scale = (A.abs().max().clamp(min=SMALLEST) / 1.5).half()
    B_scale = (groups.abs().amax(dim=1).clamp(min=SMALLEST) / 7.5).half()
    return {
        "A": _codes(A / A_scale.float(), -2, 1),
        "A_scale": A_scale,
        "B": _codes(groups / B_scale.float()[:, None], -8, 7).reshape(B.shape),
        "B_scale": B_scale,
    }


def _codes(values: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """nan, of a scale that float16 rounds to 0, becomes 0."""
    return torch.nan_to_num(values.round(), nan=0.0).clamp(low, high).to(torch.int8)
