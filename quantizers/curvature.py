"""Curvature: how much a change of a weight changes the output, by second moments of inputs and
gradients.

With labels sampled from the model itself, the KL of a changed model is half a quadratic form in the
change, and its matrix is the Fisher information of the weights. For a linear map that matrix is
close to a Kronecker product (Martens and Grosse, arXiv:1503.05671): one factor over columns, the
second moment H of the map's inputs, and one over rows, of which the diagonal is kept.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from .formats import FormatError

# H is a sum of outer products, hence symmetric up to rounding.
SYMMETRY_TOLERANCE = 1e-4
# Floor of the Fisher of every row of a map, as a fraction of the mean: hidden units inactive on the
# calibration text become active when they are rounded arbitrarily. docs/methods.md, "What the
# frontier is made of", compares 1, 3 and 10 %.
MIN_ROW_FISHER = 0.03
# A sample overstates the correlations of gradients at two outputs (docs/methods.md, "Two-sided
# GPTQ").
SHRINK_CORRELATIONS = 0.3


@dataclass(frozen=True, eq=False)
class Curvature:
    """Curvature of one weight [rows, columns], or of a bank [banks, rows of one, columns].

    A linear map y = W x has
    hessian: float32 [columns, columns], or [banks, columns, columns]: x xᵀ summed over the uses of
        the weight at a token, averaged over tokens.
    fisher: float32 [rows], or [banks · rows of one]: the squared gradient of a sequence's summed
        nats with respect to y, labels sampled from the model, averaged over uses; None if unknown.
    outputs: float32 [rows, rows], or [banks, rows of one, rows of one]: the whole second moment of
        these gradients, of which `fisher` is the diagonal up to a prior; None if not kept.

    A table, whose rows are looked up, has the same two with other meanings: `hessian` is g gᵀ
    averaged over tokens, g the gradient at the result of the lookup, and `fisher` is the share of
    tokens that read each row, weighted by g². A tied embedding is a head, by those two fields, and
    a table by `lookup`.

    tokens: how many were averaged over. row_usage: float32 [rows], of a table: the fraction of
    tokens that read the row. Checked once, here.
    Raises FormatError: a field of wrong shape or dtype, not finite, not symmetric, or negative.
    """

    hessian: torch.Tensor
    fisher: torch.Tensor | None
    tokens: int
    row_usage: torch.Tensor | None = None
    lookup: Curvature | None = None
    outputs: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise FormatError(
                f"curvature of {self.tokens} tokens is no estimate; calibrate on more"
            )
        check_hessian(self.hessian)
        if self.fisher is not None:
            _check_row_values("fisher", self.fisher)
            if self.hessian.dim() == 3 and len(self.fisher) % len(self.hessian):
                raise FormatError(
                    f"fisher has {len(self.fisher)} rows, which {len(self.hessian)} banks "
                    "cannot share"
                )
        if self.row_usage is not None:
            _check_row_values("row_usage", self.row_usage)
        if self.outputs is not None:
            self._check_outputs(self.outputs)

    def _check_outputs(self, outputs: torch.Tensor) -> None:
        check_hessian(outputs, "outputs")
        rows = 0 if self.fisher is None else len(self.fisher)
        if outputs.dim() != self.hessian.dim() or outputs.shape[:-1].numel() != rows:
            raise FormatError(
                f"outputs is {list(outputs.shape)}, with a fisher of {rows} rows and a hessian "
                f"{list(self.hessian.shape)}"
            )

    @functools.cached_property
    def row_fisher(self) -> torch.Tensor | None:
        """float32 [rows]: `fisher`, for the rows of a map plus MIN_ROW_FISHER of their mean."""
        if self.fisher is None or self.row_usage is not None:
            return self.fisher
        return self.fisher + MIN_ROW_FISHER * self.fisher.mean()

    @functools.cached_property
    def row_factors(self) -> torch.Tensor | None:
        """float32 [banks, rows of one, rows of one]: G with `row_fisher` on its diagonal and its
        correlations shrunk towards zero.
        """
        if self.outputs is None or self.row_fisher is None:
            return None
        size = self.outputs.shape[-1]
        G = self.outputs.reshape(-1, size, size).to(torch.float64, copy=True)
        diagonal = G.diagonal(dim1=-2, dim2=-1)
        diagonal += MIN_ROW_FISHER * diagonal.mean()
        scale = diagonal.clamp(min=1e-30).rsqrt()
        G.mul_(1 - SHRINK_CORRELATIONS).mul_(scale[:, :, None]).mul_(scale[:, None, :])
        G.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        root = self.row_fisher.double().sqrt().reshape(-1, size)
        return G.mul_(root[:, :, None]).mul_(root[:, None, :]).float()

    @property
    def rounding_hessian(self) -> torch.Tensor:
        """The second moment H that rounding minimizes under: of a tied embedding, that of the head
        plus that of the table, weighted by their mean Fisher.
        """
        if self.lookup is None or self.fisher is None or self.lookup.fisher is None:
            return self.hessian
        ratio = self.lookup.fisher.mean() / self.fisher.mean().clamp(min=1e-30)
        return self.hessian + ratio * self.lookup.hessian

    @property
    def columns(self) -> int:
        return self.hessian.shape[-1]

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises FormatError: this is not the curvature of a weight of this shape."""
        banks = self.hessian.shape[0] if self.hessian.dim() == 3 else None
        rows = 1
        for size in shape[:-1]:
            rows *= size
        if not shape or shape[-1] != self.columns:
            raise FormatError(
                f"hessian is {self.columns} wide and the weight has shape {list(shape)}"
            )
        if banks is not None and banks != shape[0]:
            raise FormatError(f"hessian has {banks} banks and the weight has shape {list(shape)}")
        for name, values in (("fisher", self.fisher), ("row_usage", self.row_usage)):
            if values is not None and len(values) != rows:
                raise FormatError(
                    f"{name} has {len(values)} rows and the weight of shape {list(shape)} {rows}"
                )
        if self.lookup is not None:
            self.lookup.check_shape(shape)


def check_hessian(hessian: torch.Tensor, name: str = "hessian") -> None:
    """Raises FormatError: not float32 [columns, columns] or a stack of such, NaN, asymmetric."""
    shape = list(hessian.shape)
    if hessian.dtype != torch.float32 or len(shape) not in (2, 3) or shape[-1] != shape[-2]:
        raise FormatError(
            f"{name} is {hessian.dtype} {shape}; float32 [columns, columns] is wanted"
        )
    if hessian.numel() == 0:
        raise FormatError(f"{name} is empty: {shape}")
    low, high = map(float, hessian.aminmax())  # NaN if any value is
    largest = max(abs(low), abs(high))
    if not math.isfinite(low + high):
        raise FormatError(f"{name} has values that are not finite")
    if not torch.equal(hessian, hessian.mT):
        difference = float((hessian - hessian.mT).abs().max())
        if difference > SYMMETRY_TOLERANCE * largest:
            raise FormatError(
                f"{name} is not symmetric: entries differ by up to {difference:.3g}, "
                f"where the largest is {largest:.3g}"
            )
    smallest = float(hessian.diagonal(dim1=-2, dim2=-1).min())
    if smallest < 0:
        raise FormatError(
            f"{name} has {smallest:.3g} on its diagonal; a mean of squares is never negative"
        )


def lower_triangle(matrix: torch.Tensor) -> torch.Tensor:
    """[..., n (n + 1) / 2]: a symmetric matrix [..., n, n] by rows, up to the diagonal."""
    mask = torch.ones(matrix.shape[-2:], dtype=torch.bool).tril()
    return matrix[..., mask]


def from_lower_triangle(values: torch.Tensor) -> torch.Tensor:
    """The inverse of `lower_triangle`. Raises FormatError: as many values are no triangle."""
    count = values.shape[-1] if values.dim() else 0
    size = (math.isqrt(8 * count + 1) - 1) // 2
    if size * (size + 1) != 2 * count:
        raise FormatError(f"{count:,} values are no triangle of a symmetric matrix")
    mask = torch.ones(size, size, dtype=torch.bool).tril()
    lower = values.new_zeros(*values.shape[:-1], size, size).masked_scatter_(mask, values)
    return torch.where(mask, lower, lower.mT)


def _check_row_values(name: str, values: torch.Tensor) -> None:
    if values.dtype != torch.float32 or values.dim() != 1:
        raise FormatError(
            f"{name} is {values.dtype} {list(values.shape)}; float32 [rows] is wanted"
        )
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise FormatError(f"{name} has values that are negative or not finite")
