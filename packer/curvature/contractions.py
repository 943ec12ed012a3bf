"""Products of two tensors as what they contract: calls of PyTorch in the letters of an einsum."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Contraction:
    """result = scale · einsum("left,right->out") up to a reshape and what is added to it.

    letters of either operand, one an axis. shape: of the result with one axis a letter of `out`.
    """

    left: Tensor
    right: Tensor
    left_letters: str
    right_letters: str
    out: str
    scale: float = 1.0
    shape: tuple[int, ...] | None = None


def contraction_of(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Contraction | None:
    """None for a call that is no product of two tensors, or one that is not followed."""
    read = READERS.get(getattr(func, "__name__", ""))
    if read is None or kwargs.get("out") is not None:
        return None
    try:
        return read(*args, **{key: value for key, value in kwargs.items() if key != "out"})
    except (TypeError, ValueError, IndexError):  # arguments of a form that is not read here
        return None


def _matmul(left: Any, right: Any, scale: float = 1.0) -> Contraction | None:
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
        return None
    if not left.dim() or not right.dim():
        return None
    batch = string.ascii_uppercase
    here = batch[len(batch) - max(left.dim() - 2, 0) :]
    there = batch[len(batch) - max(right.dim() - 2, 0) :]
    out = max(here, there, key=len)
    rows, columns = "t" * (left.dim() > 1), "o" * (right.dim() > 1)
    return Contraction(
        left, right, here + rows + "i", there + "i" + columns, out + rows + columns, scale
    )


def _added_matmul(
    added: Any, left: Any, right: Any, *, beta: float = 1, alpha: float = 1
) -> Contraction | None:
    del added, beta
    return _matmul(left, right, alpha)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Contraction:
    del bias
    rows = string.ascii_uppercase[: x.dim() - 1]
    outputs = "o" * (weight.dim() > 1)
    return Contraction(x, weight, rows + "i", outputs + "i", rows + outputs)


def _einsum(equation: Any, *operands: Any) -> Contraction | None:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    unused = [letter for letter in string.ascii_letters if letter not in equation]
    widths = [
        tensor.dim() - len(term.replace("...", ""))
        for tensor, term in zip(operands, terms, strict=True)
    ]
    dots = "".join(unused[: max(widths)])
    if not arrow:
        letters = inputs.replace(",", "").replace("...", "")
        out = "..." + "".join(sorted(one for one in set(letters) if letters.count(one) == 1))
    terms = [
        term.replace("...", dots[len(dots) - width :])
        for term, width in zip(terms, widths, strict=True)
    ]
    out = out.replace("...", dots)
    if any(len(set(term)) < len(term) for term in terms):
        return None  # a diagonal
    return Contraction(*operands, *terms, out)


def _tensordot(left: Tensor, right: Tensor, dims: Any = 2) -> Contraction:
    if isinstance(dims, int):
        dims = (range(left.dim() - dims, left.dim()), range(dims))
    ours, theirs = ([int(axis) for axis in side] for side in dims)
    here = list(string.ascii_lowercase[: left.dim()])
    there = list(string.ascii_uppercase[: right.dim()])
    for one, other in zip(ours, theirs, strict=True):
        there[other] = here[one]
    summed = {here[one] for one in ours}
    out = "".join(one for one in here + there if one not in summed)
    return Contraction(left, right, "".join(here), "".join(there), out)


def _bilinear(
    one: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Contraction:
    del bias
    rows = string.ascii_uppercase[: one.dim() - 1]
    pairs = one[..., :, None] * other[..., None, :]
    return Contraction(pairs, weight, rows + "ij", "oij", rows + "o")


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Contraction | None:
    """Over the patches of x."""
    del bias
    count = weight.dim() - 2
    if x.dim() != count + 2:
        return None
    for axis in range(count):
        step, spread = _at(stride, axis), _at(dilation, axis)
        reach = spread * (weight.size(2 + axis) - 1)
        before = after = 0
        if padding == "same":
            before, after = reach // 2, reach - reach // 2
        elif padding != "valid":
            before = after = _at(padding, axis)
        x = F.pad(x, [0, 0] * (count - 1 - axis) + [before, after])
        x = x.unfold(2 + axis, reach + 1, step)[..., ::spread]
    places, kernel = "XYZ"[:count], "xyz"[:count]
    outputs = weight.size(0) // groups
    shape = (x.size(0), groups, outputs, *x.shape[2 : 2 + count])
    return Contraction(
        x.unflatten(1, (groups, -1)),
        weight.unflatten(0, (groups, -1)),
        "ngc" + places + kernel,
        "goc" + kernel,
        "ngo" + places,
        shape=shape,
    )


def _at(value: Any, axis: int) -> int:
    """Of a number for all axes, or one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return int(values[axis if len(values) > 1 else 0])


READERS: Mapping[str, Callable[..., Contraction | None]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "__matmul__"), _matmul),
    "__rmatmul__": lambda right, left: _matmul(left, right),
    **{
        name + in_place: _added_matmul
        for name in ("addmm", "addmv", "baddbmm")
        for in_place in ("", "_")
    },
    "einsum": _einsum,
    "tensordot": _tensordot,
    "bilinear": _bilinear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
}
