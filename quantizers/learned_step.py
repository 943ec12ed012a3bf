"""Learned step sizes: the step of a tensor is trained with its weights (LSQ, arXiv:1902.08153).

What is learned is k, the clip in standard deviations of each row (or of the tensor): the step is
k · std / code_max. A k can be spelled in a choice, `int6.row+kstd@12.85`, so packing needs nothing
more than the choice to reproduce the weights that were trained.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from .choice import Choice
from .clip import kstd_scale, row_absmax, store_scale
from .dequantize import dequantize_scaled
from .fake_quant import FakeQuantized, parsed_choice
from .formats import FormatError, Uniform, row_shape, scale_dtype
from .quantize import encode

SCHEMA = "(Tensor weight, Tensor log_k, str choice, Tensor strength) -> Tensor"
SLOPE_SCHEMA = "(Tensor weight, Tensor log_k, str choice) -> Tensor"


def first_k(rows: torch.Tensor, code_max: int) -> float:
    """LSQ's first step, 2 · mean|w| / √code_max, in standard deviations of the whole tensor."""
    deviation = float(rows.std(correction=0))
    share = float(rows.abs().mean()) / deviation if deviation else 0.5
    return 2 * share * math.sqrt(code_max)


def _stored_scale(rows: torch.Tensor, log_k: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Scales [rows or 1] as packing chooses them under `kstd@k`, bit for bit."""
    assert isinstance(choice.format, Uniform)
    grouped = rows.reshape(1, -1) if choice.format.axis == "tensor" else rows
    # A product with a float32 scalar tensor rounds like one with the same Python float.
    scale = kstd_scale(grouped, choice.code_range[1], log_k.float().exp())
    return store_scale(scale, row_absmax(grouped), scale_dtype(choice.format))


def _rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().reshape(row_shape(tuple(weight.shape)))


@torch.library.custom_op("bytecap::fake_quantize_step", mutates_args=(), schema=SCHEMA)
def _decoded(
    weight: torch.Tensor, log_k: torch.Tensor, choice: str, strength: torch.Tensor
) -> torch.Tensor:
    parsed = parsed_choice(choice)
    rows = _rows(weight)
    scale = _stored_scale(rows, log_k, parsed)
    codes = encode(rows, parsed, scale)
    decoded = dequantize_scaled(codes, scale, tuple(weight.shape), weight.dtype)
    blended = torch.lerp(weight, decoded, strength.to(weight.dtype))
    return torch.where(strength >= 1, decoded, blended).contiguous()


@torch.library.custom_op("bytecap::step_slope", mutates_args=(), schema=SLOPE_SCHEMA)
def _slope(weight: torch.Tensor, log_k: torch.Tensor, choice: str) -> torch.Tensor:
    """The derivative of a decoded weight by log k: itself, less the weight unless it is clipped.

    d(s · q) / ds is q - w / s inside the range and q outside (LSQ, equation 3); times s.
    """
    parsed = parsed_choice(choice)
    rows = _rows(weight)
    scale = _stored_scale(rows, log_k, parsed)
    decoded = encode(rows, parsed, scale).float() * scale.float()[:, None]
    low, high = (code * scale.float() for code in parsed.code_range)
    inside = (rows >= low[:, None]) & (rows <= high[:, None])
    return (decoded - rows * inside).reshape(weight.shape).contiguous()


@_decoded.register_fake
def _(
    weight: torch.Tensor,
    log_k: torch.Tensor,  # noqa: ARG001
    choice: str,  # noqa: ARG001
    strength: torch.Tensor,  # noqa: ARG001
) -> torch.Tensor:
    return weight.new_empty(weight.shape)


@_slope.register_fake
def _(
    weight: torch.Tensor,
    log_k: torch.Tensor,  # noqa: ARG001
    choice: str,  # noqa: ARG001
) -> torch.Tensor:
    return weight.new_empty(weight.shape, dtype=torch.float32)


def _save(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: object
) -> None:
    del output
    weight, log_k, choice, strength = inputs
    ctx.save_for_backward(weight, log_k, strength)  # type: ignore[arg-type]
    ctx.choice = choice  # type: ignore[attr-defined]


def _backward(
    ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, None, None]:
    weight, log_k, strength = ctx.saved_tensors  # type: ignore[attr-defined]
    slope: torch.Tensor = _slope(weight, log_k, ctx.choice)  # type: ignore[attr-defined]
    # Without LSQ's constant 1/√(n · code_max): Adam, which takes this gradient, divides it out.
    return gradient, (gradient.float() * slope).sum() * strength, None, None


_decoded.register_autograd(_backward, setup_context=_save)


class LearnedStep(FakeQuantized):
    """FakeQuantized whose step is the parameter `log_k`, float32 scalar: the logarithm of k."""

    def __init__(self, choice: Choice, weight: torch.Tensor, *, strength: float = 1.0) -> None:
        super().__init__(choice, weight, strength=strength)
        assert isinstance(choice.format, Uniform)
        if choice.prune:
            raise FormatError(f"{choice}: steps are learned without pruning; leave prune out")
        k = choice.range_value or first_k(_rows(weight.detach()), choice.code_range[1])
        self.log_k = nn.Parameter(torch.tensor(math.log(k), device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = _decoded(weight, self.log_k, str(self.choice), self.strength)
        return decoded

    def current_choice(self) -> Choice:
        k = float(self.log_k.detach().float().exp())
        return replace(self.choice, range_rule="kstd", range_value=k)
