"""Observes a model run: every linear map and lookup of a weight adds to the weight's moments."""

from __future__ import annotations

import contextlib
import math
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from packer.curvature.all_moments import AllMoments
from packer.curvature.contractions import contraction_of
from packer.curvature.moments import (
    InputMoments,
    MapMoments,
    ParameterMoments,
    TableMoments,
    energy,
)
from packer.curvature.triangles import gram
from packer.curvature.weight_origins import Origins, Placement, has_storage, place
from packer.curvature.weight_products import Product, product_of

# Calls whose result has the same values in the same order, perhaps in another dtype or on another
# device.
COPIES = {
    "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "cpu",
    "cuda", "reshape", "flatten",
}  # fmt: skip
# F.multi_head_attention_forward dispatches to itself under an active mode; this copy does not.
_attention = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.__dict__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
SELECTIONS = {torch.index_select, torch.Tensor.index_select}
MAX_GRADIENT_COLUMNS = 4096  # of a weight whose gradient has its full second moment kept


class OutOfTimeError(Exception):
    """The time was up within a batch, which is partly in the sums."""


@dataclass(eq=False)
class _Input:
    """The input of a linear map, and the weights that have used it, with the share of their rows.

    moment: the triangle of its second moment; None if only parts of their columns were used.
    """

    x: torch.Tensor
    version: int
    lengths: torch.Tensor
    moment: torch.Tensor | None = None
    shares: dict[str, float] = field(default_factory=dict)


class WeightUses(TorchFunctionMode):
    """In this context linear maps, products, convolutions and lookups of weights are observed.

    Weights in linear maps and lookups are used detached: gradients flow to earlier activations,
    which is all that is needed, and none is computed for the weights themselves.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        """weights: live float tensors of the model by name, each storage once."""
        super().__init__()
        self.weights = weights
        self.origins = Origins(weights)
        self.moments = AllMoments()
        self.until = math.inf  # by time.perf_counter; then `OutOfTimeError` is raised
        self.met: dict[str, dict[str, None]] = {}  # by weight, calls that are not followed
        self._leaves: list[tuple[torch.Tensor, Callable[[torch.Tensor], None]]] = []
        self._input: _Input | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        self.keep_in_time()
        kwargs = kwargs or {}
        if not all(has_storage(one) for one in _tensors((*args, *kwargs.values()))):
            return self._unfollowed(func, args, kwargs, func(*args, **kwargs))
        if func is F.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.embedding:
            return self._embedding(*args, **kwargs)
        if func is torch.Tensor.__getitem__:
            return self._indexed(*args)
        if func in SELECTIONS and len(args) == 3 and args[1] == 0:
            return self._indexed(args[0], args[2])
        return self._other(func, args, kwargs)

    def _other(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A product, a copy, or a call that is not followed, whose name is recorded."""
        if not any(self.origins.of(one) for one in _tensors((*args, *kwargs.values()))):
            return func(*args, **kwargs)
        product = self._product(func, args, kwargs)
        if product is not None:
            return product
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in COPIES and isinstance(result, torch.Tensor):
            self.origins.remember(args[0], result)
        return self._unfollowed(func, args, kwargs, result)

    def _unfollowed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> Any:
        """The result; the call is recorded if this is neither a view nor a copy of a weight."""
        floats = [one for one in _tensors([result]) if one.is_floating_point()]
        if floats and self.origins.of(floats[0]) is None:
            note_call(self, func, (*args, *kwargs.values()))
        return result

    def keep_in_time(self) -> None:
        """Raises OutOfTimeError."""
        if time.perf_counter() > self.until:
            raise OutOfTimeError

    def backward(self, logits: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds gradients to all moments, from that of the logits; no weight's .grad is changed.

        Raises RuntimeError: the logits depend on nothing that requires gradients.
        """
        others = {
            name: weight
            for name, weight in self.weights.items()
            if weight.requires_grad
            and name not in self.moments.maps
            and name not in self.moments.tables
        }
        inputs = [*(leaf for leaf, _ in self._leaves), *others.values()]
        gradients = torch.autograd.grad(logits, inputs, gradient, allow_unused=True)
        own = gradients[len(self._leaves) :]
        for (_, add), gradient in zip(self._leaves, gradients, strict=False):
            if gradient is not None:
                add(gradient)
        for name, gradient in zip(others, own, strict=True):
            if gradient is not None:
                self._add_gradient(name, gradient)

    def _add_gradient(self, name: str, gradient: torch.Tensor) -> None:
        shape = tuple(gradient.shape)
        if shape and shape[-1] > MAX_GRADIENT_COLUMNS:
            return
        if name not in self.moments.parameters:
            self.moments.parameters[name] = ParameterMoments(shape, gradient.device)
        self.moments.parameters[name].add(gradient)

    def end_batch(self) -> None:
        """Frees what belongs to one forward pass."""
        self._leaves.clear()
        self._input = None
        self.origins.forget_copies()

    def _linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        found = self._placed(weight)
        if found is None:
            y: torch.Tensor = self._other(F.linear, (x, weight, bias), {})
            return y
        y = F.linear(x, weight.detach(), bias)
        return self._used(*found, x, y)

    def _product(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """The result of a product of a weight with another tensor; None for any other call."""
        with torch.no_grad():
            contraction = contraction_of(func, args, kwargs)
            if contraction is None:
                return None
            left, right = (self.origins.of(one) for one in (contraction.left, contraction.right))
            region = right if left is None else left
            if region is None or (left is not None and right is not None):
                return None
            shape = tuple(self.weights[region.name].shape)
            product = product_of(contraction, left is not None, region, shape)
        if product is None:
            return None
        weight = contraction.right if left is None else contraction.left
        y = func(*_detached(args, weight), **_detached(kwargs, weight))
        return self._multiplied(region.name, product, y)

    def _multiplied(self, name: str, product: Product, y: torch.Tensor) -> torch.Tensor:
        """Adds the moments of all maps of a product, as `_used` does for one."""
        moments, placements = self._map(name), product.placements
        with exactly(y):
            inputs = product.vectors()
            if not product.transposed:
                self._add_columns(name, placements, inputs)
                inputs = energy(inputs)
            else:
                self._inputs(name)  # zero without gradients

        def add(gradient: torch.Tensor) -> None:
            self.keep_in_time()
            with exactly(gradient):
                outputs = product.gradients(gradient)
                if product.transposed:
                    self._add_columns(name, placements, outputs)
                    moments.add_all_rows(placements, inputs, energy(outputs))
                else:
                    moments.add_all_rows(placements, outputs, inputs)

        return self._watched(y, add)

    def _embedding(
        self, rows: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        name = self._whole(weight)
        if name is None:
            y: torch.Tensor = self._other(F.embedding, (rows, weight, *args), kwargs)
            return y
        return self._read(name, rows, F.embedding(rows, weight.detach(), *args, **kwargs))

    def _indexed(self, tensor: torch.Tensor, index: Any) -> Any:
        if isinstance(index, torch.Tensor) and index.dtype == torch.int64 and index.dim() > 0:
            name = self._whole(tensor)
            if name is not None:
                return self._read(name, index, tensor.detach()[index])
        return self._other(torch.Tensor.__getitem__, (tensor, index), {})

    def _placed(self, matrix: torch.Tensor) -> tuple[str, Placement] | None:
        if matrix.dim() != 2 or not matrix.numel():
            return None
        region = self.origins.of(matrix)
        if region is None:
            return None
        found = place(region, tuple(matrix.shape), tuple(self.weights[region.name].shape))
        return None if found is None else (region.name, found)

    def _whole(self, table: torch.Tensor) -> str | None:
        """The name of the weight [rows, columns], if this is all of it."""
        region = self.origins.of(table) if table.dim() == 2 else None
        if region is None or self.weights[region.name].shape != table.shape:
            return None
        return region.name if region == self.origins.of(self.weights[region.name]) else None

    def _used(
        self, name: str, placement: Placement, x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        """Adds moments of a map y of x: of x now, of the gradient at y in the backward pass."""
        moments = self._map(name)
        if placement.transposed:
            inputs = _rows(x)
            self._inputs(name)  # zero without gradients

            def add(gradient: torch.Tensor) -> None:
                self.keep_in_time()
                with exactly(gradient):
                    self._add_columns(name, (placement,), _rows(gradient)[None])
                    moments.add_rows(placement, inputs, energy(_rows(gradient)))

            return self._watched(y, add)
        with exactly(y):
            lengths = self._add_input(name, placement, x)

        def add_rows(gradient: torch.Tensor) -> None:
            self.keep_in_time()
            with exactly(gradient):
                moments.add_rows(placement, _rows(gradient), lengths)

        return self._watched(y, add_rows)

    def _map(self, name: str) -> MapMoments:
        return self.moments.of_map(name, self.weights[name])

    def _inputs(self, name: str) -> InputMoments:
        return self.moments.of_inputs((name,), self.weights[name])

    def _add_columns(
        self, name: str, placements: Sequence[Placement], vectors: torch.Tensor
    ) -> None:
        """Adds vectors over the columns of a weight, float32 [placements, uses, columns of one];
        equal ones are multiplied once.
        """
        moments, inputs = self._map(name), self._inputs(name)
        equal, moment = len(vectors) > 1 and vectors.stride(0) == 0, None
        for placement, one in zip(placements, vectors, strict=True):
            if moment is None or not equal:
                moment = moments.column_moment(placement, one)
            inputs.add(moments.banks_of(placement), moment, moments.share_of(placement))

    def _add_input(self, name: str, placement: Placement, x: torch.Tensor) -> torch.Tensor:
        """Adds an input of a map. Returns its energies, float32 [count].

        Those that several weights use, such as q, k and v, are added once for all of them.
        """
        vectors, moments = _rows(x), self._map(name)
        if self._input is None or self._input.x is not x or self._input.version != x._version:
            self.end_input()
            self._input = _Input(x, x._version, energy(vectors))
        last = self._input
        if vectors.size(1) < moments.columns:
            self._add_columns(name, (placement,), vectors[None])
            return last.lengths
        if last.moment is None:
            last.moment = gram(vectors, moments.columns)
        share = moments.share_of(placement)
        if moments.stacked:
            self._inputs(name).add(moments.banks_of(placement), last.moment, share)
        else:
            last.shares[name] = last.shares.get(name, 0.0) + share
        return last.lengths

    def end_input(self) -> None:
        """Adds the last input to the moment of the weights that used it."""
        last, self._input = self._input, None
        if last is None or last.moment is None:
            return
        for share in sorted(set(last.shares.values())):
            names = sorted(name for name, its in last.shares.items() if its == share)
            inputs = self.moments.of_inputs(names, self.weights[names[0]])
            inputs.add(slice(None), last.moment, share)

    def _read(self, name: str, rows: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds the reads of a lookup y of the rows, and in the backward pass its gradient."""
        if name not in self.moments.tables:
            shape = tuple(self.weights[name].shape)
            self.moments.tables[name] = TableMoments(shape, y.device)
        moments, flat = self.moments.tables[name], rows.flatten()
        moments.add_reads(flat)

        def add(gradient: torch.Tensor) -> None:
            with exactly(gradient):
                moments.add_gradients(flat, _rows(gradient))

        return self._watched(y, add)

    def _watched(self, y: torch.Tensor, add: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """y, with whose gradient `add` will be called; a leaf if nothing before it has one."""
        if not torch.is_grad_enabled():
            return y
        if y.requires_grad:
            y.register_hook(add)  # type: ignore[no-untyped-call]
        else:
            self._leaves.append((y.requires_grad_(), add))
        return y


def note_call(uses: WeightUses, func: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Records a call that is not followed for the weights among its arguments."""
    call = getattr(func, "__name__", "a call")
    call = f"{call} {arguments[0]!r}" if call == "einsum" else call
    for one in _tensors(arguments):
        region = uses.origins.of(one)
        if region is not None:
            uses.met.setdefault(region.name, {})[call] = None


@contextlib.contextmanager
def exactly(tensor: torch.Tensor) -> Iterator[None]:
    """In this context there are no gradients and no autocast on the tensor's device."""
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        yield


def _rows(x: torch.Tensor) -> torch.Tensor:
    """float32 [count, last axis]."""
    return x.detach().float().reshape(-1, x.size(-1))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among the values, and in lists of them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _detached(values: Any, weight: torch.Tensor) -> Any:
    """Arguments, with tensors of exactly the elements of the weight detached."""
    if isinstance(values, dict):
        return {key: _detached(value, weight) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_detached(value, weight) for value in values)
    same = (
        isinstance(values, torch.Tensor)
        and values.data_ptr() == weight.data_ptr()
        and values.numel() == weight.numel()
    )
    return values.detach() if same else values
