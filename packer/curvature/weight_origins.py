"""Which part of which weight a tensor holds: views, slices, transposes and casts traced back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Region:
    """A tensor's elements in terms of a named weight: where the first lies, and its strides."""

    name: str
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """Where the matrix of y = W x lies in a weight [rows, columns], leading axes flattened.

    transposed: the weight's rows are the inputs and its columns the outputs.
    """

    rows: slice
    columns: slice
    transposed: bool

    @property
    def row_count(self) -> int:
        return len(range(self.rows.start, self.rows.stop, self.rows.step))


@dataclass(frozen=True, eq=False)
class _Copy:
    """A tensor with the values of a region, in storage of its own; kept so that this stays so."""

    tensor: torch.Tensor
    region: Region


class Origins:
    """Finds the weight behind a tensor by the storage that both share."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        """weights: the live tensors of a model by name; those that are not contiguous are left."""
        self._weights: dict[tuple[object, ...], list[tuple[int, int, str]]] = {}
        self._copies: dict[tuple[object, ...], _Copy] = {}
        for name, weight in weights.items():
            if weight.numel() and weight.is_contiguous():
                start = int(weight.storage_offset())
                entry = (start, start + weight.numel(), name)
                self._weights.setdefault(_storage(weight), []).append(entry)

    def of(self, tensor: torch.Tensor) -> Region | None:
        """The region of a weight that the tensor views, or copied and then views; None if none."""
        key, offset = _storage(tensor), int(tensor.storage_offset())
        for start, stop, name in self._weights.get(key, ()):
            if start <= offset < stop:
                return Region(name, offset - start, tensor.stride())
        copy = self._copies.get(key)
        return None if copy is None else _through(copy, tensor)

    def remember(self, source: torch.Tensor, copy: torch.Tensor) -> None:
        """`copy` was made of `source`, element by element in the same shape."""
        region = self.of(source)
        if region is not None and _storage(copy) != _storage(source):
            self._copies[_storage(copy)] = _Copy(copy, region)

    def forget_copies(self) -> None:
        """At the end of a forward: their storage may be used for something else."""
        self._copies.clear()


def _storage(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.untyped_storage().data_ptr(), tensor.dtype


def _through(copy: _Copy, view: torch.Tensor) -> Region | None:
    """The region of a view of a copy; None where copy and weight are laid out too differently."""
    held, region = copy.tensor, copy.region
    ahead = int(view.storage_offset() - held.storage_offset())
    if held.stride() == region.strides:
        return Region(region.name, region.offset + ahead, view.stride())
    offset, left = region.offset, ahead
    place = {}  # stride in the copy -> (stride in the weight, elements from here to the end)
    for stride, size, origin in sorted(
        zip(held.stride(), held.shape, region.strides, strict=True), reverse=True
    ):
        index, left = divmod(left, stride)
        offset += index * origin
        place[stride] = (origin, size - index)
    strides = []
    for stride, size in zip(view.stride(), view.shape, strict=True):
        origin, room = place.get(stride, (0, 0))
        if size > max(room, 1):
            return None
        strides.append(origin)
    return Region(region.name, offset, tuple(strides))


def place(
    region: Region, matrix: tuple[int, ...], weight_shape: tuple[int, ...]
) -> Placement | None:
    """Where a matrix [outputs, inputs] with this region lies in its weight; None if not as rows."""
    width, height = weight_shape[-1], math.prod(weight_shape[:-1])
    (outputs, inputs), (output_stride, input_stride) = matrix, region.strides
    first_row, first_column = divmod(region.offset, width)
    for transposed in (False, True):
        sizes, strides = (outputs, inputs), (output_stride, input_stride)
        if transposed:
            sizes, strides = sizes[::-1], strides[::-1]
        (rows, columns), (row_stride, column_stride) = sizes, strides
        step = row_stride // width if rows > 1 else 1
        along_rows = rows == 1 or (row_stride % width == 0 and step > 0)
        along_columns = columns == 1 or column_stride == 1
        last_row = first_row + (rows - 1) * step
        inside = first_column + columns <= width and last_row < height
        if along_rows and along_columns and inside:
            return Placement(
                slice(first_row, last_row + 1, step),
                slice(first_column, first_column + columns),
                transposed,
            )
    return None
