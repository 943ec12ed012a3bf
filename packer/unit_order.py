"""Weights and their curvature with the hidden units of MLPs in another order.

A model computes the same whichever order its hidden units have, as long as all tensors that meet
them keep to one. Sorted by how much they are felt, neighbours have like steps and share tables, so
that both cost less to tell. A bundle ships the source text of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from packer.quantizers.curvature import Curvature

Orders = dict[str, tuple[int, torch.Tensor]]
"""By tensor: the axis along which hidden units lie, and their numbers in the order wanted."""


def felt_orders(groups: Sequence[dict[str, int]], curvature: Mapping[str, Curvature]) -> Orders:
    """Orders by the Fisher of the rows of each group's first tensor, the most felt unit first.

    groups: tensor -> axis, of every MLP. One whose first tensor has no Fisher stays as it is.
    """
    found: Orders = {}
    for axes in groups:
        known = curvature.get(next(iter(axes)))
        if known is not None and known.fisher is not None:
            order = known.fisher.argsort(descending=True, stable=True)
            found.update({name: (axis, order) for name, axis in axes.items()})
    return found


def sorted_units(
    groups: Sequence[dict[str, int]],
    weights: Mapping[str, torch.Tensor],
    curvature: Mapping[str, Curvature],
) -> tuple[dict[str, torch.Tensor], dict[str, Curvature]]:
    """Both by `felt_orders`, all of them in memory."""
    weights, curvature = dict(weights), dict(curvature)
    for name, (axis, order) in felt_orders(groups, curvature).items():
        weights[name] = ordered_weight(weights[name], axis, order)
        if name in curvature:
            last = weights[name].dim() == axis + 1
            curvature[name] = ordered_curvature(curvature[name], last, order)
    return weights, curvature


def ordered_weight(weight: torch.Tensor, axis: int, order: torch.Tensor) -> torch.Tensor:
    return weight.index_select(axis, order.to(weight.device))


def ordered_curvature(known: Curvature, last: bool, order: torch.Tensor) -> Curvature:
    """last: the units lie along the last axis of the weight, else along its rows."""

    def both_ways(moment: torch.Tensor | None) -> torch.Tensor | None:
        return None if moment is None else moment[..., order, :][..., order]

    def rows(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values[order]

    if last:
        moment = both_ways(known.hessian)
        assert moment is not None
        return replace(known, hessian=moment)
    fisher, usage = rows(known.fisher), rows(known.row_usage)
    return replace(known, fisher=fisher, row_usage=usage, outputs=both_ways(known.outputs))
