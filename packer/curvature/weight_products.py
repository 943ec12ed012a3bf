"""Products of a weight with another tensor, as linear maps y = W x of matrices in the weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from packer.curvature.contractions import Contraction
from packer.curvature.weight_origins import Parts, Placement, Region

Key = tuple[str, int]  # (letter of the contraction, part of its axis)


@dataclass(frozen=True)
class Axis:
    """An axis of the weight in the product. stride: in the weight."""

    key: Key
    size: int
    stride: int


@dataclass(frozen=True, eq=False)
class Product:
    """One linear map for every index of the axes `lead`, all over the same axes.

    inputs: axes of x that are summed over. outputs: axes of y that x lacks. uses: the other axes.
    """

    placements: tuple[Placement, ...]
    contraction: Contraction
    x: Tensor
    x_letters: str
    parts: Mapping[str, Parts]
    lead: tuple[Axis, ...]
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    uses: tuple[Key, ...]

    @property
    def transposed(self) -> bool:
        return self.placements[0].transposed

    def vectors(self) -> Tensor:
        """Input vectors, float32 [maps, uses, inputs]."""
        vectors = self._arranged(self.x, self.x_letters, self.inputs)
        return vectors if self.contraction.scale == 1 else vectors * self.contraction.scale

    def gradients(self, gradient: Tensor) -> Tensor:
        """Gradients at the outputs, float32 [maps, uses, outputs], from that of the result."""
        shape = self.contraction.shape
        gradient = gradient if shape is None else gradient.reshape(shape)
        return self._arranged(gradient, self.contraction.out, self.outputs)

    def _arranged(self, tensor: Tensor, letters: str, vector: Sequence[Axis]) -> Tensor:
        tensor, keys = _by_parts(tensor.detach().float(), letters, self.parts)
        lead, last = [axis.key for axis in self.lead], [axis.key for axis in vector]
        summed = [at for at, key in enumerate(keys) if key not in {*lead, *self.uses, *last}]
        if summed:
            tensor = tensor.sum(summed)
            keys = [key for at, key in enumerate(keys) if at not in summed]
        for axis in self.lead:
            if axis.key not in keys:
                tensor = tensor.expand(axis.size, *tensor.shape)
                keys = [axis.key, *keys]
        tensor = tensor.permute([keys.index(key) for key in (*lead, *self.uses, *last)])
        at = len(lead) + len(self.uses)
        shape = tensor.shape
        return tensor.reshape(
            shape[: len(lead)].numel(), shape[len(lead) : at].numel(), shape[at:].numel()
        )


def product_of(
    contraction: Contraction, on_the_left: bool, region: Region, weight_shape: tuple[int, ...]
) -> Product | None:
    """None if the weight's last axis is neither summed over nor only in the result."""
    c = contraction
    w_letters, x, x_letters = c.right_letters, c.left, c.left_letters
    if on_the_left:
        w_letters, x, x_letters = c.left_letters, c.right, c.right_letters
    parts = dict(zip(w_letters, region.axes, strict=True))
    axes = [
        Axis((letter, part), size, stride)
        for letter, pieces in parts.items()
        for part, (size, stride) in enumerate(pieces)
        if stride
    ]
    x_keys = _by_parts(x, x_letters, parts)[1]
    out_keys = [(one, part) for one in c.out for part in range(max(1, len(parts.get(one, ()))))]
    inside = {axis.key: (axis.key in x_keys, axis.key in out_keys) for axis in axes}
    width, rows = weight_shape[-1], [axis for axis in axes if axis.stride >= weight_shape[-1]]
    columns = _joined([axis for axis in axes if axis.stride < width])
    roles = {inside[axis.key] for axis in columns}
    if not columns:
        roles = {(False, True) if (True, False) in {inside[a.key] for a in rows} else (True, False)}
    if len(roles) != 1 or len(columns) != len(axes) - len(rows):
        return None
    summed, kept = roles.pop()
    if summed == kept or (columns and columns[-1].stride != 1):
        return None
    if any(axis.stride % width for axis in rows):
        return None
    along = _joined([axis for axis in rows if inside[axis.key] == (kept, summed)])
    lead = tuple(axis for axis in rows if axis not in along)
    return Product(
        _placements(region, width, lead, along, columns, transposed=kept),
        contraction,
        x,
        x_letters,
        parts,
        lead,
        along if kept else columns,
        columns if kept else along,
        tuple(key for key in x_keys if key in out_keys and key not in inside),
    )


def _placements(
    region: Region,
    width: int,
    lead: Sequence[Axis],
    along: Sequence[Axis],
    columns: Sequence[Axis],
    transposed: bool,
) -> tuple[Placement, ...]:
    """The placements of all maps of a product, in the order of their indices."""
    row, column = divmod(region.offset, width)
    step = along[-1].stride // width if along else 1
    reach = (math.prod(axis.size for axis in along) - 1) * step + 1
    places = slice(column, column + math.prod(axis.size for axis in columns))
    firsts = [
        row + sum(at * axis.stride // width for at, axis in zip(index, lead, strict=True))
        for index in itertools.product(*(range(axis.size) for axis in lead))
    ]
    return tuple(
        Placement(slice(first, first + reach, step), places, transposed) for first in firsts
    )


def _joined(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The innermost axis, and the axes that are contiguous with those inside them."""
    joined: list[Axis] = []
    for axis in sorted(axes, key=lambda axis: axis.stride):
        if not joined or axis.stride == joined[0].stride * joined[0].size:
            joined.insert(0, axis)
    return tuple(joined)


def _by_parts(tensor: Tensor, letters: str, parts: Mapping[str, Parts]) -> tuple[Tensor, list[Key]]:
    """(tensor, keys) with axes split as those of the weight, without broadcast axes."""
    keys: list[Key] = []
    for letter in letters:
        pieces, at = parts.get(letter, ()), len(keys)
        if tensor.size(at) == 1 and pieces:
            tensor = tensor.squeeze(at)
            continue
        if len(pieces) > 1:
            sizes = [size for size, _ in pieces]
            tensor = tensor.reshape(*tensor.shape[:at], *sizes, *tensor.shape[at + 1 :])
        keys += [(letter, part) for part in range(max(1, len(pieces)))]
    return tensor, keys
