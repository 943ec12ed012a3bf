"""Formats: how stored codes become weights. A decoder knows nothing else of a tensor.

How the codes were chosen (clip search, rounding, pruning) is another axis and never reaches a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from .step_grid import MAX_SHRINK, on_grid
from .trellis_path import on_trellis


class FormatError(ValueError):
    """A format, choice or quantized tensor that does not make sense; says which part."""


@dataclass(frozen=True)
class Passthrough:
    """Weights without quantization (`raw`) or cast to a float type; codes are the bit patterns."""

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


@dataclass(frozen=True)
class LowRank:
    """A scaled format plus a correction of low rank: rank_scale times left times right, summed.

    left [rank, rows] and right [rank, columns] are integers of 2, 4 or 8 bits, ±(2^(bits-1) - 1);
    the float32 scale of a component serves both of its vectors.
    """

    base: Uniform | Ternary
    rank: int
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in FACTOR_BITS or not 1 <= self.rank <= MAX_RANK:
            raise FormatError(
                f"rank{self.rank}x{self.bits}: a correction has rank 1 to {MAX_RANK} and factors "
                "of 2, 4 or 8 bits"
            )

    @property
    def axis(self) -> str:
        return self.base.axis

    @property
    def scale32(self) -> bool:
        return self.base.scale32

    @property
    def code_max(self) -> int:
        return self.base.code_max

    @property
    def code_min(self) -> int:
        return self.base.code_min

    @property
    def factor_max(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def __str__(self) -> str:
        return f"{self.base}.rank{self.rank}x{self.bits}"


@dataclass(frozen=True)
class Stepped:
    """Integers without a clip times a step per row (`rows`) and a step per column (`columns`).

    Without `rows` one step serves the whole tensor. Steps lie on the grid of step_grid.py. Codes
    other than 0 are reconstructed a little nearer to zero, where weights are denser: see
    `dequantize.code_values`. On a `trellis` steps are finer, and a code says which codes may follow
    it in the next row: see trellis_path.py.
    """

    rows: bool = False
    columns: bool = False
    trellis: bool = False
    code_max: int = field(default=32767, init=False, repr=False)
    code_min: int = field(default=-32767, init=False, repr=False)

    def __str__(self) -> str:
        return ("trellis" if self.trellis else "step") + ".row" * self.rows + ".col" * self.columns


TensorFormat = Passthrough | Uniform | Ternary | LowRank | Stepped
ScaledFormat = Uniform | Ternary | LowRank

MAX_RANK = 255
LARGEST_PRODUCT = 127 * 127 * MAX_RANK  # of two factors, summed over all components
FACTOR_BITS = (2, 4, 8)
FACTORS = ("left", "rank_scale", "right")  # side values of a LowRank format, besides `scale`
_LOW_RANK = re.compile(r"(.+)\.rank(\d{1,3})x(\d)")
_UNIFORM = re.compile(r"int(\d)\.(row|tensor)(\.wide)?(\.scale32)?")
STEPPED = {
    str(format): format for format in (Stepped(r, c) for r in (True, False) for c in (True, False))
}
TRELLIS = {str(format): format for format in (replace(f, trellis=True) for f in STEPPED.values())}
PASSTHROUGH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_format(text: str) -> TensorFormat:
    """The format that `str()` spells as `text`.

    Raises FormatError: unknown spelling.
    """
    if text == "raw" or text in PASSTHROUGH_DTYPES:
        return Passthrough(text)
    if text == "ternary.row":
        return Ternary()
    if text in STEPPED or text in TRELLIS:
        return {**STEPPED, **TRELLIS}[text]
    corrected = _LOW_RANK.fullmatch(text)
    if corrected is not None:
        base = parse_format(corrected[1])
        if not isinstance(base, Uniform | Ternary):
            raise FormatError(f"{text!r}: only integers and ternary take a correction of low rank")
        return LowRank(base, int(corrected[2]), int(corrected[3]))
    match = _UNIFORM.fullmatch(text)
    if match is None:
        raise FormatError(
            f"unknown format {text!r}; formats are raw, fp32, fp16, bf16, ternary.row, "
            f"{', '.join((*STEPPED, *TRELLIS))}, and "
            "int2 to int8 followed by .row or .tensor (then .wide, .scale32), such as int6.row; "
            "integers and ternary.row take a correction of low rank, such as int4.row.rank4x8"
        )
    bits, axis, wide, scale32 = match.groups()
    return Uniform(int(bits), axis, wide is not None, scale32 is not None)


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor as integers and side values; checked once, here.

    format: how `codes` and `side` become weights.
    shape: of the weights. dtype: of the weights that `dequantize` returns.
    codes: int8 [rows, columns] of a scaled format, int16 of a stepped one; uint8 [count, itemsize]
    bytes of a passthrough.
    side: {"scale": float16 or float32 [rows or 1]} of a scaled format, with a correction of low
    rank also int8 "left" [rank, rows] and "right" [rank, columns] and float32 "rank_scale" [rank];
    of a stepped format float32 "row" [rows or 1] and, with columns, "column" [columns], and uint8
    "shrink" [1]; empty for a passthrough.
    """

    format: TensorFormat
    shape: tuple[int, ...]
    dtype: torch.dtype
    codes: torch.Tensor
    side: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.format, Passthrough):
            self._check_passthrough()
        elif isinstance(self.format, Stepped):
            self._check_codes(self.format, torch.int16)
            self._check_steps(self.format)
            if self.format.trellis and not on_trellis(self.codes.numpy()):
                raise FormatError(f"{self.format}: codes do not follow each other on its trellis")
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

    def _check_codes(self, format: ScaledFormat | Stepped, dtype: torch.dtype) -> None:
        rows, columns = row_shape(self.shape)
        kind = str(dtype).removeprefix("torch.")
        if self.codes.dtype != dtype or tuple(self.codes.shape) != (rows, columns):
            raise FormatError(
                f"{format} of shape {list(self.shape)} stores {kind} codes [{rows}, {columns}], "
                f"found {self.codes.dtype} {list(self.codes.shape)}"
            )
        if self.codes.numel():
            low, high = int(self.codes.min()), int(self.codes.max())
            if low < format.code_min or high > format.code_max:
                raise FormatError(
                    f"{format} has codes {format.code_min} to {format.code_max}, "
                    f"found {low} to {high}"
                )

    def _check_steps(self, format: Stepped) -> None:
        rows, columns = row_shape(self.shape)
        wanted = {"row": rows if format.rows else 1, "shrink": 1}
        if format.columns:
            wanted["column"] = columns
        lengths = {name: list(values.shape) for name, values in self.side.items()}
        if lengths != {name: [count] for name, count in wanted.items()}:
            raise FormatError(f"{format} has side values of lengths {wanted}, found {lengths}")
        if self.side["shrink"].dtype != torch.uint8 or int(self.side["shrink"]) > MAX_SHRINK:
            raise FormatError(f"{format}: shrink is a uint8 of at most {MAX_SHRINK}")
        for name in ("row", "column") if format.columns else ("row",):
            if not on_grid(self.side[name]):
                raise FormatError(f"{format}: a {name} step is not on the grid of steps")

    def _check_scaled(self, format: ScaledFormat) -> None:
        self._check_codes(format, torch.int8)
        rows, columns = row_shape(self.shape)
        wanted = [*FACTORS, "scale"] if isinstance(format, LowRank) else ["scale"]
        if sorted(self.side) != wanted:
            names = "one side value, scale" if len(wanted) == 1 else f"side values {wanted}"
            raise FormatError(f"{format} has {names}; found {sorted(self.side)}")
        self._check_scale(format, rows)
        if isinstance(format, LowRank):
            self._check_factors(format, rows, columns)

    def _check_scale(self, format: ScaledFormat, rows: int) -> None:
        scale = self.side["scale"]
        count = scale_count(format, rows)
        if scale.dtype != scale_dtype(format) or tuple(scale.shape) != (count,):
            raise FormatError(
                f"{format} with {rows} rows has {scale_dtype(format)} scales [{count}], "
                f"found {scale.dtype} {list(scale.shape)}"
            )
        largest = scale.float() * -format.code_min
        if not bool((torch.isfinite(largest) & (scale >= 0)).all()):
            raise FormatError(f"{format}: a scale is negative, not finite, or overflows float32")

    def _check_factors(self, format: LowRank, rows: int, columns: int) -> None:
        if format.rank > min(rows, columns):
            raise FormatError(f"{format} is of a higher rank than [{rows}, {columns}] can have")
        for name, length in (("left", rows), ("right", columns)):
            codes = self.side[name]
            if codes.dtype != torch.int8 or tuple(codes.shape) != (format.rank, length):
                raise FormatError(
                    f"{format} stores int8 {name} [{format.rank}, {length}], "
                    f"found {codes.dtype} {list(codes.shape)}"
                )
            if int(codes.abs().max()) > format.factor_max or int(codes.min()) == -128:
                raise FormatError(f"{format}: a code of {name} is beyond ±{format.factor_max}")
        scale = self.side["rank_scale"]
        if scale.dtype != torch.float32 or tuple(scale.shape) != (format.rank,):
            raise FormatError(
                f"{format} has float32 rank_scale [{format.rank}], "
                f"found {scale.dtype} {list(scale.shape)}"
            )
        if not bool((torch.isfinite(scale * LARGEST_PRODUCT) & (scale >= 0)).all()):
            raise FormatError(f"{format}: a rank_scale is negative, not finite, or overflows")


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
