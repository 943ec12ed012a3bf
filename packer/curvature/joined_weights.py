"""Linear maps of several weights at once, whose rows follow each other in one matrix.

A library that joins what its files keep apart, such as gate and up of an expert, computes both in
one product; each of them has the curvature of its own rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from packer.curvature.weight_origins import Placement
from packer.curvature.weight_uses import WeightUses


class JoinedWeightUses(WeightUses):
    """As `WeightUses`, also where the matrix of a linear map is made of several weights."""

    def _linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        parts = [] if self._placed(weight) is not None else self._parts(weight)
        if not parts:
            return super()._linear(x, weight, bias)
        y = torch.split(
            F.linear(x, weight.detach(), bias), [count for _, _, count in parts], dim=-1
        )
        used = [self._used(*part[:2], x, one) for part, one in zip(parts, y, strict=True)]
        return torch.cat(used, dim=-1)

    def _parts(self, matrix: torch.Tensor) -> list[tuple[str, Placement, int]]:
        """(weight, where in it, rows of the matrix) one after the other; none if one is unknown."""
        found: list[tuple[str, Placement, int]] = []
        at = 0
        while matrix.dim() == 2 and at < len(matrix):
            region = self.origins.of(matrix[at : at + 1])
            if region is None:
                return []
            width = self.weights[region.name].size(-1)
            rows = self.weights[region.name].numel() // width - region.offset // width
            piece = matrix[at : at + rows]
            placed = self._placed(piece)
            if placed is None:
                return []
            found.append((*placed, len(piece)))
            at += len(piece)
        return found
