"""Finds where the tensors of a file lie in the parameters of a model that a library built.

A library may rename, join, split, stack and transpose tensors on loading. Their places are found by
loading distinct numbers instead of weights: each number identifies an element of a tensor wherever
it appears in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """A tensor as a view of a parameter: its name there, and shape, strides and offset in it."""

    parameter: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class Placed(nn.Module):
    """A model whose parameters have their names in the file, each a view of a model parameter.

    places: by name in the file. lost: names in the file whose values are no view of a parameter.
    """

    def __init__(
        self, model: nn.Module, places: Mapping[str, Place], lost: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.model, self.places, self.lost = model, dict(places), lost

    @staticmethod
    def renamed(model: nn.Module, names: Mapping[str, str]) -> Placed:
        """names: the model's -> the file's, where they differ."""
        places = {}
        for name, one in model.named_parameters(remove_duplicate=False):
            shape, strides = tuple(one.shape), tuple(one.stride())
            places[names.get(name, name)] = Place(name, shape, strides, 0)
        return Placed(model, places)

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters, and parts of parameters as plain tensors without gradients."""
        del args, options
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for name, place in self.places.items():
            whole = own[place.parameter]
            shape, strides = tuple(whole.shape), tuple(whole.stride())
            if (place.shape, place.strides, place.offset) == (shape, strides, 0):
                yield name, whole
            else:
                data = whole.detach()
                view = data.as_strided(
                    place.shape, place.strides, data.storage_offset() + place.offset
                )
                yield name, view  # type: ignore[misc]

    def named_buffers(self, *args: Any, **options: Any) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_buffers(*args, **options)


def placed_by_trial(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    load: Callable[[Mapping[str, Tensor]], nn.Module],
) -> Placed:
    """The model with the places of tensors of these shapes in it.

    load: builds a model like it in float64 from other tensors of these names and shapes.
    """
    starts = list(accumulate((math.prod(shape) for shape in shapes.values()), initial=1))
    numbers = {
        name: torch.arange(start, start + math.prod(shape), dtype=torch.float64).view(shape)
        for (name, shape), start in zip(shapes.items(), starts, strict=False)
    }
    places: dict[str, Place] = {}
    names = list(shapes)
    trial = load(numbers)
    for parameter, holder in trial.named_parameters():
        if not holder.is_contiguous():
            continue
        flat = holder.detach().view(-1)
        for name in _held(flat, starts, names):
            place = _place(parameter, flat, numbers[name])
            if name not in places and place is not None:
                places[name] = place
    return Placed(model, places, tuple(name for name in names if name not in places))


def _held(flat: Tensor, starts: list[int], names: list[str]) -> list[str]:
    """Names of the tensors whose numbers occur in `flat`."""
    bounds = torch.tensor(starts, dtype=torch.float64)
    counted = torch.bincount(torch.bucketize(flat, bounds, right=True)).nonzero().flatten()
    return [names[at - 1] for at in counted.tolist() if 0 < at <= len(names)]


def _place(parameter: str, flat: Tensor, numbers: Tensor) -> Place | None:
    """The place of one tensor's numbers in a parameter; None if they are not a strided view."""
    first = float(numbers.reshape(-1)[0])
    offset = _at(flat, first)
    if offset is None:
        return None
    strides = []
    for axis, size in enumerate(numbers.shape):
        after = None if size == 1 else _at(flat, first + numbers.stride(axis))
        if size > 1 and after is None:
            return None
        strides.append(numbers.stride(axis) if after is None else after - offset)
    reach = offset + sum(
        (size - 1) * step for size, step in zip(numbers.shape, strides, strict=True)
    )
    if min(strides, default=1) <= 0 or reach >= len(flat):
        return None
    view = flat.as_strided(numbers.shape, strides, offset)
    if not torch.equal(view, numbers):
        return None
    return Place(parameter, tuple(numbers.shape), tuple(strides), offset)


def _at(flat: Tensor, value: float) -> int | None:
    """The first index of a number."""
    indices = (flat == value).nonzero()
    return int(indices[0]) if len(indices) else None
