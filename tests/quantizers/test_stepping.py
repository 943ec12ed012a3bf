"""Stepped formats: the grid of steps, what their codes stand for, and how steps are chosen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.dequantize import code_values
from packer.quantizers.formats import STEPPED, FormatError, QuantizedTensor, Stepped
from packer.quantizers.quantize import dequantize, quantize
from packer.quantizers.rounding import factorize
from packer.quantizers.step_grid import (
    LARGEST_INDEX,
    MANTISSAS,
    SMALLEST_INDEX,
    nearest_indices,
    on_grid,
    steps_of,
)
from packer.quantizers.stepping import row_curvature


def curved(rows: int, columns: int, seed: int = 0, banks: int | None = None) -> Curvature:
    """Inputs of very unlike size and correlated, rows of very unlike Fisher."""
    generator = torch.Generator().manual_seed(seed)
    shape = () if banks is None else (banks,)
    sizes = torch.logspace(-1, 1, columns)
    inputs = torch.randn(*shape, 4 * columns, columns, generator=generator) * sizes
    inputs += torch.randn(*shape, 4 * columns, 1, generator=generator)
    hessian = inputs.mT @ inputs / (4 * columns)
    fisher = torch.logspace(-2, 2, rows)[torch.randperm(rows, generator=generator)]
    return Curvature((hessian + hessian.mT) / 2, fisher, tokens=10_000)


def weights(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def quadratic_damage(curvature: Curvature, change: torch.Tensor) -> float:
    forms = ((change @ curvature.hessian) * change).sum(dim=1)
    return float((curvature.fisher * forms).sum())


def test_the_grid_is_exact_and_eight_steps_to_the_octave():
    indices = torch.arange(SMALLEST_INDEX, LARGEST_INDEX + 1).numpy()
    steps = steps_of(indices)
    exact = [MANTISSAS[k % 8] * 2.0 ** (k // 8 - 23) for k in indices.tolist()]
    assert steps.tolist() == exact
    assert torch.equal(torch.from_numpy(nearest_indices(steps)), torch.from_numpy(indices))
    assert [round(2 ** (23 + i / 8)) for i in range(8)] == list(MANTISSAS)
    assert on_grid(steps) and not on_grid(steps.double()) and not on_grid(steps[:9] * 1.0000001)
    extremes = steps.double()[[0, -1]] ** 2
    assert extremes[0] >= torch.finfo(torch.float32).tiny
    assert extremes[1] * 2**15 <= torch.finfo(torch.float32).max


@given(st.floats(1e-10, 1e10), st.sampled_from([1, 2, 4, 8]))
def test_the_nearest_step_is_half_a_stride_away_at_most(step, stride):
    index = nearest_indices(torch.tensor([step]), stride)
    assert index[0] % stride == 0
    ratio = float(steps_of(index)[0]) / step
    assert 2 ** (-stride / 16) * 0.9999 <= ratio <= 2 ** (stride / 16) * 1.0001


def test_codes_stand_for_values_a_little_nearer_to_zero():
    codes = torch.tensor([0.0, 1, -1, 2, -2, 3, -300, 32767])
    expected = [0, 1 - 25 / 256, -1 + 25 / 256, 2 - 12 / 256, -2 + 12 / 256, 3 - 6 / 256]
    assert code_values(codes, 25).tolist() == [*expected, -300 + 6 / 256, 32767 - 6 / 256]
    assert code_values(codes, 0) is codes


@pytest.mark.parametrize("format", sorted(STEPPED))
@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_choices_are_spelled_and_give_codes_without_a_clip(format, rounding):
    choice = parse_choice(f"{format}+{rounding}@0.02")
    assert str(choice) == f"{format}+{rounding}@0.02"
    weight = weights(24, 16)
    weight[3, 5] = 30.0  # hundreds of steps
    quantized = quantize(weight, choice, curved(24, 16))
    change = (dequantize(quantized) - weight).abs()
    steps = quantized.side["row"][:, None] * quantized.side.get("column", torch.ones(1))
    if rounding == "nearest":
        assert bool((change <= 0.76 * steps).all())
    assert int(quantized.codes.abs().max()) > 127
    assert ("column" in quantized.side) == choice.format.columns
    assert len(quantized.side["row"]) == (24 if choice.format.rows else 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("step.row.col", "mean step"),
        ("step.row.col+gptq", "mean step"),
        ("step+gptq@0", "mean step"),
        ("step+gptq@nan", "mean step"),
        ("step+absmax+gptq@1", "takes no range"),
        ("step.col~brotli+gptq@1", "no coder but ans"),
        ("step.row+prune@0.1+gptq@1", "takes no range, reach or prune"),
        ("int6.row+gptq@0.5", "gptq takes no value"),
        ("step.col.row+gptq@1", "unknown format"),
        ("step.row.rank4x8+gptq@1", "take a correction|only integers"),
    ],
)
def test_choices_that_make_no_sense_are_refused(text, says):
    with pytest.raises(FormatError, match=says):
        parse_choice(text)


def test_the_mean_step_is_what_the_choice_says():
    weight, curvature = weights(32, 48), curved(32, 48)
    for format in STEPPED:
        quantized = quantize(weight, parse_choice(f"{format}+gptq@0.5"), curvature)
        logs = quantized.side["row"].log().mean()
        if "column" in quantized.side:
            logs = logs + quantized.side["column"].log().mean()
        wanted = 0.5 * float(weight.square().mean().sqrt())
        assert abs(float(logs.exp()) / wanted - 1) < 0.05


@pytest.mark.parametrize(("size", "stride"), [(300, 1), (100, 2), (40, 4)])
def test_steps_follow_the_cholesky_diagonal_and_the_rows_fisher(size, stride):
    """To half the distance of two steps, which is wider where few weights share one."""
    curvature = curved(size, size)
    quantized = quantize(weights(size, size), parse_choice("step.row.col+gptq@0.5"), curvature)
    factor = factorize(curvature.hessian)
    pivots = torch.empty(size)
    pivots[factor.order] = factor.upper.diagonal()
    columns = (quantized.side["column"] / pivots).log2()
    rows = (quantized.side["row"] * curvature.row_fisher**0.375).log2()
    for logs in (columns, rows):
        middle = (logs.max() + logs.min()) / 2
        assert float((logs - middle).abs().max()) <= stride / 16 * 1.1
    for steps in quantized.side["row"], quantized.side["column"]:
        assert not (nearest_indices(steps) % stride).any()


def test_every_degree_of_freedom_lowers_damage_at_equal_entropy():
    """Bits by the order-0 entropy of each row's or column's codes; damage by the curvature."""
    weight, curvature = weights(96, 64), curved(96, 64)
    worth = {}
    for format in STEPPED:
        quantized = quantize(weight, parse_choice(f"{format}+gptq@0.3"), curvature)
        damage = quadratic_damage(curvature, dequantize(quantized) - weight)
        spread = quantized.codes.float().square() + 1 / 12
        bits = float(spread.log2().mean() / 2)
        worth[format] = bits + float(torch.tensor(damage).log2()) / 2
    assert worth["step.row.col"] < worth["step.row"] < worth["step"] - 0.2
    assert worth["step.row.col"] < worth["step.col"] < worth["step"]


def test_a_row_that_few_tokens_read_is_drawn_to_the_mean():
    fisher = torch.logspace(-3, 3, 65)
    usage = torch.full((65,), 0.1)
    usage[0] = 1e-5
    table = Curvature(torch.eye(8), fisher, tokens=10_000, row_usage=usage)
    felt_by_row = row_curvature(table)
    ratio = (felt_by_row / fisher).log()
    assert float(ratio[0]) > 0.5
    assert float(ratio[1:].abs().max()) < 0.3


def test_banks_share_their_column_steps_and_have_their_own_hessians():
    weight, curvature = weights(3 * 16, 24).reshape(3, 16, 24), curved(48, 24, banks=3)
    choice = parse_choice("step.row.col+gptq@0.4")
    quantized = quantize(weight, choice, curvature)
    assert quantized.codes.shape == (48, 24) and len(quantized.side["column"]) == 24
    nearest = quantize(weight, parse_choice("step.row.col+nearest@0.4"), curvature)
    for bank in range(3):
        errors = []
        for rounded in (quantized, nearest):
            change = (dequantize(rounded) - weight)[bank]
            errors.append(float(((change @ curvature.hessian[bank]) * change).sum()))
        assert errors[0] < errors[1]


@pytest.mark.parametrize("format", sorted(STEPPED))
def test_odd_tensors(format):
    choice = parse_choice(f"{format}+nearest@0.5")
    for weight in (torch.zeros(4, 4), torch.tensor(0.3), torch.full((1, 3), 2.0**-40)):
        decoded = dequantize(quantize(weight, choice))
        assert decoded.shape == weight.shape and bool(torch.isfinite(decoded).all())
    dead = curved(6, 5)
    dead.hessian[2] = dead.hessian[:, 2] = 0
    quantized = quantize(weights(6, 5), parse_choice(f"{format}+gptq@0.5"), dead)
    assert bool((quantized.codes[:, 2] == 0).all())
    with pytest.raises(FormatError, match="needs curvature"):
        quantize(weights(6, 5), parse_choice(f"{format}+gptq@0.5"))


def test_side_values_are_checked():
    good = quantize(weights(4, 6), parse_choice("step.row.col+nearest@0.5"))

    def made(**changed: torch.Tensor) -> QuantizedTensor:
        side = {**good.side, **changed}
        return QuantizedTensor(Stepped(True, True), (4, 6), torch.float32, good.codes, side)

    made()
    with pytest.raises(FormatError, match="not on the grid"):
        made(row=good.side["row"] * 1.01)
    with pytest.raises(FormatError, match="not on the grid"):
        made(column=-good.side["column"])
    with pytest.raises(FormatError, match="lengths"):
        made(column=good.side["column"][:5])
    with pytest.raises(FormatError, match="shrink"):
        made(shrink=torch.tensor([128], dtype=torch.uint8))
    with pytest.raises(FormatError, match="int16 codes"):
        QuantizedTensor(
            Stepped(True, True), (4, 6), torch.float32, good.codes.to(torch.int8), good.side
        )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(sorted(STEPPED)), st.floats(0.02, 3))
def test_codes_of_decoded_weights_are_the_same_with_steps_held(seed, format, step):
    """Away from the ends of a code's interval, where shrunken values lie."""
    quantized = quantize(weights(12, 9, seed), parse_choice(f"{format}+nearest@{step}"))
    steps = quantized.side["row"][:, None] * quantized.side.get("column", torch.ones(1))
    assert torch.equal((dequantize(quantized) / steps).round().to(torch.int16), quantized.codes)
