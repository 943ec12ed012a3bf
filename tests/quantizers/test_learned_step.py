"""Learned steps: the forward is what a choice packs, the gradient is that of LSQ."""

from __future__ import annotations

import pytest
import torch
from packer.quantizers.attachment import attach, current_choices, set_strength
from packer.quantizers.choice import parse_choice
from packer.quantizers.learned_step import LearnedStep
from packer.quantizers.quantize import dequantize, quantize
from torch import nn

FORMATS = [
    "int2.row",
    "int4.row",
    "int6.tensor",
    "int5.row.wide",
    "int8.row.scale32",
    "int6.row+reach@20",
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", [*FORMATS, "int6.row+kstd@3.7", "int4.row~brotli"])
@pytest.mark.parametrize("drift", [-0.7, 0.0, 0.4])
def test_the_value_is_what_the_current_choice_packs(text: str, drift: float) -> None:
    weight = normal(6, 40)
    wrapper = LearnedStep(parse_choice(text), weight)
    with torch.no_grad():
        wrapper.log_k += drift
    choice = wrapper.current_choice()
    assert choice.coder == parse_choice(text).coder
    assert torch.equal(wrapper(weight), dequantize(quantize(weight, choice)))
    assert torch.equal(wrapper(weight), dequantize(quantize(weight, parse_choice(str(choice)))))


@pytest.mark.parametrize("text", FORMATS)
def test_the_gradient_of_the_step_is_that_of_lsq(text: str) -> None:
    """Equation 3 of the paper, element by element: q - w/s inside the range, q outside."""
    weight = normal(4, 30).requires_grad_()
    wrapper = LearnedStep(parse_choice(text), weight)
    low, high = wrapper.choice.code_range
    with torch.no_grad():
        wrapper.log_k -= 1.6  # so that some weights are clipped
    upstream = normal(4, 30, seed=1)
    (wrapper(weight) * upstream).sum().backward()
    quantized = quantize(weight.detach(), wrapper.current_choice())
    scale = quantized.side["scale"].double()[:, None]
    ratio = weight.detach().double() / scale
    inside = (ratio >= low) & (ratio <= high)
    assert inside.any() and (not inside.all() or "int8" in text)
    slope = torch.where(inside, quantized.codes.double() - ratio, quantized.codes.double())
    expected = (upstream.double() * slope * scale).sum()
    torch.testing.assert_close(wrapper.log_k.grad.double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(weight.grad, upstream)


def test_a_strength_scales_rounding_and_gradient() -> None:
    weight = normal(3, 16)
    wrapper = LearnedStep(parse_choice("int3.row"), weight, strength=0.0)
    assert torch.equal(wrapper(weight), weight)
    wrapper(weight).sum().backward()
    assert wrapper.log_k.grad == 0
    wrapper.strength.fill_(0.5)
    decoded = dequantize(quantize(weight, wrapper.current_choice()))
    torch.testing.assert_close(wrapper(weight), torch.lerp(weight, decoded, 0.5))


def test_the_operators_keep_their_promises_to_the_compiler() -> None:
    weight = normal(4, 6).requires_grad_()
    log_k = torch.tensor(0.5, requires_grad=True)
    arguments = (weight, log_k, "int4.row", torch.tensor(0.3))
    torch.library.opcheck(torch.ops.bytecap.fake_quantize_step.default, arguments)
    arguments = (weight.detach(), log_k.detach(), "int4.row")
    torch.library.opcheck(torch.ops.bytecap.step_slope.default, arguments)


def test_training_finds_a_better_step_than_a_bad_first_one() -> None:
    layer = nn.Linear(32, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(normal(8, 32))
    target = layer.weight.detach().clone()
    attach(layer, {"weight": "int4.row+kstd@12"}, learned=True)
    (log_k,) = [p for name, p in layer.named_parameters() if name.endswith("log_k")]
    optimizer = torch.optim.Adam([log_k], lr=0.05)
    errors = []
    for _ in range(60):
        error = (layer.weight - target).square().sum()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.3 * errors[0]
    choice = current_choices(layer)["weight"]
    assert choice.range_rule == "kstd" and 1.5 < choice.range_value < 5


def test_tensors_of_zeros_and_other_formats() -> None:
    layers = nn.ModuleDict({name: nn.Linear(8, 4, bias=False) for name in ("zero", "fp", "tern")})
    with torch.no_grad():
        layers["zero"].weight.zero_()
    attach(
        layers,
        {"zero.weight": "int4.row", "fp.weight": "fp16", "tern.weight": "ternary.row"},
        learned=True,
    )
    set_strength(layers, 1.0)
    assert torch.equal(layers["zero"].weight, torch.zeros(4, 8))
    learned = [name for name, _ in layers.named_parameters() if name.endswith("log_k")]
    assert learned == ["zero.parametrizations.weight.0.log_k"]
    assert str(current_choices(layers)["tern.weight"]) == "ternary.row"
