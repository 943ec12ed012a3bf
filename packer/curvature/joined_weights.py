"""Linear maps of several weights at once, concatenated by rows to one matrix.

A library that joins weights which are separate in its files, such as gate and up of an expert,
computes both in one product; each has the curvature of its own rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from packer.curvature.weight_origins import Placement
from packer.curvature.weight_uses import WeightUses


class JoinedWeightUses(WeightUses):
    """`WeightUses`, also for linear maps whose matrix consists of several weights."""

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
        """(weight, placement in it, rows of the matrix) in order; empty if one is unknown."""
        parts: list[tuple[str, Placement, int]] = []
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
            parts.append((*placed, len(piece)))
            at += len(piece)
        return parts
