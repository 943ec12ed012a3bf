"""Fake quantization for training: the forward value is that after packing and unpacking.

The backward pass is the straight-through estimator: the gradient reaches the weight as it came
(Bengio, Léonard and Courville, arXiv:1308.3432), also where a code was clipped or a weight pruned.
Stopping it there would leave a clipped weight only weight decay to return by while its scale is
held, and a pruned weight nothing.

Rounding is annealed by `strength` in [0, 1]: the forward value is weight + strength · (decoded -
weight), the blend of Liu and Mattina (arXiv:1903.01061); at 1 it is the decoded value to the bit.

Switching survives `torch.compile`. The strength is a tensor in the graph, never an attribute that a
compiler could take for a constant, and the round trip is one opaque operator: compiled code calls
the very functions that packing calls, where a fused kernel could divide or round otherwise.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from .choice import Choice, parse_choice
from .dequantize import dequantize_scaled
from .formats import FormatError, LowRank, Passthrough, QuantizedTensor, Stepped, row_shape
from .prune import prune_smallest
from .quantize import choose_scale, dequantize, encode, quantizable, quantize

SCHEMA = "(Tensor weight, str choice, Tensor? strength, Tensor? scale) -> Tensor"


def fake_quantize(
    weight: torch.Tensor,
    choice: Choice,
    *,
    strength: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """`dequantize(quantize(weight, choice))` to the bit, with the gradient of the identity.

    Args:
        weight: any shape; a float dtype.
        strength: scalar in [0, 1]; None is 1.
        scale: stored scales [rows or 1] held from an earlier step, as `choose_scale` gives them;
            None chooses them anew. A passthrough format has none and ignores it.

    Raises FormatError: a dtype that the format cannot hold, an empty tensor in a scaled format.
    """
    if not isinstance(choice.format, Passthrough):
        check_faked(weight, choice)
    result: torch.Tensor = _blended(weight, str(choice), strength, scale)
    return result


def quantize_held(weight: torch.Tensor, choice: Choice, scale: torch.Tensor) -> QuantizedTensor:
    """`quantize`, under scales [rows or 1] held from an earlier step: what to pack after them.

    Raises FormatError: a passthrough format, scales of another count or dtype.
    """
    if isinstance(choice.format, Passthrough):
        raise FormatError(f"{choice.format} has no scales to hold")
    check_faked(weight, choice)
    codes, scale = _codes(weight, choice, scale)
    shape, dtype = tuple(weight.shape), weight.dtype
    return QuantizedTensor(choice.format, shape, dtype, codes, {"scale": scale})


def stored_scale(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """The scales [rows or 1] that `quantize` stores, on the weight's device; scaled formats."""
    if choice.prune:
        weight = prune_smallest(weight, choice.prune)
    return _choose(weight.detach().float().reshape(row_shape(tuple(weight.shape))), choice)


def check_faked(weight: torch.Tensor, choice: Choice) -> None:
    if choice.rounding != "nearest":
        plain = replace(choice, rounding="nearest")
        raise FormatError(
            f"fake quantization rounds to nearest, and {choice} asks for {choice.rounding}, which "
            f"depends on data: train under {plain}, and pack under {choice} afterwards"
        )
    if isinstance(choice.format, Stepped):
        raise FormatError(
            "fake quantization has no steps of rows and columns: train under int8.tensor, and "
            f"pack under {choice} afterwards"
        )
    if isinstance(choice.format, LowRank):
        plain = replace(choice, format=choice.format.base)
        raise FormatError(
            f"fake quantization has no corrections of low rank: train under {plain}, and pack "
            f"under {choice} afterwards"
        )
    if not quantizable(weight):
        raise FormatError(
            f"{choice.format} cannot hold {weight.dtype} {list(weight.shape)}; use raw"
        )


def _codes(
    weight: torch.Tensor, choice: Choice, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes [rows, columns] and the scales [rows or 1] they go with."""
    assert not isinstance(choice.format, Passthrough)
    if choice.prune:
        weight = prune_smallest(weight, choice.prune)
    rows = weight.float().reshape(row_shape(tuple(weight.shape)))
    if scale is None:
        scale = _choose(rows, choice)
    return encode(rows, choice, scale), scale


def _choose(rows: torch.Tensor, choice: Choice) -> torch.Tensor:
    # The exact least-squares searches keep their tables on the CPU.
    searched = choice.range_rule == "mse" and rows.device.type != "cpu"
    scale = choose_scale(rows.cpu() if searched else rows, choice)
    return scale.to(rows.device)


def _round_trip(weight: torch.Tensor, choice: Choice, scale: torch.Tensor | None) -> torch.Tensor:
    """Without QuantizedTensor's checks, each of which would wait for a GPU to finish."""
    if isinstance(choice.format, Passthrough):
        return dequantize(quantize(weight, choice))
    codes, scale = _codes(weight, choice, scale)
    return dequantize_scaled(codes, scale, tuple(weight.shape), weight.dtype)


parsed_choice = lru_cache(maxsize=None)(parse_choice)


@torch.library.custom_op("bytecap::fake_quantize", mutates_args=(), schema=SCHEMA)
def _blended(
    weight: torch.Tensor, choice: str, strength: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor:
    # Not on a GPU: reading the number would wait for it, and a CUDA graph would keep the branch.
    if strength is not None and strength.device.type == "cpu" and strength == 0:
        return weight.clone(memory_format=torch.contiguous_format)
    decoded = _round_trip(weight, parsed_choice(choice), scale)
    if strength is None:
        return decoded
    blended = torch.lerp(weight, decoded, strength.to(weight.dtype))
    return torch.where(strength >= 1, decoded, blended).contiguous()


def _shape_of_result(
    weight: torch.Tensor,
    choice: str,  # noqa: ARG001
    strength: torch.Tensor | None,  # noqa: ARG001
    scale: torch.Tensor | None,  # noqa: ARG001
) -> torch.Tensor:
    return weight.new_empty(weight.shape)


def _straight_through(_: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
    return gradient, None, None, None


_blended.register_fake(_shape_of_result)
_blended.register_autograd(_straight_through)


class _Passed(torch.autograd.Function):
    """A value in place of the weight, with the gradient of the identity."""

    @staticmethod
    def forward(_: object, weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(weight)

    @staticmethod
    def backward(_: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class FakeQuantized(nn.Module):
    """A parametrization: the parameter holds the full-precision weight, reads give the decoded one.

    Attributes:
        strength: float32 scalar in [0, 1], a buffer: fill it in place to switch or to anneal.
        scale: the stored scales, a buffer that is saved, where they are held; else None.
    """

    strength: torch.Tensor
    scale: torch.Tensor | None
    rounded: torch.Tensor | None  # what reads give while the weight is known not to change

    def __init__(
        self, choice: Choice, weight: torch.Tensor, *, strength: float = 1.0, held: bool = False
    ) -> None:
        super().__init__()
        self.choice = choice
        self.register_buffer(
            "strength", torch.tensor(strength, device=weight.device), persistent=False
        )
        held = held and not isinstance(choice.format, Passthrough)
        self.register_buffer("scale", stored_scale(weight, choice) if held else None)
        self.register_buffer("rounded", None, persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.rounded is not None:
            passed: torch.Tensor = _Passed.apply(weight, self.rounded)  # type: ignore[no-untyped-call]
            return passed
        return fake_quantize(weight, self.choice, strength=self.strength, scale=self.scale)

    def hold(self, weight: torch.Tensor) -> None:
        """Recompute held scales from `weight`; without held scales, do nothing."""
        if self.scale is not None:
            self.scale.copy_(stored_scale(weight, self.choice))
