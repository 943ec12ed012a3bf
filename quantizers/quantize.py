"""Weights to codes under a choice, and back: `quantize` and `dequantize`."""

from __future__ import annotations

import functools

import torch

from .choice import UNIFORM_RANGES, Choice
from .clip import (
    QUANTILE,
    absmax_scale,
    absmean_scale,
    kstd_scale,
    least_squares_scale,
    nearest_codes,
    percentile_scale,
    percentile_scales,
    quantile_scale,
    row_absmax,
    store_scale,
    ternary_scale,
)
from .curvature import Curvature
from .dequantize import (
    dequantize_low_rank,
    dequantize_scaled,
    dequantize_stepped,
    dequantize_stored,
)
from .formats import (
    PASSTHROUGH_DTYPES,
    FormatError,
    LowRank,
    Passthrough,
    QuantizedTensor,
    Stepped,
    Ternary,
    row_shape,
    scale_dtype,
)
from .low_rank import correction
from .prune import prune_smallest
from .rounding import HessianFactor, RoundingReport, factorize, round_with, together
from .stepping import step_sizes, stepped_codes
from .trellis import trellis_codes

KEPT_FACTORS = 8  # cached: of the tensors that are quantized in parallel


def quantize(
    weight: torch.Tensor, choice: Choice, curvature: Curvature | None = None
) -> QuantizedTensor:
    """`weight`, any shape and dtype, as codes and side values under `choice`.

    Raises FormatError: a dtype that the format cannot hold (only `raw` holds integers), a choice
    with +gptq without curvature, or curvature of another weight.
    """
    return quantize_reported(weight, choice, curvature)[0]


def quantize_reported(
    weight: torch.Tensor, choice: Choice, curvature: Curvature | None = None
) -> tuple[QuantizedTensor, RoundingReport | None]:
    """`quantize`, and the report of GPTQ; None where the choice has no +gptq."""
    shape, dtype = tuple(weight.shape), weight.dtype
    if isinstance(choice.format, Passthrough):
        codes = _stored_bytes(weight, choice.format)
        return QuantizedTensor(choice.format, shape, dtype, codes), None
    if not quantizable(weight):
        raise FormatError(f"{choice.format} cannot hold {dtype}; use raw")
    if isinstance(choice.format, Stepped):
        return _stepped(weight, choice, choice.format, curvature)
    pruned = prune_smallest(weight, choice.prune) if choice.prune else weight
    rows = pruned.float().reshape(row_shape(shape))
    scale = choose_scale(rows, choice)
    whole = weight.float().reshape(row_shape(shape))
    report = None
    if choice.rounding == "gptq":
        zero = rows == 0 if choice.prune else None
        if choice.range_rule == "percentile-rounded":
            scale = _percentile_by_gptq(rows, choice, whole, shape, curvature, zero)
        codes, report = _gptq_codes(whole, choice, scale, shape, curvature, zero)
        if choice.zero:
            codes = without_small(codes, choice.zero)
    else:
        codes = encode(rows, choice, scale)
    side = {"scale": scale}
    if isinstance(choice.format, LowRank):
        if curvature is not None:
            curvature.check_shape(shape)
        residual = whole - codes.float() * scale.float()[:, None]  # [rows, columns]
        side |= correction(residual, choice.format, curvature)
    return QuantizedTensor(choice.format, shape, dtype, codes, side), report


def _stepped(
    weight: torch.Tensor, choice: Choice, format: Stepped, curvature: Curvature | None
) -> tuple[QuantizedTensor, RoundingReport | None]:
    """Codes and steps of a stepped format; nearest rounding ignores curvature."""
    shape, rows = tuple(weight.shape), weight.float().reshape(row_shape(tuple(weight.shape)))
    assert choice.step is not None
    factors: tuple[HessianFactor, ...] = ()
    outputs: tuple[HessianFactor, ...] = ()
    if choice.rounding != "nearest":
        factors = _factors(_needed(choice, curvature, shape), choice.ascending)
    if choice.rounding == "gptq2":
        outputs = _output_factors(choice, _needed(choice, curvature, shape))
        if format.trellis:  # its path runs down the rows in stored order
            outputs = _ordered_output_factors(_needed(choice, curvature, shape))
    side = step_sizes(rows, format, choice.step, curvature if factors else None, factors, outputs)
    if format.trellis:
        codes, report = trellis_codes(rows, side, factors, outputs, curvature)
    else:
        codes, report = stepped_codes(rows, format, side, factors, outputs)
    if int(codes.abs().amax()) >= format.code_max:
        raise FormatError(
            f"{choice}: a weight lies {format.code_max:,} steps or more from zero; "
            "take a larger step"
        )
    return QuantizedTensor(format, shape, weight.dtype, codes, side), report


def _needed(choice: Choice, curvature: Curvature | None, shape: tuple[int, ...]) -> Curvature:
    """Raises FormatError: there is no curvature, or of another weight."""
    if curvature is None:
        raise FormatError(f"{choice} needs curvature, and there is none of this tensor")
    curvature.check_shape(shape)
    return curvature


def _gptq_codes(
    rows: torch.Tensor,
    choice: Choice,
    scale: torch.Tensor,
    shape: tuple[int, ...],
    curvature: Curvature | None,
    zero: torch.Tensor | None,
) -> tuple[torch.Tensor, RoundingReport]:
    """int8 codes [rows, columns] of a matrix or of a bank of matrices, each under its own H."""
    factors = _factors(_needed(choice, curvature, shape), choice.ascending)
    size = len(rows) // len(factors)
    per_row = scale.float().expand(len(rows))
    codes, reports = torch.empty(rows.shape, dtype=torch.int8), []
    for bank, factor in enumerate(factors):
        here = slice(bank * size, (bank + 1) * size)
        forced = None if zero is None else zero[here]
        rounded = round_with(factor, rows[here], per_row[here], *choice.code_range, zero=forced)
        codes[here] = rounded.codes.to(torch.int8)
        reports.append(rounded.report)
    return codes, together(reports)


@functools.lru_cache(maxsize=KEPT_FACTORS)
def _factors(curvature: Curvature, ascending: bool) -> tuple[HessianFactor, ...]:
    """A factor per bank, cached because a tensor is measured under many choices."""
    hessian = curvature.rounding_hessian
    banks = hessian if hessian.dim() == 3 else hessian[None]
    order = "ascending" if ascending else "descending"
    return tuple(factorize(hessian, order=order) for hessian in banks)


@functools.lru_cache(maxsize=KEPT_FACTORS)
def _kept_output_factors(curvature: Curvature) -> tuple[HessianFactor, ...] | None:
    if curvature.row_factors is None:
        return None
    return tuple(factorize(outputs) for outputs in curvature.row_factors)


@functools.lru_cache(maxsize=1)
def _ordered_output_factors(curvature: Curvature) -> tuple[HessianFactor, ...]:
    assert curvature.row_factors is not None
    return tuple(factorize(outputs, order="given") for outputs in curvature.row_factors)


def _output_factors(choice: Choice, curvature: Curvature) -> tuple[HessianFactor, ...]:
    """The factors of G, one per bank. Raises FormatError: curvature without outputs."""
    factors = _kept_output_factors(curvature)
    if factors is None:
        raise FormatError(
            f"{choice} needs the curvature of outputs, which this tensor does not have"
        )
    return factors


def _percentile_by_gptq(
    rows: torch.Tensor,
    choice: Choice,
    whole: torch.Tensor,
    shape: tuple[int, ...],
    curvature: Curvature | None,
    zero: torch.Tensor | None,
) -> torch.Tensor:
    """Stored scales [rows or 1] of the percentile under which GPTQ leaves the least squared error,
    one for the whole matrix (PR #569)."""
    assert not isinstance(choice.format, Passthrough | Stepped)
    grouped = rows.reshape(1, -1) if choice.format.axis == "tensor" else rows

    def error(scale: torch.Tensor) -> float:
        codes, _ = _gptq_codes(whole, choice, scale, shape, curvature, zero)
        return float((whole - codes * scale.float()[:, None]).double().square().sum())

    scales = percentile_scales(grouped, choice.code_range[1], scale_dtype(choice.format))
    return min(scales, key=error)


def without_small(codes: torch.Tensor, largest: int) -> torch.Tensor:
    """The codes, but 0 where their magnitude is `largest` at most."""
    return codes.masked_fill(codes.abs() <= largest, 0)


def quantizable(weight: torch.Tensor) -> bool:
    """Whether a scaled format can hold the tensor: real floats of at least 16 bits, not empty."""
    return weight.is_floating_point() and weight.dtype.itemsize > 1 and weight.numel() > 0


def choose_scale(rows: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Stored scales [rows or 1] of float32 rows [rows, columns] under the choice's range rule."""
    format = choice.format
    assert not isinstance(format, Passthrough | Stepped)
    if format.axis == "tensor":
        rows = rows.reshape(1, -1)
    dtype = scale_dtype(format)
    code_min, code_max = choice.code_range
    if isinstance(format.base if isinstance(format, LowRank) else format, Ternary):
        scale = absmean_scale(rows) if choice.range_rule == "absmean" else ternary_scale(rows)
    elif choice.range_rule == "kstd":
        assert choice.range_value is not None
        scale = kstd_scale(rows, code_max, choice.range_value)
    elif choice.range_rule == "mse":
        scale = least_squares_scale(rows, code_max)
    elif choice.range_rule == "quantile":
        scale = quantile_scale(rows, code_max, choice.range_value or QUANTILE)
    elif choice.range_rule in UNIFORM_RANGES[1:4]:
        per_matrix = choice.range_rule != "percentile"
        scale = percentile_scale(rows, code_min, code_max, dtype, per_matrix=per_matrix)
    else:
        scale = absmax_scale(rows, code_max)
    return store_scale(scale, row_absmax(rows), dtype)


def encode(rows: torch.Tensor, choice: Choice, scale: torch.Tensor) -> torch.Tensor:
    """int8 codes [rows, columns] nearest to float32 rows under stored scales [rows or 1]."""
    per_row = scale.float().expand(rows.shape[0])
    codes = nearest_codes(rows, per_row, *choice.code_range).to(torch.int8)
    if choice.zero:
        codes = without_small(codes, choice.zero)
    return codes


def dequantize(quantized: QuantizedTensor) -> torch.Tensor:
    """The weights, in the tensor's own shape and dtype."""
    shape, dtype = quantized.shape, quantized.dtype
    if isinstance(quantized.format, Passthrough):
        stored = PASSTHROUGH_DTYPES.get(str(quantized.format), dtype)
        return dequantize_stored(quantized.codes, stored, shape, dtype)
    if isinstance(quantized.format, Stepped):
        side = quantized.side
        return dequantize_stepped(
            quantized.codes, side["row"], side.get("column"), side["shrink"], shape, dtype
        )
    if isinstance(quantized.format, LowRank):
        return dequantize_low_rank(quantized.codes, **quantized.side, shape=shape, dtype=dtype)
    return dequantize_scaled(quantized.codes, quantized.side["scale"], shape, dtype)


def _stored_bytes(weight: torch.Tensor, format: Passthrough) -> torch.Tensor:
    """uint8 [count, itemsize], little-endian, of the weight cast to the format's dtype."""
    stored = PASSTHROUGH_DTYPES.get(format.dtype, weight.dtype)
    if stored != weight.dtype and not weight.is_floating_point():
        raise FormatError(f"{format} cannot hold {weight.dtype}; use raw")
    flat = weight.contiguous().reshape(-1).to(stored)
    return flat.view(torch.uint8).reshape(-1, stored.itemsize).clone()
