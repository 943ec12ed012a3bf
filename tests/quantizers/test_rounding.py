"""GPTQ against an explicit Optimal Brain Surgeon, and what it does with awkward Hessians."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers import rounding
from packer.quantizers.attachment import attach
from packer.quantizers.choice import parse_choice
from packer.quantizers.clip import nearest_codes
from packer.quantizers.compiled_loops import compiled
from packer.quantizers.curvature import Curvature
from packer.quantizers.fake_quant import fake_quantize
from packer.quantizers.formats import FormatError
from packer.quantizers.quantize import dequantize, quantize, quantize_reported

SCALED = [
    *("int6.row", "int4.row", "int2.row", "int5.tensor", "int6.row.wide", "int8.row.scale32"),
    *("int6.row+kstd@12.85", "int5.row+percentile", "int5.row+percentile-matrix", "int4.row+mse"),
    *("ternary.row", "ternary.row+absmean", "int6.row+reach@5", "int5.row+prune@0.2"),
]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hessian_of(seed: int, columns: int, tokens: int = 400) -> torch.Tensor:
    """Second moment of correlated inputs of uneven power."""
    inputs = normal(seed, tokens, columns) @ normal(seed + 1, columns, columns)
    inputs *= torch.exp(0.5 * normal(seed + 2, columns))
    return inputs.T @ inputs / tokens


def loss(weight: torch.Tensor, decoded: torch.Tensor, hessian: torch.Tensor) -> float:
    difference = (decoded - weight).double()
    return float((difference @ hessian.double() * difference).sum())


def brain_surgeon(
    rows: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, code_max: int, order: list[int]
) -> torch.Tensor:
    """Codes, with the Hessian of the weights that are left inverted anew at every step."""
    weight, hessian = rows.double().clone(), hessian.double()
    codes = torch.zeros_like(weight)
    left = list(order)
    for column in order:
        inverse = torch.linalg.inv(hessian[left][:, left])
        at = left.index(column)
        codes[:, column] = (weight[:, column] / scale).round().clamp(-code_max, code_max)
        error = weight[:, column] - codes[:, column] * scale
        weight[:, left] -= error[:, None] / inverse[at, at] * inverse[at]
        left.remove(column)
    return codes


@pytest.mark.parametrize("order", rounding.ORDERS)
@pytest.mark.parametrize("block", [1, 3, 8, 128])
@pytest.mark.parametrize("seed", range(4))
def test_gptq_is_the_optimal_brain_surgeon(order, block, seed):
    rows, hessian = normal(seed, 8, 8), hessian_of(seed + 10, 8)
    scale = (rows.abs().amax(1) / 7).half().float()
    found = rounding.gptq(rows, hessian, scale, -7, 7, damping=0.02, block=block, order=order)
    diagonal = hessian.diagonal()
    damped = hessian.double() + 0.02 * float(diagonal.mean()) * torch.eye(8, dtype=torch.float64)
    by_diagonal = diagonal.argsort(descending=order == "descending").tolist()
    columns = range(8) if order == "given" else by_diagonal
    expected = brain_surgeon(rows, damped, scale.double(), 7, list(columns))
    assert torch.equal(found.codes.double(), expected)
    assert not torch.equal(found.codes, nearest_codes(rows, scale, -7, 7))
    assert found.report == rounding.RoundingReport(0.02, 0.02, 0)
    assert found.report.problem is None


@pytest.mark.parametrize("text", SCALED)
def test_less_is_felt_than_with_nearest_rounding(text):
    weight, hessian = normal(3, 40, 150), hessian_of(20, 150)
    choice = parse_choice(text + "+gptq")
    rounded = quantize(weight, choice, Curvature(hessian, None, 400))
    nearest = quantize(weight, parse_choice(text))
    assert torch.equal(rounded.side["scale"], nearest.side["scale"])
    ratio = loss(weight, dequantize(rounded), hessian) / loss(weight, dequantize(nearest), hessian)
    assert ratio < 0.9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), columns=st.integers(1, 200))
def test_without_correlation_it_is_nearest_rounding(seed, rows, columns):
    weight = normal(seed, rows, columns)
    hessian = torch.diag(normal(seed + 1, columns).square() + 0.1)
    rounded = quantize(weight, parse_choice("int4.row+gptq"), Curvature(hessian, None, 1))
    assert torch.equal(rounded.codes, quantize(weight, parse_choice("int4.row")).codes)


def test_codes_of_pruned_weights_stay_zero_and_the_others_make_up_for_them():
    weight, hessian = normal(4, 16, 64), hessian_of(30, 64)
    curvature = Curvature(hessian, None, 400)
    rounded = quantize(weight, parse_choice("int8.row+prune@0.3+gptq"), curvature)
    plain = quantize(weight, parse_choice("int8.row+prune@0.3"))
    smallest = weight.abs().flatten().argsort()[: int(0.3 * weight.numel())]
    assert not rounded.codes.flatten()[smallest].any()
    losses = [loss(weight, dequantize(one), hessian) for one in (rounded, plain)]
    assert losses[0] < 0.6 * losses[1]


def test_dead_columns_become_zero_and_are_counted():
    weight, hessian = normal(5, 6, 12), hessian_of(40, 12)
    hessian[[2, 7]] = 0
    hessian[:, [2, 7]] = 0
    curvature = Curvature(hessian, None, 400)
    rounded, report = quantize_reported(weight, parse_choice("int6.row+gptq"), curvature)
    assert report == rounding.RoundingReport(0.01, 0.01, 2)
    assert not rounded.codes[:, [2, 7]].any()
    alive = [column for column in range(12) if column not in (2, 7)]
    alone = rounding.gptq(
        weight[:, alive],
        hessian[alive][:, alive],
        rounded.side["scale"].float(),
        -31,
        31,
        damping=0.01 * len(alive) / 12,  # the mean is over all columns; here are fewer
    )
    # 0.01 · sum / 12 is damped in both.
    assert torch.equal(rounded.codes[:, alive].float(), alone.codes)


def test_a_matrix_whose_inputs_are_all_zero_is_rounded_to_nearest_and_named():
    weight = normal(6, 4, 9)
    curvature = Curvature(torch.zeros(9, 9), None, 5)
    rounded, report = quantize_reported(weight, parse_choice("int6.row+gptq"), curvature)
    assert torch.equal(rounded.codes, quantize(weight, parse_choice("int6.row")).codes)
    assert report.problem == "rounded to nearest: all of its inputs are zero"


def test_damping_rises_until_the_factorization_works():
    """Symmetric and not positive: eigenvalues of no second moment, as damaged statistics have."""
    hessian = torch.eye(6)
    hessian[0, 1] = hessian[1, 0] = 1.05
    weight, choice = normal(7, 50, 6), parse_choice("int5.row+gptq")
    rounded, report = quantize_reported(weight, choice, Curvature(hessian, None, 5))
    assert report.damping == pytest.approx(0.1)
    assert report.problem.startswith("damping 0.1 of the mean diagonal, not 0.01")
    assert not torch.equal(rounded.codes, quantize(weight, parse_choice("int5.row")).codes)


def test_a_hessian_that_cannot_be_used_means_nearest_rounding_and_is_named():
    hessian = torch.eye(6)
    hessian[0, 1] = hessian[1, 0] = 5.0
    weight = normal(8, 5, 6)
    rounded, report = quantize_reported(
        weight, parse_choice("int5.row+gptq"), Curvature(hessian, None, 5)
    )
    assert torch.equal(rounded.codes, quantize(weight, parse_choice("int5.row")).codes)
    assert report.damping == 1.0
    assert report.problem == ("rounded to nearest: its Hessian has no Cholesky factor at damping 1")


def test_the_matrices_of_a_bank_are_rounded_each_under_its_own_hessian():
    bank = normal(9, 3, 5, 24)
    hessians = torch.stack([hessian_of(50 + i, 24) for i in range(3)])
    whole = quantize(bank, parse_choice("int4.row+gptq"), Curvature(hessians, None, 400))
    for matrix, hessian, codes in zip(bank, hessians, whole.codes.split(5), strict=True):
        alone = quantize(matrix, parse_choice("int4.row+gptq"), Curvature(hessian, None, 400))
        assert torch.equal(alone.codes, codes)


def test_a_bank_says_which_matrix_failed():
    hessians = torch.stack([torch.eye(4), torch.zeros(4, 4)])
    _, report = quantize_reported(
        normal(1, 2, 3, 4), parse_choice("int4.row+gptq"), Curvature(hessians, None, 4)
    )
    assert report.problem == "rounded to nearest: in bank 1 all of its inputs are zero"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_comes_back(dtype):
    weight = normal(2, 4, 16).to(dtype)
    curvature = Curvature(hessian_of(60, 16), None, 400)
    assert dequantize(quantize(weight, parse_choice("int6.row+gptq"), curvature)).dtype == dtype


def test_a_row_of_zeros_gets_scale_zero_and_codes_zero():
    weight = normal(2, 4, 16)
    weight[1] = 0
    curvature = Curvature(hessian_of(60, 16), None, 400)
    rounded = quantize(weight, parse_choice("int6.row+gptq"), curvature)
    assert not rounded.codes[1].any()
    assert dequantize(rounded).isfinite().all()


def test_gptq_without_curvature_is_refused_by_name():
    with pytest.raises(FormatError, match=r"int6.row\+gptq needs curvature"):
        quantize(normal(0, 4, 4), parse_choice("int6.row+gptq"))


def test_curvature_of_another_weight_is_refused():
    with pytest.raises(FormatError, match="hessian is 5 wide"):
        quantize(normal(0, 4, 4), parse_choice("int6.row+gptq"), Curvature(torch.eye(5), None, 5))


def test_an_unknown_order_is_refused():
    with pytest.raises(FormatError, match="orders are descending, ascending, given"):
        rounding.factorize(torch.eye(3), order="random")


def test_fake_quantization_refuses_what_it_cannot_do():
    with pytest.raises(FormatError, match=r"train under int6.row, and pack under int6.row\+gptq"):
        fake_quantize(normal(0, 4, 4), parse_choice("int6.row+gptq"))
    with pytest.raises(FormatError, match=r"^weight: fake quantization rounds to nearest"):
        attach(torch.nn.Linear(4, 4), {"weight": "int6.row+gptq"})


@pytest.mark.parametrize("pruned", [False, True])
def test_the_compiled_loop_is_the_one_by_columns(pruned):
    rows = normal(1, 40, 50)
    hessian = normal(2, 200, 50).T @ normal(2, 200, 50)
    upper = rounding.factorize(hessian).upper
    scale = torch.linspace(0.0, 0.9, 40)
    zero = rows.abs() < 0.5 if pruned else None
    given = (upper, scale, (-3, 2), zero, 40)
    compiled_way = rounding._compiled_block(rows.clone(), *given)
    plain_way = rounding._by_columns(rows.clone(), *given)
    for one, other in zip(compiled_way, plain_way, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    codes = compiled_way[0]
    assert codes.unique().tolist() == [-3, -2, -1, 0, 1, 2]
    assert not codes[0].any()
    assert zero is None or not codes[zero].any()


def test_a_loop_is_compiled_where_it_cannot_be_cached():
    namespace: dict[str, object] = {}
    exec("def twice(x):\n    return 2 * x\n", namespace)  # of no file, so of no cache
    assert compiled(namespace["twice"])(3.0) == 6.0


def test_the_percentile_is_chosen_by_the_error_that_gptq_leaves():
    weight, hessian = normal(5, 6, 512), hessian_of(6, 512, 700)
    weight[:, 0] *= 6
    curvature = Curvature(hessian, None, 700)
    found = quantize(weight, parse_choice("int4.row+percentile-rounded+gptq"), curvature)
    errors = []
    for percentile in (0.999, 0.9995, 0.9999, 0.99999, 1.0):
        text = f"int4.row+quantile@{percentile}+gptq"
        one = quantize(weight, parse_choice(text), curvature)
        errors.append((float((dequantize(one) - weight).square().sum()), one.codes))
    assert len({error for error, _ in errors}) > 1
    assert torch.equal(found.codes, min(errors, key=lambda pair: pair[0])[1])


@pytest.mark.parametrize("rounding_step", ["", "+gptq"])
def test_small_codes_become_zero_after_rounding(rounding_step):
    weight, curvature = normal(7, 6, 64), Curvature(hessian_of(8, 64), None, 400)
    whole = quantize(weight, parse_choice(f"int5.row{rounding_step}"), curvature).codes
    cut = quantize(weight, parse_choice(f"int5.row+zero@2{rounding_step}"), curvature).codes
    assert torch.equal(cut, torch.where(whole.abs() <= 2, 0, whole).to(torch.int8))
    assert 0 < int((cut == 0).sum()) < cut.numel()
