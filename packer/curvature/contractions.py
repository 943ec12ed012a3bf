"""PyTorch calls that multiply two tensors, as einsum contractions."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Contraction:
    """result = scale · einsum("left,right->out"), up to a reshape and an added tensor.

    left_letters, right_letters: one letter per axis. shape: of the result with one axis per letter
    of `out`; None: as it is.
    """

    left: Tensor
    right: Tensor
    left_letters: str
    right_letters: str
    out: str
    scale: float = 1.0
    shape: tuple[int, ...] | None = None


def contraction_of(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Contraction | None:
    """None for a call that is not a product of two tensors, or has an unsupported form."""
    read = READERS.get(getattr(func, "__name__", ""))
    if read is None or kwargs.get("out") is not None or set(kwargs) - OPTIONS:
        return None
    try:
        return read(args, kwargs)
    except (TypeError, ValueError, IndexError, AttributeError):  # an unsupported form
        return None


def _matmul(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction | None:
    left, right = args
    batch = string.ascii_uppercase
    here = batch[len(batch) - max(left.dim() - 2, 0) :]
    there = batch[len(batch) - max(right.dim() - 2, 0) :]
    out = max(here, there, key=len)
    rows, columns = "t" * (left.dim() > 1), "o" * (right.dim() > 1)
    scale = float(kwargs.get("alpha", 1))
    return Contraction(
        left, right, here + rows + "i", there + "i" + columns, out + rows + columns, scale
    )


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction | None:
    del kwargs
    x, weight = args[:2]
    rows = string.ascii_uppercase[: x.dim() - 1]
    outputs = "o" * (weight.dim() > 1)
    return Contraction(x, weight, rows + "i", outputs + "i", rows + outputs)


def _einsum(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction | None:
    del kwargs
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    left, right = operands
    one, other = inputs.split(",")
    unused = [letter for letter in string.ascii_letters if letter not in equation]
    widths = [left.dim() - len(one.replace("...", "")), right.dim() - len(other.replace("...", ""))]
    dots = "".join(unused[: max(widths)])
    if not arrow:
        letters = inputs.replace(",", "").replace("...", "")
        out = "..." + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    one = one.replace("...", dots[len(dots) - widths[0] :])
    other = other.replace("...", dots[len(dots) - widths[1] :])
    if len(set(one)) < len(one) or len(set(other)) < len(other):
        return None  # a diagonal
    return Contraction(left, right, one, other, out.replace("...", dots))


def _tensordot(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction | None:
    left, right, *more = args
    dims = more[0] if more else kwargs.get("dims", 2)
    if isinstance(dims, int):
        dims = (range(left.dim() - dims, left.dim()), range(dims))
    ours, theirs = dims
    here = list(string.ascii_lowercase[: left.dim()])
    there = list(string.ascii_uppercase[: right.dim()])
    for one, other in zip(ours, theirs, strict=True):
        there[other] = here[one]
    summed = {here[one] for one in ours}
    out = "".join(one for one in here + there if one not in summed)
    return Contraction(left, right, "".join(here), "".join(there), out)


def _bilinear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction | None:
    del kwargs
    one, other, weight = args[:3]
    rows = string.ascii_uppercase[: one.dim() - 1]
    pairs = one[..., :, None] * other[..., None, :]
    return Contraction(pairs, weight, rows + "ij", "oij", rows + "o")


def _convolution(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction | None:
    """A convolution as a product over patches of x."""
    x, weight, *more = args
    names = ("bias", "stride", "padding", "dilation", "groups")
    arguments = {**dict(zip(names, more, strict=False)), **kwargs}
    count, groups, padding = (
        weight.dim() - 2,
        arguments.get("groups", 1),
        arguments.get("padding", 0),
    )
    if x.dim() != count + 2:
        return None
    for axis in range(count):
        step, spread = (
            _at(arguments.get("stride", 1), axis),
            _at(arguments.get("dilation", 1), axis),
        )
        reach = spread * (weight.size(2 + axis) - 1)
        before = after = 0
        if padding == "same":
            before, after = reach // 2, reach - reach // 2
        elif padding != "valid":
            before = after = _at(padding, axis)
        x = F.pad(x, [0, 0] * (count - 1) + [before, after])
        x = x.unfold(2 + axis, reach + 1, step)[..., ::spread]
    places, kernel = "XYZ"[:count], "xyz"[:count]
    shape = (x.size(0), groups, weight.size(0) // groups, *x.shape[2 : 2 + count])
    return Contraction(
        x.reshape(x.size(0), groups, -1, *x.shape[2:]),
        weight.view(groups, -1, *weight.shape[1:]),
        "ngc" + places + kernel,
        "goc" + kernel,
        "ngo" + places,
        1.0,
        shape,
    )


def _at(value: Any, axis: int) -> int:
    """The value of an axis, from one number for all axes or one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return int(values[axis if len(values) > 1 else 0])


def _added(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction | None:
    return _matmul(args[1:], kwargs)


OPTIONS = {"alpha", "beta", "bias", "dims", "dilation", "groups", "out", "padding", "stride"}
ADDED = ("addmm", "addmm_", "addmv", "addmv_", "baddbmm", "baddbmm_")
READERS: Mapping[str, Callable[..., Contraction | None]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "__matmul__"), _matmul),
    "__rmatmul__": lambda args, kwargs: _matmul(args[::-1], kwargs),
    **dict.fromkeys(ADDED, _added),
    "einsum": _einsum,
    "tensordot": _tensordot,
    "bilinear": _bilinear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
}
