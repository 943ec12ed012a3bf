"""Formats: how stored codes become weights. A format is all that a decoder knows of a tensor.

How the codes were chosen (clip search, rounding, pruning) is another axis and never reaches a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


class FormatError(ValueError):
    """A format, choice or quantized tensor that does not make sense; says which part."""


@dataclass(frozen=True)
class Passthrough:
    """Weights kept as they are (`raw`) or cast to a float type; codes are the bit patterns."""

    dtype: str  # raw, fp32, fp16, bf16

    def __str__(self) -> str:
        return self.dtype


@dataclass(frozen=True)
class Uniform:
    """Symmetric integers times one scale per row or per tensor.

    Codes lie in ±(2^(bits-1) - 1), or in [-2^(bits-1), 2^(bits-1) - 1] when `wide`. Rows are the
    product of all axes but the last. Scales are stored as float16, or float32 with `scale32`.
    """

    bits: int
    axis: str  # row, tensor
    wide: bool = False
    scale32: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise FormatError(f"int{self.bits}: integer formats have 2 to 8 bits")
        if self.axis not in ("row", "tensor"):
            raise FormatError(f"scales are per 'row' or per 'tensor', not per {self.axis!r}")

    @property
    def code_max(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    @property
    def code_min(self) -> int:
        return -self.code_max - int(self.wide)

    def __str__(self) -> str:
        suffixes = ".wide" * self.wide + ".scale32" * self.scale32
        return f"int{self.bits}.{self.axis}{suffixes}"


@dataclass(frozen=True)
class Ternary:
    """Codes -1, 0, 1 times one float16 scale per row."""

    axis: str = "row"
    scale32: bool = False
    code_max: int = field(default=1, init=False, repr=False)
    code_min: int = field(default=-1, init=False, repr=False)

    def __str__(self) -> str:
        return "ternary.row"


TensorFormat = Passthrough | Uniform | Ternary
ScaledFormat = Uniform | Ternary

_UNIFORM = re.compile(r"int(\d)\.(row|tensor)(\.wide)?(\.scale32)?")
PASSTHROUGH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_format(text: str) -> TensorFormat:
    """The format that `str()` spells as `text`.

    Raises FormatError: unknown spelling.
    """
    if text == "raw" or text in PASSTHROUGH_DTYPES:
        return Passthrough(text)
    if text == "ternary.row":
        return Ternary()
    match = _UNIFORM.fullmatch(text)
    if match is None:
        raise FormatError(
            f"unknown format {text!r}; formats are raw, fp32, fp16, bf16, ternary.row, and "
            "int2 to int8 followed by .row or .tensor (then .wide, .scale32), such as int6.row"
        )
    bits, axis, wide, scale32 = match.groups()
    return Uniform(int(bits), axis, wide is not None, scale32 is not None)


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor as integers and side values; checked once, here.

    format: how `codes` and `side` become weights.
    shape: of the weights. dtype: of the weights that `dequantize` returns.
    codes: int8 [rows, columns] of a scaled format; uint8 [count, itemsize] bytes of a passthrough.
    side: {"scale": float16 or float32 [rows or 1]} of a scaled format; empty for a passthrough.
    """

    format: TensorFormat
    shape: tuple[int, ...]
    dtype: torch.dtype
    codes: torch.Tensor
    side: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.format, Passthrough):
            self._check_passthrough()
        else:
            self._check_scaled(self.format)

    def _check_passthrough(self) -> None:
        stored = PASSTHROUGH_DTYPES.get(str(self.format), self.dtype)
        expected = (element_count(self.shape), stored.itemsize)
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != expected:
            raise FormatError(
                f"{self.format} of shape {list(self.shape)} stores uint8 codes {list(expected)}, "
                f"found {self.codes.dtype} {list(self.codes.shape)}"
            )
        if self.side:
            raise FormatError(f"{self.format} has no side values, found {sorted(self.side)}")

    def _check_scaled(self, format: ScaledFormat) -> None:
        rows, columns = row_shape(self.shape)
        if self.codes.dtype != torch.int8 or tuple(self.codes.shape) != (rows, columns):
            raise FormatError(
                f"{format} of shape {list(self.shape)} stores int8 codes [{rows}, {columns}], "
                f"found {self.codes.dtype} {list(self.codes.shape)}"
            )
        if self.codes.numel():
            low, high = int(self.codes.min()), int(self.codes.max())
            if low < format.code_min or high > format.code_max:
                raise FormatError(
                    f"{format} has codes {format.code_min} to {format.code_max}, "
                    f"found {low} to {high}"
                )
        if sorted(self.side) != ["scale"]:
            raise FormatError(f"{format} has one side value, scale; found {sorted(self.side)}")
        self._check_scale(format, rows)

    def _check_scale(self, format: ScaledFormat, rows: int) -> None:
        scale = self.side["scale"]
        count = scale_count(format, rows)
        if scale.dtype != scale_dtype(format) or tuple(scale.shape) != (count,):
            raise FormatError(
                f"{format} with {rows} rows has {scale_dtype(format)} scales [{count}], "
                f"found {scale.dtype} {list(scale.shape)}"
            )
        reach = scale.float() * -format.code_min
        if not bool((torch.isfinite(reach) & (scale >= 0)).all()):
            raise FormatError(f"{format}: a scale is negative, not finite, or overflows float32")


def element_count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of a tensor: leading axes flatten, so banks [n, out, in] have n·out rows."""
    if not shape:
        return 1, 1
    return element_count(shape[:-1]), shape[-1]


def scale_count(format: ScaledFormat, rows: int) -> int:
    return rows if format.axis == "row" else 1


def scale_dtype(format: ScaledFormat) -> torch.dtype:
    return torch.float32 if format.scale32 else torch.float16
