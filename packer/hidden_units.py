"""Which tensors meet at the hidden units of an MLP, and checkpoints with these in another order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment

from packer.candidates import UNITS_MARK
from packer.checkpoint import Checkpoint
from packer.curvature.curvature_set import AnyCurvature, CurvatureSet
from packer.made_when_asked import MadeWhenAsked
from packer.quantizers.curvature import Curvature
from packer.roles import Role, roles_of
from packer.stored_tensors import ReadLater
from packer.unit_order import Orders, felt_orders, ordered_curvature, ordered_weight

MARKED = {UNITS_MARK: "sorted"}
INTO = (Role.MLP_IN, Role.MLP_GATE)
ROWS_AT_ONCE = 1024  # of a table of likenesses between units


def hidden_units(
    shapes: Mapping[str, tuple[int, ...]], ties: Mapping[str, str]
) -> list[dict[str, int]]:
    """Of every MLP: tensor -> the axis of its hidden units; first a matrix that leads to them.

    An MLP has one matrix [width, units] and one or more [units, width] under the same module, with
    widths other than its units. Where any other tensor there has an axis as long that cannot be
    told, or a tensor is tied, the MLP is left out. The order of its units is free in most models,
    not in all: `packer.curvature.free_order` tries.
    """
    roles = roles_of(shapes, ties)
    tied = {*ties, *ties.values()}
    found = []
    for name, shape in shapes.items():
        module = name.split(".")[:-2]
        if roles[name].role is Role.MLP_OUT and module and len(shape) == 2 and shape[0] != shape[1]:
            inside = ".".join([*module, ""])
            members = {one: shapes[one] for one in sorted(shapes) if one.startswith(inside)}
            axes = _axes(name, members, {one: roles[one].role for one in members})
            if axes and not tied & axes.keys():
                found.append(axes)
    return found


def _axes(
    out: str, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, Role]
) -> dict[str, int] | None:
    """Tensor -> axis of one module's units; None where that cannot be told."""
    width, units = shapes[out]
    into = [n for n, shape in shapes.items() if roles[n] in INTO and shape == (units, width)]
    axes = {**dict.fromkeys(sorted(into, key=lambda n: (roles[n] is not INTO[0], n)), 0), out: 1}
    for name, shape in shapes.items():
        if name not in axes and units in shape:
            if len(shape) != 1:
                return None
            axes[name] = 0
    return axes if into else None


def units_of(checkpoint: Checkpoint) -> list[dict[str, int]]:
    """Its `hidden_units`."""
    shapes = {name: tuple(one.shape) for name, one in checkpoint.outlines.items()}
    return hidden_units(shapes, checkpoint.ties)


def may_be_sorted(checkpoint: Checkpoint, curvature: AnyCurvature | None) -> bool:
    """Whether there are MLPs, and the model was seen to give the same with their units permuted."""
    if not isinstance(curvature, CurvatureSet) or not curvature.free_order:
        return False
    return bool(felt_orders(units_of(checkpoint), curvature.by_tensor))


def orders_of(
    checkpoint: Checkpoint,
    metadata: Mapping[str, str],
    curvature: Mapping[str, Curvature] | None,
) -> Orders:
    """How a file with this metadata has the units of a checkpoint; nothing where it keeps them."""
    if UNITS_MARK not in metadata or not curvature:
        return {}
    return felt_orders(units_of(checkpoint), curvature)


def in_stored_order(
    checkpoint: Checkpoint, curvature: Mapping[str, Curvature], metadata: Mapping[str, str]
) -> tuple[Checkpoint, Mapping[str, Curvature]]:
    """Both as a file with this metadata has their units."""
    orders = orders_of(checkpoint, metadata, curvature)
    return (
        ordered_checkpoint(checkpoint, orders),
        ordered_curvatures(checkpoint, curvature, orders),
    )


class _OrderedTensors(ReadLater):
    def __init__(self, checkpoint: Checkpoint, orders: Orders) -> None:
        super().__init__(checkpoint.outlines)
        self._tensors, self._orders = checkpoint.tensors, orders

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._tensors[name]
        return ordered_weight(weight, *self._orders[name]) if name in self._orders else weight


class _OrderedCurvature(MadeWhenAsked[Curvature]):
    def __init__(self, known: Mapping[str, Curvature], last: Mapping[str, bool], orders: Orders):
        super().__init__(known)
        self._known, self._last, self._orders = known, last, orders

    def __getitem__(self, name: str) -> Curvature:
        one = self._known[name]
        if name not in self._orders:
            return one
        return ordered_curvature(one, self._last[name], self._orders[name][1])


def ordered_checkpoint(checkpoint: Checkpoint, orders: Orders) -> Checkpoint:
    """The same model; tensors are permuted whenever they are asked for."""
    if not orders:
        return checkpoint
    return replace(checkpoint, tensors=_OrderedTensors(checkpoint, orders))


def ordered_curvatures(
    checkpoint: Checkpoint, curvature: Mapping[str, Curvature], orders: Orders
) -> Mapping[str, Curvature]:
    """The curvature of `ordered_checkpoint`; permuted whenever it is asked for."""
    if not orders:
        return curvature
    last = {n: checkpoint.outlines[n].dim() == axis + 1 for n, (axis, _) in orders.items()}
    return _OrderedCurvature(curvature, last, orders)


def in_checkpoints_order(weight: torch.Tensor, name: str, orders: Orders) -> torch.Tensor:
    """A tensor of a file, as the checkpoint has it."""
    if name not in orders:
        return weight
    axis, order = orders[name]
    return ordered_weight(weight, axis, order.argsort())


def recovered_orders(checkpoint: Checkpoint, decoded: Mapping[str, torch.Tensor]) -> Orders:
    """The orders of units in which decoded tensors are most like the checkpoint's.

    Each unit is compared by all that leads to it and from it, by the cosine.
    """
    found: Orders = {}
    for axes in units_of(checkpoint):
        if axes.keys() <= decoded.keys():
            order = _most_alike(
                _units({name: decoded[name] for name in axes}, axes),
                _units({name: checkpoint.tensors[name] for name in axes}, axes),
            )
            found.update({name: (axis, order) for name, axis in axes.items()})
    return found


def _units(weights: Mapping[str, torch.Tensor], axes: Mapping[str, int]) -> torch.Tensor:
    """float32 [units, values]: what each unit is made of, of length 1; silent ones are zero."""
    parts = [weights[name].float().movedim(axis, 0).flatten(1) for name, axis in axes.items()
             if weights[name].dim() > 1]  # fmt: skip
    parts = [part / part.square().mean().sqrt().clamp(min=1e-30) for part in parts]
    return torch.nn.functional.normalize(torch.cat(parts, 1), dim=1)


def _most_alike(these: torch.Tensor, those: torch.Tensor) -> torch.Tensor:
    """int64 [units]: for each of these one of those, none twice."""
    starts = range(0, len(these), ROWS_AT_ONCE)
    best = torch.cat([(these[i : i + ROWS_AT_ONCE] @ those.T).argmax(1) for i in starts])
    taken = torch.bincount(best, minlength=len(those))
    if int(taken.max()) > 1:
        open_ones = (taken[best] > 1).nonzero().flatten()
        free = (taken != 1).nonzero().flatten()
        likeness = these[open_ones] @ those[free].T
        _, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
        best[open_ones] = free[torch.from_numpy(columns)]
    return best
