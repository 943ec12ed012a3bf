"""Traces a tensor back through views, slices, transposes and casts to its part of a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

Parts = tuple[tuple[int, int], ...]  # (size, stride in the weight) from the outermost on
Layout = tuple[tuple[int, int, int], ...]  # (stride, size, stride in the weight), ascending


@dataclass(frozen=True)
class Region:
    """A tensor's elements in terms of a named weight: the offset of the first, and the axes.

    axes: the parts of every axis of the tensor; more than one if it merges axes of the weight, none
    if its size is 1.
    """

    name: str
    offset: int
    axes: tuple[Parts, ...]


@dataclass(frozen=True)
class Placement:
    """The part of a weight [rows, columns] that is the matrix of y = W x, leading axes flattened.

    transposed: the weight's rows are the inputs and its columns the outputs.
    """

    rows: slice
    columns: slice
    transposed: bool

    @property
    def row_count(self) -> int:
        return len(range(self.rows.start, self.rows.stop, self.rows.step))


@dataclass(frozen=True, eq=False)
class _Held:
    """The elements of a weight in some storage, from `start` on; `tensor` keeps it alive."""

    name: str
    tensor: torch.Tensor
    start: int
    offset: int
    axes: Layout

    def region(self, view: torch.Tensor) -> Region | None:
        """None if axes of the view are neither axes of the weight nor merged ones."""
        rest = int(view.storage_offset()) - self.start
        if not 0 <= rest < self.tensor.numel():
            return None
        offset, starts = self.offset, {}
        for stride, _, origin in reversed(self.axes):
            starts[stride], rest = divmod(rest, stride)
            offset += starts[stride] * origin
        axes = []
        for size, stride in zip(view.shape, view.stride(), strict=True):
            parts = _split(size, stride, self.axes, starts)
            if parts is None:
                return None
            axes.append(parts)
        return Region(self.name, offset, tuple(axes))


class Origins:
    """Finds the weight behind a tensor by the storage that both share."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        """weights: the live tensors of a model by name; only contiguous ones are traced."""
        self._weights: dict[tuple[object, ...], list[_Held]] = {}
        self._copies: dict[tuple[object, ...], _Held] = {}
        for name, weight in weights.items():
            if weight.numel() and weight.is_contiguous():
                width = weight.size(-1) if weight.dim() else 1
                layout = _layout([(weight.numel() // width, width), (width, 1)], None)
                held = _Held(name, weight, int(weight.storage_offset()), 0, layout)
                self._weights.setdefault(_storage(weight), []).append(held)

    def of(self, tensor: torch.Tensor) -> Region | None:
        """The region of a weight that the tensor views, directly or through a copy; or None."""
        if not tensor.is_floating_point() or not has_storage(tensor):
            return None
        key = _storage(tensor)
        copy = self._copies.get(key)
        places = [*self._weights.get(key, ()), *([] if copy is None else [copy])]
        regions = (held.region(tensor) for held in places)
        return next((region for region in regions if region is not None), None)

    def remember(self, source: torch.Tensor, copy: torch.Tensor) -> None:
        """Records that `copy` has the elements of `source` in the same order."""
        region = self.of(source)
        if region is None or _storage(copy) == _storage(source):
            return
        parts = [part for axis in region.axes for part in axis]
        strides = None
        if source.shape == copy.shape:
            strides = _strides_of_parts(copy.stride(), region.axes)
        elif not copy.is_contiguous():
            return
        start = int(copy.storage_offset())
        layout = _layout(parts, strides)
        self._copies[_storage(copy)] = _Held(region.name, copy, start, region.offset, layout)

    def forget_copies(self) -> None:
        """Call at the end of a forward pass, after which their storage may be reused."""
        self._copies.clear()


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether values are in memory with strides; not for vmap and sparse tensors."""
    try:
        return tensor.untyped_storage().data_ptr() is not None
    except (RuntimeError, NotImplementedError):
        return False


def _storage(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.untyped_storage().data_ptr(), tensor.dtype


def _layout(parts: Iterable[tuple[int, int]], strides: Sequence[int] | None) -> Layout:
    """parts: (size, stride in the weight). strides: of what holds them; None if contiguous."""
    parts = list(parts)
    if strides is None:
        strides = [math.prod(size for size, _ in parts[at + 1 :]) for at in range(len(parts))]
    entries = zip(strides, parts, strict=True)
    return tuple(sorted((held, size, origin) for held, (size, origin) in entries if size > 1))


def _strides_of_parts(strides: Sequence[int], axes: Sequence[Parts]) -> list[int]:
    return [
        stride * math.prod(size for size, _ in parts[at + 1 :])
        for stride, parts in zip(strides, axes, strict=True)
        for at in range(len(parts))
    ]


def _split(size: int, stride: int, layout: Layout, starts: Mapping[int, int]) -> Parts | None:
    """An axis in terms of the axes that it spans; None if it does not end with one of them.

    starts: its first index on each axis, by stride.
    """
    if size == 1 or stride == 0:
        return ((size, 0),) if size > 1 else ()
    parts: list[tuple[int, int]] = []
    for held, room, origin in layout:
        if stride % held or stride >= held * room:
            continue
        step = stride // held
        if starts[held] + (size - 1) * step < room:
            return ((size, step * origin), *parts)
        count = room // step
        if starts[held] or room % step or size % count:
            return None
        parts.insert(0, (count, step * origin))
        size, stride = size // count, held * room
    return None


def place(
    region: Region, matrix: tuple[int, ...], weight_shape: tuple[int, ...]
) -> Placement | None:
    """The placement of a matrix [outputs, inputs] in its weight; None if it is not rows of it."""
    width, height = weight_shape[-1], math.prod(weight_shape[:-1])
    if any(len(parts) > 1 for parts in region.axes):
        return None
    (outputs, inputs) = matrix
    output_stride, input_stride = (parts[0][1] if parts else 0 for parts in region.axes)
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
