"""Codes and side values to weights: the one implementation of that arithmetic.

Training, measuring and unpacking call these functions, and the shipped loader contains their source
text; they may therefore use nothing but their arguments and torch.
"""

import torch


def dequantize_scaled(
    codes: torch.Tensor, scale: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """int8 codes [rows, columns] times scale [rows or 1], in float32, then cast to `dtype`.

    A float32 product of an integer and a scale is one IEEE rounding: the same bits on any machine.
    """
    return (codes.float() * scale.float()[:, None]).to(dtype).reshape(shape)


def dequantize_low_rank(
    codes: torch.Tensor,
    scale: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    rank_scale: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """`dequantize_scaled` plus int8 left [rank, rows] times right [rank, columns] times rank_scale.

    Component by component, each product of two integers exact, each other step one rounding: a
    matrix product would add up in an order that depends on the machine.
    """
    weights = codes.float() * scale.float()[:, None]
    for rows, columns, step in zip(left.float(), right.float(), rank_scale, strict=True):
        weights += (rows[:, None] * columns[None, :]) * step
    return weights.to(dtype).reshape(shape)


def dequantize_stepped(
    codes: torch.Tensor,
    row: torch.Tensor,
    column: torch.Tensor | None,
    shrink: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """(value · row) · column in float32, in that order: each product is one IEEE rounding.

    codes: int16 [rows, columns]. row: float32 [rows or 1]. column: float32 [columns] or None.
    """
    weights = code_values(codes.float(), int(shrink)) * row[:, None]
    if column is not None:
        weights *= column[None, :]
    return weights.to(dtype).reshape(shape)


def code_values(codes: torch.Tensor, shrink: int) -> torch.Tensor:
    """Values of float codes, in steps: ±1 lies shrink/256 nearer to zero, ±2 half, others a
    quarter of that (in 256ths, rounded down). Exact in float32.
    """
    if shrink == 0:
        return codes
    nearer = nearer_to_zero(shrink).to(codes.device)
    return codes - codes.sign() * nearer[codes.abs().clamp(max=3).long()]


def nearer_to_zero(shrink: int) -> torch.Tensor:
    """float32 [4]: how many steps nearer to zero the codes 0, ±1, ±2, and all others lie."""
    return torch.tensor([0, shrink, shrink >> 1, shrink >> 2]) / 256


def dequantize_stored(
    codes: torch.Tensor, stored: torch.dtype, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Little-endian bytes uint8 [count, itemsize] of `stored` values, cast to `dtype`."""
    return codes.reshape(-1).view(stored).to(dtype).reshape(shape)
