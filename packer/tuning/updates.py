"""One step of tuning: from the gradient of a few windows to a change of the weights.

A gradient G of a matrix is averaged over steps, and multiplied from both sides by the square root
of the inverse curvature: in the eigenvectors of its two Kronecker factors, each entry is divided by
√(μ λ + damping). That is between gradient descent, which moves stiff directions most, and a Newton
step, which amplifies the noise of those in which few windows say anything. Other tensors take the
same average entry by entry (Adam; Kingma and Ba, arXiv:1412.6980).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from packer.quantizers.curvature import Curvature

MOMENTUM = 0.9
SQUARES = 0.95  # the decay of squared gradients, of tensors without two-sided curvature
FLOOR = 0.1  # of their mean, added to their root
DAMPING = 0.03  # of the mean curvature
WARM_UP = 10  # updates of a tensor until its moves have their full size
SMALL_TENSORS = 1.5  # times the moves of matrices

Scaling = Callable[[Tensor], Tensor]


def scaling(curvature: Curvature, device: torch.device) -> Scaling | None:
    """Gradient [rows, columns] -> direction of the same shape; None without both factors."""
    factors = curvature.row_factors
    if factors is None or len(factors) != 1 or curvature.row_usage is not None:
        return None
    columns, right = torch.linalg.eigh(curvature.rounding_hessian.double())
    rows, left = torch.linalg.eigh(factors[0].double())
    product = rows.clamp(min=0)[:, None] * columns.clamp(min=0)  # [rows, columns]
    divisor = (product + DAMPING * product.mean()).clamp(min=1e-30).sqrt()
    left, right, divisor = (matrix.float().to(device) for matrix in (left, right, divisor))

    def scaled(gradient: Tensor) -> Tensor:
        direction: Tensor = left @ ((left.T @ gradient.float() @ right) / divisor) @ right.T
        return direction

    return scaled


class Updates:
    """The running averages of one tensor. size: its root mean square, the unit of its moves."""

    def __init__(self, weight: Tensor, curvature: Curvature | None) -> None:
        self.size = float(weight.float().square().mean().sqrt())
        two_sided = curvature if weight.dim() == 2 else None
        self.scaling = None if two_sided is None else scaling(two_sided, weight.device)
        self.mean = torch.zeros_like(weight, dtype=torch.float32)
        self.squares = torch.zeros_like(self.mean)
        self.count = 0

    def move(self, gradient: Tensor, rate: float) -> Tensor:
        """What to subtract from the weight, after one more gradient; about `rate` of its size."""
        self.count += 1
        self.mean.lerp_(gradient.float(), 1 - MOMENTUM)
        reach = rate * self.size * min(1.0, self.count / WARM_UP)
        if self.scaling is not None:
            direction = self.scaling(self.mean)
            return reach * direction / direction.square().mean().sqrt().clamp(min=1e-30)
        self.squares.lerp_(gradient.float().square(), 1 - SQUARES)
        mean = self.mean / (1 - MOMENTUM**self.count)
        root = (self.squares / (1 - SQUARES**self.count)).sqrt()
        return SMALL_TENSORS * reach * mean / (root + FLOOR * root.mean()).clamp(min=1e-30)
